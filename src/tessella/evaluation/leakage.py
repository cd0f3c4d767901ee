"""Records of the images that a model was trained on, so that an evaluation can exclude them.

The record is the file images.npz in the model folder. It contains 8 bytes per image: a hash of its content or, for
collections that are too large to be read again, of its key.
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
from ..data.unlabelled import UnlabelledImages
from ..errors import ImageError, OutputError, UsageError
from ..records import npz_bytes
from ..storage import open_regular, write_atomic

RECORD = "images.npz"
LOCAL = "local-dir:"
MAX_BYTES = 8 << 30  # largest total size of images whose contents are hashed
BY = ("content", "key")
_HASHED = {"content": "the contents of images", "key": "the names of images"}  # by the entries of BY
SPLITS = ("train", "val", "all")

Split = Literal["train", "val", "all"]
Hashes = NDArray[np.uint64]  # 0 for an image that could not be read, which is equal to no other


@dataclass(frozen=True)
class ImageRecord:
    """Hashes of the images that a model was trained on, and of those that it was validated on."""

    by: str  # one of BY
    train: Hashes
    held_out: Hashes
    ordered: int = 0  # hash of all images in order; 0 in records of earlier versions


class ChosenImages(NamedTuple):
    """Images to evaluate on, and sentences about their selection."""

    images: LabelledImages
    remarks: tuple[str, ...] = ()


# --- the record -------------------------------------------------------------------------------------------------------


def write_image_record(
    folder: Path,
    train: LabelledImages,
    held_out: LabelledImages,
    init_from: str = "",
    unlabelled: UnlabelledImages | None = None,
) -> str:
    """Write the record of a model's images to its folder.

    init_from: name of the model that training started from, whose training images are included. unlabelled: more images
    that it was trained on. Returns a warning if the training images of `init_from` could not be included, else "".
    Raises OutputError `output_failed`.
    """
    size = sum(int(images.sizes.clip(0).sum()) for images in (train, held_out))
    size += 0 if unlabelled is None else unlabelled.total_bytes
    by = "content" if size <= MAX_BYTES else "key"
    train_hashes, held_out_hashes = hashes_of(train, by), hashes_of(held_out, by)
    ordered = _ordered_hash(train_hashes, held_out_hashes)
    start = folder_of_model(init_from)
    earlier = None if start is None else read_image_record(start)
    warning = ""
    if earlier is not None and earlier.by != by:
        warning = (
            f"warning: the record of training images leaves out those of {init_from}: its own record has hashes of "
            f"{_HASHED[earlier.by]}, this one hashes of {_HASHED[by]}; `tessella evaluate` will not exclude them"
        )
    elif earlier is not None:
        train_hashes = np.union1d(train_hashes, earlier.train)
    if unlabelled is not None:
        train_hashes = np.union1d(train_hashes, hashes_of(unlabelled, by))
    arrays = dict(by=np.array(by), train=train_hashes, held_out=held_out_hashes, ordered=np.array(ordered, np.uint64))
    try:
        write_atomic(folder / RECORD, npz_bytes(arrays))
    except OSError as error:
        raise OutputError("output_failed", f"{folder / RECORD} could not be written: {error.strerror}") from error
    return warning


def check_unchanged(folder: Path, train: LabelledImages, held_out: LabelledImages) -> None:
    """Raise UsageError `changed_run` if the contents of the images differ from the record in the folder.

    Without a record, nothing is compared. Names, labels and sizes are compared by `tessella.training.loop`.
    """
    record = read_image_record(folder)
    if record is None or record.by != "content" or not record.ordered:
        return
    if _ordered_hash(hashes_of(train, record.by), hashes_of(held_out, record.by)) != record.ordered:
        raise UsageError(
            "changed_run",
            f"the contents of the images have changed since training in {folder} began",
            hint="restore the images, or choose another --out",
        )


def _ordered_hash(train: Hashes, held_out: Hashes) -> int:
    return _hash(train.tobytes() + held_out.tobytes())


def read_image_record(folder: Path) -> ImageRecord | None:
    """Read the record of a model folder; None if it is missing or cannot be read."""
    try:
        with open_regular(folder / RECORD) as file, np.load(file, allow_pickle=False) as arrays:
            ordered = int(arrays["ordered"]) if "ordered" in arrays else 0
            record = ImageRecord(str(arrays["by"]), arrays["train"], arrays["held_out"], ordered)
    except Exception:  # damaged zip files raise exceptions of many types
        return None
    hashes = (record.train, record.held_out)
    valid = record.by in BY and all(array.dtype == np.uint64 and array.ndim == 1 for array in hashes)
    return record if valid else None


def hashes_of(images: LabelledImages | UnlabelledImages, by: str) -> Hashes:
    """Return the (N,) hashes of the images' contents or keys; by: one of BY."""
    if by == "key":
        return np.array([_hash(os.fsencode(images.key(i))) for i in range(len(images))], np.uint64)

    def content_hash(index: int) -> int:
        try:
            return _hash(images.read(index))
        except ImageError:
            return 0

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "tessella-hash") as pool:
        return np.fromiter(pool.map(content_hash, range(len(images))), np.uint64, len(images))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def find_recorded(
    images: LabelledImages, records: Sequence[ImageRecord]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether each image (N,) was in the training data of a model, and whether it was held out.

    An image with copies in both parts counts as trained on.
    """
    hashes = {by: hashes_of(images, by) for by in {record.by for record in records}}
    trained, held_out = np.zeros((2, len(images)), bool)
    for record in records:
        hashes_N = hashes[record.by]
        trained |= np.isin(hashes_N, record.train) & (hashes_N > 0)
        held_out |= np.isin(hashes_N, record.held_out) & (hashes_N > 0)
    return trained, held_out & ~trained


# --- the choice of images ---------------------------------------------------------------------------------------------


def choose_images(data: str | Path, models: Sequence[str], split: Split | None = None) -> ChosenImages:
    """Open the labeled images of `data` to evaluate models on.

    models: names as for `tessella.load`. split: None uses "val" if the data has it, otherwise all images. If a model
    is a folder with a record of its images (written by `tessella train` and `probe --attach-to`) and held out some of
    these, the images that it was trained on are excluded; the splits "all" and "train" include them. Raises the errors
    of `open_labelled`, and UsageError `bad_argument` for an unknown split.
    """
    if split not in (None, *SPLITS):
        raise UsageError("bad_argument", f"split is {split!r}", hint=f"choose from {', '.join(SPLITS)}")
    folders = {name.removeprefix(LOCAL): folder for name in models if (folder := folder_of_model(name))}
    records = {name: record for name, folder in folders.items() if (record := read_image_record(folder))}
    unknown = tuple(
        f"warning: {name} has no record of the images that it was trained on; if this data contains them, its "
        "figures are too high"
        for name, folder in folders.items()
        if name not in records and (folder / "train.json").exists()
    )
    if not records:
        return ChosenImages(open_data(data, split), unknown)
    return _without_trained(data, split, records, unknown)


def folder_of_model(name: str) -> Path | None:
    """Return the folder of a `local-dir:` model, which need not exist; None for other models.

    The home folder of an unknown user is not expanded, unlike by `Path.expanduser`, which raises an error without a
    code: `tessella.load` refuses such a name.
    """
    if not name.startswith(LOCAL):
        return None
    return Path(os.path.expanduser(name.removeprefix(LOCAL)))  # noqa: PTH111


@checked
def open_data(data: str | Path, split: Split | None = None) -> LabelledImages:
    """Open labeled images as `open_labelled` does; split: None uses "val" if the data has it, otherwise all images."""
    if split is not None:
        return open_labelled(data, None if split == "all" else split)
    try:
        return open_labelled(data, "val")
    except UsageError as error:
        if error.code != "not_found":
            raise
        return open_labelled(data)


def _without_trained(
    data: str | Path, split: Split | None, records: Mapping[str, ImageRecord], remarks: tuple[str, ...]
) -> ChosenImages:
    """Exclude the images that the recorded models were trained on, if these held out some of the data."""
    images = open_data(data, None if split == "val" else split)
    trained, held_out = find_recorded(images, [*records.values()])
    models, was = " and ".join(records), "were" if len(records) > 1 else "was"
    chosen = str(data) if images.origin.endswith(" (all)") else images.origin  # names the split that was chosen
    all_images = f"the {len(images):,} images of {chosen}"
    if split in (None, "val") and held_out.any():
        if not trained.any():
            remark = f"{models} held out {held_out.sum():,} of {all_images}, and {was} trained on none of them"
            return ChosenImages(images, (*remarks, remark))
        kept = np.flatnonzero(~trained)
        origin = f"the {len(kept):,} images of {data} that {models} held out"
        if new := len(kept) - int(held_out.sum()):
            origin = f"{len(kept):,} images of {data}: {held_out.sum():,} that {models} held out, {new:,} that are new"
        return ChosenImages(
            images.subset(kept, origin), (*remarks, f"{origin} (--split all evaluates all {len(images):,})")
        )
    if split == "val":
        images = open_data(data, split)  # raises an error if the data has no such split, as for other models
    if split == "train" and trained.any() and held_out.any():
        origin = f"the {trained.sum():,} images of {data} that {models} {was} trained on"
        remark = f"warning: --split train: {origin}, so the figures are too high"
        return ChosenImages(images.subset(np.flatnonzero(trained), origin), (*remarks, remark))
    if trained.any():
        remark = f"warning: {models} {was} trained on {trained.sum():,} of {all_images}, so the figures are too high"
        return ChosenImages(images, (*remarks, remark))
    return ChosenImages(images, remarks)
