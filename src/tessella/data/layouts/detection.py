"""Detect the layout of a data set: what kind of files lie at a path, and which split each of them belongs to.

Splits are recognized by name: of folders, and of the words in the names of Parquet files, archives and lists.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from ...errors import UsageError
from ...storage import absolute
from ..names import IMAGE_SUFFIXES, PACKED, Skipped, is_measurement_folder, normalize_class_name, suffix_of
from ..parquet import not_images_reason
from ..walk import split_pattern, walk
from .path_lists import splits_in_list
from .split_names import SPLIT_NAMES, SPLIT_OF
from .store import ACCEPTED, DataFile, bad_data, join_names, join_path, mixed_layouts, not_found
from .webdataset import ArchivedImage, find_class_folders

Split: TypeAlias = Literal["train", "val"]
Kind: TypeAlias = Literal["folder", "parquet", "tar", "list"]

_KINDS: dict[str, Kind] = {".parquet": "parquet", ".tar": "tar", ".csv": "list", ".tsv": "list"}


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a data set by split.

    path: as the user wrote it; root: what the names of the files are relative to; splits: files by "train", "val",
    "test", or "" for names without a split; single: the path names one split, so there is no choice; depth: number of
    folders above the class folders; empty: class folders without an image, by split; members: the images of an archive
    of class folders, by the names of the files; by_column: the splits are those in a column of the only file, a list.
    """

    path: str
    kind: Kind
    root: str
    splits: dict[str, list[DataFile]]
    skipped: Skipped
    single: bool = False
    depth: int = 0
    empty: dict[str, list[str]] = field(default_factory=dict)
    members: dict[str, ArchivedImage] = field(default_factory=dict)
    by_column: bool = False

    def files(self, splits: Iterable[str]) -> list[DataFile]:
        """Return the files of these splits, each once."""
        return list(dict.fromkeys(file for split in splits for file in self.splits[split]))

    def paths(self, splits: Iterable[str]) -> set[str]:
        """Return the resolved paths of the files of these splits; of a list with a column of splits, with the split."""
        root = os.path.realpath(absolute(self.root))
        if self.by_column:  # the splits of a list are different lines of one file
            return {f"{join_path(root, file.name)} ({split})" for split in splits for file in self.splits[split]}
        return {join_path(root, file.name) for file in self.files(splits)}

    def choose(self, split: Split) -> list[str] | None:
        """Return the name of the split that serves as `split`, as a list; None if there is none."""
        names = ("train", "") if split == "train" else ("val", "test")
        return next(([name] for name in names if name in self.splits), None)

    def require(self, split: Split | None) -> list[str]:
        """Return the splits that serve as `split`, or all splits for None.

        Raises UsageError `not_found` if there is none.
        """
        chosen = list(self.splits) if split is None else self.choose(split)
        if chosen is None and split == "train" and self.single:
            chosen = list(self.splits)
        if chosen is None:
            available = join_names(name or "an unnamed split" for name in self.splits)
            raise UsageError(
                "not_found",
                f"{self.path} has no {split} split, only {available}",
                hint=f"name a folder, or the files, {' or '.join(SPLIT_NAMES[split or 'train'])}",
            )
        return chosen

    def class_folders(self, split: str) -> list[str]:
        """Return the names of the class folders of a split of an image folder."""
        return list(dict.fromkeys(file.name.split("/")[self.depth] for file in self.splits[split]))


def find_files(path: str, skipped: Skipped) -> DatasetFiles:
    """Return the files of the data set at a path.

    path: an image folder, a file, a folder of files, or a glob. Raises UsageError `not_found`, `special_file`,
    `unreadable` for a folder that cannot be listed, or `bad_argument` for mixed layouts and images outside class
    folders.
    """
    if os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, it accepts invalid names
        return _from_folder(path, skipped)
    if os.path.isfile(path):  # noqa: PTH113 - as above
        file = Path(path)
        if file.suffix.lower() == ".tar" and (members := find_class_folders(path, skipped)):
            return _class_folders_in_archive(path, members, skipped)
        return _by_split(path, str(file.parent), [DataFile(file.name, file.stat().st_size)], skipped, single=True)
    if os.path.lexists(path):
        raise UsageError(
            "special_file" if os.path.exists(path) else "not_found",  # noqa: PTH110 - as above
            f"{path!r} is neither a regular file nor a folder",
            hint=f"DATA is {ACCEPTED}",
        )
    if glob.has_magic(path):
        root, pattern = split_pattern(path)
        entries = walk(root, skipped, pattern)
        files = [DataFile(entry.name, _size(entry.dir_entry)) for entry in entries if entry.kind == "file"]
        if files:
            return _by_split(path, root or ".", files, skipped, single=True)
        raise not_found(f"no file matches {path!r}")
    raise not_found(f"{path!r} does not exist")


def find_sibling(data: DatasetFiles) -> DatasetFiles | None:
    """Return the validation or test data beside data that are called train; None if there are none.

    They have the same name with another word in place of "train".
    """
    path = Path(absolute(data.path))  # "." has no name
    if not data.single or list(data.splits) != ["train"]:
        return None
    for word in (*SPLIT_NAMES["val"], *SPLIT_NAMES["test"]):
        sibling = str(path.with_name(_replace_split(path.name, word)))
        if os.path.isdir(sibling) and has_no_classes(sibling):  # noqa: PTH112 - as in find_files
            data.skipped.add("unlabelled", sibling)
        elif os.path.lexists(sibling) or (glob.has_magic(sibling) and glob.glob(sibling)):  # noqa: PTH207 - absolute
            return find_files(sibling, data.skipped)
    return None


def lacks_classes(data: DatasetFiles, splits: list[str], classes: Sequence[str]) -> bool:
    """Return whether a test folder has none of these classes.

    Competitions put unlabeled test images into one folder of any name.
    """
    if data.kind != "folder" or splits != ["test"]:
        return False
    names = {normalize_class_name(folder) for folder in data.class_folders("test")}
    return names.isdisjoint(classes) and not all(name.isdecimal() for name in names)


# --- folders ----------------------------------------------------------------------------------------------------------


def _from_folder(path: str, skipped: Skipped) -> DatasetFiles:
    folders: list[str] = []
    files = list(_walk_data(path, folders, skipped))
    images = [file for file in files if suffix_of(file.name) in IMAGE_SUFFIXES]
    shards = [file for file in files if _KINDS.get(suffix_of(file.name)) in ("parquet", "tar")]
    lists = [file for file in files if _KINDS.get(suffix_of(file.name)) == "list"]
    if images and shards:
        raise mixed_layouts(path, f"images, such as {images[0].name!r}, and {shards[0].name!r}")
    if lists and (images or shards):
        skipped.add("unused_list", join_path(path, lists[0].name), len(lists))
    if images:
        return _image_folder(path, images, folders, skipped)
    if shards or lists:
        return _by_split(path, path, shards or lists, skipped)
    raise not_found(f"no image in the folder {path!r}")


def _walk_data(root: str, folders: list[str], skipped: Skipped) -> Iterator[DataFile]:
    """Yield images, archives, tables and lists below `root` in natural order; add the folders' names to `folders`."""
    for entry in walk(root, skipped):
        suffix = suffix_of(entry.name)
        if entry.kind == "folder":
            folders.append(entry.name)
        elif entry.error is not None and entry.dir_entry is None:  # a folder that cannot be listed
            raise UsageError(entry.error.code, entry.error.message)
        elif suffix in IMAGE_SUFFIXES:  # also one that cannot be read: reading that image reports it
            yield DataFile(entry.name, _size(entry.dir_entry))
        elif entry.kind == "broken":
            skipped.add("broken_link", entry.path)
        elif suffix in _KINDS and entry.kind == "file":
            reason = not_images_reason(entry.path) if suffix == ".parquet" else ""
            if reason == "own_result" or (reason and entry.beside_images):
                skipped.add(reason, entry.path)
            else:
                yield DataFile(entry.name, _size(entry.dir_entry))
        else:
            skipped.add("packed_archive" if PACKED.fullmatch(entry.name) else "other_suffix", entry.path)


def _size(entry: os.DirEntry[str] | None) -> int:
    try:
        return -1 if entry is None else entry.stat().st_size
    except OSError:  # a broken link: reading that image reports it
        return -1


def _image_folder(path: str, images: list[DataFile], folders: list[str], skipped: Skipped) -> DatasetFiles:
    """Return the files of class folders, or of split folders if every folder with images is called like a split."""
    tops = list(dict.fromkeys(file.name.split("/")[0] for file in images))
    shallow = {file.name.split("/")[0]: file.name for file in images if file.name.count("/") < 2}
    split_of = {top: SPLIT_OF[top.lower()] for top in tops if top.lower() in SPLIT_OF}
    has_splits = len(split_of) == len(tops)
    for top in _unlabelled_splits(images, split_of) if has_splits else ():
        skipped.add("unlabelled", join_path(path, top))
        images = [file for file in images if not file.name.startswith(f"{top}/")]
        del split_of[top], shallow[top]
    stray = next((name for top, name in shallow.items() if has_splits or top == name), None)
    if stray:
        raise bad_data(
            f"{path}: {stray!r} is not in a class folder", "expected DATA/CLASS/image.jpg or DATA/train/CLASS/image.jpg"
        )
    nested = next((top for top in split_of if top not in shallow), None)  # a class folder has images of its own
    if not has_splits and nested:
        other = next(top for top in tops if top not in split_of)
        raise mixed_layouts(path, f"the split {nested!r} and {other!r}, which is not a split")
    if not has_splits:
        splits = {_split_of_path(path): images}
    else:
        splits = {}
        for top, split in split_of.items():
            if split in splits:
                same = join_names(name for name in split_of if split_of[name] == split)
                raise mixed_layouts(path, f"two folders of the same split, {same}")
            splits[split] = [file for file in images if file.name.startswith(f"{top}/")]
    empty = _empty_class_folders(path, images, folders, split_of if has_splits else None, skipped)
    empty_by_split: dict[str, list[str]] = {}
    for folder in empty:
        split = split_of[folder.split("/")[0]] if has_splits else next(iter(splits))
        empty_by_split.setdefault(split, []).append(folder)
    return DatasetFiles(path, "folder", path, splits, skipped, not has_splits, int(has_splits), empty_by_split)


def _class_folders_in_archive(path: str, members: dict[str, ArchivedImage], skipped: Skipped) -> DatasetFiles:
    """Return the files of an archive as those of a folder; without split folders, its own name can be that of one."""
    images = [DataFile(name, member.size) for name, member in members.items()]
    found = _image_folder(path, images, [], skipped)
    splits = {_split_in_name(Path(path).stem): images} if list(found.splits) == [""] else found.splits
    return dataclasses.replace(found, members=members, splits=splits)


def _unlabelled_splits(images: list[DataFile], split_of: dict[str, str]) -> list[str]:
    """Return the folders of splits other than train that have no class folders, if train has some."""
    deep = {file.name.split("/")[0] for file in images if file.name.count("/") > 1}
    if not any(split_of.get(top) == "train" for top in deep):
        return []
    return [top for top, split in split_of.items() if split != "train" and top not in deep]


def _empty_class_folders(
    path: str, images: list[DataFile], folders: list[str], split_of: dict[str, str] | None, skipped: Skipped
) -> Iterator[str]:
    """Yield the class folders without an image; folders of results are counted in `skipped`.

    split_of: the split of each top folder; None if the top folders are classes.
    """
    depth = 1 if split_of is None else 2
    filled = {tuple(file.name.split("/")[:depth]) for file in images}
    for folder in folders:
        parts = tuple(folder.split("/"))
        if len(parts) != depth or parts in filled or (split_of is not None and parts[0] not in split_of):
            continue
        if _holds_results(join_path(path, folder)):
            skipped.add("own_result", join_path(path, folder))
        else:
            yield folder


def _holds_results(folder: str) -> bool:
    """Return whether a folder has measurements or explanations of Tessella; False if it cannot be listed."""
    try:
        return is_measurement_folder(folder)
    except OSError:
        return False


def has_no_classes(folder: str) -> bool:
    """Return whether a folder holds only images outside class folders, like the test set of a competition."""
    files = list(_walk_data(folder, [], Skipped()))
    return bool(files) and all(suffix_of(file.name) in IMAGE_SUFFIXES and "/" not in file.name for file in files)


# --- Parquet files, archives and lists --------------------------------------------------------------------------------


def _by_split(path: str, root: str, files: list[DataFile], skipped: Skipped, single: bool = False) -> DatasetFiles:
    """Return files of one kind by the split in their names, or else in the names of the folders above them."""
    kinds = {_KINDS.get(suffix_of(file.name)) for file in files}
    if len(kinds) > 1:
        raise mixed_layouts(path, f"files of several kinds, such as {files[0].name!r} and {files[-1].name!r}")
    kind = kinds.pop()
    if kind is None:
        raise bad_data(
            f"{files[0].name!r} is not a set of labeled images",
            f"DATA is {ACCEPTED}; unpack or decompress other archives",
        )
    if kind == "list" and len(files) == 1 and (found := splits_in_list(join_path(root, files[0].name))):
        return DatasetFiles(path, kind, root, dict.fromkeys(found, files), skipped, by_column=True)
    splits: dict[str, list[DataFile]] = {}
    for file in files:
        *above, name = file.name.split("/")
        split = _split_in_name(name.partition(".")[0])
        for folder in reversed(above):
            split = split or SPLIT_OF.get(folder.lower(), "")
        splits.setdefault(split, []).append(file)
    if len(splits) > 1 and "" in splits:
        named = next(split for split in splits if split)
        raise mixed_layouts(
            path, f"{splits[named][0].name!r} of the split {named}, and {splits[''][0].name!r} of no split"
        )
    if list(splits) == [""] and not single:
        return DatasetFiles(path, kind, root, {_split_of_path(path): files}, skipped, True)
    return DatasetFiles(path, kind, root, splits, skipped, single)


# --- names of splits --------------------------------------------------------------------------------------------------


def _split_of_path(path: str) -> str:
    """Return the split in the name of a folder; "" if there is none."""
    return SPLIT_OF.get(Path(absolute(path)).name.lower(), "")


def _split_in_name(stem: str) -> str:
    """Return the split among the words of a name (cifar10-train, train-00000-of-00002); "" for none or several."""
    splits = {SPLIT_OF[word] for word in re.findall("[a-z]+", stem.lower()) if word in SPLIT_OF}
    return splits.pop() if len(splits) == 1 else ""


def _replace_split(name: str, word: str) -> str:
    """Return a name with `word` in place of train, in the same capitals."""

    def replace(match: re.Match[str]) -> str:
        if match[0].lower() not in SPLIT_NAMES["train"]:
            return match[0]
        return word.upper() if match[0].isupper() else word.title() if match[0].istitle() else word

    return re.sub("[A-Za-z]+", replace, name)
