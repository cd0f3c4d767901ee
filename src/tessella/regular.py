"""Opening files that a user names: only regular files are opened, since a named pipe or a device may block for ever."""

from __future__ import annotations

import os
import stat
from io import BufferedReader

from .errors import UsageError

_KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class SpecialFileError(OSError):
    """The path is a named pipe, a socket or a device; `strerror` says which."""


def special_kind(mode: int) -> str:
    """What a file of this `st_mode` is ("a socket"); "" for a regular file or a folder."""
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; never blocks on what is not one.

    Raises SpecialFileError, IsADirectoryError, another OSError, or ValueError for a name with a NUL character.
    """
    _refuse(os.stat(path).st_mode, path)  # noqa: PTH116 - before opening, which can have effects on a device
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | _CLOEXEC)  # it may have been replaced since
    try:
        _refuse(os.fstat(descriptor).st_mode, path)
        return open(descriptor, "rb")  # noqa: PTH123 - the caller closes it
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a regular file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def absolute(path: str | os.PathLike[str]) -> str:
    """`os.path.abspath`; UsageError `not_found` for a relative path where the current folder was deleted."""
    try:
        return os.path.abspath(path)  # noqa: PTH100 - links keep their names
    except FileNotFoundError:
        raise UsageError(
            "not_found", "the current folder does not exist any more", hint="change to a folder that exists"
        ) from None


def _refuse(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, os.strerror(21), os.fspath(path))
    if kind := special_kind(mode):
        raise SpecialFileError(22, f"it is {kind}, not a regular file", os.fspath(path))
