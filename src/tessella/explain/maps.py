"""Attribution maps: how much each position of the input adds to the score of a class, and how they are resampled.

Letters for shapes: H, W pixels of the model's input; rows, columns of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..results import FloatArray


@dataclass(frozen=True)
class AttributionMap:
    """The attribution of one class's score to positions of one image.

    values: (rows,columns) float32 at the resolution at which the method computes; positive values support the class,
    negative ones contradict it. method: a name of `methods.METHODS`. layer: where it was computed; "" if nowhere.
    total: what the values sum to (the logit, or the difference of two logits) if the method is exact; None otherwise.
    parts: maps of the same kind that the values are composed of, such as one per branch of CrossViT, by name; their
    shapes may differ. shares: by the names of `parts`, the share of the score that each branch gives, if the map is
    weighted by it; the absolute values sum to 1.
    """

    values: FloatArray
    method: str
    layer: str = ""
    total: float | None = None
    parts: Mapping[str, FloatArray] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)


def upsample(values: FloatArray, height: int, width: int, *, smooth: bool = True) -> FloatArray:
    """Resample a (rows,columns) map to (height,width) pixels: linearly between centers of cells, or in blocks.

    The average is preserved in blocks and nearly so with `smooth`; beyond the outermost centers, values are constant.
    """
    if not smooth:
        rows, columns = _cells(values.shape[0], height), _cells(values.shape[1], width)
        return np.ascontiguousarray(values[np.ix_(rows, columns)])
    return (_weights(values.shape[0], height) @ values @ _weights(values.shape[1], width).T).astype(np.float32)


def cell_means(pixels: FloatArray, rows: int, columns: int) -> FloatArray:
    """Average an (H,W) map over a grid of rows x columns cells of equal size; a cell has at least one pixel."""
    edges_y, edges_x = _edges(pixels.shape[0], rows), _edges(pixels.shape[1], columns)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), edges_y[:-1], 0), edges_x[:-1], 1)
    return (sums / np.outer(np.diff(edges_y), np.diff(edges_x))).astype(np.float32)


def _edges(size: int, cells: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.linspace(0, size, cells + 1).round().astype(np.int64)


def _cells(cells: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the cell that each of `size` pixels belongs to."""
    return np.repeat(np.arange(cells), np.diff(_edges(size, cells)))


def _weights(cells: int, size: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return (size,cells) weights of linear interpolation between the centers of cells."""
    positions = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    lower = np.minimum(positions.astype(np.int64), max(cells - 2, 0))
    upper = np.minimum(lower + 1, cells - 1)
    weights = np.zeros((size, cells))
    np.add.at(weights, (np.arange(size), lower), 1 - (positions - lower))
    np.add.at(weights, (np.arange(size), upper), positions - lower)
    return weights
