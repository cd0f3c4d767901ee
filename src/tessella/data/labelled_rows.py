"""Labelled images in Parquet files: labels are read at once, images on demand."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import ImageError, UsageError
from .limits import DEFAULT_LIMITS, Limits
from .parquet import (
    ImageColumn,
    coded_errors,
    damaged,
    group_sizes,
    image_bytes,
    image_column,
    is_text,
    label_column,
    open_table,
    other_columns,
    plain_type,
    python_value,
)
from .source import Source
from .stores import File, Ints, Labels, Store, bad, join, mixed


class _Chunk(NamedTuple):
    """Arrow arrays of some rows: encoded images, and paths that are read where there are no bytes."""

    images: Any | None
    paths: Any | None

    def __len__(self) -> int:
        rows: Any = self.paths if self.images is None else self.images
        return len(rows)

    def value(self, at: int) -> Any:
        value = None if self.images is None else python_value(self.images[at])
        return self.paths[at].as_py() if not value and self.paths is not None else value

    def sizes(self) -> Ints:
        """(N,) sizes in bytes; for a path the length of its text, -1 for null."""
        lengths = np.full(len(self), -1, np.int64)
        for array in (self.paths, self.images):
            if array is not None:
                known = _lengths(array)
                lengths = np.where(known >= 0, known, lengths)
        return lengths


class _Rows(Store):
    """Rows of Parquet files: the images are held as Arrow arrays, which each process reads when it needs them.

    A forked process shares those of its parent; pickled, only the names of the files travel.
    """

    def __init__(self, root: str, files: Sequence[str], counts: Sequence[int], column: ImageColumn):
        self.root, self.files, self.counts, self.column = root, tuple(files), tuple(counts), column
        self.starts = np.cumsum([0, *counts])
        self._chunks: list[_Chunk] | None = None
        self._chunk_starts: Ints = np.zeros(0, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(_chunks=None)

    def _place(self, row: int) -> tuple[str, int]:
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.files[file], row - int(self.starts[file])

    def key(self, row: int) -> str:
        name, at = self._place(row)
        return f"{name}:{at}"

    def source(self, row: int) -> Source:
        name, at = self._place(row)
        return _RowSource(f"{name}:{at}", join(self.root, name), rows=self, row=row)

    def sizes(self) -> Ints:
        return np.concatenate([chunk.sizes() for chunk in self._open()] or [np.zeros(0, np.int64)])

    def read(self, row: int, limits: Limits) -> bytes:
        chunks = self._open()
        i = int(np.searchsorted(self._chunk_starts, row, side="right")) - 1
        name, at = self._place(row)
        path = join(self.root, name)
        with coded_errors(path):
            value = chunks[i].value(row - int(self._chunk_starts[i]))
        return image_bytes(value, f"{name}:{at}", path, limits)

    def _open(self) -> list[_Chunk]:
        with _OPENING:
            if self._chunks is None:
                chunks: list[_Chunk] = []
                for name, count in zip(self.files, self.counts, strict=True):
                    chunks += _read_column(join(self.root, name), self.column, count)
                self._chunk_starts = np.cumsum([0, *map(len, chunks)])
                self._chunks = chunks
            return self._chunks


_OPENING = threading.Lock()  # decoding threads ask at once, and the table is large


@dataclass(frozen=True)
class _RowSource(Source):
    rows: _Rows | None = field(default=None, repr=False)
    row: int = 0

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        assert self.rows is not None
        return self.rows.read(self.row, limits)


def _read_column(path: str, column: ImageColumn, count: int) -> list[_Chunk]:
    """The images of a file; ImageError if they cannot be read."""
    with open_table(path) as file:
        table = file.read(columns=[column.name], use_threads=False)
        index = table.schema.names.index(column.name)
        chunks = [_chunk(array, column) for array in table.column(index).chunks if len(array)]
    if sum(map(len, chunks)) != count:
        raise ImageError("changed_input", f"{path!r} has changed since it was opened")
    return chunks


def _chunk(array: Any, column: ImageColumn) -> _Chunk:
    import pyarrow as pa

    array = getattr(array, "storage", array)
    if column.kind == "path":
        return _Chunk(None, array)
    if column.kind != "struct":
        return _Chunk(_plain(array), None)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    parts = dict(zip(names, array.flatten(), strict=True))  # flatten, as a struct may be null itself
    return _Chunk(_plain(parts["bytes"]) if "bytes" in parts else None, parts.get("path"))


def _plain(array: Any) -> Any:
    import pyarrow as pa

    array = getattr(array, "storage", array)
    return array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array


def _lengths(array: Any) -> Ints:
    """(N,) bytes of each value, -1 for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        of_values = np.append(_lengths(array.dictionary), -1)  # the last for null
        return of_values[pc.fill_null(array.indices.cast(pa.int64()), len(of_values) - 1).to_numpy()]
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    is_list = any(
        check(array.type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
    lengths = pc.list_value_length(array) if is_list else pc.binary_length(array)
    return pc.fill_null(lengths.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)


def read_parquet(root: str, files: list[File]) -> tuple[Store, Labels]:
    """Labels of all rows, read at once; images are read on demand."""
    counts, columns, labels, names, needed = [], [], [], [], 0
    for file in files:
        path = join(root, file.name)
        try:
            with open_table(path) as table:
                schema = table.schema_arrow
                image, label = _columns(path, schema)
                columns.append(image)
                names.append(_label_names(path, schema.metadata or {}, label))
                counts.append(table.metadata.num_rows)
                needed += sum(group_sizes(table.metadata))
                read = table.read(columns=[label], use_threads=False)
                labels.append(_labels_of(path, read.column(read.schema.names.index(label))))
                if len(labels[-1]) != counts[-1]:
                    raise damaged(path, "it has other rows than it states")
        except ImageError as error:
            raise UsageError(error.code, error.message, hint=error.hint or "write it again") from None
    for i, file in enumerate(files):
        if (columns[i], names[i], labels[i].dtype) != (columns[0], names[0], labels[0].dtype):
            raise mixed(root, f"{files[0].name!r} and {file.name!r} with other columns or class names")
    memory = _memory()
    if memory and needed > memory // 4:
        raise bad(
            f"the images of {files[0].name!r}{' and others' if files[1:] else ''} take {needed / 2**30:.1f} GiB, more "
            f"than a quarter of this machine's memory ({memory / 2**30:.1f} GiB), in which they would be held",
            "write them as WebDataset .tar files, which are read in place",
        )
    distinct, codes = np.unique(np.concatenate(labels), return_inverse=True)
    if distinct.dtype.kind == "i" and len(distinct) and distinct[0] < 0:
        raise bad(
            f"{int((codes == 0).sum()):,} images have the label {distinct[0]}, which is not in the class list",
            "a negative label marks images without one: leave those rows out",
        )
    store = _Rows(root, [file.name for file in files], counts, columns[0])
    return store, Labels.coded([str(value) for value in distinct], codes.astype(np.int64), names[0])


def _columns(path: str, schema: Any) -> tuple[ImageColumn, str]:
    """Where the images and their labels are."""
    image, label = image_column(schema), label_column(schema)
    if image is None or label is None:
        raise bad(*other_columns(path, schema, labelled=True))
    return image, label


def _label_names(path: str, metadata: dict[bytes, bytes], label: str) -> list[str] | None:
    """Class names, from where the Hugging Face library writes them; None where there are none."""
    try:
        described = json.loads(metadata.get(b"huggingface", b"{}"))
        names = described.get("info", {}).get("features", {}).get(label, {}).get("names")
    except (ValueError, AttributeError, RecursionError):
        raise bad(f"{path}: the metadata under 'huggingface' cannot be read", "write the file again") from None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise bad(f"{path}: the class names of the label are {str(names)[:80]}, expected a list of names")
    return names or None


def _labels_of(path: str, labels: Any) -> np.ndarray[Any, Any]:
    """(N,) integers, or names as objects."""
    import pyarrow as pa

    kind = plain_type(labels.type)
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or is_text(kind)):
        raise bad(f"{path!r}: the label column holds {labels.type}, expected integers or names")
    if labels.null_count:
        raise bad(f"{labels.null_count:,} of {len(labels):,} images have no label (null)", "leave those rows out")
    try:
        plain = labels.cast(pa.large_string() if is_text(kind) else pa.int64())
        return np.asarray(plain.to_numpy(), object if is_text(kind) else np.int64)
    except (pa.ArrowException, UnicodeDecodeError):
        raise bad(f"{path!r}: a label is not text in UTF-8, or too large a number", "write the file again") from None


def _memory() -> int:
    """Memory of this machine in bytes, or 0 if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
