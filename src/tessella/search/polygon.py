"""Points of a map that lie in a polygon, exactly: also on its edges, and for polygons that intersect themselves.

A point is inside if a ray to its right crosses the edges an odd number of times (the even-odd rule), or if it lies on
an edge. The side of an edge on which a point lies is the sign of a determinant. It is computed in float64; where the
rounding error could change the sign, it is computed again with fractions.

Letters for shapes: N points, V vertices, P points beside an edge.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..results import FloatArray

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_VERTICES = 10_000
MAX_COORDINATE = 1e6
MAX_PAIRS = 200_000_000  # of an edge and a point beside it: about a second
MAX_EXACT = 200_000  # determinants with fractions
_ERROR = 3.3306690738754716e-16  # bound of the determinant's error, relative to the sum of its products' sizes
_TINY = 1e-300  # where products underflow


class PointSet:
    """Points that are compared with many polygons. Threads may share it."""

    def __init__(self, points_N2: FloatArray):
        """Sort the points (N,2), so that those beside an edge are found without looking at the others."""
        self._order_N = np.argsort(points_N2[:, 1], kind="stable")
        self._x_N, self._y_N = (points_N2[self._order_N, axis].astype(np.float64) for axis in (0, 1))

    def inside(self, polygon_V2: Doubles) -> Mask:
        """Return whether each point (N,) lies in the polygon or on its edges.

        polygon_V2: vertices (V,2), the last one is joined with the first. Raises UsageError `bad_argument` for anything
        else, and for a polygon whose edges pass too many points.
        """
        polygon_V2 = _check_polygon(polygon_V2)
        x_N, y_N = self._x_N, self._y_N
        inside_N, on_edge_N = np.zeros(len(x_N), bool), np.zeros(len(x_N), bool)
        ends_V2 = np.roll(polygon_V2, -1, axis=0)
        upward_V = polygon_V2[:, 1] <= ends_V2[:, 1]
        low_V2 = np.where(upward_V[:, None], polygon_V2, ends_V2)
        high_V2 = np.where(upward_V[:, None], ends_V2, polygon_V2)
        first_V = np.searchsorted(y_N, low_V2[:, 1], "left")
        last_V = np.searchsorted(y_N, high_V2[:, 1], "right")  # the point at the upper end may lie on the edge
        above_V = np.searchsorted(y_N, high_V2[:, 1], "left")  # but does not count as crossed
        if int((last_V - first_V).sum()) > MAX_PAIRS:
            raise _too_complex()
        exact = 0
        for low, high, first, above, last in zip(low_V2, high_V2, first_V, above_V, last_V, strict=True):
            if first == last:
                continue
            beside = slice(first, last)
            if low[1] == high[1]:
                left, right = sorted((low[0], high[0]))
                on_edge_N[beside] |= (left <= x_N[beside]) & (x_N[beside] <= right)
                continue
            side_P, repeated = _sides(x_N[beside], y_N[beside], low, high)
            exact += repeated
            if exact > MAX_EXACT:
                raise _too_complex()
            on_edge_N[beside] |= side_P == 0
            inside_N[first:above] ^= side_P[: above - first] > 0
        result_N = np.empty(len(x_N), bool)
        result_N[self._order_N] = inside_N | on_edge_N
        return result_N


def _check_polygon(polygon: Doubles) -> Doubles:
    polygon_V2 = np.asarray(polygon, np.float64)
    shape = polygon_V2.shape
    if len(shape) != 2 or shape[1] != 2 or not 3 <= shape[0] <= MAX_VERTICES:
        raise UsageError("bad_argument", f"the polygon is {shape}, expected (V,2) with 3 to {MAX_VERTICES:,} vertices")
    if not (np.abs(polygon_V2) <= MAX_COORDINATE).all():
        raise UsageError("bad_argument", f"a coordinate of the polygon is not a number up to {MAX_COORDINATE:,.0f}")
    return polygon_V2


def _too_complex() -> UsageError:
    return UsageError("bad_argument", "the edges of the polygon pass too many points", hint="draw a simpler polygon")


def _sides(x_P: Doubles, y_P: Doubles, low: Doubles, high: Doubles) -> tuple[Doubles, int]:
    """Return a number (P,) that is positive if a point lies left of the edge, 0 on it, else negative.

    low, high: the ends of the edge (x, y); the points have a y between theirs. Also returns the number of determinants
    that were computed with fractions.
    """
    across, along = (high[0] - low[0]) * (y_P - low[1]), (x_P - low[0]) * (high[1] - low[1])
    if high[0] == low[0]:
        return low[0] - x_P, 0
    side_P = across - along
    unsure = np.flatnonzero(np.abs(side_P) <= _ERROR * (np.abs(across) + np.abs(along)) + _TINY)
    if not len(unsure):
        return side_P, 0
    points, place = np.unique(np.stack((x_P[unsure], y_P[unsure]), 1), axis=0, return_inverse=True)
    if len(points) > MAX_EXACT:
        raise _too_complex()
    (x1, y1), (x2, y2) = (map(Fraction, end.tolist()) for end in (low, high))
    signs = []
    for x, y in points.tolist():
        exact = (x2 - x1) * (Fraction(y) - y1) - (Fraction(x) - x1) * (y2 - y1)
        signs.append((exact > 0) - (exact < 0))
    side_P[unsure] = np.array(signs, np.float64)[place.reshape(-1)]
    return side_P, len(points)
