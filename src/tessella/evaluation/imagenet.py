"""ImageNet and its variants: recognize a data set, look up published accuracies, and read ReaL labels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.datasets import LabelledImages
from ..errors import UsageError
from ..predictor import Predictor
from ..storage import read_regular
from ..weights.catalogue import Accuracy, published_accuracy
from .classes import ClassMapping, Naming

REAL_IMAGES = 50_000  # images in the ImageNet validation set, each with a list of labels


class PublishedSet(NamedTuple):
    """A data set with published accuracies, and the properties by which it is recognized."""

    name: str  # in the table of published accuracies
    naming: Naming
    classes: int
    images: int
    path_part: str = ""  # part of the path of the data or the key of the first image, if the numbers are not unique


DATASETS = (
    PublishedSet("imagenet", "synsets", 1000, REAL_IMAGES, "ILSVRC2012_val_"),
    PublishedSet("imagenetv2-matched-frequency", "indices", 1000, 10_000, "matched-frequency"),  # one of three V2 sets
    PublishedSet("sketch", "synsets", 1000, 50_889),
    PublishedSet("imagenet-r", "synsets", 200, 30_000),
    PublishedSet("imagenet-a", "synsets", 200, 7_500),
)
REAL = "imagenet-real"
# clean: the ImageNet validation images of the 200 classes
SETS = (*(dataset.name for dataset in DATASETS), REAL, "imagenet-r-clean", "imagenet-a-clean")


def recognize(images: LabelledImages, mapping: ClassMapping) -> str:
    """Return the name of the published data set that the images are, or "" for other data."""
    if not len(images):
        return ""
    texts = (images.origin, images.key(0))
    traits = (mapping.naming, len(images.classes), len(images))
    for known in DATASETS:
        if (known.naming, known.classes, known.images) == traits and any(known.path_part in text for text in texts):
            return known.name
    return ""


def find_published(predictor: Predictor, dataset: str) -> Accuracy | None:
    """Return the published accuracy (%) of the checkpoint on a data set, or None if there is none for this image size.

    dataset: one of SETS, or "".
    """
    if ":" in predictor.name:
        return None
    accuracy = published_accuracy(predictor.name).get(dataset)
    same_size = accuracy and accuracy.img_size == predictor.spec.height == predictor.spec.width
    return accuracy if same_size else None


def read_real_labels(path: str | Path) -> list[list[int]]:
    """Read ReaL's real.json: for each ImageNet validation image the correct classes (0 to 999), possibly none.

    Raises UsageError `bad_argument`.
    """
    try:
        labels = json.loads(read_regular(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise UsageError("bad_argument", f"the ReaL labels {str(path)!r} could not be read: {reason}") from None
    valid = isinstance(labels, list) and all(
        isinstance(row, list) and all(type(index) is int and 0 <= index < 1000 for index in row) for row in labels
    )
    if not valid or len(labels) != REAL_IMAGES:
        raise UsageError(
            "bad_argument",
            f"{str(path)!r} does not contain ReaL labels, expected {REAL_IMAGES:,} lists of numbers from 0 to 999",
            hint="the file is real.json of the reassessed-imagenet repository",
        )
    return labels


def real_positions(images: LabelledImages, mapping: ClassMapping, real: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return for each image the correct classes as positions among the mapping's columns.

    real: from `read_real_labels`.
    Raises UsageError `bad_argument` for images that are not named like the ImageNet validation set.
    """
    positions = []
    for i in range(len(images)):
        number = re.search(r"ILSVRC2012_val_(\d{8})", images.key(i))
        if not number or not 1 <= int(number[1]) <= len(real):
            raise UsageError(
                "bad_argument",
                "ReaL labels are assigned by the file names of the ImageNet validation set, and "
                f"{images.key(i)!r} is not one of them",
                hint="give the folder that contains ILSVRC2012_val_00000001.JPEG and the others",
            )
        positions.append(sorted(int(mapping.positions[index]) for index in real[int(number[1]) - 1]))
    return positions
