"""What a bulk run covers: every input, listed once and cut into shards, in a Parquet file that is never changed again.

Shard i is rows i * shard_rows to (i + 1) * shard_rows of the listing, in the listing's order, and row group i of the
file; so a shard is read alone, and a run of millions of inputs starts by reading a footer.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import replacing
from ..data.remote import is_url
from ..data.sources import Source
from ..data.stores import ParquetRow
from ..errors import ImageError, UsageError
from ..text import escape

RUN, MANIFEST = "run.json", "manifest.parquet"  # what a run is, in its folder
_LISTED = 100_000  # inputs between two remarks


def write_manifest(
    path: Path, sources: Iterable[Source], shard_rows: int, say: Callable[[int], None] = lambda listed: None
) -> tuple[int, str]:
    """List `sources` into a new file, whole or not at all; returns their number and the file's SHA-256.

    say: hears how many there are so far. Raises UsageError `not_found` for none, `bad_argument` for a key twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with replacing(path) as file:
            hashes = []  # 8 bytes an input: what a set of keys would take ten times of
            with pq.ParquetWriter(file, _schema(), compression="zstd", write_page_checksum=True) as writer:
                count, told, rest = 0, 0, iter(sources)
                while rows := [_cells(source) for source in itertools.islice(rest, shard_rows)]:
                    writer.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=_schema()))
                    hashes.append(np.array([_hash(row[0]) for row in rows], np.uint64))
                    count += len(rows)
                    if count - told >= _LISTED:
                        told = count
                        say(count)
            if not count:
                raise UsageError("not_found", "no inputs were named", hint="give a folder, files, or - with a list")
            file.flush()
            draft = Path(file.name)
            _refuse_twins(draft, np.concatenate(hashes))
            digest = file_hash(draft)
    except OSError as error:
        raise UsageError("output_failed", f"{path} could not be written: {error.strerror or error}") from error
    return count, digest


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([("key", pa.string()), ("path", pa.binary()), ("offset", pa.int64()), ("size", pa.int64()),
                      ("row", pa.int64()), ("code", pa.string()), ("message", pa.string())])  # fmt: skip


def _cells(source: Source) -> tuple[Any, ...]:
    """A row of the listing. Whole paths: a run may go on from another folder."""
    path = source.path if is_url(source.path) else os.path.abspath(source.path)  # noqa: PTH100 - links keep their names
    row = source.row if isinstance(source, ParquetRow) else None
    code, message = (source.error.code, as_text(source.error.message)) if source.error else ("", "")
    return escape(source.key), os.fsencode(path), source.offset, source.size, row, code, message


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def as_text(message: str) -> str:
    """A message that may name a file, as valid UTF-8 for Parquet. For names see `tessella.text.escape`."""
    try:
        return os.fsencode(message).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that no file name has
        return message.encode("utf-8", "backslashreplace").decode()


def _refuse_twins(draft: Path, hashes: np.ndarray[Any, Any]) -> None:
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if not len(same):
        return
    import pyarrow.parquet as pq

    places = [int(order[same[0]]), int(order[same[0] + 1])]
    keys = pq.read_table(draft, columns=["key"]).column("key").take(places).to_pylist()
    raise UsageError(
        "bad_argument",
        f"{len(same):,} inputs are named more than once, the first is {keys[0]!r}",
        hint="name each input once: a row is known by its key",
    )


class Manifest:
    """A listing that is there. rows, shards: numbers of both."""

    def __init__(self, path: Path, digest: str):
        """Raises UsageError `damaged_run` where it is not the file that was written."""
        import pyarrow.parquet as pq

        try:
            whole = file_hash(path) == digest
        except OSError:
            whole = False
        if not whole:
            raise UsageError(
                "damaged_run",
                f"{path} is missing or is not the listing that was written",
                hint=f"tessella verify-run {path.parent} --repair",
            )
        self._file = pq.ParquetFile(path)
        self.rows: int = self._file.metadata.num_rows
        self.shards: int = self._file.metadata.num_row_groups

    def sources(self, shard: int) -> list[Source]:
        """The inputs of a shard, in order."""
        columns = self._file.read_row_group(shard, use_threads=False).to_pydict()
        return [_source(*cells) for cells in zip(*columns.values(), strict=True)]


def _source(
    key: str, path: bytes, offset: int | None, size: int | None, row: int | None, code: str, message: str
) -> Source:
    error = ImageError(code, message) if code else None
    if row is not None:
        return ParquetRow(key, os.fsdecode(path), error=error, row=row)
    return Source(key, os.fsdecode(path), offset, size, error)


def file_hash(path: Path) -> str:
    """SHA-256, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
