"""The files of a target: which ones there are, and their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import UsageError
from ..storage import file_hash
from ..text import escape

_HASHED_AT_ONCE = 4  # files
_LOCKS = (".lock", ".train.lock")  # are empty, and created by whoever reads or writes the folder
_SHARED_MEMORY = "-shm"  # of SQLite, which is made again when a database is opened


def content_hashes(target: Path) -> dict[str, tuple[int, str]]:
    """Return (bytes, SHA-256) of all files below a folder by their path in it, or of one file by its name.

    Paths are as `text.escape` makes them, so that different files never have the same one. Locks are left out.
    Links to files are followed. Raises UsageError `unreadable`, also for links to folders.
    """
    try:
        paths = dict(_files(target)) if target.is_dir() else {target.name: target}
        with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
            hashes = list(pool.map(file_hash, paths.values()))
        sizes = [path.stat().st_size for path in paths.values()]
    except OSError as error:
        name = error.filename or target
        raise UsageError("unreadable", f"{str(name)!r} could not be read: {error.strerror or error}") from None
    return {name: (size, digest) for name, size, digest in zip(paths, sizes, hashes, strict=True)}


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    folders = [root]
    while folders:  # a recursive function would fail for a thousand nested folders
        for path in sorted(folders.pop().iterdir()):
            if path.is_dir() and path.is_symlink():
                raise UsageError("unreadable", f"{str(path)!r} is a link to a folder", hint="verify that folder itself")
            if path.is_dir():
                folders.append(path)
            elif path.name not in _LOCKS and not path.name.endswith(_SHARED_MEMORY):
                yield escape(path.relative_to(root).as_posix()), path
