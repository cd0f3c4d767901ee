"""The images of a comparison: labeled or unlabeled data, or the inputs of a run.

Letters for shapes: N images.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..bulk.manifest import MANIFEST, Manifest
from ..bulk.run_folder import RUN, finished_shards, read_facts, read_run, read_shard
from ..data.names import Skipped
from ..data.source import Source
from ..data.unlabelled import open_unlabelled
from ..errors import ImageError, UsageError
from ..evaluation.leakage import Split, choose_images
from ..text import escape

Ints = NDArray[np.int64]
READ_AT_ONCE = 8  # images


class ImageList(Protocol):
    """Images that can be read in any order."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def key(self, index: int) -> str:
        """Return the name of an image."""
        ...

    def source(self, index: int) -> Source:
        """Return where an image is read from."""
        ...


@dataclass(frozen=True)
class ComparedImages:
    """N images on which two models are compared.

    items: the images. origin: a description of what was read. fingerprint: of names and sizes. classes, labels: the
    class names, and the index of each image's class (N,); () and None without labels. run: the folder of the run whose
    inputs they are. skipped: the entries found beside the images and left out. notes: sentences about the selection.
    """

    items: ImageList
    origin: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    labels: Ints | None = None
    run: Path | None = None
    skipped: Skipped | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @functools.cached_property
    def contents(self) -> list[str]:
        """What identifies the content of every image: see `content_of`."""
        known = {} if self.run is None else _contents_of_run(self.run)
        missing = [i for i in range(len(self)) if i not in known]  # of a run: in shards that are not finished
        with ThreadPoolExecutor(READ_AT_ONCE, "tessella-hash") as pool:
            # `map` opens the sources in this thread: a run has one shard of its listing in memory
            found = pool.map(_content, map(self.items.source, missing), map(self.items.key, missing))
            known.update(zip(missing, found, strict=True))
        return [known[i] for i in range(len(self))]


def _content(source: Source, key: str) -> str:
    try:
        sha256 = hashlib.sha256(source.read()).hexdigest()
    except ImageError:
        sha256 = ""
    return content_of(sha256, escape(key))


def _contents_of_run(out: Path) -> dict[int, str]:
    """Return the contents of the inputs of a run by their positions, as far as their shards are finished."""
    found: dict[int, str] = {}
    size = read_run(out)["shard_rows"]
    for shard in finished_shards(out):
        rows = read_shard(out, shard, ["sha256", "key"]).to_pylist()
        found.update((shard.id * size + i, content_of(row["sha256"], row["key"])) for i, row in enumerate(rows))
    return found


def content_of(sha256: str, key: str) -> str:
    """Return the SHA-256 of an image's file or, if it could not be read, its key."""
    return sha256 or f"key:{key}"


class RunImages:
    """The inputs of a run, in the order of its listing; one shard of the listing is in memory at a time."""

    def __init__(self, out: Path):
        """Open the listing of the run in the folder `out`. Raises UsageError `not_found`, `damaged_run`."""
        self._facts = read_run(out)
        self._manifest = Manifest(out / MANIFEST, self._facts["manifest"])
        self._shard, self._sources = -1, [Source("", "")]

    def __len__(self) -> int:
        return self._manifest.rows

    def source(self, index: int) -> Source:
        """Return an input as a source."""
        shard, place = divmod(index, self._facts["shard_rows"])
        if shard != self._shard:
            self._shard, self._sources = shard, self._manifest.sources(shard)
        return self._sources[place]

    def key(self, index: int) -> str:
        """Return the key of an input."""
        return self.source(index).key


def is_run(name: str) -> bool:
    """Return whether a name is that of a folder with a run."""
    try:
        return (Path(name) / RUN).is_file()
    except (OSError, ValueError):
        return False


def open_run_images(out: Path) -> ComparedImages:
    """Return the inputs of the run in the folder `out`. Raises UsageError `not_found`, `damaged_run`."""
    images = RunImages(out)
    facts = read_facts(out / RUN) or {}
    return ComparedImages(images, f"the inputs of the run {out}", str(facts.get("manifest", ""))[:16], run=out)


def open_images(data: str | Path, models: Sequence[str], split: Split | None) -> ComparedImages:
    """Open the images of `data`: the inputs of a run, labeled images, or else any images that `tessella run` reads.

    models: names of the models, those of runs included, whose records of training images decide which labeled images
    are used, as in `evaluate`. split: of labeled images. Raises UsageError `not_found` if there are no images,
    `bad_argument` if a split is given for unlabeled ones, and the code of the error of a file that cannot be read.
    """
    name = os.fsdecode(data)
    if is_run(name):
        if split is not None:
            raise UsageError(
                "bad_argument",
                f"split is {split!r}, but {name} is a run, whose inputs have no labels",
                hint="leave it out, or give labeled images",
            )
        return open_run_images(Path(name))
    try:
        labeled, notes = choose_images(name, models, split)
    except UsageError as error:
        if error.code not in ("bad_argument", "not_found") or split is not None:
            raise
        why = error.message
    else:
        return ComparedImages(
            labeled,
            labeled.origin,
            labeled.fingerprint,
            labeled.classes,
            labeled.labels,
            None,
            labeled.skipped,
            notes,
        )
    unlabeled = open_unlabelled([name])
    note = f"the images are compared without labels: {why}"
    return ComparedImages(unlabeled, name, unlabeled.fingerprint, skipped=unlabeled.skipped, notes=(note,))


def iter_sources_at(images: ImageList, positions: Sequence[int] | Ints) -> Iterator[Source]:
    """Yield the sources at some positions (N,), in this order."""
    return (images.source(int(position)) for position in positions)
