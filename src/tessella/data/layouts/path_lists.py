"""Labeled images as lists: CSV or TSV files of path,label, with the split of each image if they have a column of it.

A path names a file, a member of an archive (photos.tar::cats/1.jpg) or a row of a Parquet file (photos.parquet:17).
Under the header `escaped_path`, paths are written as `tessella.text.escape` makes them, so that any file name can be
listed.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...errors import UsageError
from ...storage import read_regular
from ...text import unescape
from ..columns import LABEL_COLUMNS
from ..lists import decode_text, resolve_name
from ..names import IMAGE_SUFFIXES, suffix_of
from .parquet_tables import read_rows_of_tables
from .split_names import SPLIT_OF
from .store import DataFile, EncodedLabels, FileStore, ImageStore, JoinedStore, bad_data, join_names, join_path
from .webdataset import read_members

ESCAPED_PATH, SPLIT_COLUMN = "escaped_path", "split"
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
ESCAPED_HINT = r"write a backslash as \\, and bytes that are not UTF-8 as \x80 to \xff"
_ROW = re.compile(r"(.*\.parquet):(\d{1,18})", re.IGNORECASE | re.DOTALL)


def read_path_lists(
    root: str, files: list[DataFile], splits: Collection[str] | None = None
) -> tuple[ImageStore, EncodedLabels]:
    """Return the images of lists below `root`, and their labels.

    Paths are relative to the folder of the list. splits: read only the lines with one of these in the column `split`;
    None reads all. Raises UsageError `bad_argument` for a malformed list or an image that is listed twice, `not_found`
    if no image of the list exists, or for a member or a row that its file does not have, `unreadable` for a list that
    cannot be decoded, and the errors of archives and tables that it refers to.
    """
    names, labels = [], []
    for file in files:
        folder = file.name.rpartition("/")[0]
        for line in _read_list(join_path(root, file.name)):
            if splits is None or line.split in splits:
                names.append(resolve_name(join_path(folder, line.path), root))
                labels.append(line.label)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise bad_data(f"{files[0].name} has {join_names(repeated)} more than once", "list each image once")
    store = _open_names(root, names)
    if names and isinstance(store, FileStore) and store.sizes().max() < 0:
        raise UsageError(
            "not_found",
            f"none of the {len(names):,} files of {files[0].name} exists, such as {join_path(root, names[0])!r}",
            hint="paths are relative to the folder of the list",
        )
    return store, EncodedLabels.from_labels(labels)


def splits_in_list(path: str) -> list[str]:
    """Return the splits in the column `split` of a list, in the order of their first lines.

    The result is empty if the list has no such column, if any of its values is not the name of a split, or if it cannot
    be read, which `read_path_lists` reports.
    """
    try:
        found = dict.fromkeys(line.split for line in _read_list(path))
    except UsageError:
        return []
    return [] if "" in found else list(found)


# --- images -----------------------------------------------------------------------------------------------------------


def _open_names(root: str, names: Sequence[str]) -> ImageStore:
    """Return the images of these names below `root`: files, members of archives, rows of Parquet files."""
    files: list[str] = []
    members: list[tuple[int, str]] = []
    rows: list[tuple[int, int]] = []
    archives: dict[str, int] = {}
    tables: dict[str, int] = {}
    places = []  # the store of each image, and its row there
    for name in names:
        container, inside = _divide(root, name)
        if not container:
            places.append((0, len(files)))
            files.append(name)
        elif isinstance(inside, str):
            places.append((1, len(members)))
            members.append((archives.setdefault(container, len(archives)), inside))
        else:
            places.append((2, len(rows)))
            rows.append((tables.setdefault(container, len(tables)), inside))
    file_store = FileStore(root, files, [_file_size(join_path(root, name)) for name in files])
    if not (members or rows):
        return file_store
    stores = [
        file_store,
        read_members(root, list(archives), members),
        read_rows_of_tables(root, list(tables), rows) if rows else file_store,
    ]
    part, row = np.array(places, np.int64).reshape(-1, 2).T
    return JoinedStore(stores, part, row)


def _divide(root: str, name: str) -> tuple[str, str | int]:
    """Return the archive and the member, or the Parquet file and the row, of a name; ("", "") for that of a file.

    Names have the form of keys: photos.tar::cats/1.jpg, photos.parquet:17. A file that really has such a name comes
    first.
    """
    is_member, row = "::" in name, _ROW.fullmatch(name)
    if not (is_member or row) or os.path.lexists(join_path(root, name)):
        return "", ""
    for match in re.finditer("::", name):
        archive = name[: match.start()]
        if suffix_of(archive) == ".tar" and os.path.isfile(join_path(root, archive)):  # noqa: PTH113 - as in join_path
            return archive, name[match.end() :]
    if row and os.path.isfile(join_path(root, row[1])):  # noqa: PTH113 - as in join_path
        return row[1], int(row[2])
    return "", ""


def _file_size(path: str) -> int:
    """Return the size of a file in bytes; -1 if it does not exist, which is an error of that image when it is read."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - as in join_path
    except (OSError, ValueError):
        return -1


# --- lines ------------------------------------------------------------------------------------------------------------


class _Line(NamedTuple):
    """One line of a list. split: "" without a column of splits, or if its value is not the name of a split."""

    path: str
    label: str
    split: str


class _Columns(NamedTuple):
    """The columns of a list, by index. is_escaped: whether paths are written as `tessella.text.escape` makes them."""

    path: int
    label: int
    split: int | None = None
    is_escaped: bool = False


def _read_list(path: str) -> Iterator[_Line]:
    """Yield the lines of a list."""
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
            if len(cells) <= max(columns[:2]) or not all(cells[i].strip() for i in columns[:2]):
                raise bad_data(
                    f"{path}, line {reader.line_num}: a path or a label is missing", "write path,label in each line"
                )
            named, label = cells[columns.path], cells[columns.label].strip()
            split = "" if columns.split is None or columns.split >= len(cells) else cells[columns.split].strip().lower()
            name = unescape(named) if columns.is_escaped else named.strip()
            if not _is_file_name(name):
                raise bad_data(f"{path}, line {reader.line_num}: {named!r} is not an escaped path", ESCAPED_HINT)
            yield _Line(name, label, SPLIT_OF.get(split, ""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            "unreadable",
            f"{path!r} could not be read as a list in UTF-8: {reason}",
            hint="save it as CSV in UTF-8, or in UTF-16 with a byte order mark",
        ) from None


def _is_file_name(name: str) -> bool:
    """Return whether the system can have a file of this name."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _delimiter(path: str, text: str) -> str:
    """Return the delimiter of the suffix, or another one if only that is in the first line.

    Spreadsheets write semicolons in many countries.
    """
    default = "\t" if suffix_of(path) == ".tsv" else ","
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    return default if default in first else next((other for other in ";\t," if other in first), default)


def _find_columns(path: str, first: list[str]) -> tuple[_Columns, bool]:
    """Return the columns of a list, and whether the first line is a header."""
    lower = [cell.strip().lower() for cell in first]
    path_column, label_column, split_column = (
        next((lower.index(name) for name in names if name in lower), None)
        for names in ((ESCAPED_PATH, *PATH_COLUMNS), LABEL_COLUMNS, (SPLIT_COLUMN,))
    )
    if path_column is not None and label_column is not None:
        return _Columns(path_column, label_column, split_column, lower[path_column] == ESCAPED_PATH), True
    if len(first) == 2 and suffix_of(lower[0]) in IMAGE_SUFFIXES:
        return _Columns(0, 1), False
    raise bad_data(
        f"the first line of {path} is neither a header nor a path and a label: {first[:4]}",
        f"begin it with path,label{' (separated by a tab)' if suffix_of(path) == '.tsv' else ''}",
    )
