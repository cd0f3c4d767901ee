"""Selections of rows of an index: by predicted class, by size, and by a polygon on the map.

Letters for shapes: N rows of the index, L rows of the run's listing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..search.columns import Columns
from ..search.polygon import PointSet

if TYPE_CHECKING:
    from ..search.nearest import Ints

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Conditions on rows, all of which a row must match; without any, every row matches.

    label: predicted classes, one of which a row must have. unknown: whether the image shows none of the classes, as a
    calibrated run says. The sizes are in pixels, both ends included. polygon: vertices on the map.
    """

    label: tuple[str, ...] | None = None
    unknown: bool | None = None
    min_width: int | None = None
    max_width: int | None = None
    min_height: int | None = None
    max_height: int | None = None
    polygon: tuple[tuple[float, float], ...] | None = None

    @property
    def is_everything(self) -> bool:
        """Whether every row matches."""
        return self == Selection()

    def mask(self, columns: Columns, points: PointSet | None, classes: frozenset[str]) -> Mask:
        """Return whether each row (N,) of an index matches.

        points: of its map. classes: those of the model. Raises UsageError: `bad_argument` for an unknown class and a
        bad polygon, `not_found` for a polygon without a map, and for `unknown` without a calibration of the run.
        """
        matches_N = np.ones(len(columns.rows), bool)
        if self.label is not None:
            matches_N &= np.isin(columns.labels, self._codes(columns, classes))
        if self.unknown is not None:
            if columns.unknown is None:
                hint = "calibrate the model with `tessella calibrate`, then repeat `tessella run`"
                raise UsageError("not_found", "the run was made without a calibration", hint=hint)
            matches_N &= columns.unknown == self.unknown
        sizes_by_range = (
            (columns.widths, self.min_width, self.max_width),
            (columns.heights, self.min_height, self.max_height),
        )
        for sizes_N, least, most in sizes_by_range:
            matches_N &= True if least is None else sizes_N >= least
            matches_N &= True if most is None else sizes_N <= most
        if self.polygon is not None:
            if points is None:
                raise UsageError("not_found", "the index has no map", hint="tessella index RUN --map")
            matches_N &= points.inside(np.array(self.polygon, np.float64))
        return matches_N

    def _codes(self, columns: Columns, classes: frozenset[str]) -> NDArray[np.uint16]:
        """Return the codes of the classes; those that no row has are left out."""
        assert self.label is not None
        for label in self.label:
            if label not in classes and label not in columns.names:
                raise UsageError("bad_argument", f"the model has no class {label[:100]!r}")
        places = {name: code for code, name in enumerate(columns.names)}
        return np.array([places[label] for label in self.label if label in places], np.uint16)


def among(mask_N: Mask, columns: Columns) -> Mask:
    """Return a mask of rows (N,) as one of the listing (L,), as `Index.search` takes it."""
    return columns.spread(mask_N, False)


def page(mask_N: Mask, columns: Columns, start: int, count: int) -> Ints:
    """Return the rows (R,) `start` to `start + count` of those that match (N,), in the order of the listing."""
    return columns.rows[np.flatnonzero(mask_N)[start : start + count]]
