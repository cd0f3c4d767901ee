"""Statistics of an image, and a small picture of it, from the pixels that the model sees.

Since all images have the same number of pixels there, the sharpness of a large and of a small photograph can be
compared: it is that of the picture as the model gets it. An image that was enlarged for the model looks blurred to it.

Letters for shapes: H, W height and width of the model's input, F statistics, S side of a tile.
"""

from __future__ import annotations

import numpy as np

from ..data.decode import Pixels
from ..data.resize import resize_exact
from ..results import FloatArray

STATISTICS = ("brightness", "contrast", "sharpness", "colorfulness")
TILE = 32  # pixels of a side of a tile
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of ITU-R BT.601


def statistics_of(pixels: Pixels) -> FloatArray:
    """Return the (F,) STATISTICS of an image (H,W,3) uint8.

    brightness: mean luma, 0 to 255. contrast: standard deviation of the luma. sharpness: base-2 logarithm of 1 + the
    variance of the Laplacian of the luma. colorfulness: the measure M of Hasler and Suesstrunk, 2003; 0 for gray.
    """
    values = pixels.astype(np.float32)
    luma_HW = values @ _LUMA
    laplacian = luma_HW[:-2, 1:-1] + luma_HW[2:, 1:-1] + luma_HW[1:-1, :-2] + luma_HW[1:-1, 2:]
    laplacian -= 4 * luma_HW[1:-1, 1:-1]
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    difference_rg, difference_yb = red - green, (red + green) / 2 - blue
    spread = np.hypot(difference_rg.std(), difference_yb.std())
    mean = np.hypot(difference_rg.mean(), difference_yb.mean())
    sharpness = np.log2(1 + laplacian.var()) if laplacian.size else 0.0
    return np.array([luma_HW.mean(), luma_HW.std(), sharpness, spread + 0.3 * mean], np.float32)


def tile_of(pixels: Pixels) -> Pixels:
    """Return an image (H,W,3) reduced to (S,S,3): the mean of the pixels that each of its pixels covers."""
    if pixels.shape[:2] == (TILE, TILE):
        return pixels
    return resize_exact(pixels, TILE, TILE, slice(0, TILE), slice(0, TILE), "box")
