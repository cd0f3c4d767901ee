"""Labeled images as Parquet tables: labels are read at once, images on demand."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, UsageError
from ...machine import total_memory
from ...text import count_of
from ..columns import (
    ImageColumn,
    describe_mismatch,
    find_image_column,
    find_label_column,
    is_text,
    storage_type,
)
from ..limits import DEFAULT_LIMITS, Limits
from ..parquet import cell_bytes, damaged_parquet, open_parquet, row_group_sizes, to_python, translate_arrow_errors
from ..source import Source
from .store import DataFile, EncodedLabels, ImageStore, Ints, JoinedStore, bad_data, join_path, mixed_layouts

if TYPE_CHECKING:
    import pyarrow as pa

LabelValues: TypeAlias = "NDArray[np.int64] | NDArray[np.object_]"  # (N,) class indices or names


class _Chunk(NamedTuple):
    """Arrow arrays of consecutive rows: encoded images, and paths that are read if there are no bytes."""

    images: pa.Array | None
    paths: pa.Array | None

    @property
    def rows(self) -> int:
        return next(len(array) for array in (self.images, self.paths) if array is not None)

    def value(self, row: int) -> object:
        value = None if self.images is None else to_python(self.images[row])
        return self.paths[row].as_py() if not value and self.paths is not None else value

    def sizes(self) -> Ints:
        """Return the (N,) sizes in bytes: of a path, the length of its text; -1 for null."""
        sizes = np.full(self.rows, -1, np.int64)
        for array in (self.paths, self.images):
            if array is not None:
                lengths = _value_lengths(array)
                sizes = np.where(lengths >= 0, lengths, sizes)
        return sizes


class _TableStore(ImageStore):
    """Rows of Parquet files. The images are kept as Arrow arrays, which each process reads when it needs them.

    A forked process shares those of its parent. Pickling transfers only the names of the files, and all copies in
    another process are the same store, so that it reads the files once and not for each image that is sent to it.
    """

    def __init__(self, root: str, files: Sequence[str], counts: Sequence[int], column: ImageColumn):
        """counts: rows of each file."""
        self.root, self.files, self.counts, self.column = root, tuple(files), tuple(counts), column
        self.starts = np.cumsum([0, *counts])
        self._chunks: list[_Chunk] | None = None
        self._chunk_starts: Ints = np.zeros(0, np.int64)

    def __reduce__(self) -> tuple[object, ...]:
        return _shared_store, (self.root, self.files, self.counts, self.column)

    def _locate(self, row: int) -> tuple[str, int]:
        """Return the file of a row, and the row in that file."""
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.files[file], row - int(self.starts[file])

    def key(self, row: int) -> str:
        name, file_row = self._locate(row)
        return f"{name}:{file_row}"

    def source(self, row: int) -> Source:
        name, file_row = self._locate(row)
        return _TableRow(f"{name}:{file_row}", join_path(self.root, name), store=self, row=row)

    def sizes(self) -> Ints:
        return np.concatenate([chunk.sizes() for chunk in self._load()] or [np.zeros(0, np.int64)])

    def read(self, row: int, limits: Limits) -> bytes:
        """Return the encoded image of a row. Raises ImageError if it cannot be read."""
        chunks = self._load()
        i = int(np.searchsorted(self._chunk_starts, row, side="right")) - 1
        name, file_row = self._locate(row)
        path = join_path(self.root, name)
        with translate_arrow_errors(path):
            value = chunks[i].value(row - int(self._chunk_starts[i]))
        return cell_bytes(value, f"{name}:{file_row}", path, limits)

    def _load(self) -> list[_Chunk]:
        with _loading:
            if self._chunks is None:
                chunks: list[_Chunk] = []
                for name, count in zip(self.files, self.counts, strict=True):
                    chunks += _read_images(join_path(self.root, name), self.column, count)
                self._chunk_starts = np.cumsum([0, *(chunk.rows for chunk in chunks)])
                self._chunks = chunks
            return self._chunks


@functools.lru_cache(maxsize=1)
def _shared_store(root: str, files: tuple[str, ...], counts: tuple[int, ...], column: ImageColumn) -> _TableStore:
    """Return the store of these files in this process."""
    return _TableStore(root, files, counts, column)


_loading = threading.Lock()  # decoding threads ask at the same time, and the tables are large


@dataclass(frozen=True)
class _TableRow(Source):
    """One row of a `_TableStore`."""

    store: _TableStore | None = field(default=None, repr=False)
    row: int = 0

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        assert self.store is not None
        return self.store.read(self.row, limits)


# --- images -----------------------------------------------------------------------------------------------------------


def _read_images(path: str, column: ImageColumn, count: int) -> list[_Chunk]:
    """Return the images of a file with `count` rows. Raises ImageError if they cannot be read."""
    with open_parquet(path) as file:
        table = file.read(columns=[column.name], use_threads=False)
        index = table.schema.names.index(column.name)
        chunks = [_to_chunk(array, column) for array in table.column(index).chunks if len(array)]
    if sum(chunk.rows for chunk in chunks) != count:
        raise ImageError("changed_input", f"{path!r} has changed since it was opened")
    return chunks


def _to_chunk(array: pa.Array, column: ImageColumn) -> _Chunk:
    import pyarrow as pa

    array = getattr(array, "storage", array)
    if column.kind == "path":
        return _Chunk(None, array)
    if column.kind != "struct":
        return _Chunk(_without_views(array), None)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    fields = dict(zip(names, array.flatten(), strict=True))  # flatten applies the nulls of the struct itself
    return _Chunk(_without_views(fields["bytes"]) if "bytes" in fields else None, fields.get("path"))


def _without_views(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    array = getattr(array, "storage", array)
    return array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array


def _value_lengths(array: pa.Array) -> Ints:
    """Return the (N,) number of bytes of each value; -1 for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(array.type):  # of a column without any value
        return np.full(len(array), -1, np.int64)
    if pa.types.is_dictionary(array.type):
        lengths = np.append(_value_lengths(array.dictionary), -1)  # the last one is that of null
        return lengths[pc.fill_null(array.indices.cast(pa.int64()), len(lengths) - 1).to_numpy()]
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    is_list = any(
        check(array.type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
    arrow_lengths = pc.list_value_length(array) if is_list else pc.binary_length(array)
    return pc.fill_null(arrow_lengths.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)


# --- labels -----------------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """The parts of a Parquet file that are read when it is opened."""

    image: ImageColumn
    classes: list[str] | None
    rows: int
    bytes: int  # uncompressed, as the file states
    labels: LabelValues


def read_parquet_tables(root: str, files: list[DataFile]) -> tuple[ImageStore, EncodedLabels]:
    """Return the images of Parquet files below `root`, and their labels. Labels are read at once, images on demand.

    Raises UsageError: the code of the ImageError of an unreadable file, or `bad_argument` for files without columns of
    images and labels, files that differ in them, invalid labels, and images that exceed a quarter of the memory.
    """
    tables = [_read_table(join_path(root, file.name)) for file in files]
    first = tables[0]
    for file, table in zip(files, tables, strict=True):
        if (table.image, table.classes, table.labels.dtype) != (first.image, first.classes, first.labels.dtype):
            raise mixed_layouts(root, f"{files[0].name!r} and {file.name!r}, whose columns or class names differ")
    _check_memory(files, sum(table.bytes for table in tables))
    values, codes = np.unique(np.concatenate([table.labels for table in tables]), return_inverse=True)
    if values.dtype.kind == "i" and len(values) and values[0] < 0:
        raise bad_data(
            f"{root} has {count_of(int((codes == 0).sum()), 'image')} with the label {values[0]}, which is not in the "
            "class list",
            "a negative label marks images without one: remove those rows",
        )
    store = _TableStore(root, [file.name for file in files], [table.rows for table in tables], first.image)
    labels = EncodedLabels.from_codes([str(value) for value in values], codes.astype(np.int64), first.classes)
    return store, labels


def read_unlabelled_table(path: str) -> ImageStore:
    """Return the images of a Parquet file, whatever its other columns are; they are read on demand.

    Raises ImageError for a file that cannot be read, and UsageError `bad_argument` for one without a column of images,
    or with images that exceed a quarter of the memory.
    """
    with open_parquet(path) as table:
        image = find_image_column(table.schema_arrow)
        if image is None:
            raise bad_data(*describe_mismatch(path, table.schema_arrow))
        rows, size = table.metadata.num_rows, sum(row_group_sizes(table.metadata))
    _check_memory([DataFile(path, -1)], size)
    return _TableStore("", [path], [rows], image)


def read_rows_of_tables(root: str, files: Sequence[str], wanted: Sequence[tuple[int, int]]) -> ImageStore:
    """Return rows of Parquet files below `root`, by the index of their file and their number in it.

    The files are one store, so that a process which reads them in any order keeps all of them in memory. Raises
    UsageError: the code of the ImageError of an unreadable file, `bad_argument` for files without a column of images,
    with different ones, or with images that exceed a quarter of the memory, `not_found` for a row that does not exist.
    """
    columns, counts, size = [], [], 0
    for name in files:
        path = join_path(root, name)
        try:
            with open_parquet(path) as table:
                column = find_image_column(table.schema_arrow)
                if column is None:
                    raise bad_data(*describe_mismatch(path, table.schema_arrow))
                columns.append(column)
                counts.append(table.metadata.num_rows)
                size += sum(row_group_sizes(table.metadata))
        except ImageError as error:
            raise UsageError(error.code, error.message, hint=error.hint or "write it again") from None
    for name, column in zip(files, columns, strict=True):
        if column != columns[0]:
            raise mixed_layouts(root, f"{files[0]!r} and {name!r}, whose columns of images differ")
    for index, row in wanted:
        if row >= counts[index]:
            raise UsageError(
                "not_found",
                f"{join_path(root, files[index])} has no row {row:,}, only {counts[index]:,} rows",
                hint="the file has changed since the list was written; write the list again",
            )
    _check_memory([DataFile(name, -1) for name in files], size)
    starts = np.cumsum([0, *counts])
    rows = np.array([starts[index] + row for index, row in wanted], np.int64)
    return JoinedStore([_TableStore(root, files, counts, columns[0])], np.zeros(len(rows), np.int64), rows)


def _read_table(path: str) -> _Table:
    try:
        with open_parquet(path) as table:
            schema = table.schema_arrow
            image, label = find_image_column(schema), find_label_column(schema)
            if image is None or label is None:
                raise bad_data(*describe_mismatch(path, schema, labelled=True))
            classes = _hugging_face_classes(path, schema.metadata or {}, label)
            column = table.read(columns=[label], use_threads=False)
            labels = _label_values(path, column.column(column.schema.names.index(label)))
            rows = table.metadata.num_rows
            if len(labels) != rows:
                raise damaged_parquet(path, "it does not have the number of rows that it states")
            return _Table(image, classes, rows, sum(row_group_sizes(table.metadata)), labels)
    except ImageError as error:
        raise UsageError(error.code, error.message, hint=error.hint or "write it again") from None


def _check_memory(files: list[DataFile], needed: int) -> None:
    """Refuse tables whose images, which are kept in memory, need more than a quarter of it. needed: bytes."""
    memory = total_memory()
    if memory and needed > memory // 4:
        raise bad_data(
            f"the images of {files[0].name!r}{' and others' if files[1:] else ''} take {needed / 2**30:.1f} GiB and "
            f"would be kept in memory, which is more than a quarter of this machine's {memory / 2**30:.1f} GiB",
            "write them as WebDataset .tar files, which are read in place",
        )


def _hugging_face_classes(path: str, metadata: dict[bytes, bytes], label: str) -> list[str] | None:
    """Return the class names that the Hugging Face library stores in the metadata; None if there are none."""
    try:
        described = json.loads(metadata.get(b"huggingface", b"{}"))
        names = described.get("info", {}).get("features", {}).get(label, {}).get("names")
    except (ValueError, AttributeError, RecursionError):
        raise bad_data(f"{path}: the metadata under 'huggingface' cannot be read", "write the file again") from None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise bad_data(f"{path}: the class names of the label are {str(names)[:80]}, expected a list of names")
    return names or None


def _label_values(path: str, labels: pa.ChunkedArray) -> LabelValues:
    import pyarrow as pa

    storage = storage_type(labels.type)
    if not (pa.types.is_integer(storage) or pa.types.is_boolean(storage) or is_text(storage)):
        raise bad_data(f"{path!r}: the label column has the type {labels.type}, expected integers or names")
    if labels.null_count:
        raise bad_data(f"{path!r}: {labels.null_count:,} of {len(labels):,} labels are null", "remove those rows")
    try:
        values = labels.cast(pa.large_string() if is_text(storage) else pa.int64())
        return np.asarray(values.to_numpy(), object if is_text(storage) else np.int64)
    except (pa.ArrowException, UnicodeDecodeError):
        raise bad_data(
            f"{path!r}: a label is not text in UTF-8, or is too large a number", "write the file again"
        ) from None
