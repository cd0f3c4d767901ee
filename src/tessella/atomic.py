"""The one writer of results that must survive a crash: a file is the old one or the whole new one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` at once: after a crash or a power cut it is the old file or the whole new one.

    The file gets the permissions that the user's umask gives any new file.
    """
    with replacing(path) as file:
        file.write(data)


def copy_file(source: Path, path: Path) -> None:
    """`write_atomic` of what a file of any size holds."""
    with source.open("rb") as data, replacing(path) as file:
        shutil.copyfileobj(data, file)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that becomes `path` at the end of the block, synced; where the block fails, nothing changes."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last through a power cut."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are written through
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
