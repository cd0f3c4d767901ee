"""The queue of explanations: order, deadlines, lost processes, the switch, idle processes, the end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tessella.errors import ServeError
from tessella.serve import explain_queue
from tessella.serve.explain_process import ExplainFailure, ProcessLostError, WorkerAnswer
from tessella.serve.explain_queue import MAX_LOST, ExplainHooks, ExplainJob, ExplainOutcome, ExplainQueue
from tessella.serve.problems import RetryLaterError

LONG = 60.0


class ScriptedProcess:
    """A process in this one: it answers an order with its text, unless that is a command."""

    def __init__(self, world: World):
        self.world, self.is_ready, self.is_dead = world, False, threading.Event()

    def is_alive(self) -> bool:
        return not self.is_dead.is_set()

    def wait_until_ready(self, until: float) -> None:
        if self.world.fails_to_start:
            raise ProcessLostError("it does not start")
        if not self.world.may_start.wait(until - time.monotonic()):
            raise TimeoutError
        self.is_ready = True

    def ask(self, order: bytes, until: float) -> WorkerAnswer:
        text = order.decode()
        self.world.asked.append(text)
        self.world.started.put(text)
        if text.startswith("hang"):
            if self.is_dead.wait(until - time.monotonic()):
                raise ProcessLostError("killed")
            raise TimeoutError
        if text.startswith("die") and not (text == "die once" and self.world.asked.count(text) > 1):
            self.is_dead.set()
            raise ProcessLostError("it died")
        if text == "nothing":
            return WorkerAnswer()
        return WorkerAnswer(failure=ExplainFailure("unprocessable", text, is_image=False))

    def kill(self) -> None:
        self.is_dead.set()

    def end(self) -> None:
        self.is_dead.set()
        self.world.ended += 1


class World:
    """A queue, its processes, and the outcomes by the text of the order."""

    def __init__(self, idle_seconds: float = LONG):
        self.processes: list[ScriptedProcess] = []
        self.asked: list[str] = []
        self.ended, self.ends = 0, list[str]()
        self.started: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.may_start = threading.Event()
        self.may_start.set()
        self.fails_to_start = False
        self.outcomes: dict[str, queue.SimpleQueue[ExplainOutcome]] = {}
        self.queue = ExplainQueue(self._start, idle_seconds=idle_seconds, hooks=ExplainHooks(on_end=self.ends.append))

    def _start(self) -> ScriptedProcess:
        self.processes.append(ScriptedProcess(self))
        return self.processes[-1]

    def submit(self, text: str, seconds: float = LONG) -> ExplainJob:
        self.outcomes[text] = queue.SimpleQueue()
        job = ExplainJob(text.encode(), time.monotonic() + seconds, self.outcomes[text].put)
        self.queue.submit(job)
        return job

    def result(self, text: str) -> str:
        """The text of the answer, or the code of the error."""
        outcome = self.outcomes[text].get(timeout=60)
        assert isinstance(outcome, ServeError | ExplainFailure)
        return outcome.message if isinstance(outcome, ExplainFailure) else outcome.code

    def do(self, text: str, seconds: float = LONG) -> str:
        self.submit(text, seconds)
        return self.result(text)


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def create(**options: float) -> World:
        worlds.append(World(**options))
        return worlds[-1]

    yield create
    for world in worlds:
        world.queue.close()
        assert world.ended == len(world.processes), "every process is ended, once"


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_images_are_explained_in_order_by_one_process(make: Callable[..., World]) -> None:
    world = make()
    for i in range(20):
        world.submit(str(i))
    assert [world.result(str(i)) for i in range(20)] == list(map(str, range(20)))
    assert world.asked == list(map(str, range(20)))
    assert len(world.processes) == 1


def test_no_process_is_started_before_it_is_needed(make: Callable[..., World]) -> None:
    world = make()
    assert (world.processes, world.queue.is_running) == ([], False)
    world.do("a")
    assert world.queue.is_running


def test_an_idle_process_is_ended_and_the_next_image_starts_another(make: Callable[..., World]) -> None:
    world = make(idle_seconds=0.05)
    assert world.do("a") == "a"
    wait_until(lambda: not world.queue.is_running)
    assert world.ends == ["idle"]
    assert world.do("b") == "b"
    assert len(world.processes) == 2


def test_the_deadline_costs_the_process_and_the_next_image_works(make: Callable[..., World]) -> None:
    world = make()
    job = world.submit("hang", 0.1)
    assert world.do("after it") == "after it"
    assert world.result("hang") == "deadline_exceeded"
    assert (len(world.processes), world.ends) == (2, ["deadline"])
    assert job.attempts == 1


def test_deadlines_do_not_switch_explanations_off(make: Callable[..., World]) -> None:
    world = make()
    for i in range(2 * MAX_LOST):
        assert world.do(f"hang {i}", 0.01) == "deadline_exceeded"
    assert world.do("a") == "a"


def test_an_image_whose_deadline_passes_in_the_queue_is_not_explained(make: Callable[..., World]) -> None:
    world = make()
    world.submit("hang", 0.3)
    assert world.do("late", 0.01) == "deadline_exceeded"
    assert world.asked == ["hang"]


def test_a_lost_process_is_replaced_and_its_image_explained_again(make: Callable[..., World]) -> None:
    world = make()
    world.submit("die once")
    world.submit("next")
    assert [world.result("die once"), world.result("next")] == ["die once", "next"]
    assert (len(world.processes), world.ends) == (2, ["lost"])


def test_an_image_that_ends_two_processes_fails(make: Callable[..., World]) -> None:
    world = make()
    assert world.do("die") == "worker_failed"
    assert world.asked == ["die", "die"]
    assert world.do("a") == "a"


def test_an_answer_without_a_result_counts_as_lost(make: Callable[..., World]) -> None:
    world = make()
    assert world.do("nothing") == "worker_failed"
    assert world.ends == ["lost", "lost"]


def test_a_process_that_was_killed_while_idle_costs_nothing(make: Callable[..., World]) -> None:
    world = make()
    for i in range(2 * MAX_LOST):
        assert world.do(str(i)) == str(i)
        world.processes[-1].is_dead.set()
    assert world.asked == list(map(str, range(2 * MAX_LOST)))


def test_too_many_lost_processes_switch_explanations_off_for_a_while(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain_queue, "OFF_SECONDS", 0.3)
    world = make()
    assert [world.do("die"), world.do("die")] == ["worker_failed", "worker_failed"]
    with pytest.raises(RetryLaterError) as refused:
        world.submit("refused")
    assert refused.value.code == "explain_off"
    assert 0 < refused.value.retry_after <= 0.3
    wait_until(lambda: not _is_off(world))
    assert world.do("a") == "a"
    assert world.do("die") == "worker_failed"  # the count has begun again
    assert world.do("b") == "b"


def _is_off(world: World) -> bool:
    try:
        world.queue.check()
    except RetryLaterError:
        return True
    return False


def test_what_waits_while_explanations_are_switched_off_fails_at_once(make: Callable[..., World]) -> None:
    world = make()
    world.may_start.clear()
    for i in range(5):
        world.submit(f"die {i}")
    world.may_start.set()
    assert {world.result(f"die {i}") for i in range(2, 5)} == {"explain_off"}


def test_processes_that_do_not_start_switch_explanations_off(make: Callable[..., World]) -> None:
    world = make()
    world.fails_to_start = True
    assert world.do("a") == "explain_off"
    assert len(world.processes) == MAX_LOST


def test_a_system_that_starts_no_process_switches_explanations_off(make: Callable[..., World]) -> None:
    world = make()

    def fail() -> ScriptedProcess:
        raise OSError(12, "no memory")

    world.queue._start = fail
    assert world.do("a") == "explain_off"


def test_a_slow_start_is_not_repeated_by_the_next_image(make: Callable[..., World]) -> None:
    world = make()
    world.may_start.clear()
    assert world.do("too early", 0.05) == "not_ready"
    job = world.submit("in time")
    time.sleep(0.05)
    world.may_start.set()
    assert world.result("in time") == "in time"
    assert len(world.processes) == 1
    assert job.starting >= 0.04


def test_a_canceled_image_is_not_explained(make: Callable[..., World]) -> None:
    world = make()
    running, waiting = world.submit("hang", 0.3), world.submit("waiting")
    assert world.started.get(timeout=60) == "hang"
    world.queue.cancel(waiting)
    world.queue.cancel(running)  # it goes on until its deadline
    assert world.do("after them") == "after them"
    assert world.asked == ["hang", "after them"]
    assert world.outcomes["waiting"].empty()
    assert world.outcomes["hang"].empty()


def test_the_end_interrupts_the_process_and_delivers_the_rest(make: Callable[..., World]) -> None:
    world = make()
    world.submit("hang", 10 * LONG)
    world.submit("waiting")
    assert world.started.get(timeout=60) == "hang"
    begun = time.monotonic()
    world.queue.close()
    assert time.monotonic() - begun < LONG  # the image would hang ten times as long
    assert [world.result("hang"), world.result("waiting")] == ["draining", "draining"]
    assert world.ends == ["lost"]
    with pytest.raises(ServeError) as refused:
        world.submit("too late")
    assert refused.value.code == "draining"


def test_the_end_does_not_wait_for_a_start(make: Callable[..., World]) -> None:
    world = make()
    world.may_start.clear()
    world.submit("waiting", 0.4)
    wait_until(lambda: len(world.processes) == 1)
    world.queue.close()
    assert world.result("waiting") in ("draining", "not_ready")
