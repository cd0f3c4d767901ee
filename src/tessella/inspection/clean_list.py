"""A list of the images that remain after an inspection, which `tessella train` reads. Nothing is deleted."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ..checks import as_path, checked
from ..data.all_splits import SplitImages
from ..data.layouts.path_lists import ESCAPED_PATH, SPLIT_COLUMN
from ..errors import UsageError
from ..records import csv_line
from ..storage import check_output, write_bytes
from ..text import escape
from .findings import Finding, label_of
from .kinds import PROTECTED, REMOVED, check_kinds


def removed_images(findings: Sequence[Finding], remove: Collection[str] = REMOVED) -> set[int]:
    """Return the indices of images with a finding of one of these kinds; of the test split, only unreadable ones."""
    return {
        finding.index
        for finding in findings
        if finding.index >= 0
        and finding.kind in remove
        and (finding.split != PROTECTED or finding.kind == "unreadable")
    }


def check_list(path: str | Path, images: SplitImages, remove: Sequence[str] = REMOVED) -> Path:
    """Check that a list can be written, before the work starts, and return its path.

    Raises UsageError `bad_argument` for another suffix, images without labels, a class name that is empty or has white
    space at its ends, or an unknown kind of finding.
    """
    check_kinds(remove)
    if not images.is_labeled:
        raise UsageError("bad_argument", "the images have no labels, so there is nothing to train on with a list")
    # the readers of lists strip every cell: such a class would get another name, or become part of another class
    name = next((name for name in images.images.classes if not name or name != name.strip()), None)
    if name is not None:
        raise UsageError(
            "bad_argument",
            f"the class {name!r} {'has white space at its ends' if name else 'has no name'}, so a list cannot name it",
            hint="rename the class, or leave out the list",
        )
    return check_output(as_path("the list", path), [".csv"])


@checked
def write_clean_list(
    path: str | Path, images: SplitImages, findings: Sequence[Finding], remove: Sequence[str] = REMOVED
) -> int:
    """Write a .csv list of the images without findings of some kinds, and return their number.

    Its columns are path, label and, if the data have splits, split; paths are relative to the folder of the list. If a
    path is not plain text, the column is `escaped_path` instead. remove: kinds of findings. Raises UsageError
    `bad_argument` as `check_list` does and if no image remains, OutputError `output_failed`.
    """
    path = check_list(path, images, remove)
    removed = removed_images(findings, remove)
    kept = [i for i in range(len(images)) if i not in removed]
    if not kept:
        raise UsageError("bad_argument", "no image remains for the list", hint="remove fewer kinds of findings")
    folder = os.path.realpath(path.parent)
    paths = [_relative(images.location(i), folder) for i in kept]
    is_plain = all(_is_plain(name) for name in paths)
    has_splits = any(images.splits)
    lines = [csv_line(["path" if is_plain else ESCAPED_PATH, "label", *([SPLIT_COLUMN] if has_splits else [])])]
    for i, name in zip(kept, paths, strict=True):
        split = [images.split_of(i) or "train"] if has_splits else []
        lines.append(csv_line([name if is_plain else escape(name), label_of(images, i), *split]))
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return len(kept)


def _relative(location: str, folder: str) -> str:
    """Return a path relative to a folder; one on another drive stays absolute."""
    absolute = os.path.join(os.path.realpath(os.path.dirname(location)), os.path.basename(location))  # noqa: PTH118, PTH119, PTH120
    try:
        return os.path.relpath(absolute, folder)
    except ValueError:
        return absolute


def _is_plain(name: str) -> bool:
    """Return whether a list can name a path as it is: text without white space at its ends or line breaks."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name == name.strip() and not any(character in name for character in "\0\r\n")
