"""Images with a class each, from folders, Parquet files, WebDataset archives or lists: a map from an index to bytes.

    given                                                   key of an image
    an image folder: CLASS/**/image or SPLIT/CLASS/**/image  CLASS/.../image.jpg, from the folder given
    .parquet, or a folder of them, in Hugging Face's layout  file.parquet:row
    WebDataset .tar, a folder of them, or a glob             file.tar::member.jpg
    .csv or .tsv of path,label                               the path as it is written there

Splits go by names: of sub-folders, and of the words in the names of Parquet files, archives and lists. Classes are in
the natural order of their names (a2 before a10), save where the data brings an order: the `names` of a Hugging Face
label, the lines of a classes.txt. Whatever does not fit is an error; nothing is left out in silence.
"""

from __future__ import annotations

import abc
import csv
import functools
import glob
import hashlib
import json
import os
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, UsageError
from .decode import DEFAULT_LIMITS, Limits
from .sources import IMAGE_SUFFIXES, Source, _natural

Split: TypeAlias = Literal["train", "val"]
Ints: TypeAlias = NDArray[np.int64]

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test",),  # stands for val where there is none
}
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_KINDS = {".parquet": "parquet", ".tar": "tar", ".csv": "list", ".tsv": "list"}
_LARGEST_LABEL = 1 << 20  # bytes of a .cls, .json or classes.txt
_ACCEPTED = "an image folder, a .parquet, .tar, .csv or .tsv file, a folder of Parquet files or archives, or a glob"


class LabelledImages:
    """N encoded images with a class each, in any order. Cheap to pickle: what a process reads, it opens by itself.

    classes: their names, index = label; labels: (N,), read-only; origin: what they were read from, for a person.
    """

    def __init__(self, store: _Store, classes: Sequence[str], labels: Ints, origin: str, rows: Ints | None = None):
        """rows: (N,) where each image is in the store; None: in its order."""
        self._store = store
        self._rows = np.arange(len(labels)) if rows is None else rows
        self.classes, self.labels, self.origin = tuple(classes), labels, origin
        self.labels.flags.writeable = False

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        """The unique name of an image."""
        return self._store.key(int(self._rows[index]))

    def source(self, index: int) -> Source:
        """The image as `Predictor.records` and `Predictor.outputs` take it."""
        return self._store.source(int(self._rows[index]))

    def read(self, index: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """The encoded bytes, for `decode`; ImageError if they cannot be had."""
        return self.source(index).read(limits)

    def subset(self, indices: Sequence[int] | NDArray[Any], origin: str = "") -> LabelledImages:
        """Those images, in that order, with all the classes."""
        at = np.asarray(indices, np.int64)
        return LabelledImages(self._store, self.classes, self.labels[at], origin or self.origin, self._rows[at])

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over classes, keys, labels and sizes in bytes; contents are not read."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for row in self._rows.tolist():
            digest.update(os.fsencode(self._store.key(row)) + b"\0")
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self._store.sizes()[self._rows].astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def open_labelled(
    data: str | os.PathLike[str], split: Split | None = None, *, classes: Sequence[str] | None = None
) -> LabelledImages:
    """The images of `data` (see the top of this file): of one split, or (None) all there are.

    split: "train" is also what names no split; "val" is test where there is no val. A file, a glob, or a folder without
    splits is taken whole for "train". classes: the class list to use, nothing else: what names its images' classes is
    matched by name, plain numbers are indices (unless the classes are called by numbers).
    Raises UsageError: not_found (no such data, split or image), unreadable, missing_dependency, or bad_argument for one
    class only, an empty class folder, a label that is not in the class list, a key twice, or layouts that are mixed.
    """
    found = _find(os.fspath(data))
    if split not in (None, "train", "val"):
        raise _bad(f"split is {split!r}, expected 'train', 'val' or None")
    return _load(found, _need(found, split), classes)


def open_split(
    data: str | os.PathLike[str], *, val: str | os.PathLike[str] | None = None, val_fraction: float = 0.1
) -> tuple[LabelledImages, LabelledImages]:
    """Training and validation images, with one class list: that of the training images, of which each class has some.

    val: where the validation images are. None: the split of that name in `data`; or, where `data` is itself called
    train, what lies beside it under the name of the other split; or `val_fraction` of the images, by a hash of each
    key, so that an image stays where it is when others are added. Raises as `open_labelled`.
    """
    found = _find(os.fspath(data))
    parts = _need(found, "train")
    train = _load(found, parts, None)
    if val is not None:
        other = _find(os.fspath(val))
        chosen = _choose(other, "val") or list(other.parts)
    else:
        other, chosen = found, _choose(found, "val") or []
        if chosen == parts:  # one file that is called test
            chosen = []
        if not chosen and (beside := _beside(found)):
            other, chosen = beside, _choose(beside, "val") or list(beside.parts)
    if chosen:
        twice = found.paths(parts) & other.paths(chosen)
        if twice:
            raise _bad(
                f"{len(twice):,} files are in both the training and the validation data, such as {min(twice)!r}",
                "give other images to validate on, or none: a part is then split off",
            )
        held_out = _load(other, chosen, train.classes)
    else:
        train, held_out = _split_off(train, val_fraction)
    missing = np.flatnonzero(np.bincount(train.labels, minlength=len(train.classes)) == 0)
    if len(missing):
        raise _bad(
            f"{train.origin}: {_names(train.classes[i] for i in missing)} of the class list "
            f"{'has' if len(missing) == 1 else 'have'} no training images",
            "add images, or take the class out of the list",
        )
    return train, held_out


def _split_off(data: LabelledImages, fraction: float) -> tuple[LabelledImages, LabelledImages]:
    """An image is held out when the hash of its key says so; of a class, at least one image is not."""
    if not 0 < fraction < 1:
        raise _bad(f"val_fraction is {fraction}, expected a number between 0 and 1")
    hashes = (hashlib.sha256(os.fsencode(data.key(i))).digest()[:8] for i in range(len(data)))
    place = np.fromiter((int.from_bytes(one, "big") / 2**64 for one in hashes), float, len(data))
    held_out = place < fraction
    for label in np.unique(data.labels[held_out]):
        members = np.flatnonzero(data.labels == label)
        if held_out[members].all():
            held_out[members[place[members].argmax()]] = False
    if not held_out.any():
        raise _bad(
            f"{data.origin} has {len(data)} images, too few to split {fraction:.0%} off to validate on",
            "give other images to validate on, or a larger val_fraction",
        )
    percent = f"{fraction:.0%} of {data.origin}, by a hash of the key"
    return (
        data.subset(np.flatnonzero(~held_out), f"{data.origin}, without {fraction:.0%} to validate on"),
        data.subset(np.flatnonzero(held_out), percent),
    )


# --- what lies at a path ----------------------------------------------------------------------------------------------


class _File(NamedTuple):
    name: str  # from the root, with "/"
    size: int  # bytes; -1 where it cannot be told


@dataclass(frozen=True)
class _Found:
    """The files that `given` stands for. parts: by split, "" for what names none; whole: no choice is to be made."""

    given: str
    kind: str  # "folder", "parquet", "tar" or "list"
    root: str
    parts: dict[str, list[_File]]
    whole: bool = False
    depth: int = 0  # folders above the class folders
    empty: dict[str, list[str]] = field(default_factory=dict)  # class folders without an image, by split

    def files(self, parts: Iterable[str]) -> list[_File]:
        return [file for part in parts for file in self.parts[part]]

    def paths(self, parts: Iterable[str]) -> set[str]:
        root = os.path.realpath(self.root)
        return {_join(root, file.name) for file in self.files(parts)}


def _find(given: str) -> _Found:
    path = Path(given)
    if path.is_dir():
        return _in_folder(given)
    if path.is_file():
        return _as_shards(given, str(path.parent), [_File(path.name, path.stat().st_size)], whole=True)
    if glob.has_magic(given):
        root = path.parent
        while glob.has_magic(str(root)):
            root = root.parent
        matched = (Path(name) for name in glob.iglob(given, recursive=True))  # noqa: PTH207 - it may be absolute
        files = [_File(one.relative_to(root).as_posix(), one.stat().st_size) for one in matched if one.is_file()]
        if files:
            return _as_shards(given, str(root), sorted(files, key=lambda file: _ordered(file.name)), whole=True)
        raise UsageError("not_found", f"no file matches {given!r}", hint=f"DATA is {_ACCEPTED}")
    raise UsageError("not_found", f"there is no {given!r}", hint=f"DATA is {_ACCEPTED}")


def _in_folder(given: str) -> _Found:
    folders: list[str] = []
    files = list(_walk(given, "", folders, ()))
    images = [file for file in files if _suffix(file.name) in IMAGE_SUFFIXES]
    shards = [file for file in files if _KINDS.get(_suffix(file.name)) in ("parquet", "tar")]
    lists = [file for file in files if _KINDS.get(_suffix(file.name)) == "list"]
    if images and shards:
        raise _mixed(given, f"images, such as {images[0].name!r}, and {shards[0].name!r}")
    if images:
        return _image_folder(given, images, folders)
    if shards or lists:
        return _as_shards(given, given, shards or lists)
    raise UsageError("not_found", f"no image in the folder {given!r}", hint=f"DATA is {_ACCEPTED}")


def _walk(root: str, below: str, folders: list[str], above: tuple[tuple[int, int], ...]) -> Iterator[_File]:
    """Files under root/below in natural order, without hidden ones. `folders` gets those seen; links are followed."""
    try:
        here = Path(_join(root, below)).stat()
        if (here.st_dev, here.st_ino) in above:  # a link that leads back
            return
        with os.scandir(_join(root, below)) as entries:
            listed = sorted(
                (e for e in entries if not e.name.startswith((".", "__MACOSX"))), key=lambda e: _ordered(e.name)
            )
    except OSError as error:
        raise UsageError("unreadable", f"{_join(root, below)!r} could not be listed: {error.strerror}") from None
    for entry in listed:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir():
            folders.append(name)
            yield from _walk(root, name, folders, (*above, (here.st_dev, here.st_ino)))
        elif _suffix(name) in IMAGE_SUFFIXES or _suffix(name) in _KINDS:
            yield _File(name, _size(entry))


def _image_folder(given: str, images: list[_File], folders: list[str]) -> _Found:
    """Classes, or splits of classes: these only where every folder with images is called as a split."""
    tops = list(dict.fromkeys(file.name.split("/")[0] for file in images))
    flat = {file.name.split("/")[0]: file.name for file in images if file.name.count("/") < 2}
    splits = {top: _SPLIT_OF[top.lower()] for top in tops if top.lower() in _SPLIT_OF}
    by_split = len(splits) == len(tops)
    stray = next((name for top, name in flat.items() if by_split or top == name), None)
    if stray:
        raise _bad(f"{given}: {stray!r} is in no class folder", "DATA/CLASS/image.jpg or DATA/train/CLASS/image.jpg")
    nested = next((top for top in splits if top not in flat), None)  # a class has images of its own
    if not by_split and nested:
        other = next(top for top in tops if top not in splits)
        raise _mixed(given, f"the split {nested!r} and {other!r}, which is none")
    parts: dict[str, list[_File]] = {} if by_split else {_own_split(given): images}
    for top, split in splits.items() if by_split else ():
        if split in parts:
            raise _mixed(given, f"two folders of one split, {_names(t for t in splits if splits[t] == split)}")
        parts[split] = [file for file in images if file.name.startswith(f"{top}/")]
    depth = int(by_split)
    filled = {tuple(file.name.split("/")[: depth + 1]) for file in images}
    empty: dict[str, list[str]] = {}
    for folder in folders:
        place = tuple(folder.split("/"))
        if len(place) == depth + 1 and place not in filled and (not by_split or place[0] in splits):
            empty.setdefault(splits[place[0]] if by_split else next(iter(parts)), []).append(folder)
    return _Found(given, "folder", given, parts, not by_split, depth, empty)


def _as_shards(given: str, root: str, files: list[_File], whole: bool = False) -> _Found:
    """Parquet files, archives or lists; each is in the split that its name, else a folder above it, tells."""
    kinds = {_KINDS.get(_suffix(file.name), "") for file in files}
    if len(kinds) > 1:
        raise _mixed(given, f"files of several kinds, such as {files[0].name!r} and {files[-1].name!r}")
    kind = kinds.pop()
    if not kind:
        raise _bad(
            f"{files[0].name!r} is no set of labelled images", f"DATA is {_ACCEPTED}; unpack or decompress others"
        )
    parts: dict[str, list[_File]] = {}
    for file in files:
        *above, name = file.name.split("/")
        split = _split_in(name.partition(".")[0])
        for folder in reversed(above):
            split = split or _SPLIT_OF.get(folder.lower(), "")
        parts.setdefault(split, []).append(file)
    if len(parts) > 1 and "" in parts:
        named = next(part for part in parts if part)
        raise _mixed(given, f"{parts[named][0].name!r} of the split {named}, and {parts[''][0].name!r} of none")
    if list(parts) == [""] and not whole:
        return _Found(given, kind, root, {_own_split(given): files}, True)
    return _Found(given, kind, root, parts, whole)


def _choose(found: _Found, split: Split) -> list[str] | None:
    """The part that is this split, None where there is none."""
    names = ("train", "") if split == "train" else ("val", "test")
    return next(([name] for name in names if name in found.parts), None)


def _need(found: _Found, split: Split | None) -> list[str]:
    parts = list(found.parts) if split is None else _choose(found, split)
    if parts is None and split == "train" and found.whole:
        parts = list(found.parts)
    if parts is None:
        there = _names(name or "one without a name" for name in found.parts)
        raise UsageError(
            "not_found",
            f"{found.given} has no {split} split, only {there}",
            hint=f"call a folder, or the files, {' or '.join(SPLIT_NAMES[split or 'train'])}",
        )
    return parts


def _beside(found: _Found) -> _Found | None:
    """Of data that is itself called train: what bears the same name, with val or test in place of that word."""
    path = Path(os.path.abspath(found.given))  # noqa: PTH100 - "." has no name, a link keeps its own
    if not found.whole or list(found.parts) != ["train"]:
        return None
    for word in (*SPLIT_NAMES["val"], *SPLIT_NAMES["test"]):
        other = str(path.with_name(_renamed(path.name, word)))
        if os.path.lexists(other) or (glob.has_magic(other) and glob.glob(other)):  # noqa: PTH207 - it is absolute
            return _find(other)
    return None


def _renamed(name: str, word: str) -> str:
    """With `word` where it says train, in capitals as that was."""

    def other(match: re.Match[str]) -> str:
        if match[0].lower() not in SPLIT_NAMES["train"]:
            return match[0]
        return word.upper() if match[0].isupper() else word.title() if match[0].istitle() else word

    return re.sub("[A-Za-z]+", other, name)


def _own_split(given: str) -> str:
    """Of a folder without splits inside."""
    return _SPLIT_OF.get(Path(os.path.abspath(given)).name.lower(), "")  # noqa: PTH100 - a link keeps its own name


def _split_in(stem: str) -> str:
    """cifar10-train, train-00000-of-00002 -> train; "" for names of no split or of several."""
    found = {_SPLIT_OF[word] for word in re.findall("[a-z]+", stem.lower()) if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else ""


# --- labels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labels:
    """values: the distinct labels as text; codes: (N,) which of them an image has; names: the data's own class list."""

    values: list[str]
    codes: Ints
    names: list[str] | None = None

    @classmethod
    def of(cls, labels: Iterable[str], names: list[str] | None = None) -> _Labels:
        places: dict[str, int] = {}
        codes = np.fromiter((places.setdefault(label, len(places)) for label in labels), np.int64)
        return cls(list(places), codes, names)


def _load(found: _Found, parts: list[str], classes: Sequence[str] | None) -> LabelledImages:
    files = found.files(parts)
    origin = found.given if found.whole or len(parts) > 1 else f"{found.given} ({parts[0] or 'all'})"
    empty = [folder for part in parts for folder in found.empty.get(part, ())]
    if empty and classes is None:
        raise _bad(f"{found.given}: the class folder {_names(empty)} has no images", "add images, or remove the folder")
    store: _Store
    if found.kind == "folder":
        store = _Files(found.root, [file.name for file in files], [file.size for file in files])
        labels = _Labels.of(file.name.split("/")[found.depth] for file in files)
    elif found.kind == "parquet":
        store, labels = _read_parquet(found.root, files)
    elif found.kind == "tar":
        store, labels = _read_tars(found.root, files)
    else:
        store, labels = _read_lists(found.root, files)
    if not len(labels.codes):
        raise UsageError("not_found", f"{origin} has no images", hint=f"DATA is {_ACCEPTED}")
    names, codes = _in_own_classes(origin, labels, store)
    if classes is not None:
        names, codes = _in_classes(origin, names, codes, list(classes))
    elif len(names) < 2:
        raise _bad(
            f"{origin} has one class only, {names[0]!r}",
            "at least two are needed; a class is a folder below DATA, or below DATA/train",
        )
    return LabelledImages(store, names, codes, origin)


def _in_own_classes(origin: str, labels: _Labels, store: _Store) -> tuple[list[str], Ints]:
    """The class list that the data itself tells, and the label of each image in it."""
    if labels.names is None:
        names = sorted(labels.values, key=_ordered)
        place = {name: i for i, name in enumerate(names)}
    else:
        names = labels.names
        numbers = all(value.isdecimal() for value in labels.values)  # then they count from the first name
        place = {str(i): i for i in range(len(names))} if numbers else {name: i for i, name in enumerate(names)}
    index = np.array([place.get(value, -1) for value in labels.values])
    codes = index[labels.codes]
    outside = np.flatnonzero(codes < 0)
    if len(outside):
        row = int(outside[0])
        raise _bad(
            f"{origin}: {len(outside):,} images have a label that is not in the class list, the first is "
            f"{store.key(row)!r} with {labels.values[labels.codes[row]]!r}",
            f"the list has {len(names)} names, {_names(names)}; labels are names of it, or numbers from 0",
        )
    return names, codes


def _in_classes(origin: str, names: list[str], codes: Ints, wanted: list[str]) -> tuple[list[str], Ints]:
    """The same images in another class list."""
    if names == wanted:
        return wanted, codes
    for either in (names, wanted):
        if len(set(either)) < len(either):
            twice = next(name for name in either if either.count(name) > 1)
            raise _bad(f"two classes are called {twice!r}, so {origin} cannot be matched with the class list by name")
    used = np.unique(codes)
    place = {name: i for i, name in enumerate(wanted)}
    numbered = all(names[i].isdecimal() for i in used) and not all(name.isdecimal() for name in wanted)
    if numbered:
        place = {names[i]: int(names[i]) for i in used if int(names[i]) < len(wanted)}
    unknown = [names[i] for i in used if names[i] not in place]
    if unknown:
        raise _bad(
            f"{origin} has images of {_names(unknown)}, which the class list does not have",
            f"the list has {len(wanted)} names: {_names(wanted)}",
        )
    index = np.array([place.get(name, -1) for name in names])
    return wanted, index[codes]


# --- where bytes are --------------------------------------------------------------------------------------------------


class _Texts:
    """Many strings as two arrays: cheap to pickle, and to share with a forked process."""

    def __init__(self, texts: Iterable[str]):
        encoded = [os.fsencode(text) for text in texts]
        self.blob = b"".join(encoded)
        self.ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.blob[self.ends[i - 1] if i else 0 : self.ends[i]])


class _Store(abc.ABC):
    """Rows 0 to N - 1 of what was found; nothing is open between reads."""

    @abc.abstractmethod
    def key(self, row: int) -> str: ...

    @abc.abstractmethod
    def sizes(self) -> Ints:
        """(N,) bytes of each image, -1 where there are none."""

    @abc.abstractmethod
    def source(self, row: int) -> Source: ...


class _Files(_Store):
    def __init__(self, root: str, keys: Sequence[str], sizes: Sequence[int]):
        self.root, self.keys, self._sizes = root, _Texts(keys), np.array(sizes, np.int64)

    def key(self, row: int) -> str:
        return self.keys[row]

    def sizes(self) -> Ints:
        return self._sizes

    def source(self, row: int) -> Source:
        return Source(self.keys[row], _join(self.root, self.keys[row]))


def _read_lists(root: str, files: list[_File]) -> tuple[_Store, _Labels]:
    """Lists of path,label. Paths are from the list's own folder, which is `root` where there is one list."""
    keys, labels, sizes = [], [], []
    for file in files:
        folder = file.name.rpartition("/")[0]
        for path, label in _read_list(_join(root, file.name)):
            keys.append(_join(folder, path))
            labels.append(label)
            try:
                sizes.append(os.stat(_join(root, keys[-1])).st_size)  # noqa: PTH116 - as in _join
            except (OSError, ValueError):  # it will be an error of that one image
                sizes.append(-1)
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise _bad(f"{files[0].name} has {_names(twice)} more than once", "name each image once")
    if keys and max(sizes) < 0:
        raise UsageError(
            "not_found",
            f"none of the {len(keys):,} files of {files[0].name} is there, such as {_join(root, keys[0])!r}",
            hint="paths are relative to the folder that the list is in",
        )
    return _Files(root, keys, sizes), _Labels.of(labels)


_PATH_COLUMNS, _LABEL_COLUMNS = ("path", "file", "filename", "file_name", "image"), ("label", "class")


def _read_list(name: str) -> Iterator[tuple[str, str]]:
    """(path, label) of each line."""
    try:
        with Path(name).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if _suffix(name) == ".tsv" else ",", strict=True)
            columns = None
            for cells in reader:
                if not any(cells):
                    continue
                if columns is None:
                    columns, is_header = _list_columns(name, cells)
                    if is_header:
                        continue
                if len(cells) <= max(columns) or not all(cells[i].strip() for i in columns):
                    raise _bad(f"{name}, line {reader.line_num}: a path or a label is missing", "path,label")
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
    if len(first) == 2 and _suffix(lower[0]) in IMAGE_SUFFIXES:
        return (0, 1), False
    raise _bad(
        f"the first line of {name} is neither the names of columns nor a path and a label: {first[:4]}",
        f"begin it with path,label{' (with a tab between)' if _suffix(name) == '.tsv' else ''}",
    )


class _Members(_Store):
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
        path = _join(self.root, self.shards[self.shard[row]])
        return Source(self.key(row), path, int(self.offset[row]), int(self._sizes[row]))


def _read_tars(root: str, files: list[_File]) -> tuple[_Store, _Labels]:
    """WebDataset archives: every header is read once, 30 s for a million samples."""
    found: list[tuple[int, str, int, int]] = []
    labels: list[str] = []
    listed: dict[str, list[str]] = {}  # class lists by where they are
    folders = {_join(root, file.name.rpartition("/")[0]) for file in files} | {root}
    for path in sorted(_join(folder, "classes.txt") for folder in folders):
        if Path(path).is_file():
            listed[path] = _lines(path, Path(path).read_bytes())
    for shard, file in enumerate(files):
        samples, classes = _read_tar(_join(root, file.name))
        listed |= {f"{file.name}::classes.txt": classes} if classes else {}
        found += [(shard, *member) for member, _ in samples]
        labels += [label for _, label in samples]
    where = list(listed)
    for other in where[1:]:
        if listed[other] != listed[where[0]]:
            raise _mixed(root, f"two class lists that differ, {where[0]} and {other}")
    return _Members(root, [file.name for file in files], found), _Labels.of(labels, listed[where[0]] if where else None)


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
                elif _suffix(base) in IMAGE_SUFFIXES:
                    if key in images:
                        raise _bad(f"{path}: the sample of {member.name!r} has two images, or is there twice")
                    images[key] = (member.name, member.offset_data, member.size)
                elif kind in ("cls", "json") or base == "classes.txt":
                    if member.size > _LARGEST_LABEL:
                        raise _bad(f"{path}: {member.name!r} has {member.size:,} bytes, which is no label")
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
        raise _bad(f"{path}: {len(without):,} images have no label, such as {without[0]!r}", "put a .cls beside each")
    alone = [key.lstrip("/") for key in labels if key not in images and labels[key]]
    if alone and images:
        raise _bad(f"{path}: {len(alone):,} labels have no image, such as that of {alone[0]!r}")
    return [(image, labels[key]) for key, image in images.items()], classes


def _label(where: str, text: bytes, kind: str) -> str:
    """What a .cls (a name or a number) or a .json ("label") says; "" where it says nothing."""
    try:
        value = text.decode().strip() if kind == "cls" else json.loads(text)
    except (ValueError, RecursionError):
        raise _bad(f"{where} is not {'text in UTF-8' if kind == 'cls' else 'JSON'}") from None
    if isinstance(value, dict):
        value = value.get("label")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _lines(where: str, text: bytes) -> list[str]:
    try:
        return [line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise _bad(f"{where} is not text in UTF-8, expected a class name a line") from None


class _Rows(_Store):
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
        return _RowSource(f"{name}:{at}", _join(self.root, name), rows=self, row=row)

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
                    chunks += _read_column(_join(self.root, name), self.column, count)
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


def _read_parquet(root: str, files: list[_File]) -> tuple[_Store, _Labels]:
    """The labels of all rows now; the images when one is asked for."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(
            "missing_dependency", "reading Parquet needs pyarrow", hint='pip install "tessella[train]"'
        ) from None
    counts, columns, labels, names, needed = [], [], [], [], 0
    for file in files:
        path = _join(root, file.name)
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
            raise _mixed(root, f"{files[0].name!r} and {file.name!r} with other columns or class names")
    memory = _memory()
    if memory and needed > memory // 4:
        raise _bad(
            f"the images of {files[0].name!r}{' and others' if files[1:] else ''} take {needed / 2**30:.1f} GiB, more "
            f"than a quarter of this machine's memory ({memory / 2**30:.1f} GiB), where they would be held",
            "write them as WebDataset .tar files, which are read in place",
        )
    return _Rows(root, [file.name for file in files], counts, columns[0]), _parquet_labels(labels, names[0])


def _image_column(path: str, schema: Any) -> str:
    """The column with the encoded bytes, as `read` takes it."""
    import pyarrow as pa

    types = {entry.name: entry.type for entry in schema}
    image, label = types.get("image"), types.get("label")

    def holds_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    if label is not None and image is not None and holds_bytes(image):
        return "image"
    if label is not None and image is not None and pa.types.is_struct(image):
        at = image.get_field_index("bytes")
        if at >= 0 and holds_bytes(image.field(at).type):
            return "image.bytes"
    shown = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    raise _bad(
        f"{path} has the columns {shown[:200]}",
        "expected image, of bytes or of a struct with bytes, and label; rename those that mean the same",
    )


def _label_names(path: str, metadata: dict[bytes, bytes]) -> list[str] | None:
    """Class names, from where the Hugging Face library writes them; None where there are none."""
    try:
        told = json.loads(metadata.get(b"huggingface", b"{}"))
        names = told.get("info", {}).get("features", {}).get("label", {}).get("names")
    except (ValueError, AttributeError, RecursionError):
        raise _bad(f"{path}: the metadata under 'huggingface' cannot be read", "write the file again") from None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _bad(f"{path}: the class names of the label are {str(names)[:80]}, expected a list of names")
    return names or None


def _bytes_of(metadata: Any, column: str) -> int:
    """Memory that a column takes when it is read."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    parts = (group.column(j) for group in groups for j in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema == column)


def _parquet_labels(columns: list[Any], names: list[str] | None) -> _Labels:
    import pyarrow as pa

    labels = pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if not (
        pa.types.is_integer(labels.type) or pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)
    ):
        raise _bad(f"the label column holds {labels.type}, expected integers or names")
    if labels.null_count:
        raise _bad(f"{labels.null_count:,} of {len(labels):,} images have no label (null)", "leave those rows out")
    distinct, codes = np.unique(labels.to_numpy(), return_inverse=True)
    if pa.types.is_integer(labels.type) and len(distinct) and distinct[0] < 0:
        raise _bad(
            f"{int((codes == 0).sum()):,} images have the label {distinct[0]}, which is not in the class list",
            "a negative label marks images without one: leave those rows out",
        )
    return _Labels([str(value) for value in distinct], codes.astype(np.int64), names)


def _memory() -> int:
    """Bytes of this machine, 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


# --- small parts ------------------------------------------------------------------------------------------------------


def _bad(message: str, hint: str = "") -> UsageError:
    return UsageError("bad_argument", message, hint=hint)


def _mixed(given: str, both: str) -> UsageError:
    return _bad(
        f"{given} mixes layouts: it has {both}", "give one of them as DATA; the validation data can be given apart"
    )


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(map(repr, listed[:5])) + more


def _ordered(name: str) -> tuple[Any, str]:
    """Sort key: natural order, and one order of 1 and 01."""
    return _natural(name), name


def _join(root: str, name: str) -> str:
    return os.path.join(root, name) if name else root  # noqa: PTH118 - a million Path objects cost seconds


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - as above


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing: it will be an error of that one image
        return -1
