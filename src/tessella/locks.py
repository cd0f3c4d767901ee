"""One process at a time may write to a folder: runs, indexes, and training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .atomic import make_folders
from .errors import OutputError, UsageError

LOCK = ".lock"


@contextmanager
def folder_lock(folder: Path, name: str = LOCK, *, hint: str = "wait for it, or give another --out") -> Iterator[None]:
    """Hold `folder` for writing while the block runs; the folder is created if it is missing.

    name: of the lock file, which stays there afterwards. The operating system releases the lock when the process ends,
    however it ends, and processes that it forked do not keep it.
    Raises UsageError `busy` where another process holds the folder, OutputError `output_failed` where the lock file
    cannot be written (a full disk, read-only media).
    """
    import filelock

    lock = filelock.FileLock(folder / name, timeout=0)
    try:
        make_folders(folder)
        lock.acquire()
    except filelock.Timeout:
        raise _busy(folder, hint) from None
    except OSError as error:
        raise OutputError(
            "output_failed", f"{folder} could not be written: {error.strerror or error}",
            hint="look at the free space and the permissions of the folder",
        ) from None  # fmt: skip
    try:
        yield
    finally:
        lock.release()


@contextmanager
def shared_lock(folder: Path, name: str = LOCK, *, hint: str = "wait for it") -> Iterator[None]:
    """Keep writers out of `folder` while the block reads it; several readers may do so at once. Nothing is written.

    Where no lock file exists, or it cannot be locked (read-only network file systems), the block runs without a lock.
    Raises UsageError `busy` where a process holds the folder for writing.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # no fcntl on Windows, where readers take no lock
            import fcntl

            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _busy(folder, hint) from None
        yield


def _busy(folder: Path, hint: str) -> UsageError:
    return UsageError("busy", f"another process is writing to {folder}", hint=hint)
