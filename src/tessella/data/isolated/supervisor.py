"""The supervisor of the isolated decoder: a thread that keeps the workers busy and replaces those that are lost."""

from __future__ import annotations

import contextlib
import json
import math
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from ...errors import CODES, ImageError, UsageError
from ..spec import InputSpec
from .processes import ForkServer, Task, Worker
from .protocol import LONG_READ, SLOTS, Decoded, DecodeSettings

_START_SECONDS = 120.0  # until a process is ready, on a slow disk
_MAX_FAILED_STARTS = 5  # processes in a row that end before they are ready, after which decoding is given up
_LONGEST_ANSWER = 1 << 20  # bytes
_LONG_READ_SECONDS = 300.0  # additional time for an image whose container is read first, such as a large Parquet page


class Supervisor:
    """Run `count` workers in a thread. No other thread touches the workers.

    timeout: seconds per image. slots: images sent to a worker at once, at most SLOTS; an image that hangs delays those
    behind it. on_lost: called when a worker has ended by itself or was killed. on_end: called at the end of the thread,
    with the error if there was one; tasks with `done` have got their results then. Both run in the supervisor's thread.
    All methods are called by the consumer's thread.
    """

    def __init__(
        self,
        settings: DecodeSettings,
        folder: str,
        count: int,
        timeout: float,
        *,
        slots: int = SLOTS,
        on_lost: Callable[[], None] = lambda: None,
        on_end: Callable[[BaseException | None], None] = lambda error: None,
    ):
        self._settings, self._folder, self._count, self._timeout = settings, folder, count, timeout
        self._slots, self._on_lost, self._on_end = slots, on_lost, on_end
        self._queue: deque[Task] = deque()
        self._suspects: deque[Task] = deque()  # a process ended during each; it is tried once more in one of its own
        self._server: ForkServer | None = None
        self._workers: list[Worker] = []
        self._failed_starts = 0
        self._next_start = 0.0
        self._closing = False
        self._wake_on_submit = True
        self.ended = False  # there will be no more results
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._awaited: Task | None = None  # by the consumer
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="tessella-isolated", daemon=True)
        self._thread.start()

    def submit(self, source: bytes, spec: InputSpec | None = None, done: Callable[[Task], None] | None = None) -> Task:
        """Queue a pickled source and return its task; `spec` and `done` as in Task."""
        task = Task(source, spec, done)
        self._queue.append(task)
        if self._wake_on_submit:
            self._wake_on_submit = False
            self._wake()
        if self.ended:  # perhaps after the thread has looked at the queue for the last time
            self._fail_queued()
        return task

    def cancel(self, task: Task) -> None:
        """Give up a task: its `done` is not called any more, and unless a worker has it already, none gets it."""
        task.canceled = True
        task.source = b""

    @property
    def has_worker(self) -> bool:
        """Whether a worker is ready for images."""
        return any(worker.ready for worker in [*self._workers])

    def result(self, task: Task) -> Decoded:
        """Wait for the result of a task and return it. Raises the error that ended the supervisor, if one did."""
        if task.result is None:
            with self._changed:
                self._awaited = task
                self._changed.wait_for(lambda: task.result is not None or self.ended)
        if task.result is not None:
            return task.result
        raise self._failure or UsageError("bad_argument", "the decoder was closed before its images were decoded")

    def close(self) -> None:
        """End the thread and the processes."""
        self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:  # a garbage collection can call this in any thread
            self._thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full, so it wakes anyway; or closed, because the thread has ended
            self._wake_sender.send(b"!")

    # --- in the supervisor's thread ---

    def _run(self) -> None:
        # inherited by workers: the caller handles Ctrl-C, and SIGTERM to all processes of a group, and may go on
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            while not self._closing:
                self._assign()
                self._wait()
        except BaseException as error:
            self._failure = error
        finally:
            for worker in [*self._workers]:
                self._end(worker)
                self._queue.extend(worker.tasks)
            if self._server is not None:
                self._server.close()
            self._selector.close()
            self._wake_receiver.close()
            self._wake_sender.close()
            with self._changed:
                self.ended = True
                self._changed.notify_all()
            self._queue.extend(self._suspects)
            self._fail_queued()
            self._on_end(self._failure)

    def _fail_queued(self) -> None:
        """Let the tasks that no worker will get fail; for those without `done`, `result` raises."""
        with contextlib.suppress(IndexError):  # another thread took the last one
            while True:
                if (task := self._queue.popleft()).done is not None:
                    self._finish(task, _failed("worker_failed", "the decoding processes have ended"))

    def _assign(self) -> None:
        """Start missing workers, and give tasks to those with free slots."""
        while len(self._workers) < self._count and time.monotonic() >= self._next_start:
            self._start()
        self._wake_on_submit = True  # before the queue is read: whatever is submitted later wakes this thread
        while self._queue:
            if self._queue[0].canceled:
                self._queue.popleft()
                continue
            free = [w for w in self._workers if w.ready and not w.isolates_suspect and len(w.tasks) < self._slots]
            if not free:
                self._wake_on_submit = False  # the next answer wakes it, which is cheaper than one wake-up per image
                break
            self._give(min(free, key=lambda w: len(w.tasks)), self._queue.popleft())

    def _start(self) -> None:
        try:
            if self._server is None or not self._server.is_alive():
                if self._server is not None:
                    self._server.close()
                self._server = None  # in case the next line fails
                self._server = ForkServer(self._settings, self._folder)
            worker = Worker(self._server)
        except OSError:
            self._start_failed()
            return
        self._workers.append(worker)
        self._selector.register(worker.socket, selectors.EVENT_READ, worker)
        while self._suspects:
            if not (suspect := self._suspects.popleft()).canceled:
                worker.isolates_suspect = True
                self._give(worker, suspect)
                break

    def _start_failed(self) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise UsageError(
                "unreadable",
                f"no image can be decoded: {_MAX_FAILED_STARTS} processes in a row ended before they were ready",
                hint='for the reason, run python -c "import tessella.data.isolated"; check that there is enough memory',
            )
        self._next_start = time.monotonic() + 0.05 * 2**self._failed_starts

    def _give(self, worker: Worker, task: Task) -> None:
        if not worker.tasks and worker.ready:
            worker.since = time.monotonic()
        worker.tasks.append(task)
        source = task.source  # once: `cancel` may replace it
        worker.outbox += len(source).to_bytes(8, "little")
        worker.outbox += source
        self._send(worker)

    def _send(self, worker: Worker) -> None:
        """Send as much as the socket takes now; the rest follows when it has room."""
        try:
            del worker.outbox[: worker.socket.send(worker.outbox)]
        except BlockingIOError:
            pass
        except OSError:  # it has ended, which `_receive` will notice
            worker.outbox.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outbox else 0)
        if self._selector.get_key(worker.socket).events != events:
            self._selector.modify(worker.socket, events, worker)

    def _wait(self) -> None:
        """Wait for answers, room in a socket, new tasks or a deadline, and handle them."""
        due = [self._deadline(worker) for worker in self._workers if worker.tasks or not worker.ready]
        if len(self._workers) < self._count:
            due.append(self._next_start)
        start = time.monotonic()
        wait = min(max(min(due) - start, 0.0), 1.0) if due else None
        events = self._selector.select(wait)
        delay = 0.0 if wait is None else time.monotonic() - start - wait
        if delay > 1.0:  # this process was suspended (Ctrl-Z), perhaps with the workers: that time does not count
            for worker in self._workers:
                worker.since += delay
        for key, mask in events:
            if key.data is None:
                self._wake_receiver.recv(4096)
            elif mask & selectors.EVENT_READ:
                self._receive(key.data)
            else:
                self._send(key.data)
        now = time.monotonic()
        for worker in [*self._workers]:
            if (worker.tasks or not worker.ready) and now >= self._deadline(worker):
                self._time_out(worker)

    def _deadline(self, worker: Worker) -> float:
        return worker.since + (self._timeout if worker.ready else _START_SECONDS)

    def _receive(self, worker: Worker) -> None:
        try:
            received = worker.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        *lines, worker.inbox = (worker.inbox + received).split(b"\n")
        try:
            for line in lines:
                self._accept(worker, json.loads(line))
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):  # no intact worker answers this
            self._replace(worker)
            return
        if not received or len(worker.inbox) > _LONGEST_ANSWER:
            self._replace(worker)

    def _accept(self, worker: Worker, answer: object) -> None:
        """Handle an answer: the process id when the worker is ready, later the result of its first task.

        Raises ValueError, TypeError or OverflowError if the answer makes no sense.
        """
        if not worker.ready:
            if not isinstance(answer, int):
                raise TypeError("expected the process id")
            worker.pid, worker.ready = answer, True
            self._failed_starts = 0
            worker.since = time.monotonic()
            return
        if answer == LONG_READ:
            if not worker.long_read:
                worker.long_read = True
                worker.since = time.monotonic() + _LONG_READ_SECONDS
            return
        result = self._read_result(worker, answer)
        task = worker.tasks.popleft()
        worker.answered += 1
        worker.isolates_suspect = worker.long_read = False
        worker.since = time.monotonic()
        self._finish(task, result)

    def _read_result(self, worker: Worker, answer: object) -> Decoded:
        if not isinstance(answer, list):
            raise TypeError("expected a list")
        error, seconds, sha256, *numbers = answer
        failure = pixels = None
        if error is not None:
            code, message, hint = map(str, error)
            failure = ImageError(code if code in CODES else "corrupt_image", message, hint=hint)
        else:
            spec = worker.tasks[0].spec or self._settings.spec
            pixels = worker.pixels(spec.height, spec.width)
        if not 0 <= float(seconds) < math.inf:
            raise ValueError("expected a number of seconds")
        worker.tasks[0].seconds = float(seconds)
        size, width, height = map(int, numbers)
        return Decoded(pixels, failure, str(sha256), size, width, height)

    def _finish(self, task: Task, result: Decoded) -> None:
        if task.done is not None:
            task.result = result
            if not task.canceled:
                task.done(task)
            return
        with self._changed:
            task.result = result
            if task is self._awaited:  # waking the consumer for every image would cost more than handing it over
                self._changed.notify_all()

    def _replace(self, worker: Worker) -> None:
        """Remove a worker that ended by itself or was killed from outside, and queue its tasks again."""
        self._end(worker)
        self._on_lost()
        if not worker.ready:
            (self._suspects if worker.isolates_suspect else self._queue).extendleft(reversed(worker.tasks))
            self._start_failed()
            return
        if worker.tasks:
            task = worker.tasks.popleft()
            if worker.isolates_suspect:
                message = f"the process that decoded the image ended{worker.describe_exit()}, twice"
                self._finish(task, _failed("decoder_crashed", message))
            else:  # the image may not be the cause: when memory runs out, the kernel picks a process
                self._suspects.append(task)
        self._queue.extendleft(reversed(worker.tasks))

    def _time_out(self, worker: Worker) -> None:
        """End a worker whose deadline has passed; its first task fails, the others are queued again."""
        if not worker.ready:
            assert self._server is not None
            self._server.close()  # the server hangs, not the worker
            self._replace(worker)
            return
        self._end(worker)
        self._on_lost()
        message = f"the image was not read and decoded within {self._timeout:g} seconds"
        self._finish(worker.tasks.popleft(), _failed("timeout", message))
        self._queue.extendleft(reversed(worker.tasks))

    def _end(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.end()


def _failed(code: str, message: str) -> Decoded:
    return Decoded(None, ImageError(code, message), "", 0, 0, 0)
