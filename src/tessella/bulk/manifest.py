"""What a bulk run covers: every input, listed once and cut into shards, in a Parquet file that is never changed again.

Shard i is rows i * shard_rows to (i + 1) * shard_rows of the listing, in the listing's order, and row group i of the
file; so a shard is read alone, and a run of millions of inputs starts by reading a footer.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.identity import UNKNOWN, Identity, container_difference, identity_of, listed_source
from ..data.parquet import ParquetRow
from ..data.remote import is_url
from ..data.source import Source
from ..errors import ImageError, OutputError, UsageError
from ..storage import absolute, file_hash, replacing
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

    cells_of = _Cells()
    try:
        with replacing(path) as file:
            hashes = []  # 8 bytes an input: what a set of keys would take ten times of
            with pq.ParquetWriter(file, _schema(), compression="zstd", write_page_checksum=True) as writer:
                count, told, rest = 0, 0, iter(sources)
                while rows := [cells_of(source) for source in itertools.islice(rest, shard_rows)]:
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
        raise OutputError("output_failed", f"{path} could not be written: {error.strerror or error}") from error
    return count, digest


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([("key", pa.string()), ("path", pa.binary()), ("offset", pa.int64()), ("size", pa.int64()),
                      ("row", pa.int64()), ("code", pa.string()), ("message", pa.string()),
                      ("file_size", pa.int64()), ("mtime", pa.int64()), ("digest", pa.string()),
                      ("ctime", pa.int64())])  # fmt: skip


class _Cells:
    """Builds rows of the listing; caches the identity of the container whose members follow each other."""

    def __init__(self) -> None:
        self._container, self._identity = "", UNKNOWN

    def __call__(self, source: Source) -> tuple[Any, ...]:
        """Whole paths: a run may be resumed from another folder."""
        path = source.path if is_url(source.path) else absolute(source.path)
        row = source.row if isinstance(source, ParquetRow) else None
        code, message = (source.error.code, as_text(source.error.message)) if source.error else ("", "")
        cells = (escape(source.key), os.fsencode(path), source.offset, source.size, row, code, message)
        if source.error is not None:
            return (*cells, *UNKNOWN)
        if row is None and source.offset is None:
            return (*cells, *identity_of(path))
        if path != self._container:
            self._container, self._identity = path, identity_of(path, container=True)
        return (*cells, *self._identity)


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
    with draft.open("rb") as file:
        keys = pq.read_table(file, columns=["key"]).column("key").take(places).to_pylist()
    raise UsageError(
        "bad_argument",
        f"{len(same):,} inputs are named more than once, the first is {keys[0]!r}",
        hint="give each input only once: keys identify rows",
    )


class Manifest:
    """A listing that is there. rows, shards: numbers of both."""

    def __init__(self, path: Path, digest: str):
        """Raises UsageError `damaged_run` where it is not the file that was written."""
        import pyarrow as pa
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
        self._file = pq.ParquetFile(pa.OSFile(os.fsencode(path)))  # its name may be no text
        self.rows: int = self._file.metadata.num_rows
        self.shards: int = self._file.metadata.num_row_groups

    def sources(self, shard: int) -> list[Source]:
        """The inputs of a shard, in order."""
        columns = self._file.read_row_group(shard, use_threads=False).to_pydict()
        return [_source(*cells) for cells in zip(*columns.values(), strict=True)]

    def need_unchanged(self, shards: Sequence[int], finished: Iterable[tuple[int, Sequence[str]]]) -> None:
        """UsageError `changed_run` where an archive or table that these shards need is not the one that was listed.

        finished: of the shards that are there, numbers and the SHA-256 of the rows. Archives are listed anew, tables
        are known by their footers; where the file system says that one was touched in any way, the images that were
        read from it are read again and compared. Files by themselves are checked when they are read.
        """
        changed: dict[str, str] = {}
        touched = set()
        for path, (identity, members) in self._containers(shards).items():
            if what := container_difference(path, identity, members):
                changed[path] = what
            elif identity_of(path, container=True).ctime != identity.ctime:
                touched.add(path)
        if not changed and touched:
            changed = self._other_bytes(touched, finished)
        if changed:
            path, what = next(iter(changed.items()))
            more = f"; {len(changed) - 1:,} others have changed, too" if len(changed) > 1 else ""
            raise UsageError(
                "changed_run", f"{path!r} has changed since the run listed it: {what}{more}",
                hint="restore the original file, or start a new run in another --out",
            )  # fmt: skip

    def _other_bytes(self, paths: set[str], finished: Iterable[tuple[int, Sequence[str]]]) -> dict[str, str]:
        """Of these containers, those that give other bytes for rows that are finished; and which row is the first."""
        for shard, hashes in finished:
            for source, sha256 in zip(self.sources(shard), hashes, strict=True):
                if source.path in paths and sha256:
                    try:
                        same = hashlib.sha256(source.read()).hexdigest() == sha256
                    except ImageError:
                        same = False
                    if not same:
                        return {source.path: f"{source.key!r} is another image"}
        return {}

    def _containers(self, shards: Sequence[int]) -> dict[str, tuple[Identity, list[tuple[str, int, int]]]]:
        """What identifies each archive and table, and of an archive the members (key, offset, size)."""
        import pyarrow.compute as pc

        found: dict[str, tuple[Identity, list[tuple[str, int, int]]]] = {}
        if "file_size" not in self._file.schema_arrow.names:  # of an earlier version
            return found
        names = ["key", "path", "offset", "size", "row", "file_size", "mtime", "digest", "ctime"]
        for shard in shards:
            table = self._file.read_row_group(shard, columns=names, use_threads=False)
            inside = pc.or_(pc.is_valid(table["offset"]), pc.is_valid(table["row"]))
            table = table.filter(pc.and_(inside, pc.is_valid(table["file_size"])))
            for key, path, offset, size, _, *identity in zip(*table.to_pydict().values(), strict=True):
                members = found.setdefault(os.fsdecode(path), (Identity(*identity), []))[1]
                if offset is not None:
                    members.append((key, offset, size))
        return found


def _source(
    key: str, path: bytes, offset: int | None, size: int | None, row: int | None, code: str, message: str,
    *identity: Any,
) -> Source:  # fmt: skip
    error = ImageError(code, message) if code else None
    name = os.fsdecode(path)
    source = Source(key, name, offset, size, error) if row is None else ParquetRow(key, name, error=error, row=row)
    return listed_source(source, Identity(*identity))


def row_sources(out: Path, facts: Mapping[str, Any], rows: Sequence[int]) -> dict[int, Source]:
    """Where the images of some rows of a run are, by row: as it listed them. Raises UsageError `damaged_run`."""
    manifest = Manifest(out / MANIFEST, facts["manifest"])
    size = facts["shard_rows"]
    listed = {shard: manifest.sources(shard) for shard in {row // size for row in rows}}
    return {row: listed[row // size][row % size] for row in rows}
