"""Images in Parquet files: open the files safely and read their images row by row, with bounded memory.

`tessella.data.columns` says which columns hold images. Paths in a table are relative to the folder of its file.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, TessellaError
from ..extras import require
from .columns import ImageColumn, describe_mismatch, find_image_column
from .files import read_file, unreadable_file
from .limits import DEFAULT_LIMITS, Limits
from .memory import make_room
from .remote import is_url, open_input, read_url
from .source import Source

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

OWN_METADATA = b"tessella"  # key in the schema metadata of the tables that this package writes

_MAX_FOOTER = 1 << 28  # bytes
_MAX_COMPRESSED_ROWS = 10_000_000  # a table that states more rows than this has at least one byte per row
_BATCH = 1 << 25  # bytes of images decoded at once
_MAX_BATCH_ROWS = 4096
_CACHED_BATCHES = 4  # threads ask for rows slightly out of order
_LARGE_GROUP = 1 << 28  # bytes: larger row groups can have pages that exceed the usual memory limit
_MAX_PAGE = 1 << 31  # bytes, by the format
_SMALLER_GROUPS = "write it again with smaller row groups, such as row_group_size=100"


# --- opening ----------------------------------------------------------------------------------------------------------


@contextmanager
def translate_arrow_errors(path: str) -> Iterator[None]:
    """Translate any Arrow error about a file into an ImageError without Arrow's message."""
    import pyarrow as pa

    try:
        yield
    except TessellaError:
        raise
    except MemoryError:
        raise ImageError(
            "unreadable",
            f"{path!r} needs more memory than is available for one image; {_SMALLER_GROUPS}",
        ) from None
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError, TypeError, RuntimeError):
        raise damaged_parquet(path) from None


def damaged_parquet(path: str, problem: str = "") -> ImageError:
    """Return the error for a damaged file. problem: a clause that says what is wrong, if that is known."""
    return ImageError("corrupt_archive", f"the Parquet file {path!r} is damaged{': ' * bool(problem)}{problem}")


@contextmanager
def open_parquet(path: str, buffer_size: int = 0) -> Iterator[pq.ParquetFile]:
    """Open a file or URL as a `pyarrow.parquet.ParquetFile`.

    Raises ImageError, before Arrow sees the file, if it is not a valid Parquet file, and UsageError
    `missing_dependency` if pyarrow is missing.
    """
    pa, pq = require("pyarrow", "reading Parquet"), require("pyarrow.parquet", "reading Parquet")
    with open_input(path) as file, translate_arrow_errors(path):
        _check_ends(file, path)
        if is_url(path):
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=buffer_size) as table:
                yield table
            return
    with (
        translate_arrow_errors(path),
        pa.OSFile(os.fsencode(path)) as native,  # saves a copy in comparison to a Python file
        pq.ParquetFile(native, pre_buffer=False, buffer_size=buffer_size) as table,
    ):
        yield table


def _check_ends(file: IO[bytes], path: str) -> None:
    """Refuse an encrypted footer, on which Arrow may end the process, and a footer of an impossible size."""
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    footer, end = file.read(4), file.read(4)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if start == b"PARE" or end == b"PARE":
        raise ImageError("unsupported_format", f"the Parquet file {path!r} is encrypted; write it without encryption")
    if start != b"PAR1":
        raise ImageError("corrupt_archive", f"{path!r} is not a Parquet file")
    if size < 12 or end != b"PAR1":
        raise damaged_parquet(path, "it is truncated")
    length = int.from_bytes(footer, "little")
    if length > min(size - 12, _MAX_FOOTER):
        raise damaged_parquet(path, f"its footer has {length:,} bytes")


class _Footer(NamedTuple):
    """What the footer of a file states."""

    starts: NDArray[np.int64]  # (groups + 1,) first row of each row group, and the number of rows
    column: ImageColumn
    sizes: tuple[int, ...]  # uncompressed bytes of each row group


def _file_version(path: str) -> tuple[int, ...]:
    """Return a value that changes when a file is replaced; () for URLs, where it would cost a request."""
    if is_url(path):
        return ()
    try:
        status = os.stat(path)  # noqa: PTH116 - names need not be text
    except (OSError, ValueError) as error:
        raise unreadable_file(path, error) from None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(maxsize=8)
def _footer(path: str, version: tuple[int, ...]) -> _Footer:
    with open_parquet(path) as table:
        schema, metadata = table.schema_arrow, table.metadata
        column = find_image_column(schema)
        if column is None:
            raise ImageError("unreadable", "; ".join(describe_mismatch(path, schema)))
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
            raise damaged_parquet(path, "its footer contradicts itself")
        file_size = version[1] if version else None
        if file_size is not None and metadata.num_rows > max(file_size, _MAX_COMPRESSED_ROWS):
            raise damaged_parquet(path, f"it states {metadata.num_rows:,} rows in {file_size:,} bytes")
        sizes = tuple(row_group_sizes(metadata))
        if file_size is not None and sum(sizes) < file_size:  # some writers state no sizes, or too small ones
            sizes = tuple(file_size * count // max(metadata.num_rows, 1) for count in counts)
    return _Footer(np.cumsum([0, *counts]), column, sizes)


def row_group_sizes(metadata: pq.FileMetaData) -> list[int]:
    """Return the uncompressed bytes of each row group, as the file states them.

    The sizes of single columns are not used: reading the metadata of an encrypted or damaged column ends the process.
    """
    return [max(metadata.row_group(i).total_byte_size, 0) for i in range(metadata.num_row_groups)]


def not_images_reason(path: str) -> str:
    """Return why a Parquet file is not a table of images.

    One of "own_result", "metadata_table", or "" if it can hold images or cannot be read.
    """
    with suppress(ImageError), open_parquet(path) as table:
        column = find_image_column(table.schema_arrow)
        if OWN_METADATA in (table.schema_arrow.metadata or {}):
            return "own_result"
        return "" if column is not None and column.kind != "path" else "metadata_table"
    return ""


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetRow(Source):
    """One row of a Parquet file, cheap to pickle.

    A row with a path instead of bytes refers to that file, relative to the folder of the Parquet file. Each process
    keeps the row group that it read last open, so reading rows in order is cheap.
    """

    row: int = 0

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the encoded bytes of the image. Raises ImageError if they cannot be read."""
        if self.error is not None:
            raise self.error
        return cell_bytes(read_cell(self.path, self.row), self.key, self.path, limits)


def iter_rows(path: str) -> Iterator[Source]:
    """Yield the rows of a Parquet file as sources; one source with an error if the file is invalid."""
    try:
        _footer.cache_clear()  # an object may have been replaced since it was last listed
        count = int(_footer(path, _file_version(path)).starts[-1])
    except ImageError as error:
        yield Source(path, path, error=error)
        return
    for row in range(count):
        yield ParquetRow(f"{path}:{row}", path, row=row)


def cell_bytes(value: object, key: str, table: str, limits: Limits) -> bytes:
    """Return the encoded image that a cell holds or refers to.

    value: as `to_python` returns it; table: the path of the Parquet file. Raises ImageError `empty` if there is none.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, list):
        value = bytes(number & 255 for number in value if number is not None)
    if not value:
        raise ImageError("empty", f"{key!r} holds no image")
    if isinstance(value, str):
        path = value if is_url(value) else os.path.join(os.path.dirname(table), value)  # noqa: PTH118, PTH120
        return read_url(path, limits) if is_url(path) else read_file(path, limits)
    if not isinstance(value, bytes):  # in a column of an application's own type, such as pyarrow's UUID
        raise ImageError("unreadable", f"{key!r} holds a {type(value).__name__}, expected the bytes of an image")
    if len(value) > limits.bytes:
        raise ImageError("too_many_bytes", f"the image has {len(value):,} bytes, the limit is {limits.bytes:,}")
    return value


def read_cell(path: str, row: int) -> object:
    """Return the image cell of a row as a Python value. Raises ImageError if it cannot be read."""
    global _reader
    version = _file_version(path)
    footer = _footer(path, version)
    if not 0 <= row < footer.starts[-1]:
        raise ImageError(
            "changed_input", f"{path!r} has {footer.starts[-1]:,} rows: it has changed since it was listed"
        )
    group = int(np.searchsorted(footer.starts, row, side="right")) - 1
    with _reader_lock:
        if _reader is None or _reader.position != (path, version, group):
            if _reader is not None:
                _reader.close()
            _reader = _GroupReader(path, version, group, footer)
        scalar = _reader.scalar(row - int(footer.starts[group]))
    with translate_arrow_errors(path):
        return to_python(scalar)


def to_python(scalar: pa.Scalar) -> object:
    """Return an Arrow scalar as a Python value; a list of bytes as `bytes`, without one Python number per byte."""
    import pyarrow as pa

    values = scalar.values if isinstance(scalar, pa.ListScalar) else None
    if values is not None and values.type in (pa.uint8(), pa.int8()) and not values.null_count:
        return values.to_numpy(zero_copy_only=False).tobytes()
    return scalar.as_py()


class _GroupReader:
    """The image column of one row group, decoded in batches. Going back to an earlier row starts again."""

    def __init__(self, path: str, version: tuple[int, ...], group: int, footer: _Footer):
        self.position = (path, version, group)
        self._path, self._group, self._column = path, group, footer.column.name
        self._rows = int(footer.starts[group + 1] - footer.starts[group])  # reduced to the readable ones after damage
        self._size = footer.sizes[group]
        self._batch = max(1, min(_MAX_BATCH_ROWS, _BATCH // max(self._size // max(self._rows, 1), 1)))
        self._table: AbstractContextManager[pq.ParquetFile] | None = None
        self._cached: deque[tuple[int, pa.Array]] = deque(maxlen=_CACHED_BATCHES)  # (first row, images)
        self._next = 0  # first row of the next batch
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def scalar(self, row: int) -> pa.Scalar:
        """Return the cell of a row of this group.

        A batch that cannot be decoded is read again row by row, which yields the rows before the damage.
        """
        if row >= self._rows:
            raise damaged_parquet(self._path)
        try:
            return self._scalar(row)
        except ImageError:
            if self._batch == 1:
                self._rows = min(self._rows, self._next)
                self.close()
                raise
        self._batch = 1
        self.close()
        return self.scalar(row)

    def _scalar(self, row: int) -> pa.Scalar:
        if self._table is None or row < (self._cached[0][0] if self._cached else 0):
            self._start()
        with translate_arrow_errors(self._path):
            while row >= self._next:
                batch = next(self._batches, None)
                if batch is None or not len(batch):
                    raise damaged_parquet(self._path, "it has fewer rows than it states")
                self._cached.append((self._next, batch.column(batch.schema.names.index(self._column))))
                self._next += len(batch)
            start, column = next(item for item in reversed(self._cached) if row >= item[0])
            return column[row - start]

    def _start(self) -> None:
        self.close()
        page = min(self._size, _MAX_PAGE)
        needed = 2 * page + page // 4 if self._size > _LARGE_GROUP else 0  # for a page, and for its values
        if not make_room(needed):
            raise ImageError(
                "unreadable",
                f"{self._path!r} has a row group of {self._size / 2**30:.1f} GiB, which does not fit into memory; "
                f"{_SMALLER_GROUPS}",
            )
        opening = open_parquet(self._path, buffer_size=1 << 20)
        table = opening.__enter__()
        self._table = opening
        with translate_arrow_errors(self._path):
            self._batches = table.iter_batches(
                batch_size=self._batch, row_groups=[self._group], columns=[self._column], use_threads=False
            )

    def close(self) -> None:
        """Close the file and forget the batches."""
        self._cached.clear()
        self._next, self._batches = 0, iter(())
        if self._table is not None:
            self._table.__exit__(None, None, None)
        self._table = None


_reader_lock = threading.Lock()
_reader: _GroupReader | None = None  # that of the row group read last


@atexit.register
def _close_reader() -> None:
    """Close the file while Arrow is still loaded: a generator finalized after its modules would report an error."""
    if _reader is not None:
        _reader.close()


def _forget_reader() -> None:
    """Start a forked process without a reader.

    The parent moves the position in the shared file, and one of its threads may hold the lock.
    """
    global _reader_lock, _reader
    _reader_lock, _reader = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_reader)
