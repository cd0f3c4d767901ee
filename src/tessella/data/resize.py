"""Resize and crop decoded pixels to a model's input, by timm's rules.

Mode "exact" resizes with Pillow and equals timm bit for bit on an RGB image: Pillow is imported for its resize only.
Mode "fast" resizes with torch's antialiased uint8 kernel, whose weights have 15 bits instead of Pillow's 22: a value
differs by at most one gray level, except for about one in a million, which differs by two
(`benchmarks/input_path.py` counts them).
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
    plan = check_geometry(pixels.shape[0], pixels.shape[1], spec, limits)
    rows = slice(max(plan.top, 0), min(plan.top + spec.height, plan.height))
    cols = slice(max(plan.left, 0), min(plan.left + spec.width, plan.width))
    if mode == "fast" and _fast_matches(pixels, spec):
        visible = _resize_fast(pixels, plan, rows, cols, spec.interpolation)
    else:
        visible = resize_exact(pixels, plan.height, plan.width, rows, cols, spec.interpolation)
    if visible.shape[:2] == (spec.height, spec.width):
        return np.ascontiguousarray(visible)
    canvas = np.full((spec.height, spec.width, 3), spec.fill if spec.crop_mode == "border" else (0, 0, 0), np.uint8)
    top, left = max(-plan.top, 0), max(-plan.left, 0)
    canvas[top : top + visible.shape[0], left : left + visible.shape[1]] = visible
    return canvas


def resize_exact(pixels: Pixels, height: int, width: int, rows: slice, cols: slice, interpolation: str) -> Pixels:
    """Return the part [rows, cols] of Pillow's resize of (H,W,3) uint8 pixels to (height, width).

    interpolation: the name of one of Pillow's `Resampling` filters, in lower case.
    """
    with translate_errors():
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()])
        return np.array(resized.crop((cols.start, rows.start, cols.stop, rows.stop)))


_KERNELS = {"bilinear": "_upsample_bilinear2d_aa", "bicubic": "_upsample_bicubic2d_aa"}  # called by F.interpolate


def _fast_matches(pixels: Pixels, spec: InputSpec) -> bool:
    """Return whether torch's kernel does the same as Pillow: the same filters, and columns before rows.

    Pillow 13 starts with the rows if it shrinks an image more than twice as tall as wide, or changes its aspect ratio.
    """
    tall = pixels.shape[0] > 2 * pixels.shape[1]
    return spec.interpolation in _KERNELS and spec.crop_mode != "squash" and not tall


def _resize_fast(pixels: Pixels, plan: Geometry, rows: slice, cols: slice, interpolation: str) -> Pixels:
    """Return the part [rows, cols] of the resize to (plan.height, plan.width) by torch's antialiased uint8 kernel.

    The operator is called directly because it takes the scale and the output size separately, so nothing is computed
    below and to the right of the crop.
    """
    import torch

    height, width = pixels.shape[:2]
    image_1HW3 = torch.from_numpy(np.require(pixels, requirements=("C", "W")))[None]
    resized_13HW = getattr(torch.ops.aten, _KERNELS[interpolation])(
        image_1HW3.permute(0, 3, 1, 2),  # with this batch stride it counts as channels_last, which is vectorized
        [_computed(height, plan.height, rows.stop), _computed(width, plan.width, cols.stop)],
        align_corners=False,
        scales_h=plan.height / height,
        scales_w=plan.width / width,
    )
    return resized_13HW[0].permute(1, 2, 0).numpy()[rows, cols]


def _computed(size: int, new_size: int, stop: int) -> int:
    """Return how many outputs to compute along an axis: `stop`, but not `size`, for which the kernel skips the axis."""
    if new_size == size:
        return size
    return stop + 1 if stop == size else stop
