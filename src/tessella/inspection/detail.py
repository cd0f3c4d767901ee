"""Whether two images whose tiles are similar show the same picture: a comparison at a higher resolution.

At 32 x 32 pixels, two pairs of trousers in front of the same wall differ little, because most of what is visible is
their outline. The images of such pairs are therefore read again at SIDE x SIDE pixels. Gauss-Newton steps (Lucas and
Kanade, 1981) refine the alignment of the tiles, and the structure term of SSIM (Wang et al., 2004) is averaged over the
part that both images show. Weak texture has nearly the weight of strong edges: the outlines of different objects can
coincide, but folds, wood grain or leaves do not. Flat parts have almost no weight.

Letters for shapes: P pairs, F side of a picture, G side of a picture that is aligned.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..data.decode import Pixels
from ..data.resize import resize_exact
from ..data.spec import InputSpec
from ..machine import available_cores
from ..results import FloatArray
from .alignment import LUMA, MAX_THREADS, Similarity
from .pixel_statistics import TILE

SIDE = 96  # pixels of a side of a picture
CHUNK = 32  # pairs at a time and thread
_ALIGNED = 48  # pixels of a side while the place is refined: the mean of 2 x 2 pixels
_STEPS = ((2.0, 5), (0.8, 5))  # standard deviation of the blur in pixels, and Gauss-Newton steps with it
_LARGEST = 2.0  # pixels that a step may move
_BLUR = 1.0  # pixels of the standard deviation that both pictures are blurred by before they are compared
_WINDOW = 9  # pixels of a side of the square over which SSIM takes its local means
_FLOOR = 5.0  # added to local variances, so that noise counts little
_TEXTURE = 30.0  # sum of both local variances at which a place has half of the weight of a strong edge


class _Warp(NamedTuple):
    """Maps the outer picture to the inner one, in pixels from the center: factor * place + shift, per axis, (P,)."""

    row_factor: FloatArray
    row_shift: FloatArray
    column_factor: FloatArray
    column_shift: FloatArray


def spec_of_pictures(spec: InputSpec) -> InputSpec:
    """Return the InputSpec that shows the same part of an image as `spec`, its shorter side with SIDE pixels."""
    scale = SIDE / min(spec.height, spec.width)
    return replace(spec, height=round(spec.height * scale), width=round(spec.width * scale))


def picture_of(pixels: Pixels) -> Pixels:
    """Return an image (H,W,3) as a picture (F,F,3), which covers the same part as its tile."""
    if pixels.shape[:2] == (SIDE, SIDE):
        return pixels
    return resize_exact(pixels, SIDE, SIDE, slice(0, SIDE), slice(0, SIDE), "bilinear")


def compare_pictures(first_PFF3: Pixels, second_PFF3: Pixels, found: Similarity) -> FloatArray:
    """Return how similar pairs of pictures (P,F,F,3) are in detail, (P,): 1 for the same picture, near 0 for others.

    found: what `compare_tiles` found for the tiles of the same pairs.
    """

    def compare(first: int) -> FloatArray:
        rows = slice(first, first + CHUNK)
        return _compare(first_PFF3[rows], second_PFF3[rows], found.take(rows))

    with ThreadPoolExecutor(min(available_cores(), MAX_THREADS), "tessella-detail") as pool:
        parts = [*pool.map(compare, range(0, len(first_PFF3), CHUNK))]  # NumPy computes without holding the lock
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _compare(first_PFF3: Pixels, second_PFF3: Pixels, found: Similarity) -> FloatArray:
    first_PFF, second_PFF = first_PFF3 @ LUMA, second_PFF3 @ LUMA
    swapped_P = found.swapped[:, None, None]
    outer_PFF = np.where(swapped_P, second_PFF, first_PFF)
    inner_PFF = np.where(swapped_P, first_PFF, second_PFF)
    inner_PFF = np.where(found.mirrored[:, None, None], inner_PFF[:, :, ::-1], inner_PFF)
    reduced = np.where(found.swapped, 1 / found.scale, found.scale)  # the inner tile was reduced to this size
    factor = (1 / reduced).astype(np.float32, copy=False)
    per_tile = np.float32(_ALIGNED / TILE)
    warp = _Warp(factor, -found.row * factor * per_tile, factor, -found.column * factor * per_tile)
    small_outer, small_inner = _halved(outer_PFF), _halved(inner_PFF)
    for blur, steps in _STEPS:
        warp = _align(_blurred(small_outer, blur), _blurred(small_inner, blur), warp, steps)
    scale = np.float32(SIDE / _ALIGNED)
    warp = warp._replace(row_shift=warp.row_shift * scale, column_shift=warp.column_shift * scale)
    return _similarity(outer_PFF, inner_PFF, warp)


def _halved(pictures_PFF: FloatArray) -> FloatArray:
    """Return the means of 2 x 2 pixels, (P,G,G)."""
    pairs = len(pictures_PFF)
    return pictures_PFF.reshape(pairs, _ALIGNED, 2, _ALIGNED, 2).mean((2, 4))


# --- the place --------------------------------------------------------------------------------------------------------


def _align(outer_PGG: FloatArray, inner_PGG: FloatArray, warp: _Warp, steps: int) -> _Warp:
    """Return the best of the warps that Gauss-Newton steps from `warp` reach.

    What remains after the brightness and contrast of the inner picture have been fitted is minimized.
    """
    place_G = _places(_ALIGNED)
    slope_rows, slope_columns = (np.gradient(inner_PGG, axis=axis).astype(np.float32) for axis in (1, 2))
    best, least_P = warp, np.full(len(outer_PGG), np.inf, np.float32)
    for step in range(steps + 1):
        warped_PGG, mask_PGG, (rows, columns) = _warped(inner_PGG, warp)
        outer, inner = _centered(outer_PGG, mask_PGG), _centered(warped_PGG, mask_PGG)
        gain_P = _inner(outer, inner) / np.maximum(_inner(inner, inner), 1e-3)
        gain = np.clip(gain_P, 0.3, 3)[:, None, None].astype(np.float32, copy=False)
        rest_PGG = outer - gain * inner
        error_P = _inner(rest_PGG, rest_PGG) / np.maximum(_inner(outer, outer), 1e-3)
        best = _Warp(*(np.where(error_P < least_P, new, old) for new, old in zip(warp, best, strict=True)))
        least_P = np.minimum(error_P, least_P)
        if step == steps:
            break
        by_row = (rows @ slope_rows @ columns) * gain * mask_PGG
        by_column = (rows @ slope_columns @ columns) * gain * mask_PGG
        by_factors = by_row * place_G[:, None] / _ALIGNED, by_column * place_G / _ALIGNED
        slopes = np.stack((by_factors[0], by_row, by_factors[1], by_column), 1)
        move_4P = _step(slopes, rest_PGG, inner, mask_PGG).T
        warp = _Warp(
            np.clip(warp.row_factor + move_4P[0] / _ALIGNED, 0.4, 1.8),
            warp.row_shift + move_4P[1],
            np.clip(warp.column_factor + move_4P[2] / _ALIGNED, 0.4, 1.8),
            warp.column_shift + move_4P[3],
        )
    return best


def _step(slopes_P4GG: FloatArray, rest_PGG: FloatArray, inner_PGG: FloatArray, mask_PGG: FloatArray) -> FloatArray:
    """Return the Gauss-Newton step (P,4) of the warp; brightness and contrast are projected out of the slopes."""
    pairs = len(rest_PGG)
    slopes = slopes_P4GG.reshape(pairs, 4, -1)
    mask, inner = mask_PGG.reshape(pairs, 1, -1), inner_PGG.reshape(pairs, 1, -1)
    slopes = slopes - mask * (slopes.sum(2, keepdims=True) / np.maximum(mask.sum(2, keepdims=True), 1))
    length = np.maximum((inner**2).sum(2, keepdims=True), 1e-3)
    slopes = slopes - inner * ((slopes @ inner.transpose(0, 2, 1)) / length)
    normal_P44 = (slopes @ slopes.transpose(0, 2, 1)).astype(np.float64)
    # a little damping, so that a picture without slopes in one direction moves nowhere
    normal_P44 += np.eye(4) * (1e-3 * np.trace(normal_P44, axis1=1, axis2=2)[:, None, None] / 4 + 1e-2)
    move_P41 = np.linalg.solve(normal_P44, (slopes @ rest_PGG.reshape(pairs, -1, 1)).astype(np.float64))
    return np.clip(move_P41[..., 0], -_LARGEST, _LARGEST).astype(np.float32)


def _warped(inner_PFF: FloatArray, warp: _Warp) -> tuple[FloatArray, FloatArray, tuple[FloatArray, FloatArray]]:
    """Return inner pictures on the pixels of the outer ones, a mask of where they have any, and the weights."""
    rows, row_inside = _weights(warp.row_factor, warp.row_shift, inner_PFF.shape[1])
    columns, column_inside = _weights(warp.column_factor, warp.column_shift, inner_PFF.shape[2])
    columns = columns.transpose(0, 2, 1)
    warped_PFF = (rows @ inner_PFF @ columns).astype(np.float32, copy=False)
    mask_PFF = row_inside[:, :, None] * column_inside[:, None, :]
    return warped_PFF, mask_PFF, (rows, columns)


def _weights(factor_P: FloatArray, shift_P: FloatArray, side: int) -> tuple[FloatArray, FloatArray]:
    """Return weights (P,F,F) that interpolate a line of each picture, and which results lie in it, (P,F)."""
    centers_PF = factor_P[:, None] * _places(side) + shift_P[:, None] + np.float32((side - 1) / 2)
    width_P = np.minimum(1 / factor_P, 1)[:, None, None]
    distance_PFF = np.abs(np.arange(side, dtype=np.float32) - centers_PF[..., None])
    weights_PFF = np.maximum(0, 1 - distance_PFF * width_P)
    weights_PFF /= np.maximum(weights_PFF.sum(2, keepdims=True), 1e-3)
    inside_PF = ((centers_PF >= -0.5) & (centers_PF <= side - 0.5)).astype(np.float32)
    return weights_PFF.astype(np.float32, copy=False), inside_PF


def _places(side: int) -> FloatArray:
    return np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)


# --- the score --------------------------------------------------------------------------------------------------------


def _similarity(outer_PFF: FloatArray, inner_PFF: FloatArray, warp: _Warp) -> FloatArray:
    """Return the mean structural similarity (P,) of the parts of both pictures that coincide."""
    warped_PFF, mask_PFF, _ = _warped(inner_PFF, warp)
    first = _centered(_blurred(outer_PFF, _BLUR), mask_PFF)
    second = _centered(_blurred(warped_PFF, _BLUR), mask_PFF)
    # another contrast is no difference: both get the standard deviation of the first
    gain_P = np.sqrt(_inner(first, first) / np.maximum(_inner(second, second), 1e-3))
    second = second * np.clip(gain_P, 0.5, 2)[:, None, None]
    area = np.maximum(_box(mask_PFF), 1)
    mean_a, mean_b = _box(first) / area, _box(second) / area
    variance = np.maximum(_box(first**2 + second**2) / area - mean_a**2 - mean_b**2, 0)
    covariance = _box(first * second) / area - mean_a * mean_b
    structure = (2 * covariance + np.float32(_FLOOR)) / (variance + np.float32(_FLOOR))
    weight = mask_PFF * (variance / (variance + np.float32(_TEXTURE)) + np.float32(1e-3))
    return (structure * weight).sum((1, 2)) / np.maximum(weight.sum((1, 2)), 1e-3)


def _inner(a_PFF: FloatArray, b_PFF: FloatArray) -> FloatArray:
    return (a_PFF * b_PFF).sum((1, 2))


def _centered(pictures_PFF: FloatArray, mask_PFF: FloatArray) -> FloatArray:
    """Return the pictures without their mean inside the mask, and zero outside."""
    mean_P = _inner(pictures_PFF, mask_PFF) / np.maximum(mask_PFF.sum((1, 2)), 1)
    return (pictures_PFF - mean_P[:, None, None]) * mask_PFF


def _blurred(pictures_PFF: FloatArray, deviation: float) -> FloatArray:
    weights_FF = _gaussian(pictures_PFF.shape[1], deviation)
    return (weights_FF @ pictures_PFF @ weights_FF.T).astype(np.float32, copy=False)


@functools.cache
def _gaussian(side: int, deviation: float) -> FloatArray:
    """Return the (F,F) matrix that blurs a line; weights sum to 1 at the ends, too."""
    distance = _places(side)[:, None] - _places(side)
    weights = np.exp(-(distance**2) / (2 * deviation**2))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _box(values_PFF: FloatArray) -> FloatArray:
    """Return the sum over the square of _WINDOW pixels around each pixel, (P,F,F); outside is zero."""
    band_FF = _band()
    return (band_FF @ values_PFF @ band_FF).astype(np.float32, copy=False)


@functools.cache
def _band() -> FloatArray:
    place_F = np.arange(SIDE)
    return (np.abs(place_F[:, None] - place_F) <= _WINDOW // 2).astype(np.float32)
