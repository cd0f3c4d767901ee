"""The batcher: each accepted item is answered exactly once, bounds and deadlines hold, failures stay in their batch."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from tessella.data.decode import Pixels
from tessella.errors import ImageError, ServeError
from tessella.results import FloatArray, Output
from tessella.serve.batcher import Batcher, BatchQueue, Item, Lane, LaneBatch, Result, run_batch

from .processes import Snapshot

SEEDS = int(os.environ.get("TESSELLA_SEEDS", "2000"))
IMAGE_BYTES = 12


def echo(pixels_NHWC: Pixels) -> tuple[FloatArray, FloatArray]:
    """A model whose outputs name the image: its first four bytes as a number."""
    numbers = pixels_NHWC.reshape(len(pixels_NHWC), -1)[:, :4].copy().view("<u4").astype(np.float32)
    return numbers, -numbers


def image(number: int) -> Pixels:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels.reshape(-1)[:4] = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
    return pixels


def item(number: int, deadline: float = 1e9) -> Item[int]:
    return Item(number, image(number), deadline)


def number_of(result: Result[int]) -> int:
    assert isinstance(result.outcome, Output)
    assert result.outcome.embedding[0] == -result.outcome.logits[0]
    return int(result.outcome.logits[0])


class Simulation:
    """Clients, a BatchQueue and its workers on a simulated clock; every decision follows from the seed."""

    def __init__(self, seed: int):
        self.random = rng = random.Random(seed)
        self.now = 0.0
        self.max_images = rng.randint(1, 40)
        self.max_bytes = rng.choice([10**9, IMAGE_BYTES * rng.randint(1, 40)])
        self.max_delay = rng.choice([0.0, 0.0, rng.uniform(0.01, 2)])
        self.queue: BatchQueue[int] = BatchQueue(
            max_images=self.max_images, max_bytes=self.max_bytes, max_delay=self.max_delay, clock=lambda: self.now
        )
        self.lanes: list[Lane[int]] = [
            Lane(self.run, rng.randint(1, 8), rng.randint(1, 3)) for _ in range(rng.randint(1, 3))
        ]
        self.workers = rng.randint(1, 4)
        self.busy: list[tuple[float, LaneBatch[int]]] = []  # time at which the batch is finished
        self.accepted: dict[int, tuple[Lane[int], Item[int]]] = {}
        self.answers: Counter[int] = Counter()
        self.outcomes: dict[int, Result[int]] = {}
        self.started: dict[int, float] = {}
        self.canceled: set[int] = set()
        self.poisoned: set[int] = set()  # items of batches whose model failed
        self.not_finite: set[int] = set()
        self.count = 0

    def run(self, pixels_NHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        logits, embeddings = echo(pixels_NHWC)
        numbers = [int(row[0]) for row in logits]
        assert not self.canceled & set(numbers), "a canceled item reached the model"
        if self.random.random() < 0.1:
            self.poisoned |= set(numbers)
            raise random.Random(len(numbers)).choice([RuntimeError, MemoryError, SystemExit])("broken")
        for i, number in enumerate(numbers):
            if self.random.random() < 0.05:
                self.not_finite.add(number)
                (logits if self.random.random() < 0.5 else embeddings)[i] = self.random.choice([np.nan, np.inf])
        return logits, embeddings

    def submit(self) -> None:
        items = [
            item(self.count + i, self.now + self.random.choice([0.0, 0.05, 0.5, 5.0, 1e6]))
            for i in range(self.random.randint(1, 6))
        ]
        self.count += len(items)
        lane = self.random.choice(self.lanes)
        before = self.queue.images, self.queue.bytes
        full = before[0] + len(items) > self.max_images or before[1] + IMAGE_BYTES * len(items) > self.max_bytes
        if full:
            with pytest.raises(ServeError) as refused:
                self.queue.put(lane, items)
            assert refused.value.code == "overloaded"
            assert (self.queue.images, self.queue.bytes) == before, "a refused request takes no place"
        else:
            self.queue.put(lane, items)
            self.accepted |= {one.key: (lane, one) for one in items}

    def cancel(self) -> None:
        if self.accepted:
            number = self.random.choice([*self.accepted])
            lane, one = self.accepted[number]
            waiting = one in lane.waiting
            assert self.queue.remove(lane, one) is waiting
            if waiting:
                self.canceled.add(number)

    def work(self) -> None:
        while len(self.busy) < self.workers:
            taken = self.queue.take(self.workers - len(self.busy))
            if not isinstance(taken, LaneBatch):
                assert taken is None or taken > 0
                break
            assert len(taken.items) + len(taken.expired) > 0
            assert len(taken.items) <= taken.lane.batch_size
            assert taken.lane.running <= taken.lane.streams
            assert all(one.deadline > self.now for one in taken.items)
            assert all(one.deadline <= self.now for one in taken.expired)
            self.started |= {one.key: self.now for one in taken.items}
            self.busy.append((self.now + self.random.expovariate(2.0), taken))
        assert self.queue.images <= self.max_images
        assert self.queue.bytes <= self.max_bytes
        waiting = [one for lane in self.lanes for one in lane.waiting]
        assert (self.queue.images, self.queue.bytes) == (len(waiting), IMAGE_BYTES * len(waiting))

    def finish(self) -> None:
        for end, batch in [*self.busy]:
            if end <= self.now:
                self.busy.remove((end, batch))
                self.queue.finish(batch)
                self.deliver(run_batch(batch, lambda: self.now))

    def deliver(self, results: list[Result[int]]) -> None:
        for result in results:
            self.answers[result.item.key] += 1
            self.outcomes[result.item.key] = result

    def advance(self) -> None:
        """Go to the next event: a batch that ends or is due, or a moment in which nothing happens."""
        due = self.queue.take(1) if len(self.busy) < self.workers else None
        assert not isinstance(due, LaneBatch), "work() leaves no batch that could start"
        times = [end for end, _ in self.busy] + ([self.now + due] if due is not None else [])
        later = self.now + self.random.expovariate(4.0)
        self.now = min([*times, later]) if self.random.random() < 0.8 else later

    def play(self) -> None:
        for _ in range(self.random.randint(5, 60)):
            for _ in range(self.random.randint(0, 3)):
                self.submit()
            if self.random.random() < 0.3:
                self.cancel()
            self.work()
            self.advance()
            self.finish()
        closed = self.random.random() < 0.5
        if closed:  # what waits is handed back; batches in progress end
            self.deliver([Result(one, ServeError("draining", "closed"), 0.0, 0.0) for one in self.queue.clear()])
        while self.queue.images or self.busy:
            self.work()
            self.advance()
            self.finish()
        self.check(closed)

    def check(self, closed: bool) -> None:
        assert self.queue.bytes == 0
        assert all(lane.running == 0 for lane in self.lanes)
        assert set(self.answers) == set(self.accepted) - self.canceled
        assert set(self.answers.values()) <= {1}
        for number, result in self.outcomes.items():
            outcome = result.outcome
            if isinstance(outcome, Output):
                assert number_of(result) == number
                assert number not in self.poisoned | self.not_finite
            elif outcome.code == "worker_failed":
                assert number in self.poisoned
            elif outcome.code == "non_finite":
                assert number in self.not_finite
            elif outcome.code == "draining":
                assert closed
            else:
                assert outcome.code == "deadline_exceeded"
                assert number not in self.started


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """The simulated models fail thousands of times."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet_log")
def test_simulated_histories() -> None:
    for seed in range(SEEDS):
        try:
            Simulation(seed).play()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.usefixtures("quiet_log")
def test_the_simulation_meets_every_case() -> None:
    seen: Counter[str] = Counter()
    for seed in range(100):
        simulation = Simulation(seed)
        simulation.play()
        seen["canceled"] += len(simulation.canceled)
        seen["refused"] += simulation.count - len(simulation.accepted)
        seen.update(getattr(result.outcome, "code", "ok") for result in simulation.outcomes.values())
    assert set(seen) == {"ok", "canceled", "refused", "worker_failed", "non_finite", "draining", "deadline_exceeded"}
    assert min(seen.values()) > 10


class Collector:
    """Collects results, and waits for a number of them."""

    def __init__(self) -> None:
        self.results: list[Result[int]] = []
        self.batches: list[int] = []
        self.changed = threading.Condition()

    def __call__(self, results: list[Result[int]]) -> None:
        with self.changed:
            self.results += results
            self.batches.append(len(results))
            self.changed.notify_all()

    def wait(self, count: int) -> list[Result[int]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.results) >= count, 60)
        return self.results


class GatedModel:
    """The model `echo`, which waits for permission to start."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.sizes: list[int] = []

    def __call__(self, pixels_NHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        self.sizes.append(len(pixels_NHWC))
        self.started.release()
        assert self.gate.acquire(timeout=60)
        return echo(pixels_NHWC)


def test_many_threads_get_their_own_answers() -> None:
    collect = Collector()
    lanes: list[Lane[int]] = [Lane(echo, 8, 2), Lane(echo, 3, 1)]
    with Batcher(collect, workers=3, max_images=10_000, max_bytes=10**9) as batcher:

        def client(first: int) -> None:
            for number in range(first, first + 5000):
                batcher.submit(lanes[number % 2], [item(number)])

        threads = [threading.Thread(target=client, args=(first,)) for first in (0, 5000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results = collect.wait(10_000)
    assert sorted(result.item.key for result in results) == list(range(10_000))
    assert all(number_of(result) == result.item.key for result in results)


def test_a_full_queue_refuses_and_a_canceled_item_frees_its_place() -> None:
    collect, model = Collector(), GatedModel()
    lane: Lane[int] = Lane(model, 1)
    with Batcher(collect, workers=1, max_images=2, max_bytes=10**9) as batcher:
        batcher.submit(lane, [item(0)])
        assert model.started.acquire(timeout=60)
        one, two = item(1), item(2)
        batcher.submit(lane, [one, two])
        with pytest.raises(ServeError) as refused:
            batcher.submit(lane, [item(3)])
        assert refused.value.code == "overloaded"
        assert batcher.cancel(lane, one)
        assert not batcher.cancel(lane, one)
        batcher.submit(lane, [item(4)])
        model.gate.release(3)
        assert [result.item.key for result in collect.wait(3)] == [0, 2, 4]
        assert not batcher.cancel(lane, two)  # too late


def test_the_limit_on_bytes_holds() -> None:
    queue: BatchQueue[int] = BatchQueue(max_images=100, max_bytes=3 * IMAGE_BYTES)
    lane: Lane[int] = Lane(echo, 8)
    queue.put(lane, [item(0), item(1)])
    with pytest.raises(ServeError):
        queue.put(lane, [item(2), item(3)])
    queue.put(lane, [item(4)])
    assert (queue.images, queue.bytes) == (3, 3 * IMAGE_BYTES)


def test_a_batch_waits_for_more_images_only_with_a_delay() -> None:
    now = [0.0]
    queue: BatchQueue[int] = BatchQueue(max_images=100, max_bytes=10**9, max_delay=0.5, clock=lambda: now[0])
    lane: Lane[int] = Lane(echo, 4, 2)
    queue.put(lane, [item(0)])
    assert queue.take(1) == pytest.approx(0.5)
    now[0] = 0.3
    queue.put(lane, [item(1), item(2)])
    assert queue.take(1) == pytest.approx(0.2)  # the first one decides
    queue.put(lane, [item(3)])
    batch = queue.take(1)  # complete
    assert isinstance(batch, LaneBatch)
    assert [one.key for one in batch.items] == [0, 1, 2, 3]
    queue.put(lane, [item(4, deadline=0.4)])
    assert queue.take(1) == pytest.approx(0.05)  # half of the time that it has


def test_idle_workers_share_what_waits() -> None:
    queue: BatchQueue[int] = BatchQueue(max_images=100, max_bytes=10**9)
    lane: Lane[int] = Lane(echo, 8, 2)
    queue.put(lane, [item(i) for i in range(5)])
    sizes = []
    for idle in (2, 1):
        batch = queue.take(idle)
        assert isinstance(batch, LaneBatch)
        sizes.append(len(batch.items))
    assert sizes == [3, 2]
    assert queue.take(2) is None


def test_the_lane_with_the_oldest_image_is_next() -> None:
    now = [0.0]
    queue: BatchQueue[int] = BatchQueue(max_images=100, max_bytes=10**9, clock=lambda: now[0])
    first: Lane[int] = Lane(echo, 1)
    second: Lane[int] = Lane(echo, 8)
    for i, lane in enumerate((first, second, first)):
        now[0] = float(i)
        queue.put(lane, [item(i)])
    order = []
    while isinstance(batch := queue.take(1), LaneBatch):
        order += [one.key for one in batch.items]
        queue.finish(batch)
    assert order == [0, 1, 2]


def test_results_are_delivered_without_waiting_for_another_batch() -> None:
    collect, model = Collector(), GatedModel()
    lane: Lane[int] = Lane(model, 1, 2)
    with Batcher(collect, workers=2, max_images=9, max_bytes=10**9) as batcher:
        batcher.submit(lane, [item(0), item(1)])
        for _ in range(2):  # both workers have a batch
            assert model.started.acquire(timeout=60)
        model.gate.release()
        collect.wait(1)
        model.gate.release()
        assert sorted(result.item.key for result in collect.wait(2)) == [0, 1]


def test_a_failing_model_affects_only_its_batch() -> None:
    collect = Collector()

    def run(pixels_NHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        if pixels_NHWC.reshape(-1)[0] == 1:
            raise RuntimeError("broken")
        return echo(pixels_NHWC)

    lane: Lane[int] = Lane(run, 1)
    with Batcher(collect, workers=1, max_images=9, max_bytes=10**9) as batcher:
        batcher.submit(lane, [item(i) for i in range(3)])
        outcomes = [result.outcome for result in collect.wait(3)]
        assert batcher.is_working
    assert [isinstance(outcome, Output) for outcome in outcomes] == [True, False, True]
    assert isinstance(outcomes[1], ServeError)
    assert outcomes[1].code == "worker_failed"


def test_rows_that_are_not_finite_are_errors_of_their_images() -> None:
    def run(pixels_NHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        logits, embeddings = echo(pixels_NHWC)
        logits[1], embeddings[2] = np.nan, np.inf
        return logits, embeddings

    batch = LaneBatch(Lane[int](run, 4), [item(i) for i in range(4)], [])
    codes = [getattr(result.outcome, "code", "ok") for result in run_batch(batch, lambda: 0.0)]
    assert codes == ["ok", "non_finite", "non_finite", "ok"]
    assert isinstance(run_batch(batch, lambda: 0.0)[1].outcome, ImageError)


def test_the_pace_of_a_model_follows_its_batches() -> None:
    lane: Lane[int] = Lane(echo, 8, 2)
    assert lane.pace == 0
    lane.observe(0.2)
    assert lane.pace == pytest.approx(0.1)
    lane.observe(3600.0)  # the machine was suspended
    assert lane.pace < 0.15
    for _ in range(100):
        lane.observe(0.1)
    assert lane.pace == pytest.approx(0.05, rel=0.01)


def test_only_batches_that_ran_count_for_the_pace() -> None:
    now = iter(range(100))

    def fail(pixels_NHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        raise RuntimeError("broken")

    lane: Lane[int] = Lane(fail, 4)
    run_batch(LaneBatch(lane, [item(0)], []), lambda: float(next(now)))
    assert lane.image_seconds == 0
    lane.run = echo
    run_batch(LaneBatch(lane, [item(0), item(1)], []), lambda: float(next(now)))
    assert lane.image_seconds == pytest.approx(0.5)


def test_a_model_with_another_number_of_rows_fails() -> None:
    batch = LaneBatch(Lane[int](lambda pixels: echo(pixels[:1]), 4), [item(0), item(1)], [])
    assert [getattr(result.outcome, "code", "ok") for result in run_batch(batch, lambda: 0.0)] == ["worker_failed"] * 2


def test_close_answers_everything_and_ends_the_threads() -> None:
    collect, model = Collector(), GatedModel()
    lane: Lane[int] = Lane(model, 1)
    before = Snapshot()
    batcher = Batcher(collect, workers=2, max_images=9, max_bytes=10**9)
    batcher.submit(lane, [item(i) for i in range(3)])
    assert model.started.acquire(timeout=60)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.gate.release(3)
    closing.join(60)
    assert not closing.is_alive()
    assert not before.left_over()
    codes = {result.item.key: getattr(result.outcome, "code", "ok") for result in collect.results}
    assert codes == {0: "ok", 1: "draining", 2: "draining"}
    with pytest.raises(ServeError, match="closed"):
        batcher.submit(lane, [item(4)])


def test_a_delivery_that_fails_does_not_stop_the_batcher(caplog: pytest.LogCaptureFixture) -> None:
    collect = Collector()

    def deliver(results: list[Result[int]]) -> None:
        collect(results)
        if results[0].item.key == 0:
            raise RuntimeError("the event loop is closed")

    lane: Lane[int] = Lane(echo, 1)
    with Batcher(deliver, workers=1, max_images=9, max_bytes=10**9) as batcher:
        batcher.submit(lane, [item(0), item(1)])
        collect.wait(2)
    assert "could not be delivered" in caplog.text
