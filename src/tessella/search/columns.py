"""What filters and rankings need of every row of an index: a few numbers per row, held in memory.

Letters for shapes: N rows of the index, L rows of the run's listing, R rows that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..checks import show
from ..errors import UsageError
from .nearest import ArrowTable, Floats, Ints

Number = TypeVar("Number", bound=np.generic)
NO_LABEL = 65_535  # in `Columns.labels`; a model has at most 21,843 classes
NAMES = ("row", "label", "probability", "width", "height")
ASSESSED_NAMES = ("unknown", "set_size")  # of a calibrated model


def names_of(assessed: bool) -> tuple[str, ...]:
    """Return the columns that `Columns.of` takes; assessed: whether the model of the run is calibrated."""
    return (*NAMES, *(ASSESSED_NAMES if assessed else ()))


@dataclass(frozen=True)
class Columns:
    """The rows of an index, by position in the listing; 30 bytes per row.

    rows: positions in the listing (N,), rising. ids: LanceDB's row ids (N,), or positions in the table that is held in
    memory. names: the predicted classes, in alphabetical order. labels: positions (N,) uint16 in `names`, 65535 for
    none. probabilities: of that class (N,) float32, NaN without one. widths, heights: in pixels (N,). listed: L.
    unknown: whether a calibrated model called the image unknown (N,); set_size: number of classes in its prediction set
    (N,); both are None for a model without a calibration.
    """

    rows: Ints
    ids: Ints
    names: tuple[str, ...]
    labels: NDArray[np.uint16]
    probabilities: Floats
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    listed: int
    unknown: NDArray[np.bool_] | None = None
    set_size: NDArray[np.int32] | None = None

    @classmethod
    def of(cls, table: ArrowTable, listed: int) -> Columns:
        """Take the columns from an Arrow table with those in `names_of` and `_rowid`."""
        rows_N = table["row"].to_numpy().astype(np.int64)
        order = np.argsort(rows_N, kind="stable")
        encoded = table["label"].combine_chunks().dictionary_encode()
        found = encoded.dictionary.to_pylist()
        names = sorted(found)
        code = {name: place for place, name in enumerate(names)}
        codes = np.array([*(code[name] for name in found), NO_LABEL], np.uint16)
        positions_N = encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)

        is_assessed = "unknown" in table.column_names

        def numbers(name: str, missing: float | bool, kind: type) -> NDArray[np.generic]:
            values = table[name].fill_null(missing).to_numpy()
            return np.asarray(values[order], kind)

        return cls(
            rows=rows_N[order],
            ids=table["_rowid"].to_numpy().astype(np.int64)[order],
            names=tuple(names),
            labels=codes[positions_N][order],
            probabilities=np.asarray(numbers("probability", np.nan, np.float32), np.float32),
            widths=np.asarray(numbers("width", 0, np.int32), np.int32),
            heights=np.asarray(numbers("height", 0, np.int32), np.int32),
            listed=listed,
            unknown=np.asarray(numbers("unknown", False, np.bool_), np.bool_) if is_assessed else None,
            set_size=np.asarray(numbers("set_size", 0, np.int32), np.int32) if is_assessed else None,
        )

    def positions(self, rows: Sequence[int] | Ints) -> Ints:
        """Return the positions (R,) of rows of the listing in these columns.

        Raises UsageError `not_found` for a row that is not in the index.
        """
        rows_R = as_rows(rows)
        positions_R = np.searchsorted(self.rows, rows_R)
        present_R = positions_R < len(self.rows)
        present_R[present_R] = self.rows[positions_R[present_R]] == rows_R[present_R]
        if not present_R.all():
            row = int(rows_R[~present_R][0])
            hint = "use the number of a row of the run; inputs with an error have no embedding"
            raise UsageError("not_found", f"the index has no row {show(row)}", hint=hint)
        return positions_R

    def spread(self, values: NDArray[Number], missing: object) -> NDArray[Number]:
        """Return values of rows (N,...) as an array (L,...) with one entry per input of the listing.

        missing: the entry of inputs that are not in the index.
        """
        listed_L = np.full((self.listed, *values.shape[1:]), missing, values.dtype)
        listed_L[self.rows] = values
        return listed_L


def as_rows(rows: Sequence[int] | Ints) -> Ints:
    """Return row numbers as an array (R,). Raises UsageError `bad_argument` for anything but whole numbers."""
    rows_R = np.asarray(rows).reshape(-1)
    if rows_R.size and rows_R.dtype.kind not in "iu":
        raise UsageError("bad_argument", f"the rows are {show(rows)}, expected whole numbers")
    return rows_R.astype(np.int64)
