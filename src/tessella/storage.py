"""Read and write files safely: opening regular files, atomic writes, hashes, sealed JSON, and locks of folders.

After a crash, a file is either the old one or the complete new one. Only regular files are replaced: for a symbolic
link the target is replaced, and data for a device, a pipe or an open descriptor (/dev/null, /dev/stdout, /dev/fd/3) is
written to it directly.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from .checks import checked
from .errors import OutputError, UsageError
from .extras import need_pyarrow
from .text import any_of

# --- reading ----------------------------------------------------------------------------------------------------------

_KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class SpecialFileError(OSError):
    """The path is a named pipe, a socket or a device, which `strerror` names."""


def special_kind(mode: int) -> str:
    """Return the kind of a file by its `st_mode` ("a socket"), or "" for regular files and folders."""
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading, without blocking on pipes and devices.

    Raises SpecialFileError, IsADirectoryError, another OSError, or ValueError for a name with a NUL character.
    """
    _refuse(os.stat(path).st_mode, path)  # noqa: PTH116 - checked first, because opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | _CLOEXEC)  # the file may have been replaced since
    try:
        _refuse(os.fstat(descriptor).st_mode, path)
        return open(descriptor, "rb")  # noqa: PTH123 - the caller closes it
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file; raises the errors of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def absolute(path: str | os.PathLike[str]) -> str:
    """Return `os.path.abspath(path)`; raises UsageError `not_found` if the current folder was deleted."""
    try:
        return os.path.abspath(path)  # noqa: PTH100 - links are not resolved
    except FileNotFoundError:
        raise UsageError(
            "not_found", "the current folder no longer exists", hint="change to an existing folder"
        ) from None


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return the path with `~` and `~user` replaced; raises UsageError `bad_argument` for an unknown home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        if Path(path).parts[0] == "~":
            message = f"{os.fspath(path)!r} is in the home folder, and the current user has none"
            raise UsageError("bad_argument", message, hint="set HOME, or give a path without ~") from None
        message = f"{os.fspath(path)!r} is in the home folder of a user who does not exist"
        raise UsageError("bad_argument", message) from None


def _refuse(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, os.strerror(21), os.fspath(path))
    if kind := special_kind(mode):
        raise SpecialFileError(22, f"it is {kind}, not a regular file", os.fspath(path))


# --- atomic writes ----------------------------------------------------------------------------------------------------

_LONGEST_NAME = 200  # bytes of the file name in that of its temporary file; file systems allow 255 in total
_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/(?:self|(\d+))(?:/task/\d+)?/fd)/(\d+)")
_TRIAL_BYTES = 1 << 16  # of the file that shows whether a folder can be written
_MOST_LINKS = 40  # in a chain, the limit of Linux


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file atomically: after a crash or a power failure it is the old one or the complete new one.

    Raises OSError, also if `path` is a folder; nothing is changed then.
    """
    with replacing(path) as file:
        file.write(data)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file of any size atomically; raises OSError as `write_atomic` does."""
    with source.open("rb") as data, replacing(path) as file:
        shutil.copyfileobj(data, file)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file that replaces `path` at the end of the block; if the block fails, nothing is changed.

    The data is synced before. A new file gets its permissions from the umask, a replaced file keeps its own. Anything
    other than a regular file is written to directly (see above). Raises OSError.
    """
    special = _special(path)
    if special is not None:
        with special:
            yield special
        return
    path = Path(os.path.realpath(path))  # the target of a symbolic link
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
    """Open a device, a pipe or an open descriptor for writing; None for regular files, OSError for folders."""
    number = _descriptor(path)
    if number is not None:
        if number in (1, 2):  # buffered output comes first
            with contextlib.suppress(AttributeError, ValueError):  # a stream may be None or closed
                (sys.stdout if number == 1 else sys.stderr).flush()
        return os.fdopen(os.dup(number), "wb")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    # the system refuses a folder; with O_NONBLOCK a pipe without a reader is an error, otherwise it would block
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")


def _descriptor(path: Path) -> int | None:
    """Return the open descriptor that `path` refers to, directly or through links (/dev/stdout, /dev/fd/3)."""
    current = os.path.abspath(path)  # noqa: PTH100 - links must not be resolved
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(current)
        current = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
        if (match := _DESCRIPTOR.fullmatch(current)) and match[1] in (None, str(os.getpid())):
            return int(match[2])
        if not os.path.islink(current):  # noqa: PTH114
            return None
        current = os.path.join(os.path.dirname(current), os.readlink(current))  # noqa: PTH115, PTH118, PTH120
    return None


def _keep_permissions(old: Path, new: Path) -> None:
    try:
        before = old.stat()
    except FileNotFoundError:
        return
    new.chmod(stat.S_IMODE(before.st_mode))
    if hasattr(os, "chown") and before.st_uid != os.geteuid():
        with contextlib.suppress(OSError):  # if root replaces a user's file, the user keeps it
            os.chown(new, before.st_uid, before.st_gid)


def make_folders(folder: Path) -> None:
    """Create a folder and its parents; raises OSError.

    Path.mkdir is recursive and fails for paths of a thousand short names.
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        if folder == folder.parent:  # a drive that does not exist, on Windows
            break
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))


def check_writable(folder: Path) -> None:
    """Write a small file in `folder`, which is created if it is missing, and remove it; raises OSError."""
    make_folders(folder)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_TRIAL_BYTES))
        file.flush()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power failure, if the file system can; raises OSError if the disk fails."""
    if os.name != "posix":  # other systems cannot open a folder, and write renames at once
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what file systems without this operation answer
            raise
    finally:
        os.close(descriptor)


def publish_folder(draft: Path, folder: Path) -> None:
    """Give a complete folder its name; after a power failure, `folder` has all files or does not exist.

    draft: a folder of files beside `folder`, which may be an empty one. Raises OSError.
    """
    for path in draft.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(draft)
    if folder.exists():
        folder.rmdir()
    draft.rename(folder)
    sync_folder(folder.parent)


@checked
def check_output(path: str | Path, suffixes: Sequence[str]) -> Path:
    """Check that a result can be written, before the work starts, and return its path.

    suffixes: those allowed for the name. Raises UsageError `bad_argument`, `missing_dependency`.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise UsageError("bad_argument", f"cannot write {path.name!r}", hint=f"use a name ending in {any_of(suffixes)}")
    if path.suffix.lower() == ".parquet":
        need_pyarrow()
    try:
        if not path.parent.is_dir():
            raise UsageError("bad_argument", f"there is no folder {str(path.parent)!r}", hint="create it first")
        if path.is_dir():
            raise UsageError("bad_argument", f"{str(path)!r} is a folder, expected a file")
    except OSError as error:
        raise UsageError("bad_argument", f"cannot write {str(path)!r}: {error.strerror}") from None
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file with `write_atomic`; raises OutputError `output_failed`."""
    try:
        write_atomic(path, data)
    except OSError as error:
        raise OutputError("output_failed", f"{str(path)!r} could not be written: {error.strerror or error}") from None


def remove_file(path: Path, hint: str = "remove it, and run the same command again") -> None:
    """Remove a file of an earlier result if it exists; raises OutputError `output_failed` with this hint."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            "output_failed",
            f"{str(path)!r} could not be removed: {error.strerror or error}",
            hint=hint,
        ) from None


def create_output_folder(folder: str | Path) -> Path:
    """Create a folder for results if it is missing, and return it; raises OutputError `output_failed`."""
    folder = Path(folder)
    try:
        make_folders(folder)
    except OSError as error:
        raise OutputError(
            "output_failed",
            f"the folder {str(folder)!r} could not be created: {error.strerror}",
            hint="choose another folder",
        ) from None
    return folder


# --- the cache --------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return $TESSELLA_CACHE, or `tessella` in the user's cache folder as the operating system defines it.

    Earlier versions used `tessella` in $XDG_CACHE_HOME or ~/.cache on every system; if that folder exists, it is
    returned. Raises UsageError `bad_argument` if the user has no home folder.
    """
    if configured := os.environ.get("TESSELLA_CACHE"):
        return Path(configured)
    legacy = Path(os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache")) / "tessella"
    if legacy.is_dir():
        return legacy
    import platformdirs  # takes 9 ms, which most commands do not need

    return platformdirs.user_cache_path("tessella", appauthor=False)


# --- hashes -----------------------------------------------------------------------------------------------------------

_HASHED_AT_ONCE = 4  # files


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal digits; raises the errors of `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_files(folder: Path, files: Mapping[str, Sequence[int | str]]) -> Iterator[str]:
    """Yield the names of files below `folder` that are missing or differ from their recorded [size, SHA-256].

    Several files are hashed at the same time. An unreadable file is damaged, too.
    """
    from concurrent.futures import ThreadPoolExecutor

    def is_intact(name: str) -> bool:
        size, digest = files[name]
        path = folder / name
        try:
            return path.stat().st_size == size and file_hash(path) == digest
        except OSError:
            return False

    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        yield from (name for name, intact in zip(files, pool.map(is_intact, files), strict=True) if not intact)


# --- sealed JSON ------------------------------------------------------------------------------------------------------


def json_hash(values: Mapping[str, object]) -> str:
    """Return the SHA-256 (hex) of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sealed_bytes(values: Mapping[str, object], key: str) -> bytes:
    """Return a JSON file of `values` that also holds their hash, under `key`."""
    return (json.dumps({**values, key: json_hash(values)}, indent=1) + "\n").encode()


def read_sealed(path: Path, key: str) -> dict[str, Any] | None:
    """Read a JSON file written by `sealed_bytes`; None if it is missing or does not match its hash."""
    try:
        values = json.loads(read_regular(path))
        return values if values.pop(key) == json_hash(values) else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


# --- locks ------------------------------------------------------------------------------------------------------------

LOCK = ".lock"


@contextmanager
def folder_lock(folder: Path, name: str = LOCK, *, hint: str = "wait for it, or give another --out") -> Iterator[None]:
    """Hold `folder` for writing while the block runs; the folder is created if it is missing.

    name: the name of the lock file, which remains afterwards. The operating system releases the lock when the process
    ends, even if it is killed, and forked processes do not inherit it.
    Raises UsageError `busy` if another process holds the folder, OutputError `output_failed` if the lock file cannot be
    written (a full disk, read-only media).
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
            "output_failed",
            f"{folder} could not be written: {error.strerror or error}",
            hint="check the free space and the permissions of the folder",
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def shared_lock(folder: Path, name: str = LOCK, *, hint: str = "wait for it") -> Iterator[None]:
    """Prevent writes to `folder` while the block reads it; several readers can hold it at once. Nothing is written.

    If no lock file exists, or it cannot be locked (read-only network file systems), the block runs without a lock.
    Raises UsageError `busy` if a process holds the folder for writing.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # no fcntl on Windows, so readers take no lock there
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
