"""Where the bytes of labelled images are, and how each layout tells their labels: files, lists, archives.

Parquet files are in `labelled_rows`. Nothing is open between reads. A store is cheap to pickle: each process opens what
it reads.
"""

from __future__ import annotations

import abc
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, UsageError
from ..storage import open_regular, read_regular
from . import tar
from .files import unreadable_file
from .lists import decode_text, existing_name
from .names import IMAGE_SUFFIXES, Skipped, class_name, ignored_path, is_image, natural
from .parquet import LABEL_COLUMNS
from .parquet import ParquetRow as ParquetRow
from .source import Source

Ints: TypeAlias = NDArray[np.int64]

_LARGEST_LABEL = 1 << 20  # bytes of a .cls, .json or classes.txt


class File(NamedTuple):
    name: str  # from the root, with "/"
    size: int  # bytes; -1 where it cannot be told


@dataclass(frozen=True)
class Labels:
    """values: the distinct labels as text; codes: (N,) which of them an image has; names: the data's own class list.

    All of them as `class_name` gives them, so that the Unicode forms of one name are one class.
    """

    values: list[str]
    codes: Ints
    names: list[str] | None = None

    @classmethod
    def of(cls, labels: Iterable[str], names: list[str] | None = None) -> Labels:
        places: dict[str, int] = {}
        codes = np.fromiter((places.setdefault(label, len(places)) for label in labels), np.int64)
        return cls.coded(list(places), codes, names)

    @classmethod
    def coded(cls, values: Sequence[str], codes: Ints, names: list[str] | None = None) -> Labels:
        """values: labels as the data has them, which may be one name in several Unicode forms."""
        places: dict[str, int] = {}
        merged = np.array([places.setdefault(class_name(value), len(places)) for value in values], np.int64)
        return cls(list(places), merged[codes], names and [class_name(name) for name in names])


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
            keys.append(existing_name(join(folder, path), root))
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


_PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "image", "filepath", "file_path", "img", "image_path", "img_path",
    "image_file",
)  # fmt: skip


def _read_list(name: str) -> Iterator[tuple[str, str]]:
    """(path, label) of each line."""
    try:
        text = decode_text(read_regular(name))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(name, text), strict=True)
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
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            "unreadable",
            f"{name!r} could not be read as a list in UTF-8: {reason}",
            hint="save it as CSV in UTF-8, or in UTF-16 with a byte order mark",
        ) from None


def _delimiter(name: str, text: str) -> str:
    """The suffix decides, unless only another one is in the first line (spreadsheets use ; in many countries)."""
    usual = "\t" if suffix(name) == ".tsv" else ","
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    return usual if usual in first else next((other for other in ";\t," if other in first), usual)


def _list_columns(name: str, first: list[str]) -> tuple[tuple[int, int], bool]:
    """Where path and label stand, and whether the first line says so."""
    lower = [cell.strip().lower() for cell in first]
    path, label = (
        next((lower.index(n) for n in names if n in lower), None) for names in (_PATH_COLUMNS, LABEL_COLUMNS)
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


def read_tars(root: str, files: list[File], skipped: Skipped) -> tuple[Store, Labels]:
    """WebDataset archives: every header is read once."""
    found: list[_Place] = []
    labels: list[str] = []
    listed: dict[str, list[str]] = {}  # class lists by where they are
    folders = {join(root, file.name.rpartition("/")[0]) for file in files} | {root}
    for path in sorted(join(folder, "classes.txt") for folder in folders):
        if os.path.isfile(path):  # noqa: PTH113 - as in join
            listed[path] = _lines(path, read_regular(path))
    for shard, file in enumerate(files):
        samples = _Samples(join(root, file.name), skipped)
        samples.read()
        listed |= {f"{file.name}::classes.txt": samples.classes} if samples.classes else {}
        for member, label in samples.labelled():
            found.append((shard, *member))
            labels.append(label)
    where = list(listed)
    for other in where[1:]:
        if listed[other] != listed[where[0]]:
            raise mixed(root, f"two class lists that differ, {where[0]} and {other}")
    return _Members(root, [file.name for file in files], found), Labels.of(labels, listed[where[0]] if where else None)


_Place: TypeAlias = "tuple[int, str, int, int]"  # shard, name of the member, offset, bytes


@dataclass
class _Samples:
    """The samples of one archive, and its class list if there is one inside.

    Files that differ after the first dot of their name are one sample: an image, and .cls or .json with its label. Of
    several images of a sample, the one with a plain suffix counts (1.jpg, not 1.mask.png); two of these are an error.
    """

    path: str
    skipped: Skipped
    classes: list[str] = field(default_factory=list)
    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    unclear: dict[str, str] = field(default_factory=dict)  # sample -> a second image of equal rank

    def read(self) -> None:
        try:
            with open_regular(self.path) as file:
                for member in tar.members(file, self.path):
                    self._add(member, file)
        except ImageError as error:
            raise UsageError(error.code, error.message, hint=error.hint or "write it again") from None
        except OSError as error:
            problem = unreadable_file(self.path, error)
            raise UsageError(problem.code, problem.message) from None
        if self.unclear:
            name = next(iter(self.unclear.values()))
            raise bad(f"{self.path}: the sample of {name!r} has two images, or is there twice", "keep one of them")

    def labelled(self) -> Iterator[tuple[tuple[str, int, int], str]]:
        """((name of the member, offset, bytes), label) of each sample."""
        without = [name for key, (name, _, _) in self.images.items() if not self.labels.get(key)]
        if without:
            raise bad(
                f"{self.path}: {len(without):,} images have no label, such as {without[0]!r}", "put a .cls beside each"
            )
        alone = [key.lstrip("/") for key in self.labels if key not in self.images and self.labels[key]]
        if alone and self.images:
            raise bad(f"{self.path}: {len(alone):,} labels have no image, such as that of {alone[0]!r}")
        return ((image, self.labels[key]) for key, image in self.images.items())

    def _add(self, member: tar.Member, file: IO[bytes]) -> None:
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, kind = f"{folder}/{stem}", extension.lower()
        if member.kind in ("folder", "cut"):  # what is cut off is an error by itself
            return
        if reason := ignored_path(member.name) or ("special_member" if member.kind != "file" else ""):
            self.skipped.add(reason, f"{self.path}::{member.name}")
        elif is_image(base):
            self._add_image(key, member)
        elif kind in ("cls", "json") or base == "classes.txt":
            if member.size > _LARGEST_LABEL:
                raise bad(f"{self.path}: {member.name!r} has {member.size:,} bytes, which is no label")
            file.seek(member.offset)
            text = file.read(member.size)
            where = f"{self.path}::{member.name}"
            if base == "classes.txt":
                self.classes = _lines(where, text)
            elif kind == "cls" or key not in self.labels:  # .cls counts where there are both
                self.labels[key] = _label(where, text, kind) or self.labels.get(key, "")
        else:
            self.skipped.add("other_suffix", f"{self.path}::{member.name}")

    def _add_image(self, key: str, member: tar.Member) -> None:
        known = self.images.get(key)
        place = (member.name, member.offset, member.size)
        if known is None:
            self.images[key] = place
            return
        is_plain, was_plain = (name.rpartition("/")[2].count(".") == 1 for name in (member.name, known[0]))
        if is_plain == was_plain:
            self.unclear.setdefault(key, member.name)
            return
        left_out = known[0] if is_plain else member.name
        self.skipped.add("second_image", f"{self.path}::{left_out}")
        if is_plain:
            self.images[key] = place
            self.unclear.pop(key, None)


def _label(where: str, text: bytes, kind: str) -> str:
    """What a .cls (a name or a number) or a .json ("label") says; "" where it says nothing."""
    try:
        value = decode_text(text).strip() if kind == "cls" else json.loads(decode_text(text))
    except (ValueError, RecursionError):
        raise bad(f"{where} is not {'text in UTF-8' if kind == 'cls' else 'JSON'}") from None
    if isinstance(value, dict):
        value = value.get("label")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _lines(where: str, text: bytes) -> list[str]:
    try:
        lines = io.StringIO(decode_text(text), newline=None)
        return [line.strip() for line in lines if line.strip()]
    except UnicodeDecodeError:
        raise bad(f"{where} is not text in UTF-8, expected a class name a line") from None


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
