"""Which images a model was trained on: a record in its folder, by which an evaluation recognises them.

RUN/images.npz holds 8 bytes per image, of its content or, for collections too large to be read once more, of its key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import checked
from ..data.datasets import LabelledImages, open_labelled
from ..errors import ImageError, OutputError, UsageError
from ..records import npz_bytes
from ..storage import open_regular, write_atomic

RECORD = "images.npz"
MOST_BYTES = 8 << 30  # of images that are read for their hashes
BY = ("content", "key")

Hashes = NDArray[np.uint64]  # 0 stands for an image that could not be read: it equals no other


@dataclass(frozen=True)
class Seen:
    """Hashes of the images that a model was trained on, and of those that it was validated on."""

    by: str  # one of BY
    train: Hashes
    held_out: Hashes
    ordered: int = 0  # hash of all images in their order; 0 where an earlier version wrote the record


def write_seen(folder: Path, train: LabelledImages, held_out: LabelledImages, start: str = "") -> None:
    """Write the record of a model's images to its folder; raises OutputError `output_failed`.

    start: name of the model that training started from; what that one was trained on counts too.
    """
    size = sum(int(images.sizes.clip(0).sum()) for images in (train, held_out))
    by = "content" if size <= MOST_BYTES else "key"
    learned, other = hashes_of(train, by), hashes_of(held_out, by)
    ordered = _ordered(learned, other)
    before = read_seen(_folder_of(start)) if _is_local(start) else None
    if before is not None and before.by == by:
        learned = np.union1d(learned, before.train)
    arrays = dict(by=np.array(by), train=learned, held_out=other, ordered=np.array(ordered, np.uint64))
    try:
        write_atomic(folder / RECORD, npz_bytes(arrays))
    except OSError as error:
        raise OutputError("output_failed", f"{folder / RECORD} could not be written: {error.strerror}") from error


def check_unchanged(folder: Path, train: LabelledImages, held_out: LabelledImages) -> None:
    """UsageError `changed_run` where the images have other contents than those of the record, as far as it tells.

    Their names, labels and sizes are compared by `tessella.training.loop` itself.
    """
    seen = read_seen(folder)
    if seen is None or seen.by != "content" or not seen.ordered:
        return
    if _ordered(hashes_of(train, seen.by), hashes_of(held_out, seen.by)) != seen.ordered:
        raise UsageError(
            "changed_run", f"the images have other contents than when training in {folder} began",
            hint="put the images back as they were, or give another --out",
        )  # fmt: skip


def _ordered(train: Hashes, held_out: Hashes) -> int:
    return _hash(train.tobytes() + held_out.tobytes())


def read_seen(folder: Path) -> Seen | None:
    """Read the record of a model folder; None if it is missing or cannot be read."""
    try:
        with open_regular(folder / RECORD) as file, np.load(file, allow_pickle=False) as arrays:
            ordered = int(arrays["ordered"]) if "ordered" in arrays else 0
            seen = Seen(str(arrays["by"]), arrays["train"], arrays["held_out"], ordered)
    except Exception:  # zip files fail in many ways, and each means that nothing is known
        return None
    sound = seen.by in BY and all(one.dtype == np.uint64 and one.ndim == 1 for one in (seen.train, seen.held_out))
    return seen if sound else None


def hashes_of(images: LabelledImages, by: str) -> Hashes:
    """(N,) hashes of the images' contents or keys."""
    if by == "key":
        return np.array([_hash(os.fsencode(images.key(i))) for i in range(len(images))], np.uint64)

    def content(index: int) -> int:
        try:
            return _hash(images.read(index))
        except ImageError:
            return 0

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "tessella-hash") as pool:
        return np.fromiter(pool.map(content, range(len(images))), np.uint64, len(images))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def find(images: LabelledImages, records: list[Seen]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) whether each image was trained on by any of the models, and whether any held it out.

    An image that was in both parts, as a copy, counts as trained on.
    """
    known = {by: hashes_of(images, by) for by in {record.by for record in records}}
    trained, held_out = np.zeros((2, len(images)), bool)
    for record in records:
        own = known[record.by]
        trained |= np.isin(own, record.train) & (own > 0)
        held_out |= np.isin(own, record.held_out) & (own > 0)
    return trained, held_out & ~trained


class Chosen(NamedTuple):
    """Images to evaluate on, and what a reader of the figures must know about the choice, as sentences."""

    images: LabelledImages
    remarks: tuple[str, ...] = ()


SPLITS = ("train", "val", "all")
Split = Literal["train", "val", "all"]


def choose_images(data: str | Path, names: Sequence[str], split: Split | None = None) -> Chosen:
    """The labelled images of `data` to evaluate models on.

    names: of the models, as in `tessella.load`. split: None takes "val" where the data has it, else all images. Where
    a model is a folder that records its images (by `tessella train` or `probe --attach-to`) and held out some of
    these, the images that it was trained on are left out; the splits "all" and "train" keep them. Raises as
    `open_labelled`.
    """
    if split not in (None, *SPLITS):
        raise UsageError("bad_argument", f"split is {split!r}", hint=f"choose from {', '.join(SPLITS)}")
    folders = list(dict.fromkeys(name.removeprefix("local-dir:") for name in names if _is_local(name)))
    records = {folder: seen for folder in folders if (seen := read_seen(Path(folder).expanduser()))}
    unknown = tuple(
        f"warning: {folder} does not record which images it was trained on: if these are among them, its figures are "
        "too good"
        for folder in folders
        if folder not in records and (Path(folder).expanduser() / "train.json").exists()
    )
    if not records:
        return Chosen(open_data(data, split), unknown)
    return _without_trained(data, split, records, unknown)


def _is_local(name: str) -> bool:
    return name.startswith("local-dir:")


def _folder_of(name: str) -> Path:
    return Path(name.removeprefix("local-dir:")).expanduser()


@checked
def open_data(data: str | Path, split: Split | None = None) -> LabelledImages:
    """What `open_labelled` reads. split: None takes "val" where the data has it, else all there is."""
    if split is not None:
        return open_labelled(data, None if split == "all" else split)
    try:
        return open_labelled(data, "val")
    except UsageError as error:
        if error.code != "not_found":
            raise
        return open_labelled(data)


def _without_trained(
    data: str | Path, split: Split | None, records: Mapping[str, Seen], remarks: tuple[str, ...]
) -> Chosen:
    """The images that the models of the records were not trained on, where they held out some of the data."""
    images = open_data(data, None if split == "val" else split)
    trained, held_out = find(images, [*records.values()])
    who = " and ".join(records)
    of = f"the {len(images):,} images of {data}"
    if split in (None, "val") and held_out.any():
        if not trained.any():
            return Chosen(images, (*remarks, f"{who} held out {held_out.sum():,} of {of}, and was trained on none"))
        kept = np.flatnonzero(~trained)
        told = f"the {len(kept):,} images of {data} that {who} held out"
        if unseen := len(kept) - int(held_out.sum()):
            told = f"{len(kept):,} images of {data}: {held_out.sum():,} that {who} held out, {unseen:,} that are new"
        return Chosen(images.subset(kept, told), (*remarks, f"{told} (--split all: all {len(images):,})"))
    if split == "train" and trained.any() and held_out.any():
        images = images.subset(
            np.flatnonzero(trained), f"the {trained.sum():,} images of {data} that {who} was trained on"
        )
        return Chosen(images, (*remarks, f"warning: --split train: {images.origin}: the figures are too good"))
    if trained.any():
        remarks += (f"warning: {who} was trained on {trained.sum():,} of {of}: the figures are too good",)
    return Chosen(images, remarks)
