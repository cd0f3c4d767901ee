"""Where the bytes of labelled images are, and how each layout tells their labels: files, archives, Parquet rows, lists.

Nothing is open between reads. A store is cheap to pickle: what a process reads, it opens by itself.
"""

from __future__ import annotations

import abc
import csv
import functools
import json
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, UsageError
from ..extras import require
from .decode import DEFAULT_LIMITS, Limits, read_file
from .remote import is_url, opened, read_url
from .sources import IMAGE_SUFFIXES, Source, natural

Ints: TypeAlias = NDArray[np.int64]

_LARGEST_LABEL = 1 << 20  # bytes of a .cls, .json or classes.txt


class File(NamedTuple):
    name: str  # from the root, with "/"
    size: int  # bytes; -1 where it cannot be told


@dataclass(frozen=True)
class Labels:
    """values: the distinct labels as text; codes: (N,) which of them an image has; names: the data's own class list."""

    values: list[str]
    codes: Ints
    names: list[str] | None = None

    @classmethod
    def of(cls, labels: Iterable[str], names: list[str] | None = None) -> Labels:
        places: dict[str, int] = {}
        codes = np.fromiter((places.setdefault(label, len(places)) for label in labels), np.int64)
        return cls(list(places), codes, names)


class _Texts:
    """Many strings as two arrays: cheap to pickle, and to share with a forked process."""

    def __init__(self, texts: Iterable[str]):
        encoded = [os.fsencode(text) for text in texts]
        self.blob = b"".join(encoded)
        self.ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.blob[self.ends[i - 1] if i else 0 : self.ends[i]])


class Store(abc.ABC):
    """Rows 0 to N - 1 of what was found; nothing is open between reads."""

    @abc.abstractmethod
    def key(self, row: int) -> str: ...

    @abc.abstractmethod
    def sizes(self) -> Ints:
        """(N,) bytes of each image, -1 where there are none."""

    @abc.abstractmethod
    def source(self, row: int) -> Source: ...


class Files(Store):
    def __init__(self, root: str, keys: Sequence[str], sizes: Sequence[int]):
        self.root, self.keys, self._sizes = root, _Texts(keys), np.array(sizes, np.int64)

    def key(self, row: int) -> str:
        return self.keys[row]

    def sizes(self) -> Ints:
        return self._sizes

    def source(self, row: int) -> Source:
        return Source(self.keys[row], join(self.root, self.keys[row]))


def read_lists(root: str, files: list[File]) -> tuple[Store, Labels]:
    """Lists of path,label. Paths are from the list's own folder, which is `root` where there is one list."""
    keys, labels, sizes = [], [], []
    for file in files:
        folder = file.name.rpartition("/")[0]
        for path, label in _read_list(join(root, file.name)):
            keys.append(join(folder, path))
            labels.append(label)
            try:
                sizes.append(os.stat(join(root, keys[-1])).st_size)  # noqa: PTH116 - as in join
            except (OSError, ValueError):  # it will be an error of that one image
                sizes.append(-1)
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise bad(f"{files[0].name} has {some(twice)} more than once", "name each image once")
    if keys and max(sizes) < 0:
        raise UsageError(
            "not_found",
            f"none of the {len(keys):,} files of {files[0].name} is there, such as {join(root, keys[0])!r}",
            hint="paths are relative to the folder that the list is in",
        )
    return Files(root, keys, sizes), Labels.of(labels)


_PATH_COLUMNS, _LABEL_COLUMNS = ("path", "file", "filename", "file_name", "image"), ("label", "class")


def _read_list(name: str) -> Iterator[tuple[str, str]]:
    """(path, label) of each line."""
    try:
        with Path(name).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if suffix(name) == ".tsv" else ",", strict=True)
            columns = None
            for cells in reader:
                if not any(cells):
                    continue
                if columns is None:
                    columns, is_header = _list_columns(name, cells)
                    if is_header:
                        continue
                if len(cells) <= max(columns) or not all(cells[i].strip() for i in columns):
                    raise bad(f"{name}, line {reader.line_num}: a path or a label is missing", "path,label")
                yield cells[columns[0]].strip(), cells[columns[1]].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError("unreadable", f"{name!r} could not be read as a list in UTF-8: {error}") from None


def _list_columns(name: str, first: list[str]) -> tuple[tuple[int, int], bool]:
    """Where path and label stand, and whether the first line says so."""
    lower = [cell.strip().lower() for cell in first]
    path, label = (
        next((lower.index(n) for n in names if n in lower), None) for names in (_PATH_COLUMNS, _LABEL_COLUMNS)
    )
    if path is not None and label is not None:
        return (path, label), True
    if len(first) == 2 and suffix(lower[0]) in IMAGE_SUFFIXES:
        return (0, 1), False
    raise bad(
        f"the first line of {name} is neither the names of columns nor a path and a label: {first[:4]}",
        f"begin it with path,label{' (with a tab between)' if suffix(name) == '.tsv' else ''}",
    )


class _Members(Store):
    """Members of archives, by their offset."""

    def __init__(self, root: str, shards: Sequence[str], found: Sequence[tuple[int, str, int, int]]):
        """found: shard, name of the member, offset and size in bytes."""
        self.root, self.shards = root, tuple(shards)
        self.names = _Texts(name for _, name, _, _ in found)
        self.shard, self.offset, self._sizes = np.array([(a, c, d) for a, _, c, d in found], np.int64).reshape(-1, 3).T

    def key(self, row: int) -> str:
        return f"{self.shards[self.shard[row]]}::{self.names[row]}"

    def sizes(self) -> Ints:
        return self._sizes

    def source(self, row: int) -> Source:
        path = join(self.root, self.shards[self.shard[row]])
        return Source(self.key(row), path, int(self.offset[row]), int(self._sizes[row]))


def read_tars(root: str, files: list[File]) -> tuple[Store, Labels]:
    """WebDataset archives: every header is read once, 30 s for a million samples."""
    found: list[tuple[int, str, int, int]] = []
    labels: list[str] = []
    listed: dict[str, list[str]] = {}  # class lists by where they are
    folders = {join(root, file.name.rpartition("/")[0]) for file in files} | {root}
    for path in sorted(join(folder, "classes.txt") for folder in folders):
        if Path(path).is_file():
            listed[path] = _lines(path, Path(path).read_bytes())
    for shard, file in enumerate(files):
        samples, classes = _read_tar(join(root, file.name))
        listed |= {f"{file.name}::classes.txt": classes} if classes else {}
        found += [(shard, *member) for member, _ in samples]
        labels += [label for _, label in samples]
    where = list(listed)
    for other in where[1:]:
        if listed[other] != listed[where[0]]:
            raise mixed(root, f"two class lists that differ, {where[0]} and {other}")
    return _Members(root, [file.name for file in files], found), Labels.of(labels, listed[where[0]] if where else None)


_Sample: TypeAlias = "tuple[tuple[str, int, int], str]"  # (name of the member, offset, bytes), label


def _read_tar(path: str) -> tuple[list[_Sample], list[str]]:
    """The samples of one archive, and its class list if there is one inside.

    Files that differ after the first dot of their name are one sample: an image, and .cls or .json with its label.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    classes: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key, kind = f"{folder}/{stem}", extension.lower()
                if not member.isreg() or member.issparse() or not stem or "__MACOSX" in folder:
                    pass
                elif suffix(base) in IMAGE_SUFFIXES:
                    if key in images:
                        raise bad(f"{path}: the sample of {member.name!r} has two images, or is there twice")
                    images[key] = (member.name, member.offset_data, member.size)
                elif kind in ("cls", "json") or base == "classes.txt":
                    if member.size > _LARGEST_LABEL:
                        raise bad(f"{path}: {member.name!r} has {member.size:,} bytes, which is no label")
                    content = archive.extractfile(member)
                    text = content.read() if content else b""
                    if base == "classes.txt":
                        classes = _lines(f"{path}::{member.name}", text)
                    elif kind == "cls" or key not in labels:  # .cls counts where there are both
                        labels[key] = _label(f"{path}::{member.name}", text, kind) or labels.get(key, "")
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember every member it has passed
        if Path(path).stat().st_size % tarfile.BLOCKSIZE:  # tarfile takes half a header for the end
            raise EOFError
    except UsageError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError):
        raise UsageError(
            "unreadable", f"{path!r} is cut off, damaged, or not an uncompressed tar archive", hint="write it again"
        ) from None
    without = [name for key, (name, _, _) in images.items() if not labels.get(key)]
    if without:
        raise bad(f"{path}: {len(without):,} images have no label, such as {without[0]!r}", "put a .cls beside each")
    alone = [key.lstrip("/") for key in labels if key not in images and labels[key]]
    if alone and images:
        raise bad(f"{path}: {len(alone):,} labels have no image, such as that of {alone[0]!r}")
    return [(image, labels[key]) for key, image in images.items()], classes


def _label(where: str, text: bytes, kind: str) -> str:
    """What a .cls (a name or a number) or a .json ("label") says; "" where it says nothing."""
    try:
        value = text.decode().strip() if kind == "cls" else json.loads(text)
    except (ValueError, RecursionError):
        raise bad(f"{where} is not {'text in UTF-8' if kind == 'cls' else 'JSON'}") from None
    if isinstance(value, dict):
        value = value.get("label")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _lines(where: str, text: bytes) -> list[str]:
    try:
        return [line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise bad(f"{where} is not text in UTF-8, expected a class name a line") from None


class _Rows(Store):
    """Rows of Parquet files: their encoded bytes are held as Arrow arrays, which each process reads when it needs them.

    A forked process shares those of its parent; pickled, only the names of the files travel.
    """

    def __init__(self, root: str, files: Sequence[str], counts: Sequence[int], column: str):
        self.root, self.files, self.counts, self.column = root, tuple(files), tuple(counts), column
        self.starts = np.cumsum([0, *counts])
        self._chunks: list[Any] | None = None
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
        import pyarrow.compute as pc

        lengths = (pc.fill_null(pc.binary_length(chunk), -1) for chunk in self._open())
        return np.concatenate([one.to_numpy(zero_copy_only=False) for one in lengths]).astype(np.int64)

    def read(self, row: int, limits: Limits) -> bytes:
        chunks = self._open()
        i = int(np.searchsorted(self._chunk_starts, row, side="right")) - 1
        buffer = chunks[i][row - int(self._chunk_starts[i])].as_buffer()
        if buffer is None:
            raise ImageError("empty", f"{self.key(row)} holds no image", hint="store the bytes of the files, not paths")
        if buffer.size > limits.bytes:
            raise ImageError("too_many_bytes", f"the image has {buffer.size:,} bytes, the limit is {limits.bytes:,}")
        return bytes(buffer)

    def _open(self) -> list[Any]:
        with _OPENING:
            if self._chunks is None:
                chunks: list[Any] = []
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


@dataclass(frozen=True)
class ParquetRow(Source):
    """A row of a Parquet file by itself, light to send to another process, which keeps the row group it read last.

    A row without bytes that names a path is that file, from the folder of the Parquet file.
    """

    row: int = 0

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        if self.error is not None:
            raise self.error
        starts = _row_groups(self.path)
        group = int(np.searchsorted(starts, self.row, side="right")) - 1
        value = _row_group(self.path, group)[self.row - int(starts[group])].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not value:
            raise ImageError("empty", f"{self.key} holds no image")
        if isinstance(value, str):
            path = value if is_url(value) else join(os.path.dirname(self.path), value)  # noqa: PTH120 - as in join
            return read_url(path, limits) if is_url(path) else read_file(path, limits)
        if len(value) > limits.bytes:
            raise ImageError("too_many_bytes", f"the image has {len(value):,} bytes, the limit is {limits.bytes:,}")
        return bytes(value)


def parquet_rows(path: str) -> Iterator[Source]:
    """The images of a Parquet file: a column image (bytes, a struct with bytes or path, or paths); labels are not read.

    What is no such file is one source with an error.
    """
    try:
        _row_groups.cache_clear()  # the file may not be the one that was read when it was last listed
        count = int(_row_groups(path)[-1])
    except ImageError as error:
        yield Source(path, path, error=error)
        return
    for row in range(count):
        yield ParquetRow(f"{path}:{row}", path, row=row)


@functools.lru_cache(maxsize=8)
def _row_groups(path: str) -> Ints:
    """Where each row group begins, and behind the last the number of rows."""
    pa, pq = require("pyarrow", "reading Parquet"), require("pyarrow.parquet", "reading Parquet")
    try:
        with opened(path) as data, pq.ParquetFile(data) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            schema = file.schema_arrow
    except (OSError, pa.ArrowException):
        raise ImageError("unreadable", f"{path!r} is damaged, or not a Parquet file") from None
    kind = next((entry.type for entry in schema if entry.name == "image"), None)
    is_path = kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if bytes_column(schema) is None and not is_path:
        raise ImageError(
            "unreadable", _other_columns(path, schema, "expected image, of bytes, of paths, or a struct").message
        )
    return np.cumsum([0, *counts])


@functools.lru_cache(maxsize=1)
def _row_group(path: str, group: int) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path) as data, pq.ParquetFile(data) as file:
            return file.read_row_group(group, columns=["image"], use_threads=False).column(0)
    except (OSError, pa.ArrowException, IndexError):
        raise ImageError("unreadable", f"{path!r} could not be read, or has changed since it was listed") from None


def _read_column(path: str, column: str, count: int) -> list[Any]:
    """Arrow arrays of encoded images, null where there is none; ImageError if they cannot be had."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            chunks = file.read(columns=[column], use_threads=False).column(0).chunks
    except (OSError, pa.ArrowException, KeyError, IndexError):
        raise ImageError("unreadable", f"{path!r} could not be read") from None
    if sum(map(len, chunks)) != count:
        raise ImageError("unreadable", f"{path!r} has changed since it was opened")
    return [chunk.flatten()[0] if pa.types.is_struct(chunk.type) else chunk for chunk in chunks if len(chunk)]


def read_parquet(root: str, files: list[File]) -> tuple[Store, Labels]:
    """The labels of all rows now; the images when one is asked for."""
    pa, pq = require("pyarrow", "reading Parquet"), require("pyarrow.parquet", "reading Parquet")
    counts, columns, labels, names, needed = [], [], [], [], 0
    for file in files:
        path = join(root, file.name)
        try:
            with pq.ParquetFile(path) as parquet:
                columns.append(_image_column(path, parquet.schema_arrow))
                names.append(_label_names(path, parquet.schema_arrow.metadata or {}))
                counts.append(parquet.metadata.num_rows)
                needed += _bytes_of(parquet.metadata, columns[-1])
                labels.append(parquet.read(columns=["label"], use_threads=False).column("label"))
        except (OSError, pa.ArrowException):
            raise UsageError(
                "unreadable", f"{path!r} is damaged, or not a Parquet file", hint="write it again"
            ) from None
    for i, file in enumerate(files):
        if (columns[i], names[i]) != (columns[0], names[0]):
            raise mixed(root, f"{files[0].name!r} and {file.name!r} with other columns or class names")
    memory = _memory()
    if memory and needed > memory // 4:
        raise bad(
            f"the images of {files[0].name!r}{' and others' if files[1:] else ''} take {needed / 2**30:.1f} GiB, more "
            f"than a quarter of this machine's memory ({memory / 2**30:.1f} GiB), where they would be held",
            "write them as WebDataset .tar files, which are read in place",
        )
    return _Rows(root, [file.name for file in files], counts, columns[0]), _parquet_labels(labels, names[0])


def _image_column(path: str, schema: Any) -> str:
    """The column with the encoded bytes, as `read` takes it, beside a label."""
    column = bytes_column(schema) if "label" in schema.names else None
    if column is None:
        raise _other_columns(path, schema, "expected image, of bytes or of a struct with bytes, and label")
    return column


def bytes_column(schema: Any) -> str | None:
    """Where the bytes of images are: "image", "image.bytes" in a struct, or None."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    image = next((entry.type for entry in schema if entry.name == "image"), None)
    if image is not None and holds_bytes(image):
        return "image"
    if image is not None and pa.types.is_struct(image):
        at = image.get_field_index("bytes")
        if at >= 0 and holds_bytes(image.field(at).type):
            return "image.bytes"
    return None


def _other_columns(path: str, schema: Any, expected: str) -> UsageError:
    shown = ", ".join(f"{entry.name} ({entry.type})" for entry in schema)
    return bad(f"{path} has the columns {shown[:200]}", f"{expected}; rename those that mean the same")


def _label_names(path: str, metadata: dict[bytes, bytes]) -> list[str] | None:
    """Class names, from where the Hugging Face library writes them; None where there are none."""
    try:
        told = json.loads(metadata.get(b"huggingface", b"{}"))
        names = told.get("info", {}).get("features", {}).get("label", {}).get("names")
    except (ValueError, AttributeError, RecursionError):
        raise bad(f"{path}: the metadata under 'huggingface' cannot be read", "write the file again") from None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise bad(f"{path}: the class names of the label are {str(names)[:80]}, expected a list of names")
    return names or None


def _bytes_of(metadata: Any, column: str) -> int:
    """Memory that a column takes when it is read."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    parts = (group.column(j) for group in groups for j in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema == column)


def _parquet_labels(columns: list[Any], names: list[str] | None) -> Labels:
    import pyarrow as pa

    labels = pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if not (
        pa.types.is_integer(labels.type) or pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)
    ):
        raise bad(f"the label column holds {labels.type}, expected integers or names")
    if labels.null_count:
        raise bad(f"{labels.null_count:,} of {len(labels):,} images have no label (null)", "leave those rows out")
    distinct, codes = np.unique(labels.to_numpy(), return_inverse=True)
    if pa.types.is_integer(labels.type) and len(distinct) and distinct[0] < 0:
        raise bad(
            f"{int((codes == 0).sum()):,} images have the label {distinct[0]}, which is not in the class list",
            "a negative label marks images without one: leave those rows out",
        )
    return Labels([str(value) for value in distinct], codes.astype(np.int64), names)


def _memory() -> int:
    """Bytes of this machine, 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


# --- small parts ------------------------------------------------------------------------------------------------------


def bad(message: str, hint: str = "") -> UsageError:
    return UsageError("bad_argument", message, hint=hint)


def mixed(given: str, both: str) -> UsageError:
    return bad(
        f"{given} mixes layouts: it has {both}", "give one of them as DATA; the validation data can be given apart"
    )


def some(names: Iterable[str]) -> str:
    """A few of many names, for a message."""
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(map(repr, listed[:5])) + more


def ordered(name: str) -> tuple[Any, str]:
    """Sort key: natural order, and one order of 1 and 01."""
    return natural(name), name


def join(root: str, name: str) -> str:
    return os.path.join(root, name) if name else root  # noqa: PTH118 - a million Path objects cost seconds


def suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - as above
