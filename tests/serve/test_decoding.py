"""Decoding requests in processes that are killed, hang or cannot be started: no image affects another."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tessella.data.isolated import supervisor
from tessella.data.isolated.processes import ForkServer, Task
from tessella.data.isolated.protocol import Decoded, EncodedImage
from tessella.data.limits import Limits
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.errors import ImageError, ServeError
from tessella.serve import decoding
from tessella.serve.decoding import DecodePool
from tessella.serve.settings import ServeSettings

from .engines import PHOTOGRAPH, SPEC, encoded, number_of_pixels
from .fatal import POISON, FatalImage
from .processes import Snapshot, decoders

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


class Results:
    """Collects finished tasks, and waits for them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.tasks: dict[object, list[Task]] = {}

    def add(self, key: object, task: Task) -> None:
        with self.changed:
            self.tasks.setdefault(key, []).append(task)
            self.changed.notify_all()

    def wait(self, count: int) -> dict[object, Decoded]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.tasks) >= count, 100)
        found = {key: tasks[0].result for key, tasks in self.tasks.items()}
        return {key: result for key, result in found.items() if result is not None}


class Events:
    """What a pool reports about its processes."""

    def __init__(self) -> None:
        self.lost = threading.Semaphore(0)
        self.failed: list[BaseException] = []
        self.gave_up = threading.Event()

    def fail(self, error: BaseException) -> None:
        self.failed.append(error)
        self.gave_up.set()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def pool(events: Events) -> Iterator[DecodePool]:
    settings = ServeSettings(decode_processes=2)  # with the usual time limit, which a busy machine keeps
    pool = DecodePool(settings, on_lost=events.lost.release, on_failed=events.fail)
    yield pool
    pool.close()


def submit(pool: DecodePool, results: Results, key: object, data: bytes, spec: InputSpec = SPEC) -> Task:
    return pool.submit(data, spec, lambda task: results.add(key, task))


def wait_for_workers(pool: DecodePool, count: int = 2) -> list[int]:
    until = time.monotonic() + 60
    while len(found := decoders(pool)) < count and time.monotonic() < until:
        time.sleep(0.005)
    assert len(found) == count
    return found


def stop(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def test_every_image_is_prepared_for_its_own_spec(pool: DecodePool) -> None:
    specs = [InputSpec(height=24, width=20), InputSpec(height=224, width=224), InputSpec(height=600, width=8)]
    results = Results()
    for i in range(30):
        submit(pool, results, i, PHOTOGRAPH, specs[i % 3])
    found = results.wait(30)
    for i in range(30):
        np.testing.assert_array_equal(found[i].pixels, load_pixels(PHOTOGRAPH, specs[i % 3]))
        assert results.tasks[i][0].seconds > 0
        assert (found[i].width, found[i].height) == (512, 512)


def test_results_belong_to_their_images(pool: DecodePool) -> None:
    results = Results()
    for i in range(2000):
        submit(pool, results, i, b"damaged" if i % 20 == 7 else encoded(i))
    found = results.wait(2000)
    for i in range(2000):
        pixels = found[i].pixels
        if i % 20 == 7:
            assert found[i].error is not None
        else:
            assert pixels is not None
            assert number_of_pixels(pixels[None]) == i
    assert all(len(tasks) == 1 for tasks in results.tasks.values())


def test_killed_processes_are_replaced_and_their_images_decoded_again(pool: DecodePool, events: Events) -> None:
    results, rng = Results(), random.Random(0)
    count = kills = 0
    while kills < 20:
        for _ in range(20):
            submit(pool, results, count, encoded(count))
            count += 1
        os.kill(rng.choice(wait_for_workers(pool)), signal.SIGKILL)
        assert events.lost.acquire(timeout=60)
        kills += 1
    found = results.wait(count)
    codes = {result.error.code for result in found.values() if result.error is not None}
    assert codes <= {"decoder_crashed"}  # an image that met two kills
    assert sum(result.error is not None for result in found.values()) <= kills // 2
    good = {key: number_of_pixels(result.pixels[None])[0] for key, result in found.items() if result.pixels is not None}
    assert all(key == number for key, number in good.items())
    assert all(len(tasks) == 1 for tasks in results.tasks.values())
    assert pool.has_worker or wait_for_workers(pool)


def test_an_image_that_kills_its_process_is_to_blame_alone(
    pool: DecodePool, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "EncodedImage", FatalImage)
    results = Results()
    for i in range(60):
        submit(pool, results, i, POISON if i % 10 == 3 else encoded(i))
    found = results.wait(60)
    for i in range(60):
        error, pixels = found[i].error, found[i].pixels
        if i % 10 == 3:
            assert error is not None
            assert error.code == "decoder_crashed"
        else:
            assert pixels is not None
            assert number_of_pixels(pixels[None]) == i
    for _ in range(12):  # each of the six was tried twice
        assert events.lost.acquire(timeout=60)


def test_a_hanging_process_costs_one_image(pool: DecodePool, events: Events) -> None:
    results = Results()
    one, other = wait_for_workers(pool)
    stop([one])
    for i in range(20):
        submit(pool, results, i, encoded(i))
    found = results.wait(20)
    codes = [result.error.code for result in found.values() if result.error is not None]
    assert codes == ["timeout"]
    assert events.lost.acquire(timeout=60)
    assert other in decoders(pool)


def test_canceled_images_are_not_decoded(pool: DecodePool) -> None:
    results = Results()
    stopped = wait_for_workers(pool)
    stop(stopped)
    tasks = [submit(pool, results, i, encoded(i)) for i in range(10)]
    for task in tasks[:9]:
        pool.cancel(task)
    assert all(task.source == b"" for task in tasks[:9])  # memory is freed at once
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    found = results.wait(1)
    assert list(found) == [9]
    assert number_of_pixels(found[9].pixels[None]) == 9  # type: ignore[index]


def test_when_no_process_can_be_started_everything_fails(
    pool: DecodePool, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results()
    stop(wait_for_workers(pool))
    submit(pool, results, "held", encoded(1))

    def refuse(self: ForkServer, channel: int, memory: int) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(ForkServer, "fork", refuse)
    for pid in decoders(pool):
        os.kill(pid, signal.SIGKILL)
    assert events.gave_up.wait(100)
    submit(pool, results, "late", encoded(2))
    found = results.wait(2)
    assert [found[key].error.code for key in ("held", "late")] == ["worker_failed"] * 2  # type: ignore[union-attr]
    assert not pool.has_worker
    assert len(events.failed) == 1
    assert supervisor._MAX_FAILED_STARTS == 5


def test_closing_answers_everything_and_leaves_no_process(events: Events) -> None:
    before = Snapshot()
    pool = DecodePool(ServeSettings(decode_processes=2), on_failed=events.fail)
    results = Results()
    stop(wait_for_workers(pool))
    for i in range(10):
        submit(pool, results, i, encoded(i))
    pool.close()
    assert {result.error.code for result in results.wait(10).values() if result.error} == {"worker_failed"}
    assert not before.left_over()
    assert not events.failed


def test_one_image_can_be_awaited(pool: DecodePool) -> None:
    async def scenario() -> None:
        decoded = await pool.decode(encoded(5), SPEC)
        assert decoded.pixels is not None
        bad = await pool.decode(b"damaged", SPEC)
        assert bad.error is not None
        assert bad.error.code == "unsupported_format"
        waiting = [asyncio.create_task(pool.decode(encoded(i), SPEC)) for i in range(50)]
        await asyncio.sleep(0)
        for task in waiting[1:]:
            task.cancel()
        assert (await waiting[0]).pixels is not None
        await asyncio.to_thread(pool.close)
        with pytest.raises(ServeError) as failed:
            await pool.decode(encoded(5), SPEC)
        assert failed.value.code == "worker_failed"

    asyncio.run(scenario())


def test_workers_ignore_a_signal_that_asks_the_whole_group_to_stop(pool: DecodePool) -> None:
    before = wait_for_workers(pool)
    for pid in [pool._supervisor._server._process.pid, *before]:  # type: ignore[union-attr]
        os.kill(pid, signal.SIGTERM)
    results = Results()
    for i in range(20):
        submit(pool, results, i, encoded(i))
    assert all(result.pixels is not None for result in results.wait(20).values())
    assert decoders(pool) == before


def test_an_image_in_memory_obeys_the_limit() -> None:
    image = EncodedImage(data=bytes(11), spec=SPEC)
    assert image.read(Limits(bytes=11)) == bytes(11)
    with pytest.raises(ImageError) as refused:
        image.read(Limits(bytes=10))
    assert refused.value.code == "too_many_bytes"


def test_the_processes_need_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    pool = DecodePool(ServeSettings(decode_processes=1))
    results = Results()
    submit(pool, results, 0, encoded(0))
    assert results.wait(1)[0].pixels is not None
    pool.close()
