"""Resize and crop decoded pixels to a model's input, by timm's rules.

Mode "exact" equals timm bit for bit on an RGB image: the result is that of Pillow's resize. Mode "fast" rounds the
weights of the resize to 15 bits: a value differs by at most one gray level, except for about one in a million, which
differs by two (`benchmarks/input_path.py` counts them). It also decodes a JPEG at a half, a quarter or an eighth of its
size, if that is still at least twice the size to which it is resized (see `reduction`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..checks import checked
from ..errors import ImageError
from .decode import Mode, Pixels, translate_errors
from .limits import DEFAULT_LIMITS, Limits
from .resample import Span, can_resample, resample
from .spec import InputSpec


class Geometry(NamedTuple):
    """Resize to (height, width), then cut the spec's window at (top, left); negative offsets are padding. In pixels."""

    height: int
    width: int
    top: int
    left: int


def geometry(height: int, width: int, spec: InputSpec) -> Geometry:
    """Return timm's evaluation geometry for an image of height x width pixels."""
    goal_h, goal_w = (max(math.floor(side / spec.crop_pct), 1) for side in (spec.height, spec.width))
    if spec.crop_mode == "squash":
        new_h, new_w = goal_h, goal_w
    elif spec.crop_mode == "border":
        new_h, new_w = _keep_ratio(height, width, max(height / goal_h, width / goal_w))
    elif goal_h == goal_w:  # timm truncates the long side here, whereas _keep_ratio rounds
        new_h, new_w = (
            (goal_h, int(goal_h * width / height)) if height <= width else (int(goal_w * height / width), goal_w)
        )
    else:
        new_h, new_w = _keep_ratio(height, width, min(height / goal_h, width / goal_w))
    return Geometry(new_h, new_w, _offset(new_h, spec.height), _offset(new_w, spec.width))


def _keep_ratio(height: int, width: int, ratio: float) -> tuple[int, int]:
    return max(round(height / ratio), 1), max(round(width / ratio), 1)


def _offset(size: int, window: int) -> int:
    """Return where a centered window starts; halves go to the even number when cropping, to the top left in padding."""
    return -((window - size) // 2) if size < window else round((size - window) / 2)


def check_geometry(height: int, width: int, spec: InputSpec, limits: Limits = DEFAULT_LIMITS) -> Geometry:
    """Return `geometry`. Raises ImageError `too_elongated` if the resized image would exceed the limit."""
    plan = geometry(height, width, spec)
    check_intermediate((height, width), (plan.height, plan.width), limits)
    return plan


def check_intermediate(size: tuple[int, int], new_size: tuple[int, int], limits: Limits) -> None:
    """Raise ImageError `too_elongated` if a resize to `new_size` exceeds the limit; sizes are (height, width)."""
    (height, width), (new_height, new_width) = size, new_size
    if new_height * new_width > limits.intermediate:
        raise ImageError(
            "too_elongated",
            f"the image has {width:,} x {height:,} pixels (width x height) and would be resized to "
            f"{new_width:,} x {new_height:,}, the limit is {limits.intermediate:,} pixels",
            hint="crop it first",
        )


@checked
def prepare(pixels: Pixels, spec: InputSpec, mode: Mode = "exact", limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Resize, crop and pad (H,W,3) uint8 pixels to (spec.height, spec.width, 3) uint8.

    Raises UsageError `bad_argument` if the model does not read three channels, and ImageError `too_elongated`.
    """
    spec.require_rgb()
    return fit(pixels, check_geometry(pixels.shape[0], pixels.shape[1], spec, limits), spec, mode)


def reduction(height: int, width: int, plan: Geometry) -> int:
    """Return how much smaller an image of height x width may be decoded before it is resized: 1, 2, 4 or 8.

    The decoded image has at least twice the size that it is resized to: with less, one value in ten would differ by
    more than four gray levels from the exact result.
    """
    return next(n for n in (8, 4, 2, 1) if n == 1 or (height >= 2 * n * plan.height and width >= 2 * n * plan.width))


def fit(
    pixels: Pixels,
    plan: Geometry,
    spec: InputSpec,
    mode: Mode,
    *,
    source: tuple[Span, Span] | None = None,
    out: Pixels | None = None,
) -> Pixels:
    """Resize, crop and pad (H,W,3) uint8 pixels by `plan` to (spec.height, spec.width, 3) uint8.

    source: rows and columns of the pixels that are the image, which may begin or end within a pixel; None for all.
    out: where to write the result, such as a part of a batch; None for a new array. Raises ImageError
    `too_many_pixels` if there is not enough memory.
    """
    canvas = np.empty((spec.height, spec.width, 3), np.uint8) if out is None else out
    rows = slice(max(plan.top, 0), min(plan.top + spec.height, plan.height))
    columns = slice(max(plan.left, 0), min(plan.left + spec.width, plan.width))
    top, left = max(-plan.top, 0), max(-plan.left, 0)
    visible = canvas[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]
    if visible.shape != canvas.shape:
        canvas[:] = spec.fill if spec.crop_mode == "border" else 0
    if can_resample(pixels.shape[:2], (plan.height, plan.width), spec.interpolation, source):
        exact = mode == "exact"
        size = (plan.height, plan.width)
        with translate_errors():
            resample(pixels, size, rows, columns, spec.interpolation, exact=exact, out=visible, source=source)
    else:
        visible[:] = resize_exact(pixels, plan.height, plan.width, rows, columns, spec.interpolation, source)
    return canvas


def resize_exact(
    pixels: Pixels,
    height: int,
    width: int,
    rows: slice,
    columns: slice,
    interpolation: str,
    source: tuple[Span, Span] | None = None,
) -> Pixels:
    """Return the part [rows, columns] of Pillow's resize of (H,W,3) uint8 pixels to (height, width).

    interpolation: the name of one of Pillow's `Resampling` filters, in lower case. source: as in `fit`.
    """
    box = None if source is None else (source[1].begin, source[0].begin, source[1].end, source[0].end)
    with translate_errors():
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()], box)
        return np.array(resized.crop((columns.start, rows.start, columns.stop, rows.stop)))
