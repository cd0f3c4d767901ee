"""Resize uint8 pixels as Pillow does, several times faster, and compute only the part that is needed.

Pillow computes every value as a weighted sum of pixels in a row, then in a column, with integer weights of 22 bits, and
rounds each sum to 8 bits. The sums here are matrix products: a few neighboring outputs depend on a short range of
inputs, so each product has a small matrix of weights (a block). float32 represents integers up to 2**24, so a sum of
pixels times weights of 15 bits is exact whatever the order of its terms, on every CPU and with every matrix library.
With `exact`, the remaining 7 bits of the weights are a second sum, and the result equals Pillow's bit for bit.
Without it, they are rounded away.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
DoubleArray: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.uint8]

_PILLOW_BITS, _BITS = 22, 15  # of a weight: Pillow's, and those of the first sum
_MAX_TAPS = (
    1000  # weights of one output, such that the sum of their low bits times 255 is exact: 1000 * 64 * 255 < 2**24
)
# Multiplications per matrix product: NumPy's matrix libraries use one thread for small products. The callers resize
# many images at the same time, so more threads would only wait for each other.
_PRODUCT = 200_000
_CHUNK = 1 << 17  # values converted to float32 at once, which the cache of a core holds
_MOST_KEPT = 1 << 22  # values of float32 that a thread keeps for its next image: 16 MiB


def _bilinear(x: DoubleArray) -> DoubleArray:
    return np.maximum(1 - np.abs(x), 0.0)


def _bicubic(x: DoubleArray) -> DoubleArray:
    """Return Keys' cubic with a = -0.5, with the operations in Pillow's order, so that the bits are the same."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


_FILTERS: dict[str, tuple[Callable[[DoubleArray], DoubleArray], float]] = {  # with the radius at scale 1
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}


class Span(NamedTuple):
    """The part of an axis that is resized, in pixels; a reduced image may begin or end within a pixel."""

    begin: float
    end: float
    length: int  # of the axis

    @property
    def size(self) -> float:
        """Return the number of pixels, which need not be an integer."""
        return self.end - self.begin

    def reversed(self) -> Span:
        """Return the same part of the reversed axis."""
        return Span(self.length - self.end, self.length - self.begin, self.length)


def can_resample(
    size: tuple[int, int], new_size: tuple[int, int], interpolation: str, source: tuple[Span, Span] | None
) -> bool:
    """Return whether `resample` can resize from `size` to `new_size`, both (height, width), with Pillow's result.

    `resample` resizes rows first. Pillow 13 starts with the columns if there are more than twice as many rows to lose,
    which is of no concern if only a part is resized, as `source` says: there is nothing it has to be equal to.
    """
    if interpolation not in _FILTERS:
        return False
    lost_rows, lost_columns = size[0] - new_size[0], size[1] - new_size[1]
    scale = max(*(old / new for old, new in zip(size, new_size, strict=True)), 1.0)
    rows_first = source is not None or lost_rows <= max(0, 2 * lost_columns)
    return rows_first and 2 * _FILTERS[interpolation][1] * scale + 2 <= _MAX_TAPS


def resample(
    pixels: Pixels,
    size: tuple[int, int],
    rows: slice,
    columns: slice,
    interpolation: str,
    *,
    exact: bool,
    out: Pixels,
    source: tuple[Span, Span] | None = None,
) -> None:
    """Write the part [rows, columns] of (H,W,3) uint8 pixels resized to `size` (height, width) into `out`.

    interpolation: "bilinear" or "bicubic", as `can_resample` accepts. exact: as Pillow does, bit for bit; otherwise a
    value differs by at most one gray level, and by two for about one in a million. out: uint8, with the shape of the
    part. source: the rows and columns of `pixels` that are resized, which may begin or end within a pixel; None for
    all.
    """
    vertical, horizontal = source or (Span(0, length, length) for length in pixels.shape[:2])
    across = _axis(horizontal, size[1], columns.start, columns.stop, interpolation, exact)
    down = _axis(vertical, size[0], rows.start, rows.stop, interpolation, exact)
    part = pixels[down.first : down.last, across.first : across.last]
    height, width = part.shape[:2]
    step = min(height, max(min(_CHUNK // (3 * width), _PRODUCT // across.blocks[0][1].size), 8))
    values, sums, narrow, narrow_sums, resized = _scratch.arrays(
        (3, step, width),
        (3, len(across.blocks), across.rows, step),
        (3, len(across.blocks), across.outputs, height),
        (3, len(down.blocks), down.rows, out.shape[1]),
        (3, len(down.blocks), down.outputs, out.shape[1]),
    )
    for top in range(0, height, step):
        count = min(step, height - top)
        for channel in range(3):
            values[channel, :count] = part[top : top + count, :, channel]
        _multiply(across, values[:, :count].transpose(0, 2, 1), sums[..., :count], narrow[..., top : top + count])
    np.floor(narrow, out=narrow)
    narrow_3CH = narrow.reshape(3, -1, height)[:, : out.shape[1]]
    _multiply(down, narrow_3CH.transpose(0, 2, 1), narrow_sums, resized)
    for channel, values_HW in enumerate(resized.reshape(3, -1, out.shape[1])[:, : out.shape[0]]):
        np.copyto(out[:, :, channel], values_HW, casting="unsafe")  # rounds down


class _Axis(NamedTuple):
    """The weights of a range of outputs along an axis, in blocks of neighboring outputs.

    A block of weights has one row per output and, with low bits, as many rows again for these; blocks at the end have
    rows of zeros.
    """

    first: int  # inputs that the outputs depend on
    last: int
    outputs: int  # per block
    rows: int  # per block
    overshoots: bool  # whether sums can leave 0..255, because some weights are negative
    blocks: list[tuple[int, FloatArray]]  # the first input of a block, after `first`, and the weights (rows, inputs)


@functools.lru_cache(maxsize=128)  # 50 kB each for photographs
def _axis(old: Span, new: int, start: int, stop: int, interpolation: str, exact: bool) -> _Axis:
    """Return the weights for the outputs start to stop of a resize to `new` pixels."""
    begin_N, weights_NT = _weights(old, new, start, stop, interpolation)
    first, last = int(begin_N[0]), min(int(begin_N[-1]) + weights_NT.shape[1], old.length)
    outputs = 16 if old.size <= 3 * new else 8
    block_begin = begin_N[::outputs]
    inputs = min(int((begin_N - block_begin.repeat(outputs)[: len(begin_N)]).max()) + weights_NT.shape[1], last - first)
    block_begin = np.minimum(block_begin, last - inputs)  # all blocks have the same size
    numbers = np.arange(len(begin_N))
    columns_NT = (begin_N - block_begin.repeat(outputs)[: len(begin_N)])[:, None] + np.arange(weights_NT.shape[1])
    columns_NT = np.minimum(columns_NT, inputs)  # weights beyond the image are 0, and go to a column that is cut off
    unit = 2 ** (_PILLOW_BITS - _BITS)
    high_NT = np.floor(weights_NT / unit + 0.5)
    parts = (high_NT, weights_NT / unit - high_NT) if exact else (high_NT * 2.0**-_BITS,)
    weights = np.zeros((len(block_begin), len(parts), outputs, inputs + 1), np.float32)
    for number, part_NT in enumerate(parts):
        weights[(numbers // outputs)[:, None], number, (numbers % outputs)[:, None], columns_NT] = part_NT
    weights[..., inputs] = 0
    blocks = np.ascontiguousarray(weights[..., :inputs]).reshape(len(block_begin), -1, inputs)
    starts = (block_begin - first).tolist()
    overshoots = bool((weights_NT < 0).any())
    return _Axis(first, last, outputs, len(parts) * outputs, overshoots, list(zip(starts, blocks, strict=True)))


def _weights(old: Span, new: int, start: int, stop: int, interpolation: str) -> tuple[NDArray[np.int64], DoubleArray]:
    """Return the first input (N,) and the integer weights (N,T) of the outputs start to stop, as Pillow computes them.

    The operations are Pillow's, in its order, in double precision.
    """
    function, radius = _FILTERS[interpolation]
    scale = old.size / new
    shrink = max(scale, 1.0)
    center_N = old.begin + (np.arange(start, stop) + 0.5) * scale
    begin_N = np.maximum((center_N - radius * shrink + 0.5).astype(np.int64), 0)
    end_N = np.minimum((center_N + radius * shrink + 0.5).astype(np.int64), old.length)
    taps_T = np.arange(int((end_N - begin_N).max()))
    weights_NT = function((taps_T + begin_N[:, None] - center_N[:, None] + 0.5) * (1 / shrink))
    weights_NT[taps_T >= (end_N - begin_N)[:, None]] = 0
    weights_NT /= np.add.accumulate(weights_NT, axis=1)[:, -1:]  # adds from left to right
    weights_NT *= 2**_PILLOW_BITS
    return begin_N, np.trunc(weights_NT + np.copysign(0.5, weights_NT))


def _multiply(axis: _Axis, values_3WN: FloatArray, sums_3BRN: FloatArray, out_3BON: FloatArray) -> None:
    """Write the weighted sums along the second axis of `values`, plus 0.5, into `out`, to be rounded down to 0..255.

    B blocks of O outputs have R rows of weights each, see _Axis. sums: is overwritten.
    """
    for number, (at, block) in enumerate(axis.blocks):
        np.matmul(block, values_3WN[:, at : at + block.shape[1]], out=sums_3BRN[:, number])
    high, low = sums_3BRN[:, :, : axis.outputs], sums_3BRN[:, :, axis.outputs :]
    if low.size:  # in units of the lowest high bit
        np.floor(low, out=low)
        high += low
        np.multiply(high, 2.0**-_BITS, out=out_3BON)
        out_3BON += 0.5
    else:
        np.add(high, 0.5, out=out_3BON)
    if axis.overshoots:
        np.clip(out_3BON, 0, 255.5, out=out_3BON)


class _Scratch(threading.local):
    """Memory of a thread, because getting it from the system for every image takes longer than the resize itself."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)

    def arrays(self, *shapes: tuple[int, ...]) -> list[FloatArray]:
        """Return arrays of these shapes, with arbitrary values; they are valid until the next call in this thread."""
        sizes = [math.prod(shape) for shape in shapes]
        total = sum(sizes)
        if total > _MOST_KEPT:
            return [np.empty(shape, np.float32) for shape in shapes]
        if total > len(self._memory):
            self._memory = np.empty(total, np.float32)
        ends = itertools.accumulate(sizes)
        return [
            self._memory[end - size : end].reshape(shape) for size, end, shape in zip(sizes, ends, shapes, strict=True)
        ]


_scratch = _Scratch()
