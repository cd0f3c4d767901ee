"""What is known about the content of weight files, so that a large file is hashed and checked only once.

The facts are kept in the cache folder, one small file per weight file, and hold while its path, size, time of change,
inode and first bytes are the same. Small files are checked every time, which takes a few milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from io import BufferedReader
from pathlib import Path

import msgspec

from ..storage import cache_folder, make_folders, write_atomic

FOLDER = "weight-files"  # in the cache folder
SMALLEST = 4 << 20  # bytes of a file whose facts are remembered
SETTLED = 2  # seconds without a change: a file that is still being written may change again within its time stamp
FIRST_BYTES = 4096


class _Identity(msgspec.Struct, frozen=True):
    """What determines that a file is unchanged. first: SHA-256 of its first bytes."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    first: str


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    """The content of a file in the cache. tensors: by a hash of the layout, that of the tensors in it."""

    file: _Identity
    sha256: str | None = None
    is_finite: bool = False
    tensors: dict[str, str] = {}


class FileFacts:
    """Facts about the content of one weight file; setting one remembers it for the next time.

    sha256: of the file. is_finite: all its numbers are; false if that was not checked yet. Nothing is remembered about
    a file that changed in the last SETTLED seconds, or if the cache folder cannot be written, which is no error.
    """

    def __init__(self, path: Path, file: BufferedReader):
        """path: of the open `file`."""
        self._path = Path(os.path.realpath(path))
        self._identity = _identify(self._path, file)
        self._record = _Record(self._identity)
        if self._is_large:
            with contextlib.suppress(OSError, ValueError, RecursionError):  # none yet, or damaged
                stored = msgspec.json.decode(self._stored_at.read_bytes(), type=_Record)
                if stored.file == self._identity:
                    self._record = stored

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the file, or None if it is not known."""
        return self._record.sha256

    @sha256.setter
    def sha256(self, value: str) -> None:
        if value != self._record.sha256:
            self._record.sha256 = value
            self._store()

    @property
    def is_finite(self) -> bool:
        """Whether all numbers in the file are known to be finite."""
        return self._record.is_finite

    @is_finite.setter
    def is_finite(self, value: bool) -> None:
        if value != self._record.is_finite:
            self._record.is_finite = value
            self._store()

    def tensors_hash(self, layout: str) -> str | None:
        """Return the hash of the tensors that were read from the file; None if it is not known.

        layout: a text of their names, types and shapes in order.
        """
        return self._record.tensors.get(_short_hash(layout.encode()))

    def remember_tensors(self, layout: str, digest: str) -> None:
        """Remember the hash of the tensors for this `layout`."""
        self._record.tensors[_short_hash(layout.encode())] = digest
        self._store()

    @property
    def _is_large(self) -> bool:
        return self._identity.size >= SMALLEST

    @property
    def _stored_at(self) -> Path:
        return cache_folder() / FOLDER / f"{_short_hash(os.fsencode(self._path))}.json"

    def _store(self) -> None:
        if not self._is_large or time.time() - self._identity.mtime_ns / 1e9 < SETTLED:
            return
        with contextlib.suppress(OSError, ValueError):  # ValueError for a path that is not Unicode
            with self._path.open("rb") as file:
                if _identify(self._path, file) != self._identity:  # it was replaced meanwhile
                    return
            make_folders(self._stored_at.parent)
            write_atomic(self._stored_at, msgspec.json.encode(self._record))


def _identify(path: Path, file: BufferedReader) -> _Identity:
    status = os.fstat(file.fileno())
    file.seek(0)
    first = hashlib.sha256(file.read(FIRST_BYTES)).hexdigest()
    return _Identity(str(path), status.st_size, status.st_mtime_ns, status.st_ino, first)


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
