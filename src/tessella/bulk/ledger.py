"""Which shards of a bulk run are finished, in one SQLite table.

Who writes opens it with `Ledger`. `read_ledger` works on a copy in memory, with what the write-ahead log adds, so that
reading changes no file and needs none that can be written.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError, TessellaError, UsageError
from ..storage import read_regular

FILE = "run.sqlite"
_COLUMNS = ("id", "file", "sha256", "bytes", "rows", "ok", "errors")
_TYPES = [int, str, str, int, int, int, str]
_TABLE = (
    "CREATE TABLE shards (id INTEGER PRIMARY KEY, file TEXT NOT NULL, sha256 TEXT NOT NULL, "
    "bytes INTEGER NOT NULL, rows INTEGER NOT NULL, ok INTEGER NOT NULL, errors TEXT NOT NULL)"
)
_INSERT = "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)"
_MAGIC = b"SQLite format 3\0"
_JOURNAL = slice(18, 20)  # bytes of the header: 2, 2 where there is a write-ahead log, else 1, 1
_LOG_HEADER, _FRAME_HEADER = 32, 24  # bytes, in a write-ahead log


@dataclass(frozen=True)
class Shard:
    """A finished shard: file is its name below shards/, bytes and sha256 are that file's, errors counts by code."""

    id: int
    file: str
    sha256: str
    bytes: int
    rows: int
    ok: int
    errors: Mapping[str, int]


class Ledger:
    """A row is written once its file is durable, and is durable itself when `commit` returns. A context manager."""

    def __init__(self, run: Path, *, new: bool = False):
        """new: begin one, in place of what is there. UsageError `damaged_run` where it cannot be read or is missing."""
        self._path = run / FILE
        if new:
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(FILE + suffix).unlink(missing_ok=True)
        elif not self._path.is_file():
            raise _damaged(f"{self._path} is missing", run)
        try:
            self._connection = sqlite3.connect(os.fsencode(self._path), isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            if new:
                self._connection.execute(_TABLE)
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def finished(self) -> dict[int, Shard]:
        """By their number, in order."""
        return _entries(self._connection, self._path)

    def commit(self, shard: Shard) -> None:
        try:
            self._connection.execute(_INSERT, _cells(shard))
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def forget(self, ids: list[int]) -> None:
        """Of shards that are to be made again."""
        try:
            self._connection.executemany("DELETE FROM shards WHERE id = ?", [(one,) for one in ids])
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ledger(run: Path, *, deep: bool = False) -> dict[int, Shard]:
    """Read the finished shards by number, in order; no file is changed, and the run may be in progress.

    deep: check every page. Raises UsageError `damaged_run` if the ledger is missing or corrupt.
    """
    path = run / FILE
    try:
        data = _snapshot(path)
    except FileNotFoundError:
        raise _damaged(f"{path} is missing", run) from None
    except OSError as error:
        raise _damaged(f"{path} cannot be read: {error.strerror or error}", run) from None
    if data[:16] != _MAGIC or bytes(data[_JOURNAL]) not in (b"\1\1", b"\2\2"):
        raise _damaged(f"{path} is damaged", run)
    data[_JOURNAL] = b"\1\1"  # a database in memory has no write-ahead log
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        try:
            connection.deserialize(bytes(data))
            if deep and connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise _damaged(f"{path} is damaged", run)
        except sqlite3.Error:
            raise _damaged(f"{path} is damaged", run) from None
        return _entries(connection, path)


def ledger_bytes(shards: Mapping[int, Shard]) -> bytes:
    """Return the bytes of a complete new ledger file."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(_TABLE)
        connection.executemany(_INSERT, [_cells(shard) for shard in shards.values()])
        data = bytearray(connection.serialize())
    data[_JOURNAL] = b"\2\2"  # as `Ledger` has it, so that opening the file does not change it
    return bytes(data)


def _cells(shard: Shard) -> tuple[Any, ...]:
    return (shard.id, shard.file, shard.sha256, shard.bytes, shard.rows, shard.ok,
            json.dumps(dict(shard.errors), sort_keys=True))  # fmt: skip


def _entries(connection: sqlite3.Connection, path: Path) -> dict[int, Shard]:
    try:
        found = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM shards ORDER BY id").fetchall()
        if any([type(value) for value in row] != _TYPES for row in found):
            raise ValueError("an entry has a value of another type")  # one bit of damage makes text a blob
        return {row[0]: Shard(**dict(zip(_COLUMNS, row, strict=True), errors=json.loads(row[-1]))) for row in found}
    except (sqlite3.Error, ValueError, RecursionError, OverflowError) as error:
        raise _failed(path, error) from error


# --- reading without writing ------------------------------------------------------------------------------------------


def _snapshot(path: Path) -> bytearray:
    """The database with its write-ahead log, read until no writer has begun a new log in between."""
    log = path.with_name(path.name + "-wal")
    for _ in range(10):
        before, data, after = _bytes_of(log), bytearray(read_regular(path)), _bytes_of(log)
        if before[:_LOG_HEADER] == after[:_LOG_HEADER]:
            break
    return _with_log(data, after)


def _bytes_of(path: Path) -> bytes:
    with suppress(FileNotFoundError):
        return read_regular(path)
    return b""


def _with_log(data: bytearray, log: bytes) -> bytearray:
    """`data` with the pages of all transactions that were committed to the log, as SQLite's file format describes it.

    The log ends at the first frame whose salt or checksum does not fit: what follows is older, or was cut off.
    """
    if len(log) < _LOG_HEADER:
        return data
    magic, _, page_size = struct.unpack(">3I", log[:12])
    if magic not in (0x377F0682, 0x377F0683):
        return data
    order = ">" if magic & 1 else "<"
    checksum = _checksum(log[:24], order, (0, 0))
    if checksum != struct.unpack(">2I", log[24:_LOG_HEADER]) or not 512 <= page_size <= 65_536:
        return data
    pages: dict[int, bytes] = {}
    for at in range(_LOG_HEADER, len(log) - _FRAME_HEADER - page_size + 1, _FRAME_HEADER + page_size):
        frame, page = log[at : at + _FRAME_HEADER], log[at + _FRAME_HEADER : at + _FRAME_HEADER + page_size]
        checksum = _checksum(page, order, _checksum(frame[:8], order, checksum))
        number, size = struct.unpack(">2I", frame[:8])
        if frame[8:16] != log[16:24] or checksum != struct.unpack(">2I", frame[16:]) or not number:
            break
        pages[number] = page
        if size:  # the last frame of a transaction, with the pages that the database has now
            data.extend(bytes(max(0, size * page_size - len(data))))
            for one, changed in pages.items():
                data[(one - 1) * page_size : one * page_size] = changed
            del data[size * page_size :]
            pages.clear()
    return data


def _checksum(data: bytes, order: str, before: tuple[int, int]) -> tuple[int, int]:
    first, second = before
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def _failed(path: Path, error: Exception) -> TessellaError:
    """Of a disk that is full or gone, SQLite tells by these words; all else is a file that is not a whole ledger."""
    disk = ("disk", "readonly", "locked", "unable to open")
    if isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in disk):
        return OutputError("output_failed", f"{path} could not be written: {error}")
    return _damaged(f"{path} is damaged", path.parent)


def _damaged(message: str, run: Path) -> UsageError:
    return UsageError("damaged_run", message, hint=f"tessella verify-run {run} --repair")
