"""Pictures of the report: thumbnails of images, and a map of the embeddings colored by class.

Letters for shapes: N images, K classes, D width of the embedding, H, W height and width of a picture.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..data.all_splits import SplitImages
from ..data.decode import Pixels
from ..data.isolated import Decoded, IsolatedDecoder
from ..data.resize import resize_exact
from ..data.spec import InputSpec
from ..data.turbo import encode_jpeg
from ..plots.figures import STYLES
from ..results import FloatArray
from ..search.projection import project
from .settings import ProgressCallback

SIDE = 128  # pixels of the longer side of a thumbnail
SMALL = 64  # images up to this side are enlarged to SIDE without smoothing, so that their pixels can be seen
QUALITY = 80  # of the JPEG file of a thumbnail
MAP = 720  # pixels of a side of the map
MARGIN = 12  # pixels around the points
BATCH = 8_192  # embeddings in float32 at a time
POINTS = 50_000  # with fewer points, each is drawn larger


def thumbnails(
    images: SplitImages, indices: Iterable[int], *, progress: ProgressCallback | None = None
) -> dict[int, bytes]:
    """Return a JPEG file of each of these images; those that cannot be read are left out.

    progress: called with ("thumbnails", images done, number of images).
    """
    wanted = sorted(set(indices))
    # squashed to a square, because the decoding processes make images of one size, and then to the right sides
    square = InputSpec(height=2 * SIDE, width=2 * SIDE, crop_pct=1.0, crop_mode="squash", interpolation="bilinear")
    found = {}
    with IsolatedDecoder(square, mode="fast") as decoder:
        sources = (images.images.source(i) for i in wanted)
        for number, (i, decoded) in enumerate(zip(wanted, decoder.decoded(sources), strict=True), 1):
            if decoded.pixels is not None:
                found[i] = encode_jpeg(_upright(decoded, decoded.pixels), QUALITY)
            if progress:
                progress("thumbnails", number, len(wanted))
    return found


def _upright(decoded: Decoded, square: Pixels) -> Pixels:
    """Return the pixels of a squashed image (S,S,3) with the sides of the image, the longer one SIDE pixels."""
    scale = SIDE / max(decoded.width, decoded.height)
    height, width = (max(round(side * scale), 1) for side in (decoded.height, decoded.width))
    return resize_exact(square, height, width, slice(0, height), slice(0, width), "bilinear")


# --- the map ----------------------------------------------------------------------------------------------------------


def class_colors(classes: int) -> NDArray[np.uint8]:
    """Return a color (K,3) per class: those of the figures for a few classes, else hues around the circle."""
    if classes < len(STYLES):
        return np.array(
            [[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code, _ in STYLES[1 : classes + 1]], np.uint8
        )
    colors = [colorsys.hsv_to_rgb(i / classes, 0.85 if i % 2 else 0.6, 0.6 if i % 2 else 0.85) for i in range(classes)]
    return np.round(255 * np.array(colors)).astype(np.uint8)


def map_points(vectors_ND: NDArray[np.float16]) -> FloatArray:
    """Return the two principal components (N,2) of embeddings (N,D), scaled into [-1, 1]."""
    starts = range(0, len(vectors_ND), BATCH)
    batches = lambda: (vectors_ND[i : i + BATCH].astype(np.float32) for i in starts)  # noqa: E731 - called twice
    return project(batches, vectors_ND.shape[1], "pca").points


def draw_map(points_N2: FloatArray, colors_N3: NDArray[np.uint8], marked_N: NDArray[np.bool_]) -> Pixels:
    """Return the map (H,W,3): a square per point (N,2) in its color (N,3); the marked ones (N,) have a dark frame."""
    canvas = np.full((MAP, MAP, 3), 255, np.uint8)
    reach = 2 if len(points_N2) < POINTS else 1
    scale = (MAP - 1) / 2 - MARGIN
    column_N = np.round((MAP - 1) / 2 + scale * points_N2[:, 0]).astype(np.int64)
    row_N = np.round((MAP - 1) / 2 - scale * points_N2[:, 1]).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(points_N2))  # no class covers all others
    for chosen, size, framed in (
        (order, reach, False),
        (order[marked_N[order]], reach + 2, True),
        (order[marked_N[order]], reach, False),
    ):
        for row in range(-size, size + 1):
            for column in range(-size, size + 1):
                ink = np.zeros((len(chosen), 3), np.uint8) if framed else colors_N3[chosen]
                canvas[row_N[chosen] + row, column_N[chosen] + column] = ink
    return canvas
