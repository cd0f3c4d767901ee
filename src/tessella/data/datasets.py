"""Images with a class each, from folders, Parquet files, WebDataset archives or lists: a map from an index to bytes.

    given                                                   key of an image
    an image folder: CLASS/**/image or SPLIT/CLASS/**/image  CLASS/.../image.jpg, from the folder given
    .parquet, or a folder of them, in Hugging Face's layout  file.parquet:row
    WebDataset .tar, a folder of them, or a glob             file.tar::member.jpg
    .csv or .tsv of path,label                               the path, from the folder of the list

Splits go by names: of sub-folders, and of the words in the names of Parquet files, archives and lists. Classes are in
the natural order of their names (a2 before a10), save where the data brings an order: the `names` of a Hugging Face
label, the lines of a classes.txt. Names are compared in Unicode normal form C. What does not fit is an error, or is
counted in `LabelledImages.skipped`: hidden files, by-products of other systems, results of Tessella, unlabelled images.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..checks import checked
from ..errors import UsageError
from ..storage import absolute
from .labelled_rows import read_parquet
from .limits import DEFAULT_LIMITS, Limits
from .names import IMAGE_SUFFIXES, MEASURED, PACKED, Skipped, class_name
from .parquet import is_metadata
from .source import Source
from .stores import (
    File,
    Files,
    Ints,
    Labels,
    Store,
    bad,
    join,
    mixed,
    ordered,
    read_lists,
    read_tars,
    some,
    suffix,
)
from .walk import split_pattern, walk

Split: TypeAlias = Literal["train", "val"]

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test",),  # stands for val where there is none
}
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_KINDS = {".parquet": "parquet", ".tar": "tar", ".csv": "list", ".tsv": "list"}
_ACCEPTED = "an image folder, a .parquet, .tar, .csv or .tsv file, a folder of Parquet files or archives, or a glob"


class LabelledImages:
    """N encoded images with a class each, in any order. Cheap to pickle: what a process reads, it opens by itself.

    classes: their names, index = label; labels: (N,), read-only; origin: what they were read from, for a person;
    skipped: what was seen beside them and left out.
    """

    def __init__(
        self,
        store: Store,
        classes: Sequence[str],
        labels: Ints,
        origin: str,
        rows: Ints | None = None,
        skipped: Skipped | None = None,
    ):
        """rows: (N,) where each image is in the store; None: in its order."""
        self._store = store
        self.skipped = Skipped() if skipped is None else skipped
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

    @property
    def sizes(self) -> Ints:
        """(N,) bytes of each encoded image, -1 where the size is unknown."""
        return self._store.sizes()[self._rows]

    def subset(self, indices: Sequence[int] | NDArray[Any], origin: str = "") -> LabelledImages:
        """Those images, in that order, with all the classes."""
        at = np.asarray(indices, np.int64)
        rows = self._rows[at]
        return LabelledImages(self._store, self.classes, self.labels[at], origin or self.origin, rows, self.skipped)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over classes, keys, labels and sizes in bytes; contents are not read."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for row in self._rows.tolist():
            digest.update(os.fsencode(self._store.key(row)) + b"\0")
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self._store.sizes()[self._rows].astype("<i8").tobytes())
        return digest.hexdigest()[:16]


@checked
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
    found = _find(os.fsdecode(data), Skipped())
    if split not in (None, "train", "val"):
        raise bad(f"split is {split!r}, expected 'train', 'val' or None")
    return _load(found, _need(found, split), classes)


def open_split(
    data: str | os.PathLike[str], *, val: str | os.PathLike[str] | None = None, val_fraction: float = 0.1
) -> tuple[LabelledImages, LabelledImages]:
    """Training and validation images, with one class list: that of the training images, of which each class has some.

    val: where the validation images are. None: the split of that name in `data`; or, where `data` is itself called
    train, what lies beside it under the name of the other split; or `val_fraction` of the images, by a hash of each
    key, so that an image stays where it is when others are added. A test folder without classes, or with none of the
    training classes, is left alone, and named in `skipped`. Raises as `open_labelled`.
    """
    skipped = Skipped()
    found = _find(os.fsdecode(data), skipped)
    parts = _need(found, "train")
    train = _load(found, parts, None)
    if val is not None:
        other = _find(os.fsdecode(val), skipped)
        chosen = _choose(other, "val") or list(other.parts)
    else:
        other, chosen = found, _choose(found, "val") or []
        if chosen == parts:  # one file that is called test
            chosen = []
        if not chosen and (beside := _beside(found)):
            other, chosen = beside, _choose(beside, "val") or list(beside.parts)
        if chosen and _is_foreign(other, chosen, train.classes):
            skipped.add("unlabelled", other.given if other is not found else join(other.root, _top(other, chosen)))
            chosen = []
    if chosen:
        twice = found.paths(parts) & other.paths(chosen)
        if twice:
            raise bad(
                f"{len(twice):,} files are in both the training and the validation data, such as {min(twice)!r}",
                "give other images to validate on, or none: a part is then split off",
            )
        held_out = _load(other, chosen, train.classes)
    else:
        train, held_out = _split_off(train, val_fraction)
        if example := skipped.example("unlabelled"):
            held_out.origin += f"; {example!r} has no images of these classes, and is not used"
    missing = np.flatnonzero(np.bincount(train.labels, minlength=len(train.classes)) == 0)
    if len(missing):
        raise bad(
            f"{train.origin}: {some(train.classes[i] for i in missing)} of the class list "
            f"{'has' if len(missing) == 1 else 'have'} no training images",
            "add images, or take the class out of the list",
        )
    return train, held_out


def _split_off(data: LabelledImages, fraction: float) -> tuple[LabelledImages, LabelledImages]:
    """An image is held out when the hash of its key says so; of a class, at least one image is not."""
    if not 0 < fraction < 1:
        raise bad(f"val_fraction is {fraction}, expected a number between 0 and 1")
    hashes = (hashlib.sha256(os.fsencode(data.key(i))).digest()[:8] for i in range(len(data)))
    place = np.fromiter((int.from_bytes(one, "big") / 2**64 for one in hashes), float, len(data))
    held_out = place < fraction
    for label in np.unique(data.labels[held_out]):
        members = np.flatnonzero(data.labels == label)
        if held_out[members].all():
            held_out[members[place[members].argmax()]] = False
    if not held_out.any():
        raise bad(
            f"{data.origin} has {len(data)} images, too few to split {fraction:.0%} off to validate on",
            "give other images to validate on, or a larger val_fraction",
        )
    percent = f"{fraction:.0%} of {data.origin}, by a hash of the key"
    return (
        data.subset(np.flatnonzero(~held_out), f"{data.origin}, without {fraction:.0%} to validate on"),
        data.subset(np.flatnonzero(held_out), percent),
    )


# --- what lies at a path ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """The files that `given` stands for. parts: by split, "" for what names none; whole: no choice is to be made."""

    given: str
    kind: str  # "folder", "parquet", "tar" or "list"
    root: str
    parts: dict[str, list[File]]
    skipped: Skipped
    whole: bool = False
    depth: int = 0  # folders above the class folders
    empty: dict[str, list[str]] = field(default_factory=dict)  # class folders without an image, by split

    def files(self, parts: Iterable[str]) -> list[File]:
        return [file for part in parts for file in self.parts[part]]

    def paths(self, parts: Iterable[str]) -> set[str]:
        root = os.path.realpath(absolute(self.root))
        return {join(root, file.name) for file in self.files(parts)}


def _find(given: str, skipped: Skipped) -> _Found:
    if os.path.isdir(given):  # noqa: PTH112 - unlike Path's, it has an answer for names that cannot be
        return _in_folder(given, skipped)
    if os.path.isfile(given):  # noqa: PTH113 - likewise
        path = Path(given)
        return _as_shards(given, str(path.parent), [File(path.name, path.stat().st_size)], skipped, whole=True)
    if os.path.lexists(given):
        raise UsageError(
            "special_file" if os.path.exists(given) else "not_found",  # noqa: PTH110 - likewise
            f"{given!r} is neither a regular file nor a folder",
            hint=f"DATA is {_ACCEPTED}",
        )
    if glob.has_magic(given):
        root, pattern = split_pattern(given)
        files = [File(seen.name, _size(seen.entry)) for seen in walk(root, skipped, pattern) if seen.kind == "file"]
        if files:
            return _as_shards(given, root or ".", files, skipped, whole=True)
        raise UsageError("not_found", f"no file matches {given!r}", hint=f"DATA is {_ACCEPTED}")
    raise UsageError("not_found", f"there is no {given!r}", hint=f"DATA is {_ACCEPTED}")


def _in_folder(given: str, skipped: Skipped) -> _Found:
    folders: list[str] = []
    files = list(_walk(given, folders, skipped))
    images = [file for file in files if suffix(file.name) in IMAGE_SUFFIXES]
    shards = [file for file in files if _KINDS.get(suffix(file.name)) in ("parquet", "tar")]
    lists = [file for file in files if _KINDS.get(suffix(file.name)) == "list"]
    if images and shards:
        raise mixed(given, f"images, such as {images[0].name!r}, and {shards[0].name!r}")
    if lists and (images or shards):
        skipped.add("unused_list", join(given, lists[0].name), len(lists))
    if images:
        return _image_folder(given, images, folders, skipped)
    if shards or lists:
        return _as_shards(given, given, shards or lists, skipped)
    raise UsageError("not_found", f"no image in the folder {given!r}", hint=f"DATA is {_ACCEPTED}")


def _walk(root: str, folders: list[str], skipped: Skipped) -> Iterator[File]:
    """Images, archives, tables and lists below `root`, in natural order. `folders` gets the names of those seen."""
    for seen in walk(root, skipped):
        ending = suffix(seen.name)
        if seen.kind == "folder":
            folders.append(seen.name)
        elif seen.error is not None and seen.entry is None:  # a folder that cannot be listed
            raise UsageError(seen.error.code, seen.error.message)
        elif ending in IMAGE_SUFFIXES:  # also what cannot be read: an error of that one image
            yield File(seen.name, _size(seen.entry))
        elif seen.kind == "broken":
            skipped.add("broken_link", seen.path)
        elif ending in _KINDS and seen.kind == "file":
            reason = is_metadata(seen.path) if ending == ".parquet" else ""
            if reason == "own_result" or (reason and seen.beside_images):
                skipped.add(reason, seen.path)
            else:
                yield File(seen.name, _size(seen.entry))
        else:
            skipped.add("packed_archive" if PACKED.fullmatch(seen.name) else "other_suffix", seen.path)


def _size(entry: os.DirEntry[str] | None) -> int:
    try:
        return -1 if entry is None else entry.stat().st_size
    except OSError:  # a link to nothing: it will be an error of that one image
        return -1


def _image_folder(given: str, images: list[File], folders: list[str], skipped: Skipped) -> _Found:
    """Classes, or splits of classes: these only where every folder with images is called as a split."""
    tops = list(dict.fromkeys(file.name.split("/")[0] for file in images))
    flat = {file.name.split("/")[0]: file.name for file in images if file.name.count("/") < 2}
    splits = {top: _SPLIT_OF[top.lower()] for top in tops if top.lower() in _SPLIT_OF}
    by_split = len(splits) == len(tops)
    for top in _unlabelled(images, splits) if by_split else ():
        skipped.add("unlabelled", join(given, top))
        images = [file for file in images if not file.name.startswith(f"{top}/")]
        del splits[top], flat[top]
    stray = next((name for top, name in flat.items() if by_split or top == name), None)
    if stray:
        raise bad(f"{given}: {stray!r} is in no class folder", "DATA/CLASS/image.jpg or DATA/train/CLASS/image.jpg")
    nested = next((top for top in splits if top not in flat), None)  # a class has images of its own
    if not by_split and nested:
        other = next(top for top in tops if top not in splits)
        raise mixed(given, f"the split {nested!r} and {other!r}, which is none")
    parts: dict[str, list[File]] = {} if by_split else {_own_split(given): images}
    for top, split in splits.items() if by_split else ():
        if split in parts:
            raise mixed(given, f"two folders of one split, {some(t for t in splits if splits[t] == split)}")
        parts[split] = [file for file in images if file.name.startswith(f"{top}/")]
    depth = int(by_split)
    filled = {tuple(file.name.split("/")[: depth + 1]) for file in images}
    empty: dict[str, list[str]] = {}
    for folder in folders:
        place = tuple(folder.split("/"))
        if len(place) != depth + 1 or place in filled or (by_split and place[0] not in splits):
            continue
        if any(os.path.lexists(join(given, f"{folder}/{name}")) for name in MEASURED):
            skipped.add("own_result", join(given, folder))
        else:
            empty.setdefault(splits[place[0]] if by_split else next(iter(parts)), []).append(folder)
    return _Found(given, "folder", given, parts, skipped, not by_split, depth, empty)


def _unlabelled(images: list[File], splits: dict[str, str]) -> list[str]:
    """Find split folders without classes, other than train, when train has classes."""
    deep = {file.name.split("/")[0] for file in images if file.name.count("/") > 1}
    if not any(splits.get(top) == "train" for top in deep):
        return []
    return [top for top, split in splits.items() if split != "train" and top not in deep]


def _as_shards(given: str, root: str, files: list[File], skipped: Skipped, whole: bool = False) -> _Found:
    """Parquet files, archives or lists; each is in the split that its name, else a folder above it, tells."""
    kinds = {_KINDS.get(suffix(file.name), "") for file in files}
    if len(kinds) > 1:
        raise mixed(given, f"files of several kinds, such as {files[0].name!r} and {files[-1].name!r}")
    kind = kinds.pop()
    if not kind:
        raise bad(
            f"{files[0].name!r} is no set of labelled images", f"DATA is {_ACCEPTED}; unpack or decompress others"
        )
    parts: dict[str, list[File]] = {}
    for file in files:
        *above, name = file.name.split("/")
        split = _split_in(name.partition(".")[0])
        for folder in reversed(above):
            split = split or _SPLIT_OF.get(folder.lower(), "")
        parts.setdefault(split, []).append(file)
    if len(parts) > 1 and "" in parts:
        named = next(part for part in parts if part)
        raise mixed(given, f"{parts[named][0].name!r} of the split {named}, and {parts[''][0].name!r} of none")
    if list(parts) == [""] and not whole:
        return _Found(given, kind, root, {_own_split(given): files}, skipped, True)
    return _Found(given, kind, root, parts, skipped, whole)


def _choose(found: _Found, split: Split) -> list[str] | None:
    """The part that is this split, None where there is none."""
    names = ("train", "") if split == "train" else ("val", "test")
    return next(([name] for name in names if name in found.parts), None)


def _need(found: _Found, split: Split | None) -> list[str]:
    parts = list(found.parts) if split is None else _choose(found, split)
    if parts is None and split == "train" and found.whole:
        parts = list(found.parts)
    if parts is None:
        there = some(name or "one without a name" for name in found.parts)
        raise UsageError(
            "not_found",
            f"{found.given} has no {split} split, only {there}",
            hint=f"call a folder, or the files, {' or '.join(SPLIT_NAMES[split or 'train'])}",
        )
    return parts


def _beside(found: _Found) -> _Found | None:
    """Of data that is itself called train: what bears the same name, with val or test in place of that word."""
    path = Path(absolute(found.given))  # "." has no name
    if not found.whole or list(found.parts) != ["train"]:
        return None
    for word in (*SPLIT_NAMES["val"], *SPLIT_NAMES["test"]):
        other = str(path.with_name(_renamed(path.name, word)))
        if os.path.isdir(other) and _has_no_classes(other):  # noqa: PTH112 - as in _find
            found.skipped.add("unlabelled", other)
        elif os.path.lexists(other) or (glob.has_magic(other) and glob.glob(other)):  # noqa: PTH207 - it is absolute
            return _find(other, found.skipped)
    return None


def _has_no_classes(folder: str) -> bool:
    """Whether a folder holds only images outside class folders, like the test set of a contest."""
    files = list(_walk(folder, [], Skipped()))
    return bool(files) and all(suffix(file.name) in IMAGE_SUFFIXES and "/" not in file.name for file in files)


def _is_foreign(found: _Found, parts: list[str], classes: Sequence[str]) -> bool:
    """Whether a test folder has none of these classes: contests put its images into one folder of any name."""
    if found.kind != "folder" or parts != ["test"]:
        return False
    names = {class_name(file.name.split("/")[found.depth]) for file in found.files(parts)}
    return names.isdisjoint(classes) and not all(name.isdecimal() for name in names)


def _top(found: _Found, parts: list[str]) -> str:
    """The folder of a split."""
    return found.files(parts)[0].name.split("/")[0]


def _renamed(name: str, word: str) -> str:
    """With `word` where it says train, in capitals as that was."""

    def other(match: re.Match[str]) -> str:
        if match[0].lower() not in SPLIT_NAMES["train"]:
            return match[0]
        return word.upper() if match[0].isupper() else word.title() if match[0].istitle() else word

    return re.sub("[A-Za-z]+", other, name)


def _own_split(given: str) -> str:
    """Of a folder without splits inside."""
    return _SPLIT_OF.get(Path(absolute(given)).name.lower(), "")


def _split_in(stem: str) -> str:
    """cifar10-train, train-00000-of-00002 -> train; "" for names of no split or of several."""
    found = {_SPLIT_OF[word] for word in re.findall("[a-z]+", stem.lower()) if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else ""


# --- labels -----------------------------------------------------------------------------------------------------------


def _load(found: _Found, parts: list[str], classes: Sequence[str] | None) -> LabelledImages:
    files = found.files(parts)
    origin = found.given if found.whole or len(parts) > 1 else f"{found.given} ({parts[0] or 'all'})"
    empty = [folder for part in parts for folder in found.empty.get(part, ())]
    if empty and classes is None:
        raise bad(f"{found.given}: the class folder {some(empty)} has no images", "add images, or remove the folder")
    store: Store
    if found.kind == "folder":
        store = Files(found.root, [file.name for file in files], [file.size for file in files])
        _refuse_two_forms(found, parts)
        labels = Labels.of(file.name.split("/")[found.depth] for file in files)
    elif found.kind == "parquet":
        store, labels = read_parquet(found.root, files)
    elif found.kind == "tar":
        store, labels = read_tars(found.root, files, found.skipped)
    else:
        store, labels = read_lists(found.root, files)
    if not len(labels.codes):
        raise UsageError("not_found", f"{origin} has no images", hint=f"DATA is {_ACCEPTED}")
    names, codes = _in_own_classes(origin, labels, store)
    if classes is not None:
        names, codes = _in_classes(origin, names, codes, list(classes))
    elif len(names) < 2:
        raise bad(
            f"{origin} has one class only, {names[0]!r}",
            "at least two are needed; a class is a folder below DATA, or below DATA/train",
        )
    return LabelledImages(store, names, codes, origin, skipped=found.skipped)


def _refuse_two_forms(found: _Found, parts: list[str]) -> None:
    """Find two sibling class folders whose names differ only in their Unicode form."""
    for part in parts:
        folders = dict.fromkeys(file.name.split("/")[found.depth] for file in found.parts[part])
        places: dict[str, str] = {}
        for folder in folders:
            other = places.setdefault(class_name(folder), folder)
            if other != folder:
                raise bad(
                    f"{found.given}: two class folders have the same name in different Unicode forms, {other!a} and "
                    f"{folder!a}",
                    "put their images into one of them",
                )


def _in_own_classes(origin: str, labels: Labels, store: Store) -> tuple[list[str], Ints]:
    """The class list that the data itself tells, and the label of each image in it."""
    if labels.names is None:
        names = sorted(labels.values, key=ordered)
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
        raise bad(
            f"{origin}: {len(outside):,} images have a label that is not in the class list, the first is "
            f"{store.key(row)!r} with {labels.values[labels.codes[row]]!r}",
            f"the list has {len(names)} names, {some(names)}; labels are names of it, or numbers from 0",
        )
    return names, codes


def _in_classes(origin: str, names: list[str], codes: Ints, wanted: list[str]) -> tuple[list[str], Ints]:
    """The same images in another class list."""
    if names == wanted:
        return wanted, codes
    for either in (names, [class_name(name) for name in wanted]):
        if len(set(either)) < len(either):
            twice = next(name for name in either if either.count(name) > 1)
            raise bad(f"two classes are called {twice!r}, so {origin} cannot be matched with the class list by name")
    used = np.unique(codes)
    place = {class_name(name): i for i, name in enumerate(wanted)}
    numbered = all(names[i].isdecimal() for i in used) and not all(name.isdecimal() for name in wanted)
    if numbered:
        place = {names[i]: int(names[i]) for i in used if int(names[i]) < len(wanted)}
    unknown = [names[i] for i in used if names[i] not in place]
    if unknown:
        raise bad(
            f"{origin} has images of {some(unknown)}, which the class list does not have",
            f"the list has {len(wanted)} names: {some(wanted)}",
        )
    index = np.array([place.get(name, -1) for name in names])
    return wanted, index[codes]
