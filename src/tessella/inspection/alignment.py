"""Whether two images show the same picture: their tiles are aligned, and compared by structural similarity.

An embedding says what an image shows; two photographs of one kind of car are near each other, too. The second stage
looks at the pixels. One tile may be a crop of the other, so the center of one is searched in the other: at several
scales, mirrored or not, by normalized cross-correlation. At the best place, the structure term of SSIM (Wang et al.,
2004) is averaged over the part that both show, after a linear fit of the brightness. It is 1 for the same picture, and
tolerates another brightness, contrast, compression and size. Of 1,024 pairs of different CIFAR-10 images, none reached
0.7.

Letters for shapes: P pairs, S side of a tile, T templates, W side of a window, O places of a window, C candidates.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..machine import available_cores
from ..results import FloatArray
from .pixel_statistics import TILE

WINDOW = 20  # pixels of a side of the window that is searched
SCALES = (1.0, 0.89, 0.8, 0.71, 0.63)  # sizes of the searched tile, relative to the other
CHUNK = 128  # pairs at a time and thread: their windows have 35 MB
MAX_THREADS = 8
REFINED = 0.7  # correlation from which the place is refined; copies have more
PROMISING = 0.45  # similarity at the place that was found from which better places near it are tried
_OFFSETS = (-0.5, 0.0, 0.5)  # pixels around the best place
_FACTORS = (0.94, 1.06)  # of the best scale
_BLUR = 5  # pixels of a side of the square over which SSIM takes its local means
_FLOOR = 20.0  # added to local variances, so that noise in flat parts counts little
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of ITU-R BT.601


class Similarity(NamedTuple):
    """How similar P pairs of tiles are.

    score: (P,) float32, structural similarity after alignment, 1 for the same picture. mirrored: (P,) whether one is
    the mirror image of the other. scale: (P,) size of the second relative to the first, 1 if neither is a crop.
    swapped: (P,) whether the first was found in the second, rather than the second in the first. row, column: (P,)
    where the center of the one that was found lies, in pixels from the center of the other.
    """

    score: FloatArray
    mirrored: NDArray[np.bool_]
    scale: FloatArray
    swapped: NDArray[np.bool_]
    row: FloatArray
    column: FloatArray

    def take(self, rows: NDArray[np.int64] | slice) -> Similarity:
        """Return the similarity of some of the pairs. rows: their indices (P,), or a slice."""
        return Similarity(
            score=self.score[rows],
            mirrored=self.mirrored[rows],
            scale=self.scale[rows],
            swapped=self.swapped[rows],
            row=self.row[rows],
            column=self.column[rows],
        )


class _Place(NamedTuple):
    """Where the second tile of each pair lies in the first: scale, mirrored, offset of its center, correlation (P,)."""

    scale: FloatArray
    mirrored: NDArray[np.bool_]
    row: FloatArray
    column: FloatArray
    correlation: FloatArray


def compare_tiles(first_PSS3: NDArray[np.uint8], second_PSS3: NDArray[np.uint8]) -> Similarity:
    """Compare pairs of tiles (P,S,S,3)."""

    def compare(first: int) -> Similarity:
        rows = slice(first, first + CHUNK)
        return _compare(_luma(first_PSS3[rows]), _luma(second_PSS3[rows]))

    with ThreadPoolExecutor(min(available_cores(), MAX_THREADS), "tessella-compare") as pool:
        parts = [*pool.map(compare, range(0, len(first_PSS3), CHUNK))]  # NumPy computes without holding the lock
    if not parts:
        none, never = np.zeros(0, np.float32), np.zeros(0, bool)
        return Similarity(none, never, none, never, none, none)
    return Similarity(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _luma(tiles_PSS3: NDArray[np.uint8]) -> FloatArray:
    return tiles_PSS3.astype(np.float32) @ LUMA


def _compare(first_PSS: FloatArray, second_PSS: FloatArray) -> Similarity:
    """Search each tile of a pair in the other, and score the better of both places."""
    there, back = _search(first_PSS, second_PSS), _search(second_PSS, first_PSS)
    swapped = back.correlation > there.correlation
    place = _choose(swapped, back, there)
    outer_PSS = np.where(swapped[:, None, None], second_PSS, first_PSS)
    inner_PSS = np.where(swapped[:, None, None], first_PSS, second_PSS)
    score_P = np.maximum(place.correlation, 0) * np.float32(0.1)  # an order for pairs that are not scored
    rows = np.flatnonzero(place.correlation >= REFINED)
    if len(rows):
        score_P[rows] = _similarity_at(outer_PSS[rows], inner_PSS[rows], _take(place, rows))
        rows = rows[score_P[rows] >= PROMISING]
    if len(rows):
        score_P[rows] = _refined(outer_PSS[rows], inner_PSS[rows], _take(place, rows), score_P[rows])
    scale_P = np.where(swapped, 1 / place.scale, place.scale).astype(np.float32)
    return Similarity(score_P.astype(np.float32), place.mirrored, scale_P, swapped, place.row, place.column)


def _choose(first_P: NDArray[np.bool_], a: _Place, b: _Place) -> _Place:
    """Return the places of `a` where the condition holds, else those of `b`."""
    return _Place(
        scale=np.where(first_P, a.scale, b.scale),
        mirrored=np.where(first_P, a.mirrored, b.mirrored),
        row=np.where(first_P, a.row, b.row),
        column=np.where(first_P, a.column, b.column),
        correlation=np.where(first_P, a.correlation, b.correlation),
    )


def _take(place: _Place, rows: NDArray[np.int64]) -> _Place:
    """Return the places of some pairs (P,)."""
    return _Place(place.scale[rows], place.mirrored[rows], place.row[rows], place.column[rows], place.correlation[rows])


# --- the search -------------------------------------------------------------------------------------------------------


def _search(outer_PSS: FloatArray, inner_PSS: FloatArray) -> _Place:
    """Find the center of each inner tile, reduced to each of SCALES and mirrored or not, in the outer tile."""
    pairs, places = len(outer_PSS), TILE - WINDOW + 1
    windows = sliding_window_view(outer_PSS, (WINDOW, WINDOW), axis=(1, 2)).reshape(pairs, places**2, WINDOW**2)
    templates = [side @ _reduction(scale) for scale in SCALES for side in _reduced_rows(inner_PSS, scale)]
    template_PTW = np.stack(templates, 1).reshape(pairs, len(templates), WINDOW**2)
    template_PTW = template_PTW - template_PTW.mean(2, keepdims=True)
    template_PTW /= np.sqrt((template_PTW**2).sum(2, keepdims=True)) + np.float32(1e-3)
    reach_OS = _windows()
    sum_PO = (reach_OS @ outer_PSS @ reach_OS.T).reshape(pairs, -1)
    energy_PO = (reach_OS @ outer_PSS**2 @ reach_OS.T).reshape(pairs, -1) - sum_PO**2 / WINDOW**2
    correlation_POT = windows @ template_PTW.transpose(0, 2, 1)
    correlation_POT /= np.sqrt(np.maximum(energy_PO, 0))[..., None] + np.float32(1e-3)
    best_P = correlation_POT.reshape(pairs, -1).argmax(1)
    place_P, template_P = np.divmod(best_P, len(templates))
    row_P, column_P = np.divmod(place_P, places)
    center = np.float32((TILE - WINDOW) / 2)
    return _Place(
        scale=np.array(SCALES, np.float32)[template_P // 2],
        mirrored=template_P % 2 == 1,
        row=row_P.astype(np.float32) - center,
        column=column_P.astype(np.float32) - center,
        correlation=correlation_POT.reshape(pairs, -1)[np.arange(pairs), best_P],
    )


def _reduced_rows(tiles_PSS: FloatArray, scale: float) -> tuple[FloatArray, FloatArray]:
    """Return the center of the tiles with its rows reduced, as it is and mirrored: (P,W,S) each."""
    rows = _reduction(scale).T @ tiles_PSS
    return rows, rows[:, :, ::-1]


@functools.cache
def _reduction(scale: float) -> FloatArray:
    """Return the (S,W) weights that reduce a line of S pixels by `scale`, and keep the W pixels in its center."""
    centers_W = (np.arange(WINDOW) - (WINDOW - 1) / 2) / scale + (TILE - 1) / 2
    weights_SW = np.maximum(0, 1 - np.abs(np.arange(TILE)[:, None] - centers_W) * scale)
    return (weights_SW / weights_SW.sum(0)).astype(np.float32)


# --- the score --------------------------------------------------------------------------------------------------------


def _refined(outer_PSS: FloatArray, inner_PSS: FloatArray, place: _Place, score_P: FloatArray) -> FloatArray:
    """Return the highest similarity (P,) near the place, where it is `score_P`.

    First half a pixel away in all directions, then, at the best of these places, a little larger and smaller.
    """
    best = place
    for row, column in itertools.product(_OFFSETS, _OFFSETS):
        moved = place._replace(row=place.row + np.float32(row), column=place.column + np.float32(column))
        best, score_P = _better(outer_PSS, inner_PSS, moved, best, score_P)
    center = best
    for factor in _FACTORS:
        resized = center._replace(scale=center.scale * np.float32(factor))
        best, score_P = _better(outer_PSS, inner_PSS, resized, best, score_P)
    return score_P


def _better(
    outer_PSS: FloatArray, inner_PSS: FloatArray, other: _Place, best: _Place, score_P: FloatArray
) -> tuple[_Place, FloatArray]:
    """Return the better of two places for each pair, and its similarity (P,); `score_P` is that of the best so far."""
    found_P = _similarity_at(outer_PSS, inner_PSS, other)
    return _choose(found_P > score_P, other, best), np.maximum(found_P, score_P)


def _similarity_at(outer_PSS: FloatArray, inner_PSS: FloatArray, place: _Place) -> FloatArray:
    """Return the mean structural similarity (P,) of the parts of both tiles that coincide."""
    rows, row_inside = _interpolation(place.scale, place.row)
    columns, column_inside = _interpolation(place.scale, place.column)
    inner_PSS = np.where(place.mirrored[:, None, None], inner_PSS[:, :, ::-1], inner_PSS)
    warped_PSS = rows @ inner_PSS @ columns.transpose(0, 2, 1)
    mask_PSS = row_inside[:, :, None] * column_inside[:, None, :]
    count_P = np.maximum(mask_PSS.sum((1, 2)), 1)[:, None, None]
    first_PSS = (outer_PSS - (outer_PSS * mask_PSS).sum((1, 2), keepdims=True) / count_P) * mask_PSS
    second_PSS = (warped_PSS - (warped_PSS * mask_PSS).sum((1, 2), keepdims=True) / count_P) * mask_PSS
    # another contrast is no difference: both get the standard deviation of the first
    spread_P = np.sqrt((first_PSS**2).sum((1, 2)) / np.maximum((second_PSS**2).sum((1, 2)), 1e-3))
    second_PSS *= np.clip(spread_P, 0.5, 2)[:, None, None]
    area = np.maximum(_box(mask_PSS), 1)
    mean_a, mean_b = _box(first_PSS) / area, _box(second_PSS) / area
    variance_a = _box(first_PSS**2) / area - mean_a**2
    variance_b = _box(second_PSS**2) / area - mean_b**2
    covariance = _box(first_PSS * second_PSS) / area - mean_a * mean_b
    structure_PSS = (2 * covariance + _FLOOR) / (variance_a + variance_b + _FLOOR)
    # flat parts agree in any two images: they count by their contrast
    weight_PSS = mask_PSS * (variance_a + variance_b + np.float32(1))
    return (structure_PSS * weight_PSS).sum((1, 2)) / np.maximum(weight_PSS.sum((1, 2)), 1e-3)


def _interpolation(scale_P: FloatArray, offset_P: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return weights (P,S,S) that reduce and move a line of each inner tile, and where the result lies in it, (P,S)."""
    positions_S = np.arange(TILE, dtype=np.float32) - (TILE - 1) / 2
    centers_PS = (positions_S - offset_P[:, None]) / scale_P[:, None] + (TILE - 1) / 2
    distance_PSS = np.abs(np.arange(TILE, dtype=np.float32) - centers_PS[..., None])
    weights_PSS = np.maximum(0, 1 - distance_PSS * np.minimum(scale_P, 1)[:, None, None])
    weights_PSS /= np.maximum(weights_PSS.sum(2, keepdims=True), 1e-3)
    inside_PS = ((centers_PS >= -0.5) & (centers_PS <= TILE - 0.5)).astype(np.float32)
    return weights_PSS.astype(np.float32), inside_PS


def _box(values_PSS: FloatArray) -> FloatArray:
    """Return the sum over the square of _BLUR pixels around each pixel, (P,S,S); outside is zero."""
    band_SS = _band()
    return (band_SS @ values_PSS @ band_SS).astype(np.float32, copy=False)


@functools.cache
def _band() -> FloatArray:
    """Return the (S,S) matrix that sums _BLUR pixels around each pixel of a line."""
    place_S = np.arange(TILE)
    return (np.abs(place_S[:, None] - place_S) <= _BLUR // 2).astype(np.float32)


@functools.cache
def _windows() -> FloatArray:
    """Return the (O,S) matrix that sums the pixels of a line in each place of a window."""
    first_O, place_S = np.arange(TILE - WINDOW + 1)[:, None], np.arange(TILE)
    return ((place_S >= first_O) & (place_S < first_O + WINDOW)).astype(np.float32)
