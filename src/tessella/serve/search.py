"""What the routes of a collection compute, in the threads of the collection: searches, pages of rows, heads, exports.

Letters for shapes: N rows of the index, R rows that are asked for, C candidates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..bulk.manifest import as_text
from ..data.identity import ListedSource
from ..data.parquet import ParquetRow
from ..data.source import Source
from ..errors import UsageError
from ..records import csv_line
from ..search import Head
from ..search.duplicates import duplicate_groups
from ..search.index import ASSESSED
from ..search.nearest import Ints
from ..search.query import Neighbor, Query
from ..text import encode_text
from .collection import OpenedIndex
from .selection import Selection, among, page

MAX_FOUND = 10_000  # rows of a search, all pages together
MAX_GROUPED = 2_000  # if near-duplicates are grouped
EXPORT_STEP = 2_000  # rows written at once
CSV_COLUMNS = ("row", "key", "source", "label", "probability", "width", "height", "bytes", "sha256")

Row = dict[str, object]
Nearest = Callable[[int], list[Neighbor]]  # the number of results -> the best ones


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a search returns. start: results before those that are wanted. min_score: least cosine."""

    top: int = 20
    start: int = 0
    min_score: float | None = None
    selection: Selection = field(default_factory=Selection)
    group_duplicates: bool = False


def row_of(neighbor: Neighbor) -> Row:
    """Return what a client gets of a row; the path of its file is not part of it."""
    row: Row = {
        "row": neighbor.row,
        "key": neighbor.key,
        "label": neighbor.label,
        "probability": neighbor.probability,
        "width": neighbor.width,
        "height": neighbor.height,
    }
    if neighbor.unknown is not None:
        row |= {"unknown": neighbor.unknown, "set_size": neighbor.set_size}
    return row


def rows_page(opened: OpenedIndex, selection: Selection, start: int, count: int) -> tuple[int, list[Row]]:
    """Return how many rows match, and some of them in the order of the listing. Raises UsageError."""
    mask_N = opened.mask(selection)
    rows = page(mask_N, opened.columns, start, count)
    return int(mask_N.sum()), [row_of(neighbor) for neighbor in opened.index.neighbors(rows)]


# --- searches ---------------------------------------------------------------------------------------------------------


def search(
    opened: OpenedIndex, positive: Sequence[Query | int], negative: Sequence[Query | int], options: SearchOptions
) -> tuple[int, list[Row]]:
    """Return how many rows match the selection, and those of them that are nearest to the queries, with scores.

    Each query is a row of the listing or a vector. Results and errors are the same as those of `Index.search`.
    """
    queries, against = (
        [opened.index.row_query(item) if isinstance(item, int) else item for item in items]
        for items in (positive, negative)
    )
    mask_N = opened.mask(options.selection)
    rows = None if options.selection.is_everything else among(mask_N, opened.columns)
    wanted = options.start + options.top

    def nearest(count: int) -> list[Neighbor]:
        found = opened.index.search(queries, negative=against, top=count, among=rows)
        least = -2.0 if options.min_score is None else options.min_score
        return [neighbor for neighbor in found if neighbor.score >= least]

    if options.group_duplicates:
        results = _grouped(opened, nearest, wanted)
    else:
        results = [(neighbor, []) for neighbor in nearest(wanted)]
    found = [
        row_of(neighbor) | {"score": neighbor.score, "duplicates": duplicates}
        for neighbor, duplicates in results[options.start : wanted]
    ]
    return int(mask_N.sum()), found


def _grouped(opened: OpenedIndex, nearest: Nearest, wanted: int) -> list[tuple[Neighbor, list[int]]]:
    """Return the best result of each group of near-duplicates with the rows of the others, the best group first.

    Results are examined until there are enough groups, but at most twice MAX_GROUPED.
    """
    count = 2 * wanted + 16
    while True:
        count = min(count, 2 * MAX_GROUPED)
        candidates = nearest(count)
        rows = [neighbor.row for neighbor in candidates]
        vectors_CD = opened.index.vectors(rows) if rows else np.zeros((0, opened.facts["width"]), np.float32)
        first_C = duplicate_groups(vectors_CD, opened.threshold)
        firsts = np.flatnonzero(first_C == np.arange(len(first_C)))
        if len(firsts) >= wanted or len(candidates) < count or count == 2 * MAX_GROUPED:
            break
        count *= 2
    members: dict[int, list[int]] = {int(first): [] for first in firsts}
    for place, first in enumerate(first_C.tolist()):
        if place != first:
            members[first].append(rows[place])
    return [(candidates[first], duplicates) for first, duplicates in members.items()][:wanted]


# --- heads ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taught:
    """A fitted head, the number of rows that match, and a page of them with their probabilities."""

    head: Head
    matching: int
    ranked: list[Row]
    milliseconds: float


def teach(
    opened: OpenedIndex, name: str, yes: Sequence[int], no: Sequence[int], start: int, top: int, selection: Selection
) -> Taught:
    """Fit a head to marked rows and rank all rows that match. Raises UsageError as `Head.fit` and `Head.rank`."""
    begin = time.perf_counter()
    head = Head.fit(opened.index, name, yes, no)
    milliseconds = 1000 * (time.perf_counter() - begin)
    mask_N = opened.mask(selection)
    rows = None if selection.is_everything else among(mask_N, opened.columns)
    marks = dict.fromkeys((mark.row for mark in head.yes), "yes") | dict.fromkeys((mark.row for mark in head.no), "no")
    ranked = [
        row_of(neighbor) | {"score": neighbor.score, "marked": marks.get(neighbor.row)}
        for neighbor in head.rank(opened.index, top=start + top, among=rows)[start:]
    ]
    return Taught(head, int(mask_N.sum()), ranked, milliseconds)


# --- exports ----------------------------------------------------------------------------------------------------------


def exported_rows(opened: OpenedIndex, selection: Selection, rows: Sequence[int] | None) -> Ints:
    """Return the rows (R,) to export: those given, in this order, or those that match. Raises UsageError."""
    if rows is None:
        return opened.columns.rows[opened.mask(selection)]
    return opened.columns.rows[opened.columns.positions(list(dict.fromkeys(rows)))]


def csv_columns(opened: OpenedIndex) -> tuple[str, ...]:
    """Return the columns of the CSV."""
    return CSV_COLUMNS if opened.columns.unknown is None else (*CSV_COLUMNS, *ASSESSED)


def csv_part(opened: OpenedIndex, rows: Ints) -> bytes:
    """Return the lines of rows (R,) in CSV, whose text a spreadsheet does not run as a formula."""
    lines = []
    for neighbor in opened.index.neighbors(rows):
        cells = [getattr(neighbor, name) for name in csv_columns(opened)]
        lines.append(csv_line(["" if cell is None else cell for cell in cells], safe=True) + "\r\n")
    return encode_text("".join(lines))


def csv_header(opened: OpenedIndex) -> bytes:
    """Return the first line of the CSV."""
    return (csv_line(csv_columns(opened)) + "\r\n").encode()


def check_listable(opened: OpenedIndex, rows: Ints) -> str:
    """Return the separator for a list of the files of rows (R,): a line break, or a null character if a name has one.

    Raises UsageError `special_file` if an image is inside of an archive or a table, which a list cannot name.
    """
    separator = "\n"
    for source in _sources_of(opened, rows):
        if isinstance(source, ListedSource):
            source = source.inner or source
        if source.offset is not None or isinstance(source, ParquetRow):
            raise UsageError("special_file", f"{as_text(source.key)!r} is inside of an archive or a table")
        if "\n" in source.path or "\r" in source.path:
            separator = "\0"
    return separator


def list_part(opened: OpenedIndex, rows: Ints, separator: str) -> bytes:
    """Return the files of rows (R,) as a list that `tessella run @FILE` reads."""
    return b"".join(os.fsencode(source.path + separator) for source in _sources_of(opened, rows))


def _sources_of(opened: OpenedIndex, rows: Ints) -> Iterator[Source]:
    size = opened.facts["shard_rows"]
    for row in rows.tolist():
        yield opened.sources(row // size)[row % size]
