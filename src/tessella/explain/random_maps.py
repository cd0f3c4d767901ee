"""Random maps that are as smooth as a given one, the opponents that an attribution map has to beat.

Neighboring cells of an image matter to a model alike, so any smooth map, even an unrelated one, ranks them in a more
similar or more different order than a permutation of cells does. Against permutations, unrelated smooth maps appear
significant in 10 to 30 % of images at a nominal 2.5 % (`tests/explain/test_faithfulness.py`); the same is known of maps
of the brain (Markello and Misic 2021, "Comparing spatial null models for brain maps"). The random maps here are
stationary Gaussian fields, and their smoothness is one of a few levels, so that maps of the same level share them.

Letters for shapes: M maps, N cells of a grid of rows x columns.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Doubles: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

SMOOTHNESS = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # levels: standard deviation of the Gaussian kernel, in cells
LAGS = (1, 2)  # distances in cells at which smoothness is compared
CALIBRATION = 999  # random maps that tell how smooth the ranks of a level are


def random_orders(rng: np.random.Generator, count: int, shape: tuple[int, int], smoothness: float) -> Ints:
    """Return the cells of `count` random maps, ordered from the highest value to the lowest, as (M,N) indices.

    smoothness: standard deviation of the Gaussian kernel, in cells; 0 gives permutations.
    """
    return np.argsort(-random_fields(rng, count, shape, smoothness).reshape(count, -1), axis=1)


def random_fields(rng: np.random.Generator, count: int, shape: tuple[int, int], smoothness: float) -> Doubles:
    """Return random maps (M,rows,columns): white noise, smoothed by a Gaussian kernel, with variance 1 in every cell.

    The noise extends beyond the map, so cells at the border are as random as those in the middle.
    """
    rows, columns = shape
    if smoothness == 0:
        return rng.standard_normal((count, rows, columns))
    down, across = _kernel(rows, smoothness), _kernel(columns, smoothness)
    return down @ rng.standard_normal((count, down.shape[1], across.shape[1])) @ across.T


def matching_smoothness(values: Doubles) -> float:
    """Return the lowest level whose random maps are at least as smooth as `values` (rows,columns), else the highest.

    Rounding up makes the opponents slightly too smooth, which can only cost a verdict, not grant one.
    """
    found = float(autocorrelation(average_ranks(values.ravel()).reshape(1, *values.shape))[0])
    expected = _expected_autocorrelations(values.shape[0], values.shape[1])
    levels = zip(SMOOTHNESS, expected, strict=True)
    return next((level for level, typical in levels if typical >= found), SMOOTHNESS[-1])


def autocorrelation(maps: Doubles) -> Doubles:
    """Return for (M,rows,columns) maps the mean correlation (M,) of cells that are 1 or 2 cells apart along an axis.

    It is 1 minus Geary's ratio, averaged over `LAGS`: 0 for noise, up to 1 for smooth maps; 0 for constant maps.
    """
    variance = maps.var((1, 2))
    ratios = []
    for lag in LAGS:
        steps = [maps[:, lag:] - maps[:, :-lag], maps[:, :, lag:] - maps[:, :, :-lag]]
        ratios += [(step**2).mean((1, 2)) for step in steps if step.size]
    if not ratios:
        return np.zeros(len(maps))
    difference = np.mean(ratios, axis=0)
    return np.where(variance > 0, 1 - difference / np.where(variance > 0, 2 * variance, 1), 0.0)


def average_ranks(values_N: Doubles) -> Doubles:
    """Return the ranks (N,) of values, 0 for the lowest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks: Doubles = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return ranks


def _kernel(cells: int, width: float) -> Doubles:
    """Return (cells,cells + margins) weights of a Gaussian kernel, whose rows have the Euclidean norm 1."""
    margin = math.ceil(4 * width)
    distance = np.arange(cells)[:, None] + margin - np.arange(cells + 2 * margin)
    weights = np.exp(-0.5 * (distance / width) ** 2)
    kernel: Doubles = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    return kernel


@lru_cache(maxsize=64)
def _expected_autocorrelations(rows: int, columns: int) -> tuple[float, ...]:
    """Return the median autocorrelation of the ranks of random maps of each level; it increases with smoothness."""
    rng = np.random.default_rng(0)
    expected: list[float] = []
    for level in SMOOTHNESS:
        orders = random_orders(rng, CALIBRATION, (rows, columns), level)
        ranks = np.argsort(orders, axis=1).reshape(-1, rows, columns).astype(np.float64)
        expected.append(max([float(np.median(autocorrelation(ranks))), *expected]))
    return tuple(expected)
