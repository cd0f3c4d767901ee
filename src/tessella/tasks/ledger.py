"""Which shards of a bulk run are finished, in one SQLite table."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

FILE = "run.sqlite"
_COLUMNS = ("id", "file", "sha256", "bytes", "rows", "ok", "errors")
_TYPES = [int, str, str, int, int, int, str]


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
            self._connection = sqlite3.connect(self._path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            if new:
                self._connection.execute(
                    "CREATE TABLE shards (id INTEGER PRIMARY KEY, file TEXT NOT NULL, sha256 TEXT NOT NULL, "
                    "bytes INTEGER NOT NULL, rows INTEGER NOT NULL, ok INTEGER NOT NULL, errors TEXT NOT NULL)"
                )
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def finished(self) -> dict[int, Shard]:
        """By their number, in order."""
        try:
            found = self._connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM shards ORDER BY id").fetchall()
            if any([type(value) for value in row] != _TYPES for row in found):
                raise ValueError("an entry has a value of another type")  # one bit of damage makes text a blob
            return {row[0]: Shard(**dict(zip(_COLUMNS, row, strict=True), errors=json.loads(row[-1]))) for row in found}
        except (sqlite3.Error, ValueError) as error:
            raise _failed(self._path, error) from error

    def commit(self, shard: Shard) -> None:
        try:
            self._connection.execute(
                "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)",
                (shard.id, shard.file, shard.sha256, shard.bytes, shard.rows, shard.ok,
                 json.dumps(shard.errors, sort_keys=True)),
            )  # fmt: skip
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def forget(self, ids: list[int]) -> None:
        """Of shards that are to be made again."""
        try:
            self._connection.executemany("DELETE FROM shards WHERE id = ?", [(one,) for one in ids])
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def check(self) -> None:
        """Read every page; UsageError `damaged_run` where one is not as SQLite wrote it."""
        try:
            told = self._connection.execute("PRAGMA integrity_check").fetchall()
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error
        if told != [("ok",)]:
            raise _damaged(f"{self._path} is damaged", self._path.parent)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _failed(path: Path, error: Exception) -> UsageError:
    """Of a disk that is full or gone, SQLite tells by these words; all else is a file that is not a whole ledger."""
    disk = ("disk", "readonly", "locked", "unable to open")
    if isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in disk):
        return UsageError("output_failed", f"{path} could not be written: {error}")
    return _damaged(f"{path} is damaged", path.parent)


def _damaged(message: str, run: Path) -> UsageError:
    return UsageError("damaged_run", message, hint=f"tessella verify-run {run} --repair")
