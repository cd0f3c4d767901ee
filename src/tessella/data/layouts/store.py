"""What the readers of all layouts return: a store of encoded images and their labels. Also holds shared helpers.

A store keeps no file open between reads and is cheap to pickle: each process opens what it reads.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..names import normalize_class_name
from ..source import Source

Ints: TypeAlias = NDArray[np.int64]

ACCEPTED = "an image folder, a .parquet, .tar, .csv or .tsv file, a folder of Parquet files or archives, or a glob"


class DataFile(NamedTuple):
    """A file of a data set."""

    name: str  # path relative to the root of the data set, with "/"
    size: int  # bytes; -1 if unknown


@dataclass(frozen=True)
class EncodedLabels:
    """The labels of N images, dictionary-encoded.

    values: the distinct labels as text; codes: (N,) index of each image's label in `values`; classes: the class list
    of the data, if they have one. All names are normalized, so the Unicode forms of one name are one class.
    """

    values: list[str]
    codes: Ints
    classes: list[str] | None = None

    @classmethod
    def from_labels(cls, labels: Iterable[str], classes: list[str] | None = None) -> EncodedLabels:
        """Encode one label per image."""
        index: dict[str, int] = {}
        codes = np.fromiter((index.setdefault(label, len(index)) for label in labels), np.int64)
        return cls.from_codes(list(index), codes, classes)

    @classmethod
    def from_codes(cls, values: Sequence[str], codes: Ints, classes: list[str] | None = None) -> EncodedLabels:
        """Normalize labels that are encoded already.

        values: may hold one name in several Unicode forms. codes: (N,) indices into `values`.
        """
        index: dict[str, int] = {}
        merged = np.array([index.setdefault(normalize_class_name(value), len(index)) for value in values], np.int64)
        return cls(list(index), merged[codes], classes and [normalize_class_name(name) for name in classes])


class ImageStore(abc.ABC):
    """N encoded images, by row."""

    @abc.abstractmethod
    def key(self, row: int) -> str:
        """Return the unique name of an image."""

    @abc.abstractmethod
    def sizes(self) -> Ints:
        """Return the (N,) sizes in bytes; -1 if there is no image."""

    @abc.abstractmethod
    def source(self, row: int) -> Source:
        """Return the image as a source."""


class FileStore(ImageStore):
    """Image files, by their paths relative to `root`."""

    def __init__(self, root: str, names: Sequence[str], sizes: Sequence[int]):
        self.root, self.names, self._sizes = root, PackedStrings(names), np.array(sizes, np.int64)

    def key(self, row: int) -> str:
        """Return the path of a file relative to `root`."""
        return self.names[row]

    def sizes(self) -> Ints:
        """Return the (N,) sizes of the files in bytes; -1 if a file does not exist."""
        return self._sizes

    def source(self, row: int) -> Source:
        """Return a file as a source."""
        return Source(self.names[row], join_path(self.root, self.names[row]))


class JoinedStore(ImageStore):
    """Images of several stores under one numbering."""

    def __init__(self, stores: Sequence[ImageStore], part: Ints, row: Ints, prefixes: Sequence[str] = ()):
        """Combine stores. part: (N,) the store of each image; row: (N,) its row there.

        prefixes: put before the keys of each store, so that keys of different stores differ; none if empty.
        """
        self.stores, self.part, self.row = tuple(stores), part, row
        self.prefixes = tuple(prefixes) or ("",) * len(self.stores)

    def key(self, row: int) -> str:
        """Return the key that an image has in its own store, after the prefix of the store."""
        part = int(self.part[row])
        return join_path(self.prefixes[part], self.stores[part].key(int(self.row[row])))

    def sizes(self) -> Ints:
        """Return the (N,) sizes in bytes; -1 if unknown."""
        sizes = np.empty(len(self.part), np.int64)
        for part, store in enumerate(self.stores):
            members = self.part == part
            if members.any():
                sizes[members] = store.sizes()[self.row[members]]
        return sizes

    def source(self, row: int) -> Source:
        """Return an image as the source that its own store gives."""
        return self.stores[int(self.part[row])].source(int(self.row[row]))


class PackedStrings:
    """Many strings in one array of bytes: cheap to pickle, and shared with forked processes."""

    def __init__(self, strings: Iterable[str]):
        encoded = [os.fsencode(string) for string in strings]
        self.blob = b"".join(encoded)
        self.ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.blob[self.ends[i - 1] if i else 0 : self.ends[i]])


def bad_data(message: str, hint: str = "") -> UsageError:
    """Return the error for data that do not fit any layout, or contradict themselves."""
    return UsageError("bad_argument", message, hint=hint)


def mixed_layouts(path: str, contents: str) -> UsageError:
    """Return the error for a folder with several layouts. contents: what it has, such as "images and x.tar"."""
    return bad_data(
        f"{path} mixes layouts: it has {contents}",
        "use one of them as DATA; the validation data can be given separately",
    )


def not_found(message: str) -> UsageError:
    """Return the error for a path without labeled images."""
    return UsageError("not_found", message, hint=f"DATA is {ACCEPTED}")


def join_names(names: Iterable[str]) -> str:
    """Return the first five of many names, quoted, for a message."""
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(map(repr, listed[:5])) + more


def join_path(root: str, name: str) -> str:
    """Return the path of a name relative to `root`."""
    return os.path.join(root, name) if name else root  # noqa: PTH118 - a million Path objects cost seconds
