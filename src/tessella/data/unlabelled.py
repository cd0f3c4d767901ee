"""Unlabeled images for distillation, and the pool of labeled and unlabeled images that a run draws from."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import checked
from ..errors import ImageError, UsageError
from .datasets import LabelledImages
from .layouts.parquet_tables import read_unlabelled_table
from .layouts.store import ImageStore
from .limits import DEFAULT_LIMITS, Limits
from .names import Skipped, is_missing_path
from .parquet import ParquetRow
from .remote import is_url
from .source import Source
from .sources import iter_sources
from .walk import split_pattern

UNLABELLED = -1  # label of an image without one


class _ImageSet(NamedTuple):
    """The images of one input. base: the part of their keys that states where the input is."""

    base: str
    sources: list[Source]


class UnlabelledImages:
    """Encoded images without classes, from one or several inputs. Each process opens what it reads.

    counts: number of images of each input; origin: a description of what was read, for messages; skipped: what was
    found beside the images and left out.
    """

    def __init__(self, sets: Sequence[_ImageSet], origin: str, skipped: Skipped):
        self._bases = [item.base for item in sets]
        self._sources = [source for item in sets for source in item.sources]
        self.counts = tuple(len(item.sources) for item in sets)
        self.origin, self.skipped = origin, skipped

    def __len__(self) -> int:
        return len(self._sources)

    def key(self, index: int) -> str:
        """Return the name of an image."""
        return self._sources[index].key

    def source(self, index: int) -> Source:
        """Return an image as a source, as `Predictor.records` and `Predictor.outputs` take it."""
        return self._sources[index]

    def read(self, index: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the encoded bytes of an image, as `decode` takes them. Raises ImageError if they cannot be read."""
        return self._sources[index].read(limits)

    @property
    def total_bytes(self) -> int:
        """Size of all encoded images, as far as it is known; of a Parquet file, that of the file."""
        stored = {(source.path, source.offset): source for source in self._sources}
        return sum(max(size_of(source), 0) for source in stored.values())

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on the names and sizes of the images of each input, not on its location."""
        digest = hashlib.sha256(str(self.counts).encode())
        bases = np.repeat(np.arange(len(self.counts)), self.counts)
        for base, source in zip(bases, self._sources, strict=True):
            digest.update(os.fsencode(source.key.removeprefix(self._bases[base])) + b"\0")
            digest.update(str(size_of(source)).encode() + b"\0")
        return digest.hexdigest()[:16]


def size_of(source: Source) -> int:
    """Return the size of a file or member in bytes; -1 if it is unknown."""
    if source.size is not None:
        return source.size
    if source.error is not None or is_url(source.path):
        return -1
    try:
        return os.stat(source.path).st_size  # noqa: PTH116 - a million Path objects cost seconds
    except (OSError, ValueError):
        return -1


@checked
def open_unlabelled(inputs: Sequence[str | os.PathLike[str]]) -> UnlabelledImages:
    """Return the images of several inputs: folders, .tar archives, Parquet files, globs, as `iter_sources` takes them.

    Classes and splits that the inputs may have are ignored. Images that cannot be read are found when they are used.
    Raises UsageError: `not_found` for an input that does not exist or has no images, the code of the ImageError of one
    that cannot be read, `bad_argument` for a Parquet file without images.
    """
    skipped = Skipped()
    names = [os.fsdecode(item) for item in inputs]
    return UnlabelledImages([_open_set(name, skipped) for name in names], " and ".join(names), skipped)


def _open_set(name: str, skipped: Skipped) -> _ImageSet:
    if is_missing_path(name):
        raise UsageError("not_found", f"there is no file or folder {name!r} of unlabeled images")
    sources: list[Source] = []
    tables: dict[str, ImageStore] = {}  # by path: the rows of a table in memory are read in any order
    for source in iter_sources(name, skipped=skipped):
        if isinstance(source, ParquetRow):
            if source.path not in tables:
                tables[source.path] = _open_table(source.path)
            source = tables[source.path].source(source.row)
        sources.append(source)
    problem = next((source.error for source in sources if source.error is not None), None)
    if problem is not None and all(source.error is not None for source in sources):
        raise UsageError(problem.code, problem.message, hint=problem.hint)
    base = split_pattern(name)[0] if glob.has_magic(name) and not os.path.lexists(name) else name
    return _ImageSet(base, sources)


def _open_table(path: str) -> ImageStore:
    try:
        return read_unlabelled_table(path)
    except ImageError as error:
        raise UsageError(error.code, error.message, hint=error.hint) from None


class ImagePool:
    """Labeled images followed by unlabeled ones, in one numbering; the labels of the latter are `UNLABELLED`."""

    def __init__(self, labelled: LabelledImages, unlabelled: UnlabelledImages):
        self.labelled, self.unlabelled = labelled, unlabelled
        missing = np.full(len(unlabelled), UNLABELLED, np.int64)
        self.labels: NDArray[np.int64] = np.concatenate([labelled.labels, missing])

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        """Return the name of an image; names are unique only within the labeled images and within each input."""
        first = len(self.labelled)
        return self.labelled.key(index) if index < first else self.unlabelled.key(index - first)

    def read(self, index: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the encoded bytes of an image, as `decode` takes them. Raises ImageError if they cannot be read."""
        first = len(self.labelled)
        return self.labelled.read(index, limits) if index < first else self.unlabelled.read(index - first, limits)


class TrainingImages(NamedTuple):
    """The images of a training run: labeled ones to train on and to validate with, and unlabeled ones."""

    train: LabelledImages
    val: LabelledImages
    unlabelled: UnlabelledImages | None = None

    @property
    def pool(self) -> LabelledImages | ImagePool:
        """All images to train on."""
        return self.train if self.unlabelled is None else ImagePool(self.train, self.unlabelled)
