"""Images that are unlike the others: far from all others by embedding, or odd in size, brightness or sharpness.

A value is compared with those of the data set by its robust standard score: its distance from the median, divided by
1.4826 times the median of the absolute distances from it, which is the standard deviation if the values are normally
distributed. A cut of 5 then exceeds what one image in 3.5 million would reach by chance on one side; real distributions
have longer tails, so the scores are an order, not probabilities.

Letters for shapes: N images, K neighbors, F statistics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..results import FloatArray
from .measuring import Measurements
from .neighbors import Neighbors, find_neighbors
from .pixel_statistics import STATISTICS

Ints = NDArray[np.int64]

NEIGHBORS = 10  # nearest neighbors whose mean distance tells how far an image is from the others
LEAST = 30  # values from which a median and a spread are estimated; with fewer, nothing is called odd
UNIFORM = 2.0  # standard deviation of the luma below which an image is one color
GRAY = 4.0  # colorfulness below which an image is gray; JPEG compression gives gray images a little color
RARE = 0.05  # fraction of the images up to which gray images are odd
DARK, BRIGHT = 60.0, 195.0  # mean luma: only images beyond are called dark or bright
ELONGATED, SMALL = 1.5, 0.6  # ratio of the aspect ratio and of the size to the median: only images beyond are odd
BLURRED = 2.0  # steps of the sharpness below the median, each a factor of 2 in the variance of the Laplacian
MAD = 1.4826  # standard deviations of a normal distribution per median absolute deviation


class Oddity(NamedTuple):
    """An image that is unlike the others. kind: one of the kinds of `findings`; score: robust standard score."""

    image: int
    kind: str
    score: float
    reason: str


class Remoteness(NamedTuple):
    """How far images are from their nearest neighbors, as robust standard scores.

    overall: (N,) compared with all images. in_class: (N,) distance to images of the same class, compared with others
    of the class. distance, class_distance: (N,) mean cosine distances.
    """

    overall: FloatArray
    in_class: FloatArray
    distance: FloatArray
    class_distance: FloatArray


def standard_scores(values_N: NDArray[np.floating], least_spread: float = 1e-6) -> FloatArray:
    """Return the robust standard scores (N,) of values (N,); zeros for fewer than LEAST.

    least_spread: smallest standard deviation, so that values that hardly differ have small scores.
    """
    if len(values_N) < LEAST:
        return np.zeros(len(values_N), np.float32)
    median = np.median(values_N)
    spread = max(MAD * float(np.median(np.abs(values_N - median))), least_spread)
    return ((values_N - median) / spread).astype(np.float32)


# --- embeddings -------------------------------------------------------------------------------------------------------


def find_remote(vectors_ND: NDArray[np.float16], labels_N: Ints, group_N: Ints, neighbors: Neighbors) -> Remoteness:
    """Measure how far each image is from others.

    vectors_ND: embeddings (N,D) of unit length. labels_N: (N,) classes; -1 for none. group_N: (N,) integers that copies
    share: a copy is no neighbor, since an odd image is not less odd if it occurs twice. neighbors: of all images.
    """
    distance_N = _mean_distance(neighbors, group_N)
    class_distance_N, in_class_N = np.zeros(len(labels_N), np.float32), np.zeros(len(labels_N), np.float32)
    for label in np.unique(labels_N[labels_N >= 0]):
        members = np.flatnonzero(labels_N == label)
        nearest = find_neighbors(vectors_ND[members], neighbors.row.shape[1], group_N=group_N[members])
        class_distance_N[members] = _mean_distance(nearest, group_N[members])
        in_class_N[members] = standard_scores(class_distance_N[members], 0.01)
    return Remoteness(standard_scores(distance_N, 0.01), in_class_N, distance_N, class_distance_N)


def _mean_distance(neighbors: Neighbors, group_N: Ints) -> FloatArray:
    """Return the mean cosine distance (N,) to the neighbors that are no copies; 0 if there are none."""
    used_NK = (neighbors.row >= 0) & (group_N[neighbors.row] != group_N[:, None])
    total_N = np.where(used_NK, 1 - neighbors.cosine, 0).sum(1)
    return (total_N / np.maximum(used_NK.sum(1), 1)).astype(np.float32)


# --- pixels and sizes -------------------------------------------------------------------------------------------------


def find_odd(measured: Measurements, cut: float) -> list[Oddity]:
    """Return the images whose size or pixels are unlike those of the others, by their robust standard scores."""
    rows = np.flatnonzero(measured.ok)
    if not len(rows):
        return []
    values = dict(zip(STATISTICS, measured.statistics[rows].T.astype(np.float64), strict=True))
    width, height = (getattr(measured, name)[rows].astype(np.float64) for name in ("width", "height"))
    found = [
        Oddity(int(rows[i]), "uniform", float(UNIFORM - values["contrast"][i]), _one_color(values["brightness"][i]))
        for i in np.flatnonzero(values["contrast"] < UNIFORM)
    ]
    varied = values["contrast"] >= UNIFORM
    for kind, score_N, beyond_N, text, shown_N in (
        *_pixel_tests(values, varied),
        *_size_tests(width, height),
    ):
        median = float(np.median(shown_N))
        for i in np.flatnonzero(beyond_N & (score_N >= cut)):
            reason = text.format(value=shown_N[i], median=median, score=score_N[i])
            found.append(Oddity(int(rows[i]), kind, float(score_N[i]), reason))
    return found + _gray(values["colorfulness"], varied, rows)


_Test = tuple[str, FloatArray, NDArray[np.bool_], str, NDArray[np.float64]]  # kind, scores, beyond, reason, values


def _pixel_tests(values: dict[str, NDArray[np.float64]], varied: NDArray[np.bool_]) -> list[_Test]:
    brightness, sharpness = values["brightness"], values["sharpness"]
    lightness = standard_scores(brightness, 8)
    blur = -standard_scores(sharpness, 0.3)
    shown = "mean brightness {value:.0f} of 255, the median is {median:.0f}; {score:.1f} robust standard deviations"
    return [
        ("dark", -lightness, varied & (brightness < DARK), shown, brightness),
        ("bright", lightness, varied & (brightness > BRIGHT), shown, brightness),
        (
            "blurred",
            blur,
            varied & (sharpness < np.median(sharpness) - BLURRED),
            "sharpness {value:.1f} (base-2 logarithm of the variance of the Laplacian), the median is {median:.1f}; "
            "{score:.1f} robust standard deviations below",
            sharpness,
        ),
    ]


def _size_tests(width_N: NDArray[np.float64], height_N: NDArray[np.float64]) -> list[_Test]:
    aspect = np.abs(np.log(width_N / height_N))  # of the longer side to the shorter one: some photographs are upright
    side = np.log(np.sqrt(width_N * height_N))
    return [
        (
            "elongated",
            standard_scores(aspect, 0.05),
            aspect > np.median(aspect) + np.log(ELONGATED),
            "the longer side is {value:.2f} times the shorter one, the median is {median:.2f}; {score:.1f} robust "
            "standard deviations above",
            np.exp(aspect),
        ),
        (
            "small",
            -standard_scores(side, 0.05),
            side < np.median(side) + np.log(SMALL),
            "{value:.0f} pixels are the geometric mean of its sides, the median is {median:.0f}; {score:.1f} robust "
            "standard deviations below",
            np.exp(side),
        ),
    ]


def _gray(colorfulness_N: NDArray[np.float64], varied_N: NDArray[np.bool_], rows: Ints) -> list[Oddity]:
    is_gray = varied_N & (colorfulness_N < GRAY)
    fraction = float(is_gray.sum() / max(len(rows), 1))
    if len(rows) < LEAST or fraction > RARE:
        return []
    reason = f"gray, while {100 * (1 - fraction):.1f} % of the images have colors"
    return [Oddity(int(rows[i]), "gray", float(GRAY - colorfulness_N[i]), reason) for i in np.flatnonzero(is_gray)]


def _one_color(brightness: float) -> str:
    return f"one color: the brightness is {brightness:.0f} everywhere"
