"""Labeled images: one class per image, read from folders, Parquet files, WebDataset archives or lists.

    layout                                                      key of an image
    folders: CLASS/**/image or SPLIT/CLASS/**/image             CLASS/.../image.jpg, relative to the folder
    a .tar file of such folders                                 file.tar::.../CLASS/.../image.jpg
    Parquet files in Hugging Face's layout                      file.parquet:row
    WebDataset .tar files                                       file.tar::member.jpg
    .csv or .tsv lists of path,label[,split]                    the path, relative to the folder of the list

Parquet files and archives are a single file, a folder or a glob. Splits are recognized by name: of subfolders, and of
the words in the names of Parquet files, archives and lists; a single list can have a column `split` instead. Classes
are in the natural order of their names (a2 before a10), unless the data define an order: the `names` of a Hugging Face
label, the lines of a classes.txt. Names are compared in Unicode normal form C. What fits no layout is an error, or is
counted in `LabelledImages.skipped`: hidden files, system files or folders, results of Tessella, unlabeled images.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..checks import checked, show
from ..text import count_of
from .layouts.classes import class_indices, map_classes
from .layouts.detection import DatasetFiles, Split, find_files, find_sibling, lacks_classes
from .layouts.parquet_tables import read_parquet_tables
from .layouts.path_lists import read_path_lists
from .layouts.store import EncodedLabels, FileStore, ImageStore, Ints, bad_data, join_names, join_path, not_found
from .layouts.webdataset import read_class_folders, read_webdataset
from .limits import DEFAULT_LIMITS, Limits
from .names import Skipped, normalize_class_name
from .source import Source


class LabelledImages:
    """N encoded images with one class each. Cheap to pickle: each process opens what it reads.

    classes: the K class names, by label; labels: (N,) int64, read-only; origin: a description of what was read, for
    messages; skipped: the entries found beside the images and left out.
    """

    def __init__(
        self,
        store: ImageStore,
        classes: Sequence[str],
        labels: Ints,
        origin: str,
        rows: Ints | None = None,
        skipped: Skipped | None = None,
    ):
        """Combine a store with labels. rows: (N,) row of each image in the store; None: in the order of the store."""
        self._store = store
        self.skipped = Skipped() if skipped is None else skipped
        self._rows = np.arange(len(labels)) if rows is None else rows
        self.classes, self.labels, self.origin = tuple(classes), labels, origin
        self.labels.flags.writeable = False

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        """Return the unique name of an image."""
        return self._store.key(int(self._rows[index]))

    def source(self, index: int) -> Source:
        """Return an image as a source, as `Predictor.records` and `Predictor.outputs` take it."""
        return self._store.source(int(self._rows[index]))

    def read(self, index: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the encoded bytes of an image, as `decode` takes them. Raises ImageError if they cannot be read."""
        return self.source(index).read(limits)

    @property
    def sizes(self) -> Ints:
        """The (N,) sizes of the encoded images in bytes; -1 if unknown."""
        return self._store.sizes()[self._rows]

    def subset(self, indices: Sequence[int] | NDArray[np.integer], origin: str = "") -> LabelledImages:
        """Return the images at these indices, in this order, with the same class list.

        indices: (M,) integers. origin: a new description.
        """
        selected = np.asarray(indices, np.int64)
        rows = self._rows[selected]
        return LabelledImages(
            self._store, self.classes, self.labels[selected], origin or self.origin, rows, self.skipped
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on classes, keys, labels and sizes in bytes; contents are not read."""
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
    """Open the labeled images of one split of `data`, or of all splits (None).

    data: a path in one of the layouts at the top of this module. split: "train" includes files whose names contain no
    split; "val" is the test split if there is no validation split. A file, a glob or a folder without splits belongs
    entirely to "train". classes: the class list to use. The classes of the data are matched with it by name, or by
    index if they are plain numbers (unless the names in the list are numbers, too).

    Raises UsageError: `not_found` (no such data, split or image), `unreadable`, `missing_dependency`, or `bad_argument`
    for a single class, an empty class folder, a label outside the class list, a repeated key, or mixed layouts.
    """
    files = find_files(os.fsdecode(data), Skipped())
    if split not in (None, "train", "val"):
        raise bad_data(f"split is {split!r}, expected 'train', 'val' or None")
    return _load(files, files.require(split), classes)


@checked
def open_split(
    data: str | os.PathLike[str], *, val: str | os.PathLike[str] | None = None, val_fraction: float = 0.1
) -> tuple[LabelledImages, LabelledImages]:
    """Open (training images, validation images) with the class list of the training images.

    val: the validation data. None: the validation split of `data`; else, if `data` is itself called train, the data
    beside it with the name of another split; else `val_fraction` of the images, selected by a hash of each key, so that
    adding images moves no image to the other side. A test folder without classes, or with none of the training classes,
    is not used, and is counted in `skipped`.

    Raises UsageError as `open_labelled` does, and `bad_argument` for a class without training images, for a file in
    both sets (also of those that a list names), or for a `val_fraction` that is not between 0 and 1 or leaves no
    validation image.
    """
    skipped = Skipped()
    files = find_files(os.fsdecode(data), skipped)
    train_splits = files.require("train")
    train = _load(files, train_splits, None)
    if val is not None:
        val_files = find_files(os.fsdecode(val), skipped)
        val_splits = val_files.choose("val") or list(val_files.splits)
    else:
        val_files, val_splits = _find_validation(files, train_splits, train.classes)
    if val_splits:
        shared = files.paths(train_splits) & val_files.paths(val_splits)
        _refuse_shared(shared)
        validation = _load(val_files, val_splits, train.classes)
        if "list" in (files.kind, val_files.kind):  # a list names files anywhere
            _refuse_shared(_places(train) & _places(validation))
    else:
        train, validation = _hold_out(train, val_fraction)
        if example := skipped.example("unlabelled"):
            validation.origin += f"; {example!r} has no images of these classes, and is not used"
    _require_training_images(train)
    return train, validation


def _refuse_shared(shared: set[str]) -> None:
    if shared:
        raise bad_data(
            f"the training and the validation data share {count_of(len(shared), 'file')}, such as {min(shared)!r}",
            "use other validation images, or none, so that some of the training images are held out",
        )


def _places(images: LabelledImages) -> set[str]:
    """Return where the images lie: resolved paths, with the row of a table or the position in an archive."""
    folders: dict[str, str] = {}  # resolved; resolving each file would ask for every folder above it
    places = set()
    for i in range(len(images)):
        source = images.source(i)
        folder, name = os.path.split(source.path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = join_path(folders[folder], name)
        if os.path.islink(path):  # noqa: PTH114 - as above
            path = os.path.realpath(path)
        if source.offset is not None:
            path += f" at byte {source.offset}"
        elif source.path.lower().endswith(".parquet"):
            path += f":{source.key.rpartition(':')[2]}"
        places.add(path)
    return places


def _find_validation(
    files: DatasetFiles, train_splits: list[str], classes: Sequence[str]
) -> tuple[DatasetFiles, list[str]]:
    """Return the files and splits of the validation images in or beside the data; no splits if there are none."""
    val_files, splits = files, files.choose("val") or []
    if splits == train_splits:  # a single file that is called test
        splits = []
    if not splits and (sibling := find_sibling(files)):
        val_files, splits = sibling, sibling.choose("val") or list(sibling.splits)
    if splits and lacks_classes(val_files, splits, classes):
        top = val_files.files(splits)[0].name.split("/")[0]
        files.skipped.add("unlabelled", join_path(files.root, top) if val_files is files else val_files.path)
        splits = []
    return val_files, splits


def _require_training_images(train: LabelledImages) -> None:
    missing = np.flatnonzero(np.bincount(train.labels, minlength=len(train.classes)) == 0)
    if len(missing):
        raise bad_data(
            f"{train.origin}: {join_names(train.classes[i] for i in missing)} of the class list "
            f"{'has' if len(missing) == 1 else 'have'} no training images",
            "add images, or remove the class from the list",
        )


def _hold_out(data: LabelledImages, fraction: float) -> tuple[LabelledImages, LabelledImages]:
    """Return (training images, held-out images).

    An image is held out if the hash of its key is below `fraction`; every class keeps at least one training image.
    Raises UsageError `bad_argument` if no image is held out.
    """
    if not 0 < fraction < 1:
        raise bad_data(f"val_fraction is {show(fraction)}, expected a number between 0 and 1")
    fraction = float(fraction)
    hashes = (hashlib.sha256(os.fsencode(data.key(i))).digest()[:8] for i in range(len(data)))
    positions = np.fromiter((int.from_bytes(digest, "big") / 2**64 for digest in hashes), float, len(data))
    held_out = positions < fraction
    counts = [np.bincount(data.labels[part], minlength=len(data.classes)) for part in (held_out, ~held_out)]
    for label in np.flatnonzero((counts[0] > 0) & (counts[1] == 0)):  # classes without any training image
        members = np.flatnonzero(data.labels == label)
        held_out[members[positions[members].argmax()]] = False
    if not held_out.any():
        raise bad_data(
            f"{data.origin} has {len(data)} images, too few to hold out {100 * fraction:.3g} % for validation",
            "use other validation images, or a larger val_fraction",
        )
    return (
        data.subset(np.flatnonzero(~held_out), f"{data.origin}, without the {fraction:.0%} held out for validation"),
        data.subset(np.flatnonzero(held_out), f"{fraction:.0%} of {data.origin}, chosen by a hash of the key"),
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def _load(files: DatasetFiles, splits: list[str], classes: Sequence[str] | None) -> LabelledImages:
    """Read the labels of these splits. classes: as in `open_labelled`."""
    origin = files.path if files.single or len(splits) > 1 else f"{files.path} ({splits[0] or 'all'})"
    empty = [folder for split in splits for folder in files.empty.get(split, ())]
    if empty and classes is None:
        raise bad_data(
            f"{files.path}: the class folder {join_names(empty)} has no images", "add images, or remove the folder"
        )
    store, labels = read_files(files, splits)
    if not len(labels.codes):
        raise not_found(f"{origin} has no images")
    names, indices = class_indices(origin, labels, store)
    if classes is not None:
        names, indices = map_classes(origin, names, indices, classes)
    elif len(names) < 2:
        raise bad_data(
            f"{origin} has only one class, {names[0]!r}",
            "at least two are needed; a class is a folder below DATA, or below DATA/train",
        )
    return LabelledImages(store, names, indices, origin, skipped=files.skipped)


def read_files(files: DatasetFiles, splits: list[str]) -> tuple[ImageStore, EncodedLabels]:
    """Return the images of some splits of a data set, and their labels. Raises UsageError as `open_labelled`."""
    selected = files.files(splits)
    if files.kind == "parquet":
        return read_parquet_tables(files.root, selected)
    if files.kind == "tar":
        return read_webdataset(files.root, selected, files.skipped)
    if files.kind == "list":
        return read_path_lists(files.root, selected, splits if files.by_column else None)
    for split in splits:
        _refuse_equivalent_folders(files.path, files.class_folders(split))
    store: ImageStore = FileStore(files.root, [file.name for file in selected], [file.size for file in selected])
    if files.members:
        store = read_class_folders(files.root, [files.members[file.name] for file in selected])
    return store, EncodedLabels.from_labels(file.name.split("/")[files.depth] for file in selected)


def _refuse_equivalent_folders(path: str, folders: list[str]) -> None:
    """Refuse two sibling class folders whose names differ only in their Unicode form."""
    by_name: dict[str, str] = {}
    for folder in folders:
        other = by_name.setdefault(normalize_class_name(folder), folder)
        if other != folder:
            raise bad_data(
                f"{path}: two class folders have the same name in different Unicode forms, {other!a} and {folder!a}",
                "move their images into one of them",
            )
