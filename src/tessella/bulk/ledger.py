"""The ledger: the finished shards of a bulk run, in one SQLite table.

`Ledger` reads and writes it. `read_ledger` only reads: it works on a copy in memory, including the write-ahead log, so
that it changes no file and works on read-only media.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import struct
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError, TessellaError, UsageError
from ..storage import read_regular

LEDGER = "run.sqlite"
_COLUMNS = ("id", "file", "sha256", "bytes", "rows", "ok", "errors")
_TYPES = [int, str, str, int, int, int, str]
_TABLE = (
    "CREATE TABLE shards (id INTEGER PRIMARY KEY, file TEXT NOT NULL, sha256 TEXT NOT NULL, "
    "bytes INTEGER NOT NULL, rows INTEGER NOT NULL, ok INTEGER NOT NULL, errors TEXT NOT NULL)"
)
_INSERT = "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)"
_MAGIC = b"SQLite format 3\0"
_JOURNAL = slice(18, 20)  # bytes of the header: 2, 2 with a write-ahead log, else 1, 1
_LOG_HEADER, _FRAME_HEADER = 32, 24  # bytes, in a write-ahead log


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    file: its name in shards/. bytes, sha256: size and hash of that file. rows = ok + the sum of errors, which are
    counts by error code.
    """

    id: int
    file: str
    sha256: str
    bytes: int
    rows: int
    ok: int
    errors: Mapping[str, int]


class Ledger:
    """The ledger of a run, for writing. A context manager.

    A shard is recorded once its file is durable; the entry is durable when `commit` returns.
    """

    def __init__(self, run: Path, *, new: bool = False):
        """Open the ledger of the run in the folder `run`. new: create an empty one, replacing any other.

        Raises UsageError `damaged_run` if it is missing or cannot be read, OutputError `output_failed`.
        """
        self._path = run / LEDGER
        if new:
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(LEDGER + suffix).unlink(missing_ok=True)
        elif not self._path.is_file():
            raise _damaged(f"{self._path} is missing", run)
        with ExitStack() as stack:  # closes the database if it cannot be used
            try:
                self._connection = sqlite3.connect(os.fsencode(self._path), isolation_level=None)
                stack.callback(self._connection.close)
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                if new:
                    self._connection.execute(_TABLE)
            except sqlite3.Error as error:
                raise _failed(self._path, error) from error
            stack.pop_all()

    def finished(self) -> dict[int, Shard]:
        """Return the finished shards by number, in order."""
        return _entries(self._connection, self._path)

    def commit(self, shard: Shard) -> None:
        """Record a finished shard. Raises OutputError `output_failed`."""
        try:
            self._connection.execute(_INSERT, _row_of(shard))
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def forget(self, ids: list[int]) -> None:
        """Remove the entries of shards, which will be made again."""
        try:
            self._connection.executemany("DELETE FROM shards WHERE id = ?", [(number,) for number in ids])
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ledger(run: Path, *, deep: bool = False) -> dict[int, Shard]:
    """Read the finished shards by number, in order; no file is changed, and the run may be in progress.

    deep: check every page. Raises UsageError `damaged_run` if the ledger is missing or corrupt.
    """
    path = run / LEDGER
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


def shard_of(entry: Mapping[str, Any]) -> Shard:
    """Return the shard of an entry of the ledger or the log; other keys of the entry are ignored.

    Raises ValueError if a field is missing or has another type.
    """
    try:
        shard = Shard(**{name: entry[name] for name in _COLUMNS})
    except KeyError as error:
        raise ValueError(f"not the entry of a shard: {error} is missing") from None
    types = [type(getattr(shard, name)) for name in _COLUMNS]
    if types != [*_TYPES[:-1], dict] or any(type(count) is not int for count in shard.errors.values()):
        raise ValueError("an entry has a value of another type")
    return shard


def ledger_bytes(shards: Mapping[int, Shard]) -> bytes:
    """Return the bytes of a complete new ledger file."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(_TABLE)
        connection.executemany(_INSERT, [_row_of(shard) for shard in shards.values()])
        data = bytearray(connection.serialize())
    data[_JOURNAL] = b"\2\2"  # the mode that `Ledger` sets, so that opening the file does not change it
    return bytes(data)


def _row_of(shard: Shard) -> tuple[int | str, ...]:
    errors = json.dumps(dict(shard.errors), sort_keys=True)
    return shard.id, shard.file, shard.sha256, shard.bytes, shard.rows, shard.ok, errors


def _entries(connection: sqlite3.Connection, path: Path) -> dict[int, Shard]:
    try:
        rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM shards ORDER BY id").fetchall()
        if any([type(value) for value in row] != _TYPES for row in rows):
            raise ValueError("an entry has a value of another type")  # one flipped bit can turn text into a blob
        return {row[0]: shard_of(dict(zip(_COLUMNS, row, strict=True), errors=json.loads(row[-1]))) for row in rows}
    except (sqlite3.Error, ValueError, RecursionError, OverflowError) as error:
        raise _failed(path, error) from error


# --- reading without writing ------------------------------------------------------------------------------------------


def _snapshot(path: Path) -> bytearray:
    """Return the database including its write-ahead log; read again if a writer began a new log in between."""
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
    """Return `data` with the pages of all transactions committed to the log, after SQLite's file format.

    The log ends at the first frame whose salt or checksum does not match: what follows is older or incomplete.
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
    for start in range(_LOG_HEADER, len(log) - _FRAME_HEADER - page_size + 1, _FRAME_HEADER + page_size):
        frame = log[start : start + _FRAME_HEADER]
        page = log[start + _FRAME_HEADER : start + _FRAME_HEADER + page_size]
        checksum = _checksum(page, order, _checksum(frame[:8], order, checksum))
        number, size = struct.unpack(">2I", frame[:8])
        if frame[8:16] != log[16:24] or checksum != struct.unpack(">2I", frame[16:]) or not number:
            break
        pages[number] = page
        if size:  # the last frame of a transaction; size is that of the database, in pages
            data.extend(bytes(max(0, size * page_size - len(data))))
            for page_number, changed in pages.items():
                data[(page_number - 1) * page_size : page_number * page_size] = changed
            del data[size * page_size :]
            pages.clear()
    return data


def _checksum(data: bytes, order: str, initial: tuple[int, int]) -> tuple[int, int]:
    """Return the checksum of `data` in SQLite's write-ahead log, continued from `initial`."""
    first, second = initial
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _failed(path: Path, error: Exception) -> TessellaError:
    """Tell a failing disk, which SQLite reports in these words, from a damaged file."""
    disk_errors = ("disk", "readonly", "locked", "unable to open")
    if isinstance(error, sqlite3.OperationalError) and any(words in str(error) for words in disk_errors):
        return OutputError("output_failed", f"{path} could not be written: {error}")
    return _damaged(f"{path} is damaged", path.parent)


def _damaged(message: str, run: Path) -> UsageError:
    return UsageError("damaged_run", message, hint=f"tessella verify-run {shlex.quote(str(run))} --repair")
