"""The processes of the isolated decoder: a fork server, and the workers that it forks, which read and decode images."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import signal
import socket
import sys
import time
from typing import IO, NoReturn

from ...errors import ImageError
from ..limits import DEFAULT_LIMITS, Limits
from ..memory import set_limit
from ..transforms import load_sized
from .protocol import (
    LONG_READ,
    NOT_REAPED,
    ORDER_BYTES,
    SLOT_BYTES,
    SLOTS,
    Decoded,
    DecodeSettings,
    EncodedImage,
    ListedImage,
)

# Bytes per image: with DEFAULT_LIMITS' 50 MP, an RGBA WebP takes 1.5 GB in addition to its file
_HEADROOM = 2_000_000_000


def run_fork_server(control: int) -> None:
    """Fork workers and end them by the orders that arrive on the descriptor `control`, until its other end is closed.

    Reads the settings and the id of the parent process from standard input.
    """
    settings, parent = pickle.load(sys.stdin.buffer)
    _end_with(parent)
    os.nice(settings.nice)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if the caller ignores it, children cannot be waited for
    gc.freeze()  # a collection in a fork would write to, and so copy, the memory that all processes share
    server = os.getpid()
    with socket.socket(fileno=control) as orders:
        while True:
            order, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES, 2, socket.MSG_WAITALL)
            if len(order) < ORDER_BYTES:
                os._exit(0)
            if child := int.from_bytes(order, "little"):
                orders.sendall(_end_child(child).to_bytes(ORDER_BYTES, "little", signed=True))
                continue
            try:
                child = os.fork()
            except OSError:  # no memory for a process: the supervisor sees that its end of the channel is closed
                child = -1
            if child == 0:
                orders.close()
                _end_with(server)
                channel, memory = descriptors
                _run_worker(channel, memory, settings)
            for descriptor in descriptors:
                os.close(descriptor)


def _end_child(child: int) -> int:
    """Kill a child that has not ended by itself, and return its exit code or NOT_REAPED.

    Only this process waits for its children, so the id cannot have been given to another process.
    """
    os.kill(child, signal.SIGKILL)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    return NOT_REAPED  # it waits for a disk, and will run no more code of its own


def _run_worker(channel: int, memory: int, settings: DecodeSettings) -> NoReturn:
    """Decode the images that arrive on `channel` until its other end is closed, and exit."""
    try:
        _limit_memory(settings.limits, channel)
        os.write(channel, f"{os.getpid()}\n".encode())  # ready
        with open(channel, "rb", closefd=False) as tasks:
            _answer(tasks, channel, memory, settings)
        os._exit(0)  # at once, whatever threads a library has left running
    finally:
        os._exit(1)  # never return to the loop of the fork server


def _answer(tasks: IO[bytes], channel: int, memory: int, settings: DecodeSettings) -> None:
    slot = 0
    while len(head := tasks.read(8)) == 8:
        source = tasks.read(int.from_bytes(head, "little"))
        start = time.perf_counter()
        decoded = _decode(source, settings)
        seconds = time.perf_counter() - start
        if decoded.pixels is not None:
            os.pwrite(memory, decoded.pixels.data, slot * SLOT_BYTES)
        slot = (slot + 1) % SLOTS
        error = decoded.error and (decoded.error.code, decoded.error.message, decoded.error.hint)
        answer = memoryview(json.dumps([error, seconds, *decoded[2:]]).encode() + b"\n")
        while answer:
            answer = answer[os.write(channel, answer) :]


def _decode(pickled: bytes, settings: DecodeSettings) -> Decoded:
    """Read a pickled source and prepare its pixels as `load_pixels` does; any exception becomes an ImageError."""
    spec, policy, mode, limits, _ = settings
    pixels = error = None
    sha256, size, height, width = "", 0, 0, 0
    try:
        source = pickle.loads(pickled)
        if isinstance(source, EncodedImage | ListedImage):
            spec = source.spec
        if isinstance(source, ListedImage):
            mode = source.mode
        data = source.read(limits)
        sha256, size = hashlib.sha256(data).hexdigest(), len(data)
        pixels, height, width = load_sized(data, spec, policy=policy, mode=mode, limits=limits)
    except ImageError as failure:
        error = failure
    except Exception as failure:  # its text is left out, since it may contain anything
        if not sha256:
            reason = "there is not enough memory for it" if isinstance(failure, MemoryError) else "reading it failed"
            error = ImageError("unreadable", f"the input could not be read: {reason}")
        elif isinstance(failure, MemoryError):
            error = ImageError("too_many_pixels", "there is not enough memory to decode the image")
        else:
            error = ImageError("corrupt_image", "the image could not be decoded")
    return Decoded(pixels, error, sha256, size, width, height)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends (Linux); elsewhere it ends after the current image."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(0)


def _limit_memory(limits: Limits, channel: int) -> None:
    """Make excessive allocations raise MemoryError, before the kernel has to choose a process to kill (Linux)."""
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # core dumps of many crashes would fill the disk
    scale = max(limits.pixels / DEFAULT_LIMITS.pixels, limits.bytes / DEFAULT_LIMITS.bytes, 1)
    set_limit(int(_HEADROOM * scale), lambda: os.write(channel, f"{LONG_READ}\n".encode()))
