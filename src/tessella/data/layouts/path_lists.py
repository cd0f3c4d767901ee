"""Labelled images as lists: CSV or TSV files of path,label."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator

from ...errors import UsageError
from ...storage import read_regular
from ..columns import LABEL_COLUMNS
from ..lists import decode_text, resolve_name
from ..names import IMAGE_SUFFIXES, suffix_of
from .store import DataFile, EncodedLabels, FileStore, ImageStore, bad_data, join_names, join_path

PATH_COLUMNS = (
    "path",
    "file",
    "filename",
    "file_name",
    "image",
    "filepath",
    "file_path",
    "img",
    "image_path",
    "img_path",
    "image_file",
)


def read_path_lists(root: str, files: list[DataFile]) -> tuple[ImageStore, EncodedLabels]:
    """Return the images of lists below `root`, and their labels.

    Paths are relative to the folder of the list. Raises UsageError `bad_argument` for a malformed list or an image that
    is listed twice, `not_found` if no image of the list exists, `unreadable` for a list that cannot be decoded.
    """
    names, labels, sizes = [], [], []
    for file in files:
        folder = file.name.rpartition("/")[0]
        for path, label in _read_list(join_path(root, file.name)):
            names.append(resolve_name(join_path(folder, path), root))
            labels.append(label)
            try:
                sizes.append(os.stat(join_path(root, names[-1])).st_size)  # noqa: PTH116 - as in join_path
            except (OSError, ValueError):  # an error of that image, when it is read
                sizes.append(-1)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise bad_data(f"{files[0].name} has {join_names(repeated)} more than once", "list each image once")
    if names and max(sizes) < 0:
        raise UsageError(
            "not_found",
            f"none of the {len(names):,} files of {files[0].name} exists, such as {join_path(root, names[0])!r}",
            hint="paths are relative to the folder of the list",
        )
    return FileStore(root, names, sizes), EncodedLabels.from_labels(labels)


def _read_list(path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, label) of each line."""
    try:
        text = decode_text(read_regular(path))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
        columns = None
        for cells in reader:
            if not any(cells):
                continue
            if columns is None:
                columns, is_header = _find_columns(path, cells)
                if is_header:
                    continue
            if len(cells) <= max(columns) or not all(cells[i].strip() for i in columns):
                raise bad_data(
                    f"{path}, line {reader.line_num}: a path or a label is missing", "write path,label in each line"
                )
            yield cells[columns[0]].strip(), cells[columns[1]].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            "unreadable",
            f"{path!r} could not be read as a list in UTF-8: {reason}",
            hint="save it as CSV in UTF-8, or in UTF-16 with a byte order mark",
        ) from None


def _delimiter(path: str, text: str) -> str:
    """Return the delimiter of the suffix, or another one if only that is in the first line.

    Spreadsheets write semicolons in many countries.
    """
    default = "\t" if suffix_of(path) == ".tsv" else ","
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    return default if default in first else next((other for other in ";\t," if other in first), default)


def _find_columns(path: str, first: list[str]) -> tuple[tuple[int, int], bool]:
    """Return the columns of path and label, and whether the first line is a header."""
    lower = [cell.strip().lower() for cell in first]
    path_column, label_column = (
        next((lower.index(name) for name in names if name in lower), None) for names in (PATH_COLUMNS, LABEL_COLUMNS)
    )
    if path_column is not None and label_column is not None:
        return (path_column, label_column), True
    if len(first) == 2 and suffix_of(lower[0]) in IMAGE_SUFFIXES:
        return (0, 1), False
    raise bad_data(
        f"the first line of {path} is neither a header nor a path and a label: {first[:4]}",
        f"begin it with path,label{' (separated by a tab)' if suffix_of(path) == '.tsv' else ''}",
    )
