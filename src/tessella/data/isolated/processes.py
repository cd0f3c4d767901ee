"""The supervisor's handles of its processes: the fork server, and the workers that it forks."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from ..decode import Pixels
from ..spec import InputSpec
from .protocol import NOT_REAPED, ORDER_BYTES, SLOT_BYTES, SLOTS, Decoded, DecodeSettings

_KEPT_MEMORY = 8 << 20  # bytes that a worker keeps for its next image
# sys.path comes first: the package and the classes of sources may lie where only the caller looks
_BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from tessella.data.isolated.worker import run_fork_server; run_fork_server(int(sys.argv[1]))"
)


class Task:
    """One image to decode.

    source: pickled. spec: that of an EncodedImage; None for the decoder's. done: called in the thread of the supervisor
    when there is a result, unless the task was canceled; it must not raise or wait.
    """

    __slots__ = ("canceled", "done", "result", "seconds", "source", "spec")

    def __init__(self, source: bytes, spec: InputSpec | None = None, done: Callable[[Task], None] | None = None):
        self.source, self.spec, self.done = source, spec, done
        self.result: Decoded | None = None
        self.seconds = 0.0  # that a worker spent reading and decoding the image
        self.canceled = False


class ForkServer:
    """The process that forks the workers; they end with it. Raises OSError if it cannot be started."""

    def __init__(self, settings: DecodeSettings, folder: str):
        # one thread per process, because the processes use all cores already; Arrow's own allocator reserves a gigabyte
        # at a time, more than the limit allows; glibc returns the memory of every image to the system, and gets it back
        # page by page for the next one
        variables = dict(
            OMP_NUM_THREADS="1",
            OPENBLAS_NUM_THREADS="1",
            ARROW_DEFAULT_MEMORY_POOL="system",
            MALLOC_MMAP_THRESHOLD_=str(_KEPT_MEMORY),
            MALLOC_TRIM_THRESHOLD_=str(_KEPT_MEMORY),
        )
        self._socket, remote_end = socket.socketpair()
        self._socket.settimeout(5.0)
        try:
            with remote_end:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _BOOT, str(remote_end.fileno())],
                    pass_fds=[remote_end.fileno()],
                    cwd=folder,
                    env=os.environ | variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,  # libraries print text from untrusted files
                    stderr=subprocess.DEVNULL,
                )
        except BaseException:
            self._socket.close()
            raise
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as file:  # if it has ended, its workers count as lost
            file.write(pickle.dumps(sys.path) + pickle.dumps((settings, os.getpid())))

    def is_alive(self) -> bool:
        """Return whether the process is running."""
        return self._process.poll() is None

    def fork(self, channel: int, memory: int) -> None:
        """Request a worker with these two descriptors; the worker itself reports when it is ready."""
        socket.send_fds(self._socket, [bytes(ORDER_BYTES)], [channel, memory])

    def end(self, pid: int) -> int | None:
        """Kill a worker and return its exit code (-N for signal N), or None if it is not known."""
        try:
            self._socket.sendall(pid.to_bytes(ORDER_BYTES, "little"))
            answer = self._socket.recv(ORDER_BYTES, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if len(answer) < ORDER_BYTES:
            self._process.kill()  # a late answer would be taken for the answer to another order
            return None
        code = int.from_bytes(answer, "little", signed=True)
        return None if code == NOT_REAPED else code

    def close(self) -> None:
        """Kill the process and its workers."""
        self._process.kill()
        self._process.wait()
        self._socket.close()


class Worker:
    """A worker process and its tasks. Raises OSError if it cannot be started."""

    def __init__(self, server: ForkServer):
        self.pid = 0  # until it is ready
        self.exit_code: int | None = None  # -N for signal N
        self.tasks: deque[Task] = deque()  # it is working on the first
        self.ready = False
        self.long_read = False  # whether it has announced a long read for its first task
        self.isolates_suspect = False  # its only task is an image during which another process ended
        self.since = time.monotonic()  # start of its first task, or of the process
        self.answered = 0
        self.inbox = b""
        self.outbox = bytearray()
        self.memory = _memory_file()
        self.socket, remote_end = socket.socketpair()
        self.socket.setblocking(False)
        self._server = server
        try:
            with remote_end:
                server.fork(remote_end.fileno(), self.memory)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End the process. Before it is ready, its id is unknown: then it ends with its tasks, or with its server."""
        self.socket.close()
        os.close(self.memory)
        if self.pid:
            self.exit_code = self._server.end(self.pid)

    def pixels(self, height: int, width: int) -> Pixels:
        """Return the pixels of the next answer, (height, width, 3) uint8. Raises ValueError if they are missing."""
        image = np.empty((height, width, 3), np.uint8)
        if os.preadv(self.memory, [image.data], self.answered % SLOTS * SLOT_BYTES) != image.nbytes:
            raise ValueError("the pixels are incomplete")
        return image

    def describe_exit(self) -> str:
        """Return how the process ended, such as " by SIGSEGV"; "" if that is not known."""
        if self.exit_code is None or self.exit_code >= 0:
            return "" if self.exit_code is None else f" with exit status {self.exit_code}"
        try:
            return f" by {signal.Signals(-self.exit_code).name}"
        except ValueError:
            return f" by signal {-self.exit_code}"


def _memory_file() -> int:
    """Return a descriptor of an unnamed file, which disappears when the last process closes it.

    It is read and written with system calls: a decoder that writes to wrong addresses cannot corrupt the pixels of
    other images, as it could in shared memory.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tessella-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
