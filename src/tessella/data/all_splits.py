"""All images of one or several data sets under one numbering, with the split of each: what an inspection reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import checked
from ..errors import UsageError
from .datasets import LabelledImages, read_files
from .layouts.classes import class_indices
from .layouts.detection import DatasetFiles, find_files, has_no_classes
from .layouts.store import ImageStore, Ints, JoinedStore, bad_data, join_path, not_found
from .names import Skipped, is_missing_path, natural_key
from .source import Source
from .sources import iter_sources
from .unlabelled import UNLABELLED, size_of


@dataclass(frozen=True)
class SplitImages:
    """N images with the split of each.

    images: the images; without classes, if they have no labels. splits: the names of the splits, "" for images of none;
    split: (N,) index of each image's split. store, roots: where they are: `location` needs them. empty: class folders
    without an image.
    """

    images: LabelledImages
    splits: tuple[str, ...]
    split: Ints
    store: JoinedStore
    roots: tuple[str, ...]
    empty: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_labeled(self) -> bool:
        """Whether the images have classes."""
        return bool(self.images.classes)

    def split_of(self, index: int) -> str:
        """Return the name of an image's split; "" if the data have none."""
        return self.splits[int(self.split[index])]

    def location(self, index: int) -> str:
        """Return the path of an image, relative to the current folder, in the form in which a list can name it."""
        part = int(self.store.part[index])
        return join_path(self.roots[part], self.store.stores[part].key(int(self.store.row[index])))


@dataclass
class _Part:
    """The images of one split of one data set. classes: their class list; labels: (N,) indices in it."""

    store: ImageStore
    split: str
    root: str
    classes: list[str]
    labels: Ints


@checked
def open_all_splits(data: Sequence[str | os.PathLike[str]], *, unlabeled: bool = False) -> SplitImages:
    """Open every split of one or several data sets.

    data: paths, in the layouts that `open_labelled` reads. The keys of several data sets begin with their paths.
    unlabeled: ignore classes and read every image as `iter_sources` finds it; a folder that has only images outside
    class folders is read in this way in any case. Unlike `open_labelled`, it accepts a single class and empty class
    folders, because they are findings.

    Raises UsageError as `open_labelled`.
    """
    skipped = Skipped()
    paths = [os.fsdecode(path) for path in data]
    parts: list[_Part] = []
    empty: list[str] = []
    for path in paths:
        if unlabeled or (os.path.isdir(path) and has_no_classes(path)):  # noqa: PTH112 - accepts invalid names
            parts.append(_open_sources(path, skipped))
            continue
        files = find_files(path, skipped)
        parts += [_open_part(files, split) for split in files.splits if files.splits[split]]
        empty += [folder for folders in files.empty.values() for folder in folders]
    parts = [part for part in parts if len(part.labels)]
    if not parts:
        raise not_found(f"{' and '.join(paths)} has no images")
    return _join(parts, paths, skipped, empty)


def _open_part(files: DatasetFiles, split: str) -> _Part:
    store, encoded = read_files(files, [split])
    classes, labels = class_indices(files.path, encoded, store) if len(encoded.codes) else ([], encoded.codes)
    # the keys of an archive of class folders begin with its own name
    root = os.path.dirname(files.path) if files.members else files.root  # noqa: PTH120 - "" for the current folder
    return _Part(store, split, root, classes, labels)


def _open_sources(path: str, skipped: Skipped) -> _Part:
    if is_missing_path(path):
        raise UsageError("not_found", f"there is no file or folder {path!r} of images")
    store = _SourceStore(list(iter_sources(path, skipped=skipped)))
    return _Part(store, "", "", [], np.full(len(store.items), UNLABELLED, np.int64))


def _join(parts: list[_Part], paths: list[str], skipped: Skipped, empty: list[str]) -> SplitImages:
    """Return the parts under one numbering and with one class list."""
    if any(part.classes for part in parts) and not all(part.classes for part in parts):
        raise bad_data(
            "some of the data have classes and some have none", "inspect them separately, or use --unlabeled"
        )
    lists = {tuple(part.classes): None for part in parts}
    first = max(lists, key=len)
    names = {name for classes in lists for name in classes}
    # a list that has all names keeps the order that the data define; otherwise natural order
    classes = list(first) if names == set(first) else sorted(names, key=lambda name: (natural_key(name), name))
    index = {name: i for i, name in enumerate(classes)}
    labels = [np.array([index[name] for name in part.classes] or [0])[part.labels] for part in parts]
    if not classes:
        labels = [part.labels for part in parts]
    splits = tuple(dict.fromkeys(part.split for part in parts))
    counts = [len(part.labels) for part in parts]
    store = JoinedStore(
        [part.store for part in parts],
        np.repeat(np.arange(len(parts)), counts),
        np.concatenate([np.arange(count) for count in counts]),
        [part.root for part in parts] if len(paths) > 1 else (),
    )
    images = LabelledImages(store, classes, np.concatenate(labels), " and ".join(paths), skipped=skipped)
    split = np.repeat([splits.index(part.split) for part in parts], counts)
    return SplitImages(images, splits, split, store, tuple(part.root for part in parts), tuple(empty))


class _SourceStore(ImageStore):
    """Images as the sources that were listed."""

    def __init__(self, items: Sequence[Source]):
        self.items = tuple(items)

    def key(self, row: int) -> str:
        return self.items[row].key

    def sizes(self) -> Ints:
        return np.array([size_of(item) for item in self.items], np.int64)

    def source(self, row: int) -> Source:
        return self.items[row]
