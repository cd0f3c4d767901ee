"""The queue of images to explain, and the thread that has them explained one at a time, in a process that may die.

The process is started by the first image and ends when there has been none for a while. An image that is not explained
by its deadline costs the process, because PyTorch cannot be interrupted; the next image gets a new one. A process that
ends by itself gets its image again, once, in a new one. If several in a row end without a result, explanations are
switched off for some time. Nothing here affects classification.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..errors import ServeError
from .explain_process import ExplainedImage, ExplainFailure, ProcessLostError, WorkerAnswer
from .problems import RetryLaterError

START_SECONDS = 180.0  # to import PyTorch, on a slow disk
MAX_LOST = 4  # processes in a row without a result, after which there is no other one for a while
OFF_SECONDS = 600.0
_MAX_ATTEMPTS = 2  # at an image whose process ended by itself
log = logging.getLogger(__name__)

ExplainOutcome: TypeAlias = "ExplainedImage | ExplainFailure | ServeError"


class Explaining(Protocol):
    """What the queue needs of `ExplainProcess`, whose methods these are."""

    is_ready: bool

    def is_alive(self) -> bool:
        """As in `ExplainProcess`."""

    def wait_until_ready(self, until: float) -> None:
        """As in `ExplainProcess`."""

    def ask(self, order: bytes, until: float) -> WorkerAnswer:
        """As in `ExplainProcess`."""

    def kill(self) -> None:
        """As in `ExplainProcess`."""

    def end(self) -> None:
        """As in `ExplainProcess`."""


@dataclass(eq=False)
class ExplainJob:
    """One image in the queue.

    order: a pickled ExplainOrder. deadline: by `time.monotonic`. deliver: called once in the thread of the queue,
    unless the job was canceled. waited, starting: seconds in the queue, and until a process was ready.
    """

    order: bytes
    deadline: float
    deliver: Callable[[ExplainOutcome], None]
    canceled: bool = False
    attempts: int = 0
    submitted: float = 0.0
    waited: float = 0.0
    starting: float = 0.0


@dataclass(frozen=True)
class ExplainHooks:
    """What the queue reports, in its thread. on_end: why a process ended: "idle", "deadline", "lost" or "closed"."""

    on_start: Callable[[], object] = lambda: None
    on_end: Callable[[str], object] = lambda why: None


class ExplainQueue:
    """Explain images one at a time. All methods may be called from any thread.

    start: starts a process; OSError if that is not possible. idle_seconds: after which a process without work is ended.
    """

    def __init__(
        self, start: Callable[[], Explaining], *, idle_seconds: float, hooks: ExplainHooks = ExplainHooks()
    ) -> None:
        self._start, self._idle_seconds, self._hooks = start, idle_seconds, hooks
        self._changed = threading.Condition()
        self._jobs: deque[ExplainJob] = deque()
        self._process: Explaining | None = None  # written by the thread only
        self._launched = 0.0
        self._lost = 0  # processes in a row without a result
        self._off_until = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def check(self) -> None:
        """Raise RetryLaterError `explain_off` if no image is accepted now."""
        if (left := self._off_until - time.monotonic()) > 0:
            message = f"the process that explains has failed {MAX_LOST} times in a row"
            raise RetryLaterError("explain_off", message, left)

    def submit(self, job: ExplainJob) -> None:
        """Queue an image; its outcome is delivered. Raises ServeError `draining` after `close`, and as `check`."""
        self.check()
        with self._changed:
            if self._closed:
                raise ServeError("draining", "the server is stopping")
            job.submitted = time.monotonic()
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tessella-explain", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cancel(self, job: ExplainJob) -> None:
        """Give up an image. If it is being explained, that goes on until its deadline."""
        with self._changed:
            job.canceled = True
            if job in self._jobs:
                self._jobs.remove(job)

    def close(self) -> None:
        """End the process, whatever it is doing; images that are left are delivered as `draining`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread, process = self._thread, self._process
        if process is not None:
            process.kill()
        if thread is not None:
            thread.join()

    # --- in the thread ---

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                outcome = self._explain(job)
            except Exception:  # a defect of ours must not end the thread
                log.exception("an image could not be explained")
                self._end("lost")
                outcome = ServeError("worker_failed", "an image could not be explained")
            if not job.canceled:
                job.deliver(outcome)
        self._end("closed")

    def _next(self) -> ExplainJob | None:
        """Return the next job, None if the queue is closed; a process that has waited for long is ended."""
        closing = ServeError("draining", "the server is stopping")
        with self._changed:
            while not self._jobs and not self._closed:
                seconds = self._idle_seconds if self._process is not None else None
                if not self._changed.wait(seconds) and not self._jobs:
                    self._end("idle")
            if not self._closed:
                return self._jobs.popleft()
            left = [*self._jobs]
            self._jobs.clear()
        for job in left:
            job.deliver(closing)
        return None

    def _explain(self, job: ExplainJob) -> ExplainOutcome:
        job.waited = time.monotonic() - job.submitted
        while not job.canceled:
            if self._closed:
                return ServeError("draining", "the server is stopping")
            if time.monotonic() >= job.deadline:
                return ServeError("deadline_exceeded", "the deadline passed before the image was explained")
            try:
                self.check()
                process = self._ready_process(job)
                if process is None:
                    return ServeError("not_ready", "the process that explains is being started")
                return self._ask(process, job)
            except RetryLaterError as error:
                return error
            except ProcessLostError as error:
                self._count_lost(error)
                if job.attempts >= _MAX_ATTEMPTS:
                    return ServeError("worker_failed", str(error))
        return ServeError("worker_failed", "canceled")

    def _ready_process(self, job: ExplainJob) -> Explaining | None:
        """Return a process that is ready; None if none is by the deadline of the job. Raises ProcessLostError."""
        begun = time.monotonic()
        if self._process is not None and not self._process.is_alive():  # it was killed while it had nothing to do
            self._end("lost")
        if self._process is None:
            self._launch()
        process = self._process
        assert process is not None
        if process.is_ready:
            return process
        latest = self._launched + START_SECONDS
        try:
            process.wait_until_ready(min(job.deadline, latest))
        except TimeoutError:
            if time.monotonic() >= latest:
                raise ProcessLostError(f"the process was not ready after {START_SECONDS:g} s") from None
            return None  # it goes on starting, for the next job
        finally:
            job.starting += time.monotonic() - begun
        return process

    def _launch(self) -> None:
        """Start a process. Raises ProcessLostError."""
        self._launched = time.monotonic()
        try:
            process = self._start()
        except OSError as error:
            raise ProcessLostError(f"no process can be started: {error.strerror}") from error
        with self._changed:  # from here on, `close` knows the process and kills it
            self._process = process
        self._hooks.on_start()
        if self._closed:
            raise ProcessLostError("the queue is closed")

    def _ask(self, process: Explaining, job: ExplainJob) -> ExplainOutcome:
        job.attempts += 1
        try:
            answer = process.ask(job.order, job.deadline)
        except TimeoutError:
            self._end("deadline")
            return ServeError("deadline_exceeded", "the image was not explained before the deadline")
        outcome = answer.explained or answer.failure
        if outcome is None:
            raise ProcessLostError("the process gave an answer without a result")
        self._lost = 0
        return outcome

    def _count_lost(self, error: ProcessLostError) -> None:
        """End what is left of a process, and switch explanations off after too many."""
        self._end("lost")
        if self._closed:
            return
        self._lost += 1
        log.warning("%s", error)
        if self._lost >= MAX_LOST:
            log.error("explanations are switched off for %g s: %s", OFF_SECONDS, error)
            self._off_until, self._lost = time.monotonic() + OFF_SECONDS, 0

    def _end(self, why: str) -> None:
        if (process := self._process) is not None:
            self._process = None
            process.end()
            self._hooks.on_end(why)
