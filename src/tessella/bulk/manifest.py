"""The listing of a bulk run: every input, listed once and divided into shards, in a Parquet file that never changes.

Shard i is rows i * shard_rows to (i + 1) * shard_rows - 1 of the listing, in its order, and row group i of the file. So
a shard is read without the others, and a run of millions of inputs starts by reading a footer.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.identity import UNKNOWN, Identity, container_difference, identity_of, listed_source
from ..data.parquet import ParquetRow
from ..data.remote import is_url
from ..data.source import Source
from ..errors import ImageError, OutputError, UsageError
from ..storage import absolute, file_hash, replacing
from ..text import escape

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.parquet"
LOG_EVERY = 100_000  # inputs


class ManifestRow(NamedTuple):
    """One input as the file stores it: its key, where its bytes are, and what identifies that file."""

    key: str
    path: bytes
    offset: int | None
    size: int | None
    row: int | None
    code: str
    message: str
    file_size: int | None
    mtime: int | None
    digest: str | None
    ctime: int | None


class Container(NamedTuple):
    """An archive or table: what identifies it, and of an archive the members (key, offset, size)."""

    identity: Identity
    members: list[tuple[str, int, int]]


# --- writing ----------------------------------------------------------------------------------------------------------


def write_manifest(
    path: Path, sources: Iterable[Source], shard_rows: int, on_listed: Callable[[int], object] = lambda listed: None
) -> tuple[int, str]:
    """List `sources` in a new file, atomically; return their number and the file's SHA-256.

    on_listed: gets the number of inputs so far, now and then.
    Raises UsageError `not_found` for no inputs, `bad_argument` for duplicate keys; OutputError `output_failed`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    to_row = _RowBuilder()
    try:
        with replacing(path) as file:
            hashes = []  # 8 bytes per input; a set of the keys would take ten times as much
            with pq.ParquetWriter(file, _schema(), compression="zstd", write_page_checksum=True) as writer:
                count, reported, remaining = 0, 0, iter(sources)
                while rows := [to_row(source) for source in itertools.islice(remaining, shard_rows)]:
                    writer.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=_schema()))
                    hashes.append(np.array([_hash_key(row.key) for row in rows], np.uint64))
                    count += len(rows)
                    if count - reported >= LOG_EVERY:
                        reported = count
                        on_listed(count)
            if not count:
                raise UsageError("not_found", "no inputs were given", hint="give a folder, files, or - with a list")
            file.flush()
            draft = Path(file.name)
            _refuse_duplicate_keys(draft, np.concatenate(hashes))
            digest = file_hash(draft)
    except OSError as error:
        raise OutputError("output_failed", f"{path} could not be written: {error.strerror or error}") from error
    return count, digest


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, integer = pa.string(), pa.int64()
    types = [text, pa.binary(), integer, integer, integer, text, text, integer, integer, text, integer]
    return pa.schema(list(zip(ManifestRow._fields, types, strict=True)))


class _RowBuilder:
    """Builds rows of the listing; caches the identity of a container while its members follow each other."""

    def __init__(self) -> None:
        self._container, self._identity = "", UNKNOWN

    def __call__(self, source: Source) -> ManifestRow:
        """Return the row of a source, with an absolute path: a run may be resumed from another folder."""
        path = source.path if is_url(source.path) else absolute(source.path)
        row = source.row if isinstance(source, ParquetRow) else None
        code, message = (source.error.code, as_text(source.error.message)) if source.error else ("", "")
        if source.error is not None:
            identity = UNKNOWN
        elif row is None and source.offset is None:
            identity = identity_of(path)
        else:
            if path != self._container:
                self._container, self._identity = path, identity_of(path, container=True)
            identity = self._identity
        key = escape(source.key)
        return ManifestRow(key, os.fsencode(path), source.offset, source.size, row, code, message, *identity)


def _hash_key(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def as_text(message: str) -> str:
    """Return an error message as valid UTF-8. Keys are escaped by `tessella.text.escape` instead, without ambiguity."""
    try:
        return os.fsencode(message).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that no file name has
        return message.encode("utf-8", "backslashreplace").decode()


def _refuse_duplicate_keys(draft: Path, hashes: NDArray[np.uint64]) -> None:
    order = np.argsort(hashes, kind="stable")
    duplicates = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if not len(duplicates):
        return
    import pyarrow.parquet as pq

    rows = [int(order[duplicates[0]]), int(order[duplicates[0] + 1])]
    with draft.open("rb") as file:
        keys = pq.ParquetFile(file).read(columns=["key"]).column("key").take(rows).to_pylist()
    raise UsageError(
        "bad_argument",
        f"{len(duplicates):,} inputs are named more than once, the first is {keys[0]!r}",
        hint="give each input only once: keys identify rows",
    )


# --- reading ----------------------------------------------------------------------------------------------------------


class Manifest:
    """The listing of a run. rows, shards: their numbers."""

    def __init__(self, path: Path, digest: str):
        """Open a listing. digest: its SHA-256. Raises UsageError `damaged_run` if the file is missing or differs."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            intact = file_hash(path) == digest
        except OSError:
            intact = False
        if not intact:
            raise UsageError(
                "damaged_run",
                f"{path} is missing or is not the listing that was written",
                hint=f"tessella verify-run {shlex.quote(str(path.parent))} --repair",
            )
        self._file = pq.ParquetFile(pa.OSFile(os.fsencode(path)))  # bytes, because the name may not be UTF-8
        self.rows: int = self._file.metadata.num_rows
        self.shards: int = self._file.metadata.num_row_groups

    def sources(self, shard: int) -> list[Source]:
        """Return the inputs of a shard, in order."""
        columns = self._file.read_row_group(shard, use_threads=False).to_pydict()
        return [_source(*cells) for cells in zip(*columns.values(), strict=True)]

    def require_unchanged(self, shards: Sequence[int], finished: Iterable[tuple[int, Sequence[str]]]) -> None:
        """Raise UsageError `changed_run` if an archive or table that `shards` need has changed since it was listed.

        finished: number and row hashes (SHA-256 of the encoded images) of each finished shard. Archives are listed
        again, tables are identified by their footers; if a file's change time differs, the images that were already
        read from it are read again and compared. Single files are checked when they are read.
        """
        changed: dict[str, str] = {}
        touched = set()
        for path, container in self._containers(shards).items():
            if difference := container_difference(path, container.identity, container.members):
                changed[path] = difference
            elif identity_of(path, container=True).ctime != container.identity.ctime:
                touched.add(path)
        if not changed and touched:
            changed = self._other_images(touched, finished)
        if changed:
            path, difference = next(iter(changed.items()))
            more = f"; {len(changed) - 1:,} others have changed, too" if len(changed) > 1 else ""
            raise UsageError(
                "changed_run",
                f"{path!r} has changed since the run listed it: {difference}{more}",
                hint="restore the original file, or start a new run in another --out",
            )

    def _other_images(self, paths: set[str], finished: Iterable[tuple[int, Sequence[str]]]) -> dict[str, str]:
        """Return the first of the containers whose bytes differ for a finished row, with a description."""
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

    def _containers(self, shards: Sequence[int]) -> dict[str, Container]:
        """Return the archives and tables that the shards read from, by path."""
        import pyarrow.compute as pc

        containers: dict[str, Container] = {}
        if "file_size" not in self._file.schema_arrow.names:  # written by an earlier version
            return containers
        names = ["key", "path", "offset", "size", "row", "file_size", "mtime", "digest", "ctime"]
        for shard in shards:
            table = self._file.read_row_group(shard, columns=names, use_threads=False)
            inside = pc.or_(pc.is_valid(table["offset"]), pc.is_valid(table["row"]))
            table = table.filter(pc.and_(inside, pc.is_valid(table["file_size"])))
            for key, path, offset, size, _, *identity in zip(*table.to_pydict().values(), strict=True):
                container = containers.setdefault(os.fsdecode(path), Container(Identity(*identity), []))
                if offset is not None:
                    container.members.append((key, offset, size))
        return containers


def _source(
    key: str,
    path: bytes,
    offset: int | None,
    size: int | None,
    row: int | None,
    code: str,
    message: str,
    *identity: Any,
) -> Source:
    error = ImageError(code, message) if code else None
    name = os.fsdecode(path)
    source = Source(key, name, offset, size, error) if row is None else ParquetRow(key, name, error=error, row=row)
    return listed_source(source, Identity(*identity))
