"""Images in Parquet files: which columns hold them, and their bytes row by row, with bounded memory.

    columns                                                                     what they may hold
    IMAGE_COLUMNS: the first that is there and fits, upper or lower case      bytes, lists of uint8, paths as text, or
                                                                              structs with bytes or path (Hugging Face)
    LABEL_COLUMNS: likewise, of labelled data                                 integers or names

Arrow's large, view and dictionary types of these are read as well. Paths are from the folder of the Parquet file.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np

from ..errors import ImageError, TessellaError
from ..extras import require
from .files import read_file, unreadable_file
from .limits import DEFAULT_LIMITS, Limits
from .memory import make_room
from .remote import is_url, opened, read_url
from .source import Source

IMAGE_COLUMNS = (
    "image", "images", "img", "imgs", "image.bytes", "image_bytes", "img_bytes", "image_data", "bytes", "data",
    "content", "jpg", "jpeg", "png", "webp", "photo", "picture", "image_path", "img_path", "image_file", "file_path",
    "filepath", "file_name", "filename", "path", "file",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "classes", "cls", "target", "targets", "category", "fine_label", "fine_labels",
    "class_name", "label_name", "class_label", "class_id", "label_id", "coarse_label",
)  # fmt: skip
OWN_METADATA = b"tessella"  # in the schema of the tables that this package writes

_LARGEST_FOOTER = 1 << 28  # bytes
_LIKELY_ROWS = 10_000_000  # more than these take a byte each, or are not there
_BATCH = 1 << 25  # bytes of images that are decoded at once
_MOST_ROWS = 4096  # in a batch
_KEPT = 4  # batches: threads ask for rows a little out of order
_LARGE_GROUP = 1 << 28  # bytes: a row group above may have pages that the usual limit on memory leaves no room for
_SMALLER_GROUPS = "write it again with smaller row groups, such as row_group_size=100"
_LARGEST_PAGE = 1 << 31  # bytes, by the format


class ImageColumn(NamedTuple):
    """kind: "bytes", "list" (of numbers 0 to 255), "path", or "struct" of bytes or path."""

    name: str
    kind: str


# --- schemas ----------------------------------------------------------------------------------------------------------


def image_column(schema: Any) -> ImageColumn | None:
    """Where the images of an Arrow schema are, by the table of names; None if no column fits."""
    by_name = {entry.name.lower(): entry for entry in reversed(list(schema))}
    for name in IMAGE_COLUMNS:
        if (entry := by_name.get(name)) is not None and (kind := _image_kind(entry.type)):
            return ImageColumn(entry.name, kind)
    return None


def label_column(schema: Any) -> str | None:
    """The column with a label per row, None if there is none."""
    by_name = {name.lower(): name for name in reversed(schema.names)}
    return next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)


def _image_kind(arrow_type: Any) -> str:
    import pyarrow as pa

    types, plain = pa.types, plain_type(arrow_type)
    if types.is_struct(plain):
        fields = {plain.field(i).name: plain_type(plain.field(i).type) for i in range(plain.num_fields)}
        fits = ("bytes" in fields and _is_binary(fields["bytes"])) or ("path" in fields and is_text(fields["path"]))
        return "struct" if fits else ""
    if _is_binary(plain):
        return "bytes"
    if is_text(plain):
        return "path"
    is_list = types.is_list(plain) or types.is_large_list(plain) or types.is_fixed_size_list(plain)
    return "list" if is_list and plain.value_type in (pa.uint8(), pa.int8()) else ""


def plain_type(arrow_type: Any) -> Any:
    """Without a dictionary or an extension around it."""
    import pyarrow as pa

    while True:
        if pa.types.is_dictionary(arrow_type):
            arrow_type = arrow_type.value_type
        elif isinstance(arrow_type, pa.BaseExtensionType):
            arrow_type = arrow_type.storage_type
        else:
            return arrow_type


def _is_binary(plain: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_binary(plain)
        or pa.types.is_large_binary(plain)
        or pa.types.is_binary_view(plain)
        or pa.types.is_fixed_size_binary(plain)
    )


def is_text(plain: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain))


def other_columns(path: str, schema: Any, *, labelled: bool = False) -> tuple[str, str]:
    """(message, hint) for a table whose columns do not fit."""
    shown = ", ".join(f"{entry.name} ({entry.type})" for entry in schema)[:200]
    expected = "a column image of bytes, of paths, or of a struct with bytes or path"
    hint = f"rename the column that holds the images to image; {', '.join(IMAGE_COLUMNS[1:4])} and others are known too"
    if labelled:
        expected += ", and a column label"
        hint = "rename the columns to image and label"
    return f"{path!r} has the columns {shown}, expected {expected}", hint


# --- opening ----------------------------------------------------------------------------------------------------------


@contextmanager
def coded_errors(path: str) -> Iterator[None]:
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
        raise damaged(path) from None


def damaged(path: str, what: str = "") -> ImageError:
    return ImageError("corrupt_archive", f"the Parquet file {path!r} is damaged{': ' * bool(what)}{what}")


@contextmanager
def open_table(path: str, **options: Any) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` of a file or URL; ImageError if it is not one, before Arrow sees it."""
    pa, pq = require("pyarrow", "reading Parquet"), require("pyarrow.parquet", "reading Parquet")
    with opened(path) as file, coded_errors(path):
        _check_ends(file, path)
        if is_url(path):
            with pq.ParquetFile(file, pre_buffer=False, **options) as table:
                yield table
            return
    with (
        coded_errors(path),
        pa.OSFile(os.fsencode(path)) as native,  # a copy less than through a Python file
        pq.ParquetFile(native, pre_buffer=False, **options) as table,
    ):
        yield table


def _check_ends(file: IO[bytes], path: str) -> None:
    """Refuse an encrypted footer, on which Arrow can end the process, and one that cannot be there."""
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
        raise damaged(path, "it is cut off")
    length = int.from_bytes(footer, "little")
    if length > min(size - 12, _LARGEST_FOOTER):
        raise damaged(path, f"its footer has {length:,} bytes")


class _Footer(NamedTuple):
    starts: Any  # (groups + 1,) where each row group begins, and the number of rows
    column: ImageColumn
    sizes: tuple[int, ...]  # uncompressed bytes of each row group, as the file states


def _identity(path: str) -> tuple[int, ...]:
    """Changes when a file is replaced; of an object in a store, nothing is known for free."""
    if is_url(path):
        return ()
    try:
        status = os.stat(path)  # noqa: PTH116 - names need not be text
    except (OSError, ValueError) as error:
        raise unreadable_file(path, error) from None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(maxsize=8)
def _footer(path: str, identity: tuple[int, ...]) -> _Footer:
    with open_table(path) as table:
        schema, metadata = table.schema_arrow, table.metadata
        column = image_column(schema)
        if column is None:
            raise ImageError("unreadable", "; ".join(other_columns(path, schema)))
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
            raise damaged(path, "its footer contradicts itself")
        if identity and metadata.num_rows > max(identity[1], _LIKELY_ROWS):
            raise damaged(path, f"it states {metadata.num_rows:,} rows in {identity[1]:,} bytes")
        sizes = tuple(group_sizes(metadata))
        if identity and sum(sizes) < identity[1]:  # some writers state nothing, or too little
            sizes = tuple(identity[1] * count // max(metadata.num_rows, 1) for count in counts)
    return _Footer(np.cumsum([0, *counts]), column, sizes)


def group_sizes(metadata: Any) -> list[int]:
    """Uncompressed bytes of each row group, as the file states.

    Not of a column: to ask for the metadata of a column that is encrypted or damaged ends the process.
    """
    return [max(metadata.row_group(i).total_byte_size, 0) for i in range(metadata.num_row_groups)]


def is_metadata(path: str) -> str:
    """Why a table is no set of images: "own_result", "metadata_table", or "" if it may be one, or cannot be read."""
    with suppress(ImageError), open_table(path) as table:
        column = image_column(table.schema_arrow)
        if OWN_METADATA in (table.schema_arrow.metadata or {}):
            return "own_result"
        return "" if column is not None and column.kind != "path" else "metadata_table"
    return ""


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetRow(Source):
    """A row of a Parquet file by itself, light to send to another process.

    A row without bytes that names a path is that file, from the folder of the Parquet file. Each process keeps the row
    group that it read last open, so rows are cheap to read in order.
    """

    row: int = 0

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        if self.error is not None:
            raise self.error
        return image_bytes(read_row(self.path, self.row), self.key, self.path, limits)


def parquet_rows(path: str) -> Iterator[Source]:
    """The images of a Parquet file; labels are not read. What is no such file is one source with an error."""
    try:
        _footer.cache_clear()  # an object in a store may not be the one that was read when it was last listed
        count = int(_footer(path, _identity(path)).starts[-1])
    except ImageError as error:
        yield Source(path, path, error=error)
        return
    for row in range(count):
        yield ParquetRow(f"{path}:{row}", path, row=row)


def image_bytes(value: Any, key: str, table: str, limits: Limits) -> bytes:
    """The encoded image that a cell holds or names; ImageError `empty` if there is none."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, list):
        value = bytes(number & 255 for number in value if number is not None)
    if not value:
        raise ImageError("empty", f"{key!r} holds no image")
    if isinstance(value, str):
        path = value if is_url(value) else os.path.join(os.path.dirname(table), value)  # noqa: PTH118, PTH120
        return read_url(path, limits) if is_url(path) else read_file(path, limits)
    if not isinstance(value, bytes):  # inside a column whose type is an application's own, such as pyarrow's UUID
        raise ImageError("unreadable", f"{key!r} holds a {type(value).__name__}, expected the bytes of an image")
    if len(value) > limits.bytes:
        raise ImageError("too_many_bytes", f"the image has {len(value):,} bytes, the limit is {limits.bytes:,}")
    return value


def read_row(path: str, row: int) -> Any:
    """The image cell of a row as a Python value; ImageError if it cannot be read."""
    global _reader
    identity = _identity(path)
    footer = _footer(path, identity)
    if not 0 <= row < footer.starts[-1]:
        raise ImageError("changed_input", f"{path!r} has {footer.starts[-1]:,} rows, so it is not what was listed")
    group = int(np.searchsorted(footer.starts, row, side="right")) - 1
    with _READING:
        if _reader is None or _reader.place != (path, identity, group):
            if _reader is not None:
                _reader.close()
            _reader = _GroupReader(path, identity, group, footer)
        scalar = _reader.scalar(row - int(footer.starts[group]))
    with coded_errors(path):
        return python_value(scalar)


@atexit.register
def _close_reader() -> None:
    """Close the file while Arrow is still there: generators that Python ends after its modules would complain."""
    if _reader is not None:
        _reader.close()


class _GroupReader:
    """The image column of one row group, decoded batch by batch; it can go back, at the price of a new start."""

    def __init__(self, path: str, identity: tuple[int, ...], group: int, footer: _Footer):
        self.place = (path, identity, group)
        self._path, self._group, self._name = path, group, footer.column.name
        self._rows = int(footer.starts[group + 1] - footer.starts[group])  # fewer where reading fails
        self._size = footer.sizes[group]
        self._batch = max(1, min(_MOST_ROWS, _BATCH // max(self._size // max(self._rows, 1), 1)))
        self._open: Any = None
        self._kept: deque[tuple[int, Any]] = deque(maxlen=_KEPT)  # (first row, Arrow array)
        self._next = 0  # the first row of the batch that follows
        self._batches: Iterator[Any] = iter(())

    def scalar(self, at: int) -> Any:
        """The cell of a row of this group. A batch that fails is read again row by row, for those before the damage."""
        if at >= self._rows:
            raise damaged(self._path)
        try:
            return self._scalar(at)
        except ImageError:
            if self._batch == 1:
                self._rows = min(self._rows, self._next)
                self.close()
                raise
        self._batch = 1
        self.close()
        return self.scalar(at)

    def _scalar(self, at: int) -> Any:
        if self._open is None or at < (self._kept[0][0] if self._kept else 0):
            self._start()
        with coded_errors(self._path):
            while at >= self._next:
                batch = next(self._batches, None)
                if batch is None or not len(batch):
                    raise damaged(self._path, "it has fewer rows than it states")
                self._kept.append((self._next, batch.column(batch.schema.names.index(self._name))))
                self._next += len(batch)
            start, column = next(one for one in reversed(self._kept) if at >= one[0])
            return column[at - start]

    def _start(self) -> None:
        self.close()
        page = min(self._size, _LARGEST_PAGE)
        large = self._size > _LARGE_GROUP
        if not make_room(2 * page + page // 4 if large else 0):  # for a page, and the values in it
            raise ImageError(
                "unreadable",
                f"{self._path!r} has a row group of {self._size / 2**30:.1f} GiB, more than there is memory for; "
                f"{_SMALLER_GROUPS}",
            )
        opening = open_table(self._path, buffer_size=1 << 20)
        table = opening.__enter__()
        self._open = opening
        with coded_errors(self._path):
            self._batches = table.iter_batches(
                batch_size=self._batch, row_groups=[self._group], columns=[self._name], use_threads=False
            )

    def close(self) -> None:
        self._kept.clear()
        self._next, self._batches = 0, iter(())
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = None


_READING = threading.Lock()
_reader: _GroupReader | None = None


def _forget() -> None:
    """In a fork: the file is open at a position that the parent moves, and the lock may be held by a thread of it."""
    global _READING, _reader
    _READING, _reader = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def python_value(scalar: Any) -> Any:
    """As `as_py`, without a Python number per byte of a list."""
    import pyarrow as pa

    values = scalar.values if isinstance(scalar, pa.ListScalar) else None
    if values is not None and values.type in (pa.uint8(), pa.int8()) and not values.null_count:
        return values.to_numpy(zero_copy_only=False).tobytes()
    return scalar.as_py()
