"""Labeled images in .tar files: samples with a label beside each image (WebDataset), or folders of classes."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ...errors import ImageError, UsageError
from ...storage import open_regular, read_regular
from ...text import count_of
from .. import tar
from ..files import unreadable_file
from ..lists import decode_text
from ..names import Skipped, is_image, path_ignore_reason
from ..source import Source
from .store import DataFile, EncodedLabels, ImageStore, Ints, PackedStrings, bad_data, join_path, mixed_layouts

_MAX_LABEL = 1 << 20  # bytes of a .cls, .json or classes.txt


class ArchivedImage(NamedTuple):
    """An image in an archive."""

    name: str
    offset: int  # bytes
    size: int  # bytes


class _TarStore(ImageStore):
    """Members of archives, by their offsets."""

    def __init__(self, root: str, archives: Sequence[str], places: Sequence[tuple[int, ArchivedImage]]):
        """places: for each image, the index of its archive and the member."""
        self.root, self.archives = root, tuple(archives)
        self.names = PackedStrings(member.name for _, member in places)
        numbers = [(archive, member.offset, member.size) for archive, member in places]
        self.archive, self.offset, self._sizes = np.array(numbers, np.int64).reshape(-1, 3).T

    def key(self, row: int) -> str:
        return f"{self.archives[self.archive[row]]}::{self.names[row]}"

    def sizes(self) -> Ints:
        return self._sizes

    def source(self, row: int) -> Source:
        path = join_path(self.root, self.archives[self.archive[row]])
        return Source(self.key(row), path, int(self.offset[row]), int(self._sizes[row]))


def find_class_folders(path: str, skipped: Skipped) -> dict[str, ArchivedImage]:
    """Return the images of an archive of class folders by their names, without a folder that all of them are in.

    It is one if all images are in folders and nothing in it can be a label; the headers are read up to the first that
    can. Otherwise, and for an archive that cannot be read, the result is empty.
    """
    members: dict[str, ArchivedImage] = {}
    found = Skipped()
    try:
        with open_regular(path) as file:
            for member in tar.iter_members(file, path):
                base = member.name.rpartition("/")[2]
                if member.kind in ("folder", "truncated"):
                    continue
                if reason := path_ignore_reason(member.name) or ("special_member" if member.kind != "file" else ""):
                    found.add(reason, f"{path}::{member.name}")
                elif is_image(base):
                    name = member.name.removeprefix("./")
                    if name in members:  # as when the archive is unpacked
                        found.add("replaced_member", f"{path}::{member.name}")
                    members[name] = ArchivedImage(member.name, member.offset, member.size)
                elif base.partition(".")[2].lower() in ("cls", "json") or base == "classes.txt":
                    return {}
                else:
                    found.add("other_suffix", f"{path}::{member.name}")
    except (ImageError, OSError):
        return {}
    if not all("/" in name for name in members):
        return {}
    skipped.merge(found)
    while members and len({name.partition("/")[0] for name in members}) == 1:
        if not all(name.count("/") > 1 for name in members):
            break
        members = {name.partition("/")[2]: member for name, member in members.items()}
    return members


def read_class_folders(path: str, members: Sequence[ArchivedImage]) -> ImageStore:
    """Return these images of the archive at a path."""
    file = Path(path)
    return _TarStore(str(file.parent), [file.name], [(0, member) for member in members])


def read_members(root: str, archives: Sequence[str], wanted: Sequence[tuple[int, str]]) -> ImageStore:
    """Return members of archives below `root`, by the index of their archive and their names. Headers are read once.

    Raises UsageError: the code of the ImageError of an unreadable archive, `not_found` for a member that is missing.
    """
    members: list[dict[str, ArchivedImage]] = []
    for archive in archives:
        path = join_path(root, archive)
        try:
            with open_regular(path) as file:
                found = (member for member in tar.iter_members(file, path) if member.kind == "file")
                members.append({m.name: ArchivedImage(m.name, m.offset, m.size) for m in found})
        except ImageError as error:
            raise UsageError(error.code, error.message, hint=error.hint or "write it again") from None
        except OSError as error:
            problem = unreadable_file(path, error)
            raise UsageError(problem.code, problem.message) from None
    for archive_index, name in wanted:
        if name not in members[archive_index]:
            raise UsageError(
                "not_found",
                f"{join_path(root, archives[archive_index])} has no member {name!r}",
                hint="the archive has changed since the list was written; write the list again",
            )
    return _TarStore(root, archives, [(index, members[index][name]) for index, name in wanted])


def read_webdataset(root: str, files: list[DataFile], skipped: Skipped) -> tuple[ImageStore, EncodedLabels]:
    """Return the images of WebDataset archives below `root`, and their labels. Every header is read once.

    Raises UsageError: the code of the ImageError of an unreadable archive, or `bad_argument` for images without labels,
    labels without images, and class lists that differ.
    """
    class_lists: dict[str, list[str]] = {}  # by their location
    folders = {join_path(root, file.name.rpartition("/")[0]) for file in files} | {root}
    for path in sorted(join_path(folder, "classes.txt") for folder in folders):
        if os.path.isfile(path):  # noqa: PTH113 - as in join_path
            class_lists[path] = _split_lines(path, read_regular(path))
    places: list[tuple[int, ArchivedImage]] = []
    labels: list[str] = []
    for i, file in enumerate(files):
        samples = _Samples(join_path(root, file.name), skipped)
        samples.read()
        if samples.classes:
            class_lists[f"{file.name}::classes.txt"] = samples.classes
        for member, label in samples.labelled():
            places.append((i, member))
            labels.append(label)
    locations = list(class_lists)
    for other in locations[1:]:
        if class_lists[other] != class_lists[locations[0]]:
            raise mixed_layouts(root, f"two class lists that differ, {locations[0]} and {other}")
    classes = class_lists[locations[0]] if locations else None
    return _TarStore(root, [file.name for file in files], places), EncodedLabels.from_labels(labels, classes)


@dataclass
class _Samples:
    """The samples of one archive, and its class list if it contains one.

    Files that differ after the first dot of their name are one sample: an image, and a .cls or .json with its label. If
    a sample has several images, the one with a plain suffix is used (1.jpg, not 1.mask.png); two of these are an error.
    """

    path: str
    skipped: Skipped
    classes: list[str] = field(default_factory=list)
    images: dict[str, ArchivedImage] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, str] = field(default_factory=dict)  # sample -> a second image of equal rank

    def read(self) -> None:
        """Read every header, and the contents of labels and class lists."""
        try:
            with open_regular(self.path) as file:
                for member in tar.iter_members(file, self.path):
                    self._add(member, file)
        except ImageError as error:
            raise UsageError(error.code, error.message, hint=error.hint or "write it again") from None
        except OSError as error:
            problem = unreadable_file(self.path, error)
            raise UsageError(problem.code, problem.message) from None
        if self.ambiguous:
            name = next(iter(self.ambiguous.values()))
            raise bad_data(f"{self.path}: the sample of {name!r} has two images, or occurs twice", "keep one of them")

    def labelled(self) -> Iterator[tuple[ArchivedImage, str]]:
        """Return (image, label) of each sample."""
        unlabelled = [image.name for key, image in self.images.items() if not self.labels.get(key)]
        if unlabelled:
            raise bad_data(
                f"{self.path} has {count_of(len(unlabelled), 'image')} without a label, such as {unlabelled[0]!r}",
                "add a .cls file for each image",
            )
        orphans = [key.lstrip("/") for key in self.labels if key not in self.images and self.labels[key]]
        if orphans and self.images:
            raise bad_data(
                f"{self.path} has {count_of(len(orphans), 'label')} without an image, such as that of {orphans[0]!r}"
            )
        return ((image, self.labels[key]) for key, image in self.images.items())

    def _add(self, member: tar.Member, file: IO[bytes]) -> None:
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, kind = f"{folder}/{stem}", extension.lower()
        if member.kind in ("folder", "truncated"):  # iterating over the members reports a truncated archive
            return
        if reason := path_ignore_reason(member.name) or ("special_member" if member.kind != "file" else ""):
            self.skipped.add(reason, f"{self.path}::{member.name}")
        elif is_image(base):
            self._add_image(key, ArchivedImage(member.name, member.offset, member.size))
        elif kind in ("cls", "json") or base == "classes.txt":
            if member.size > _MAX_LABEL:
                raise bad_data(
                    f"{self.path}: {member.name!r} has {member.size:,} bytes, which is too large for a label"
                )
            file.seek(member.offset)
            text = file.read(member.size)
            location = f"{self.path}::{member.name}"
            if base == "classes.txt":
                self.classes = _split_lines(location, text)
            elif kind == "cls" or key not in self.labels:  # a .cls takes precedence over a .json
                self.labels[key] = _parse_label(location, text, kind) or self.labels.get(key, "")
        else:
            self.skipped.add("other_suffix", f"{self.path}::{member.name}")

    def _add_image(self, key: str, image: ArchivedImage) -> None:
        previous = self.images.get(key)
        if previous is None:
            self.images[key] = image
            return
        is_plain, was_plain = (name.rpartition("/")[2].count(".") == 1 for name in (image.name, previous.name))
        if is_plain == was_plain:
            self.ambiguous.setdefault(key, image.name)
            return
        left_out = previous if is_plain else image
        self.skipped.add("second_image", f"{self.path}::{left_out.name}")
        if is_plain:
            self.images[key] = image
            self.ambiguous.pop(key, None)


def _parse_label(location: str, text: bytes, kind: str) -> str:
    """Return the label in a .cls (a name or a number) or a .json ("label"); "" if there is none."""
    try:
        value = decode_text(text).strip() if kind == "cls" else json.loads(decode_text(text))
    except (ValueError, RecursionError):
        raise bad_data(f"{location} is not {'text in UTF-8' if kind == 'cls' else 'JSON'}") from None
    if isinstance(value, dict):
        value = value.get("label")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _split_lines(location: str, text: bytes) -> list[str]:
    try:
        lines = io.StringIO(decode_text(text), newline=None)
        return [line.strip() for line in lines if line.strip()]
    except UnicodeDecodeError:
        raise bad_data(f"{location} is not text in UTF-8, expected one class name per line") from None
