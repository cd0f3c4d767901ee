"""Colors of attribution maps, and overlays of maps on images.

Positive values are yellow, negative ones blue: colors that people with any of the common color vision deficiencies can
tell apart. From the most negative to the most positive value, the colors become steadily lighter, so that the sign can
be read in a gray print, too. In an overlay, solid lines enclose what supports the class most, and dashed lines what
contradicts it most. Letters for shapes: H, W pixels; rows, columns of a map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data.decode import Pixels
from ..data.resize import resize_exact
from ..results import FloatArray
from .maps import cell_means, upsample

Bools = NDArray[np.bool_]

ANCHORS = (  # from -1 to 1 in equal steps; the lightness (L* of CIE 1976) grows by about 19 from one to the next
    (0x0A, 0x28, 0x60),
    (0x35, 0x5F, 0x9E),
    (0x8C, 0x8C, 0x8C),
    (0xDE, 0xB5, 0x3B),
    (0xFF, 0xF3, 0xA6),
)
NEGATIVE, POSITIVE = "#355f9e", "#deb53b"  # for legends
STEPS = 161  # colors of the table; odd, so that zero has a color of its own
SIDE = 448  # pixels of the longer side of an overlay
FINEST = 28  # cells along a side of a map that is drawn over an image as it is
AVERAGED = 8  # cells along a side to which a finer map is averaged: about those that the scores remove
OUTLINED = 0.5  # of the largest absolute value: the values that are enclosed
_MANY_CELLS = 1024  # of a map whose few largest values may be outliers
_STRONGEST = 0.85  # opacity of the largest values in an overlay
_GRAYS = (40.0, 215.0)  # of the image below the colors, so that both the lightest and the darkest color stand out
_DASH = (7, 5)  # pixels that are drawn and left out


def color_table() -> Pixels:
    """Return the colors from the most negative to the most positive value, (STEPS,3) uint8."""
    positions = np.linspace(-1, 1, STEPS)
    anchors = np.array(ANCHORS, np.float64)
    channels = [np.interp(positions, np.linspace(-1, 1, len(ANCHORS)), anchors[:, i]) for i in range(3)]
    return np.stack(channels, 1).round().astype(np.uint8)


def scale_of(values: FloatArray) -> float:
    """Return the absolute value of a (rows,columns) map that gets the strongest color; 1.0 if all are zero.

    It is the largest one; of maps with more than a thousand cells the 99.5th percentile, as single pixels can be
    outliers.
    """
    magnitudes = np.abs(values)
    scale = float(magnitudes.max()) if magnitudes.size <= _MANY_CELLS else float(np.quantile(magnitudes, 0.995))
    return scale or float(magnitudes.max()) or 1.0


def colorize(values: FloatArray, scale: float | None = None) -> Pixels:
    """Color an array of values (H,W): (H,W,3) uint8.

    scale: the absolute value that gets the strongest color; None takes that of `scale_of`.
    """
    relative = np.clip(values / (scale_of(values) if scale is None else scale), -1, 1)
    return color_table()[np.round((relative + 1) / 2 * (STEPS - 1)).astype(np.intp)]


def overlay(pixels: Pixels, values: FloatArray, side: int = SIDE) -> Pixels:
    """Draw a (rows,columns) map over pixels (H,W,3); return (height,width,3), `side` pixels on the longer side.

    The image is gray; the stronger a value, the more opaque its color. Values are interpolated between cells; a
    fine map is averaged before (see `is_averaged`).
    """
    if is_averaged(values):
        values = cell_means(values, *(min(size, AVERAGED) for size in values.shape))
    height, width = _fit(pixels.shape[0], pixels.shape[1], side)
    smooth = upsample(values, height, width)
    scale = scale_of(values)
    low, high = _GRAYS
    gray = low + (high - low) * _luma(enlarge(pixels, side)) / 255
    opacity = _STRONGEST * np.clip(np.abs(smooth) / scale, 0, 1)[..., None] ** 0.65
    mixed = (1 - opacity) * gray[..., None] + opacity * colorize(smooth, scale)
    result = mixed.round().astype(np.uint8)
    line = max(round(side / 220), 1)
    _draw_outline(result, smooth > OUTLINED * scale, line, dashed=False)
    _draw_outline(result, smooth < -OUTLINED * scale, line, dashed=True)
    return result


def is_averaged(values: FloatArray) -> bool:
    """Return whether a (rows,columns) map is too fine for an overlay, in which single pixels would look like noise."""
    return max(values.shape) > FINEST


def enlarge(pixels: Pixels, side: int = SIDE) -> Pixels:
    """Resize an image (H,W,3) uint8 to a longer side of `side` pixels: (height,width,3).

    A small image is enlarged without smoothing, so that its pixels can be seen.
    """
    height, width = _fit(pixels.shape[0], pixels.shape[1], side)
    if max(pixels.shape[:2]) * 3 <= side:
        rows, columns = (
            (np.arange(size) * old // size) for size, old in zip((height, width), pixels.shape, strict=False)
        )
        return np.ascontiguousarray(pixels[np.ix_(rows, columns)])
    return resize_exact(pixels, height, width, slice(0, height), slice(0, width), "bicubic")


def luminance(colors: Pixels) -> FloatArray:
    """Return the lightness of (...,3) uint8 sRGB colors, as a gray print shows it: L* of CIE 1976, 0 to 100."""
    linear = np.where(colors <= 10, colors / 255 / 12.92, ((colors / 255 + 0.055) / 1.055) ** 2.4)
    relative = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(relative > 216 / 24389, 116 * np.cbrt(relative) - 16, relative * 24389 / 27)
    return lightness.astype(np.float32)


def _luma(pixels: Pixels) -> FloatArray:
    return (pixels @ np.array([0.299, 0.587, 0.114])).astype(np.float32)


def _fit(height: int, width: int, side: int) -> tuple[int, int]:
    scale = side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _draw_outline(pixels: Pixels, region: Bools, line: int, *, dashed: bool) -> None:
    """Draw the border of a region (H,W) into (H,W,3) pixels: black and white side by side, to be seen on any color."""
    inner = region & ~_shrink(region, line)
    outer = region & ~_shrink(region, 2 * line) & ~inner
    if dashed:
        y, x = np.indices(region.shape)
        gaps = (x + y) // line % sum(_DASH) >= _DASH[0]
        inner, outer = inner & ~gaps, outer & ~gaps
    pixels[inner] = 0 if not dashed else 255
    pixels[outer] = 255 if not dashed else 0


def _shrink(region: Bools, by: int) -> Bools:
    """Remove the cells within `by` pixels of the border of a region; the edge of the image is a border, too."""
    padded = np.pad(region, by)
    result = padded.copy()
    for axis in (0, 1):
        inside = result.copy()
        for shift in range(1, by + 1):
            inside &= np.roll(result, shift, axis) & np.roll(result, -shift, axis)
        result = inside
    return result[by:-by, by:-by]
