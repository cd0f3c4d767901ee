"""The one writer of results that must survive a crash: a file is the old one or the whole new one.

Only regular files are replaced. A symbolic link stays, and the file that it names is replaced; what is written to a
device, a pipe or an open descriptor (/dev/null, /dev/stdout, /dev/fd/3) goes into it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LONGEST_NAME = 200  # bytes of a result's name that its temporary file repeats; file systems allow 255 for all of it
_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/(?:self|(\d+))(?:/task/\d+)?/fd)/(\d+)")
_MOST_LINKS = 40  # in a chain, as Linux has it


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` at once: after a crash or a power cut it is the old file or the whole new one.

    Raises OSError, also where `path` is a folder; nothing has changed then.
    """
    with replacing(path) as file:
        file.write(data)


def copy_file(source: Path, path: Path) -> None:
    """`write_atomic` of what a file of any size holds."""
    with source.open("rb") as data, replacing(path) as file:
        shutil.copyfileobj(data, file)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path`, synced, at the end of the block; if the block fails, nothing changes.

    A new file gets permissions from the user's umask, a replaced file keeps its own. Anything other than a
    regular file is written to directly (see above). Raises OSError.
    """
    special = _special(path)
    if special is not None:
        with special:
            yield special
        return
    path = Path(os.path.realpath(path))  # of a symbolic link, what it names
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])
    temporary = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _keep_permissions(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _special(path: Path) -> IO[bytes] | None:
    """Open `path` for writing if it is a device, a pipe or an open descriptor; OSError if it is a folder."""
    number = _descriptor(path)
    if number is not None:
        if number in (1, 2):  # what was printed before comes first
            with contextlib.suppress(AttributeError, ValueError):  # a stream may be None, or closed
                (sys.stdout if number == 1 else sys.stderr).flush()
        return os.fdopen(os.dup(number), "wb")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    # a folder is refused by the system; a pipe that nobody reads from is an error here, and would wait for ever else
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")


def _descriptor(path: Path) -> int | None:
    """The number of the open descriptor that `path` names, directly or through links (/dev/stdout, /dev/fd/3)."""
    here = os.path.abspath(path)  # noqa: PTH100 - links must stay
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(here)
        here = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
        if (match := _DESCRIPTOR.fullmatch(here)) and match[1] in (None, str(os.getpid())):
            return int(match[2])
        if not os.path.islink(here):  # noqa: PTH114
            return None
        here = os.path.join(os.path.dirname(here), os.readlink(here))  # noqa: PTH115, PTH118, PTH120
    return None


def _keep_permissions(old: Path, new: Path) -> None:
    try:
        before = old.stat()
    except FileNotFoundError:
        return
    new.chmod(stat.S_IMODE(before.st_mode))
    if hasattr(os, "chown") and before.st_uid != os.geteuid():
        with contextlib.suppress(OSError):  # root replaces the file of a user, who keeps it
            os.chown(new, before.st_uid, before.st_gid)


def make_folders(folder: Path) -> None:
    """Make a folder with all above it. Path.mkdir recurses, which a path of a thousand short names does not survive.

    Raises OSError.
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last through a power cut."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are written through
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
