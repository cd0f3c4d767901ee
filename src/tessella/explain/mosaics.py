"""Mosaics: many small pictures of weights in one picture, in rows and columns with gaps between them.

Letters for shapes: U tiles, h, w cells of a tile, H, W cells of the mosaic, K indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..results import FloatArray

TILE = 48  # cells of a tile's longer side, at least about this number after magnification
GAP = 4  # cells between tiles


@dataclass(frozen=True)
class Mosaic:
    """A picture of tiles: (H,W) float32 with NaN in the gaps, or (H,W,3) in 0..1 with white gaps.

    x, y: centers of the columns (columns,) and rows (rows,) of tiles, in cells, the first of which is at 0. cell: cells
    of the mosaic per cell of a tile.
    """

    picture: FloatArray
    x: FloatArray
    y: FloatArray
    cell: int


def make_mosaic(tiles: FloatArray, columns: int, *, size: int = TILE, gap: int = GAP, group: int = 0) -> Mosaic:
    """Arrange (U,h,w) tiles, or (U,h,w,3) colored ones, in rows of `columns`, row by row.

    Each cell of a tile becomes a square of equal cells, so that the longer side of a tile has at most `size` cells, or
    its own number if that is larger. gap: cells between tiles. group: every `group` columns, the gap is four times as
    wide; 0: nowhere. Missing tiles of the last row are left empty.
    """
    cell = max(size // max(tiles.shape[1:3]), 1)
    large = tiles.repeat(cell, 1).repeat(cell, 2)
    count, height, width = large.shape[:3]
    tops = np.arange(max(-(-count // columns), 1)) * (height + gap)
    wide = np.arange(columns) // group if group else np.zeros(columns, np.int64)  # wider gaps to the left of a column
    lefts = np.arange(columns) * (width + gap) + 3 * gap * wide
    empty = 1.0 if tiles.ndim == 4 else np.nan
    picture = np.full((tops[-1] + height, lefts[-1] + width, *tiles.shape[3:]), empty, np.float32)
    for i in range(count):
        top, left = tops[i // columns], lefts[i % columns]
        picture[top : top + height, left : left + width] = large[i]
    x, y = lefts + (width - 1) / 2, tops + (height - 1) / 2
    return Mosaic(picture, x.astype(np.float32), y.astype(np.float32), cell)


def scale_tiles(tiles: FloatArray) -> FloatArray:
    """Divide each of (U,h,w) or (U,h,w,C) tiles by its largest absolute value; the same shape, in -1..1.

    Zero stays zero, and a tile of zeros stays one.
    """
    largest = np.abs(tiles).max(axis=tuple(range(1, tiles.ndim)), keepdims=True)
    return np.divide(tiles, largest, out=np.zeros_like(tiles, np.float32), where=largest > 0)


def filter_pictures(filters: FloatArray) -> FloatArray:
    """Return (U,p,p,3) filters with weights of both signs as (U,p,p,3) RGB pictures in 0..1.

    Zero is the middle gray 0.5; the largest absolute weight of a filter is 0 or 1.
    """
    return 0.5 + 0.5 * scale_tiles(filters)


def choose_evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the indices 0 to count - 1 at even distances, (K,) int64.

    The first and the last index are among them, the first alone if `most` is 1.
    """
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(np.int64)
