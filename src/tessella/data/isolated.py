"""Images read and decoded in processes of their own: one that kills or hangs its process costs one image.

A thread of the parent hands out tasks and collects results. It has one nursery, a fresh Python that imports what
decoding needs, once, and touches no image; workers are its forks, so one that is lost is replaced in milliseconds.
Each has a socket, on which it is sent pickled sources and answers a line of JSON for each, in order, and a file in
memory, into which it writes the pixels. A worker is at the first image that it has not answered: that one is to blame
when the process dies or hangs, those behind it go to others.

subprocess rather than multiprocessing: "spawn" and "forkserver" import the caller's __main__ again in each worker, and
"fork" cannot be used beside threads. Answers are JSON, because what a hostile image made of its process must not be
unpickled here.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np

from ..errors import CODES, ImageError, UsageError
from ..machine import available_cores
from .decode import DEFAULT_LIMITS, Limits, Mode, Pixels, Policy, open_image
from .memory import set_limit
from .source import Source
from .transforms import InputSpec, check_geometry, prepare

_QUEUED = 4  # images a worker has at once, so that it never waits for the parent; its file has room for as many
_HEADROOM = 2_000_000_000  # bytes for one image: of DEFAULT_LIMITS' 50 MP, an RGBA WebP takes 1.5 GB beside its file
_START_SECONDS = 120.0  # for a process to be ready; importing torch from a slow disk can take half of that
_STARTS = 5  # processes in a row that end before they are ready, after which there is no point in going on
_LONGEST_ANSWER = 1 << 20  # bytes
_LONG_READ_SECONDS = 300.0  # more for an image whose container has to be read first, such as a large Parquet page
_LONG_READ = 0  # the answer that announces it


class Decoded(NamedTuple):
    pixels: Pixels | None  # (spec.height, spec.width, 3) uint8, the model's input; None: see error
    error: ImageError | None
    sha256: str  # hex, of the encoded bytes; "" where they could not be read
    bytes: int  # of them; 0 likewise
    width: int  # of the image as decoded, upright, in pixels; 0 where it was not decoded
    height: int

    @property
    def outcome(self) -> Pixels | ImageError:
        """The pixels, or the error, as `Predictor.decoded_outputs` takes them."""
        found = self.error if self.pixels is None else self.pixels
        assert found is not None
        return found


class IsolatedDecoder:
    """`load_pixels` of many sources in processes that may die; a context manager, `close()` ends the processes.

    processes: None is one a core, at most 8. timeout: seconds for one image, reading included. ahead: images in flight
    or waiting to be taken at most, which bounds memory; None is enough for the processes and a batch or two of a model.
    Relative paths are from the folder that was current when the decoder was made.
    """

    def __init__(
        self,
        spec: InputSpec,
        *,
        policy: Policy = "tessella",
        mode: Mode = "exact",
        limits: Limits = DEFAULT_LIMITS,
        processes: int | None = None,
        timeout: float = 30.0,
        ahead: int | None = None,
    ):
        open_image(np.zeros((1, 1, 3), np.uint8), policy=policy, mode=mode)  # refuses what they cannot be
        if spec.channels != 3:
            raise UsageError("bad_argument", f"the model reads {spec.channels} channels, images have 3 (RGB)")
        for name, value in (("processes", processes), ("timeout", timeout), ("ahead", ahead)):
            if value is not None and not value > 0:
                raise UsageError("bad_argument", f"{name} is {value}, expected a positive number")
        self.processes = processes or min(available_cores(), 8)
        self.timeout = timeout
        self.ahead = ahead or 4 * self.processes + 64
        self._setup = (spec, policy, mode, limits)
        try:
            self._folder = os.getcwd()  # noqa: PTH109 - as Popen takes it
        except FileNotFoundError:  # the folder was deleted, so relative paths cannot be read
            self._folder = os.sep
        self._closed = self._busy = False
        self._crew: _Crew | None = self._gather()  # now: processes start while a model is loaded

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are at."""
        self._closed = True
        if self._crew is not None:
            self._crew.close()

    def decoded(self, sources: Iterable[Source]) -> Generator[Decoded, None, None]:
        """One Decoded per source, in order. One run at a time; what `sources` raises passes through.

        UsageError `unreadable` where the processes cannot be started, `bad_argument` for a source that cannot be sent
        to another process. A run that is left early is forgotten, and its processes are replaced when the next begins.
        """
        if self._closed or self._busy:
            raise UsageError(
                "bad_argument",
                f"this decoder is {'closed' if self._closed else 'at work on other sources'}",
                hint="make another IsolatedDecoder",
            )
        crew = self._crew = self._crew or self._gather()
        self._busy = True
        waiting: deque[_Task] = deque()
        try:
            for source in sources:
                waiting.append(crew.submit(_pickled(source)))
                if len(waiting) >= self.ahead:
                    yield crew.outcome(waiting.popleft())
            while waiting:
                yield crew.outcome(waiting.popleft())
        finally:
            self._busy = False
            if waiting or crew.ended:
                crew.close()
                self._crew = None

    def _gather(self) -> _Crew:
        crew = _Crew(self._setup, self._folder, self.processes, self.timeout)
        weakref.finalize(self, crew.close)  # where nobody does, and at the interpreter's end
        return crew


def _pickled(source: Source) -> bytes:
    if type(source).__module__ == "__main__":  # pickle would take it, and the worker has another __main__
        problem = "its class is defined in __main__"
    else:
        try:
            return pickle.dumps(source, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
    raise UsageError(
        "bad_argument",
        f"a {type(source).__name__} cannot be sent to another process: {problem}",
        hint="define its class in a module that can be imported, with fields that can be pickled",
    )


# --- the parent's side ------------------------------------------------------------------------------------------------


class _Task:
    """One image on its way."""

    __slots__ = ("outcome", "source")

    def __init__(self, source: bytes):
        self.source = source  # pickled
        self.outcome: Decoded | None = None


# sys.path first: the package, and the classes of sources, may be where only the caller looks
_BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from tessella.data.isolated import _nurse; _nurse(int(sys.argv[1]))"
)
_ORDER = 8  # bytes: 0 with two descriptors is to fork, another number the child that is to end
_HANGS = 1 << 20  # no exit code: killed, and held up in the kernel


class _Nursery:
    """The process whose forks are the workers; OSError if it cannot be started. With it, they end."""

    def __init__(self, setup: tuple[Any, ...], folder: str):
        # the processes are the parallelism; Arrow's own allocator reserves a gigabyte at a time, over the limit
        usual = dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", ARROW_DEFAULT_MEMORY_POOL="system")
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(5.0)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    cwd=folder,
                    env=os.environ | usual,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,  # libraries print what strangers wrote into files
                    stderr=subprocess.DEVNULL,
                )
        except BaseException:
            self._socket.close()
            raise
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as file:  # where it has ended, its workers are lost
            file.write(pickle.dumps(sys.path) + pickle.dumps((*setup, os.getpid())))

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, channel: int, memory: int) -> None:
        """Have a worker made, with its ends of both; it says by itself that it is there."""
        socket.send_fds(self._socket, [bytes(_ORDER)], [channel, memory])

    def end(self, pid: int) -> int | None:
        """End a worker, whatever it is at; its exit code (of a signal -N), None where the nursery does not know it."""
        try:
            self._socket.sendall(pid.to_bytes(_ORDER, "little"))
            answer = self._socket.recv(_ORDER, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if len(answer) < _ORDER:
            self._process.kill()  # what it might still say would be taken for the answer to another question
            return None
        code = int.from_bytes(answer, "little", signed=True)
        return None if code == _HANGS else code

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()


class _Worker:
    """A process and what it has been given; OSError if it cannot be started."""

    def __init__(self, nursery: _Nursery):
        self.pid = 0  # until it is ready
        self.code: int | None = None  # with which it ended, of a signal -N
        self.tasks: deque[_Task] = deque()  # it is at the first
        self.ready = False
        self.long_read = False  # whether it has announced one for the image that it is at
        self.alone = False  # it has one image, which may have ended a process before
        self.since = time.monotonic()  # when it began with that image, or to start
        self.answered = 0
        self.inbox = b""
        self.outbox = bytearray()
        self.memory = _file_in_memory()
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._nursery = nursery
        try:
            with theirs:
                nursery.fork(theirs.fileno(), self.memory)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Before it is ready it has no name to be ended by: it ends with its nursery, or as it reads its tasks."""
        self.socket.close()
        os.close(self.memory)
        if self.pid:
            self.code = self._nursery.end(self.pid)

    def pixels(self, height: int, width: int) -> Pixels:
        """Of the image that is answered next; ValueError if they are not there."""
        image = np.empty((height, width, 3), np.uint8)
        if os.preadv(self.memory, [image.data], self.answered % _QUEUED * image.nbytes) != image.nbytes:
            raise ValueError("cut off")
        return image

    def how_it_ended(self) -> str:
        if self.code is None or self.code >= 0:
            return "" if self.code is None else f" with exit status {self.code}"
        try:
            return f" by {signal.Signals(-self.code).name}"
        except ValueError:
            return f" by signal {-self.code}"


class _Crew:
    """The thread that keeps `count` workers busy; what it does with them, no other thread touches."""

    def __init__(self, setup: tuple[InputSpec, Policy, Mode, Limits], folder: str, count: int, timeout: float):
        self._setup, self._folder, self._count, self._timeout = setup, folder, count, timeout
        self._shape = (setup[0].height, setup[0].width)
        self._queue: deque[_Task] = deque()
        self._suspects: deque[_Task] = deque()  # each ended a process, and has another try as the only one of a new one
        self._nursery: _Nursery | None = None
        self._workers: list[_Worker] = []
        self._vain_starts = 0
        self._next_start = 0.0
        self._closing = False
        self._hungry = True  # whether a new task is to wake the thread
        self.ended = False  # nothing more will come of it
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._awaited: _Task | None = None  # by the consumer
        self._selector = selectors.DefaultSelector()
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="tessella-isolated", daemon=True)
        self._thread.start()

    # called by the consumer

    def submit(self, source: bytes) -> _Task:
        task = _Task(source)
        self._queue.append(task)
        if self._hungry:
            self._hungry = False
            self._ring()
        return task

    def outcome(self, task: _Task) -> Decoded:
        if task.outcome is None:
            with self._changed:
                self._awaited = task
                self._changed.wait_for(lambda: task.outcome is not None or self.ended)
        if task.outcome is not None:
            return task.outcome
        raise self._failure or UsageError("bad_argument", "the decoder was closed before its images were decoded")

    def close(self) -> None:
        self._closing = True
        self._ring()
        if threading.current_thread() is not self._thread:  # a garbage collection may call this from anywhere
            self._thread.join()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # full, so it rings; or closed, as the crew has ended
            self._button.send(b"!")

    # the thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit it: Ctrl-C is the caller's
        try:
            while not self._closing:
                self._assign()
                self._listen()
        except BaseException as error:
            self._failure = error
        finally:
            for worker in [*self._workers]:
                self._end(worker)
            if self._nursery is not None:
                self._nursery.close()
            self._selector.close()
            self._bell.close()
            self._button.close()
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _assign(self) -> None:
        """Processes for places that are empty, tasks for processes that have room."""
        while len(self._workers) < self._count and time.monotonic() >= self._next_start:
            self._start()
        self._hungry = True  # before the queue is looked at: what comes after that rings
        while self._queue:
            free = [w for w in self._workers if w.ready and not w.alone and len(w.tasks) < _QUEUED]
            if not free:
                self._hungry = False  # the next answer wakes this thread, which costs less than every image doing so
                break
            self._give(min(free, key=lambda w: len(w.tasks)), self._queue.popleft())

    def _start(self) -> None:
        try:
            if self._nursery is None or not self._nursery.is_alive():
                if self._nursery is not None:
                    self._nursery.close()
                self._nursery = None  # should the next line fail
                self._nursery = _Nursery(self._setup, self._folder)
            worker = _Worker(self._nursery)
        except OSError:
            self._started_in_vain()
            return
        self._workers.append(worker)
        self._selector.register(worker.socket, selectors.EVENT_READ, worker)
        if self._suspects:
            worker.alone = True
            self._give(worker, self._suspects.popleft())

    def _started_in_vain(self) -> None:
        self._vain_starts += 1
        if self._vain_starts >= _STARTS:
            raise UsageError(
                "unreadable",
                f"no image can be decoded: {_STARTS} processes in a row did not start or ended as they started",
                hint='see why: python -c "import tessella.data.isolated"; is there enough memory?',
            )
        self._next_start = time.monotonic() + 0.05 * 2**self._vain_starts

    def _give(self, worker: _Worker, task: _Task) -> None:
        if not worker.tasks and worker.ready:
            worker.since = time.monotonic()
        worker.tasks.append(task)
        worker.outbox += len(task.source).to_bytes(8, "little") + task.source
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        """What the socket takes now; the rest when it has room."""
        try:
            del worker.outbox[: worker.socket.send(worker.outbox)]
        except BlockingIOError:
            pass
        except OSError:  # it has died, which will be heard
            worker.outbox.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outbox else 0)
        if self._selector.get_key(worker.socket).events != events:
            self._selector.modify(worker.socket, events, worker)

    def _listen(self) -> None:
        """Wait until something happens, and see to it."""
        due = [self._deadline(worker) for worker in self._workers if worker.tasks or not worker.ready]
        if len(self._workers) < self._count:
            due.append(self._next_start)
        asleep = time.monotonic()
        wait = min(max(min(due) - asleep, 0.0), 1.0) if due else None
        events = self._selector.select(wait)
        late = 0.0 if wait is None else time.monotonic() - asleep - wait
        if late > 1.0:  # this process was stopped, and maybe the workers with it (Ctrl-Z): that is no time of theirs
            for worker in self._workers:
                worker.since += late
        for key, mask in events:
            if key.data is None:
                self._bell.recv(4096)
            elif mask & selectors.EVENT_READ:
                self._hear(key.data)
            else:
                self._send(key.data)
        now = time.monotonic()
        for worker in [*self._workers]:
            if (worker.tasks or not worker.ready) and now >= self._deadline(worker):
                self._overdue(worker)

    def _deadline(self, worker: _Worker) -> float:
        return worker.since + (self._timeout if worker.ready else _START_SECONDS)

    def _hear(self, worker: _Worker) -> None:
        try:
            heard = worker.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        *lines, worker.inbox = (worker.inbox + heard).split(b"\n")
        try:
            for line in lines:
                self._take(worker, json.loads(line))
        except (ValueError, TypeError, LookupError, RecursionError):  # nothing that a worker in its right mind says
            self._lost(worker)
            return
        if not heard or len(worker.inbox) > _LONGEST_ANSWER:
            self._lost(worker)

    def _take(self, worker: _Worker, answer: Any) -> None:
        """The answer of the image that the worker was at, or, when it is ready, its process id."""
        if not worker.ready:
            worker.pid, worker.ready = int(answer), True
            self._vain_starts = 0
            worker.since = time.monotonic()
            return
        if answer == _LONG_READ:
            if not worker.long_read:
                worker.long_read = True
                worker.since = time.monotonic() + _LONG_READ_SECONDS
            return
        error, *facts = answer
        sha256, *numbers = facts
        failure = pixels = None
        if error is not None:
            code, message, hint = map(str, error)
            failure = ImageError(code if code in CODES else "corrupt_image", message, hint=hint)
        else:
            pixels = worker.pixels(*self._shape)
        size, width, height = map(int, numbers)
        outcome = Decoded(pixels, failure, str(sha256), size, width, height)
        task = worker.tasks.popleft()
        worker.answered += 1
        worker.alone = worker.long_read = False
        worker.since = time.monotonic()
        self._finish(task, outcome)

    def _finish(self, task: _Task, outcome: Decoded) -> None:
        with self._changed:
            task.outcome = outcome
            if task is self._awaited:  # to wake the consumer for every image costs more than to hand it over
                self._changed.notify_all()

    def _lost(self, worker: _Worker) -> None:
        """It has ended by itself, or been killed by another than this crew."""
        self._end(worker)
        if not worker.ready:
            (self._suspects if worker.alone else self._queue).extendleft(reversed(worker.tasks))
            self._started_in_vain()
            return
        if worker.tasks:
            task = worker.tasks.popleft()
            if worker.alone:
                message = f"the process that decoded the image was ended{worker.how_it_ended()}, twice"
                self._finish(task, _failed("decoder_crashed", message))
            else:  # it may be innocent: the kernel chooses a process where memory runs out
                self._suspects.append(task)
        self._queue.extendleft(reversed(worker.tasks))

    def _overdue(self, worker: _Worker) -> None:
        if not worker.ready:
            assert self._nursery is not None
            self._nursery.close()  # it is what hangs
            self._lost(worker)
            return
        self._end(worker)
        message = f"the image was not read and decoded within {self._timeout:g} seconds"
        self._finish(worker.tasks.popleft(), _failed("timeout", message))
        self._queue.extendleft(reversed(worker.tasks))

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.end()


def _failed(code: str, message: str) -> Decoded:
    return Decoded(None, ImageError(code, message), "", 0, 0, 0)


def _file_in_memory() -> int:
    """A descriptor of a file without a name, gone with the last process that has it open.

    Read and written with system calls: a decoder that writes where it should not can spoil no other image's pixels,
    as it could in memory that is shared.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tessella-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


# --- the other side ---------------------------------------------------------------------------------------------------


def _nurse(control: int) -> None:
    """Fork a worker, or end one, whenever it is asked for, until the other end of `control` is closed."""
    spec, policy, mode, limits, parent = pickle.load(sys.stdin.buffer)
    _die_with(parent)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as the caller may have it, children cannot be waited for
    if mode == "fast":
        import torch

        torch.set_num_threads(1)
    gc.freeze()  # a collection in a fork would write to, and so copy, the memory that all share
    nursery = os.getpid()
    with socket.socket(fileno=control) as orders:
        while True:
            order, descriptors, _, _ = socket.recv_fds(orders, _ORDER, 2, socket.MSG_WAITALL)
            if len(order) < _ORDER:
                os._exit(0)
            if child := int.from_bytes(order, "little"):
                orders.sendall(_ended(child).to_bytes(_ORDER, "little", signed=True))
                continue
            try:
                child = os.fork()
            except OSError:  # no memory for a process: the other side hears that its end is closed
                child = -1
            if child == 0:
                orders.close()
                _die_with(nursery)
                channel, memory = descriptors
                _work(channel, memory, spec, policy, mode, limits)
            for descriptor in descriptors:
                os.close(descriptor)


def _ended(child: int) -> int:
    """Kill it, if it has not ended by itself; its exit code. Nobody else waits for it, so the id is still its own."""
    os.kill(child, signal.SIGKILL)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    return _HANGS  # at a disk; it will do nothing more of its own


def _work(channel: int, memory: int, spec: InputSpec, policy: Policy, mode: Mode, limits: Limits) -> NoReturn:
    """Decode what comes from `channel` until its other end is closed, and exit."""
    try:
        _limit_memory(limits, channel)
        os.write(channel, f"{os.getpid()}\n".encode())  # ready
        with open(channel, "rb", closefd=False) as tasks:
            _answer(tasks, channel, memory, spec, policy, mode, limits)
        os._exit(0)  # at once, whatever threads a library has left
    finally:
        os._exit(1)  # never back into the nursery's loop


def _answer(
    tasks: IO[bytes], channel: int, memory: int, spec: InputSpec, policy: Policy, mode: Mode, limits: Limits
) -> None:
    place = 0
    while len(head := tasks.read(8)) == 8:
        source = tasks.read(int.from_bytes(head, "little"))
        outcome = _decode_one(source, spec, policy, mode, limits)
        if outcome.pixels is not None:
            os.pwrite(memory, outcome.pixels.data, place * outcome.pixels.nbytes)
        place = (place + 1) % _QUEUED
        error = outcome.error and (outcome.error.code, outcome.error.message, outcome.error.hint)
        answer = memoryview(json.dumps([error, *outcome[2:]]).encode() + b"\n")
        while answer:
            answer = answer[os.write(channel, answer) :]


def _decode_one(source: bytes, spec: InputSpec, policy: Policy, mode: Mode, limits: Limits) -> Decoded:
    """`load_pixels` in its steps, for what is known at each."""
    pixels = error = None
    sha256, size, height, width = "", 0, 0, 0
    try:
        data = pickle.loads(source).read(limits)
        sha256, size = hashlib.sha256(data).hexdigest(), len(data)
        opened = open_image(data, policy=policy, mode=mode, limits=limits)
        check_geometry(opened.height, opened.width, spec, limits)
        whole = opened.pixels()
        height, width = whole.shape[:2]
        pixels = prepare(whole, spec, mode, limits)
    except ImageError as failure:
        error = failure
    except Exception as failure:  # without its words, which can hold anything
        if not sha256:
            more = "there is not enough memory for it" if isinstance(failure, MemoryError) else "reading it failed"
            error = ImageError("unreadable", f"the input could not be read: {more}")
        elif isinstance(failure, MemoryError):
            error = ImageError("too_many_pixels", "there is not enough memory to decode the image")
        else:
            error = ImageError("corrupt_image", "the image could not be decoded")
    return Decoded(pixels, error, sha256, size, width, height)


def _die_with(parent: int) -> None:
    """Be killed when the parent's thread ends, also in the middle of an image (Linux; elsewhere, after it)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was quicker
        os._exit(0)


def _limit_memory(limits: Limits, channel: int) -> None:
    """What asks for too much gets a MemoryError, before the machine has to choose whom to kill (Linux)."""
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a million crashes are not to fill the disk
    scale = max(limits.pixels / DEFAULT_LIMITS.pixels, limits.bytes / DEFAULT_LIMITS.bytes, 1)
    set_limit(int(_HEADROOM * scale), lambda: os.write(channel, f"{_LONG_READ}\n".encode()))
