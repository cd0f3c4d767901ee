"""How faithful an attribution map is for one image, measured beside random maps.

The image is divided into cells, whole patches of the model where possible. A removed cell is replaced by the same cell
of a heavily blurred copy of the image: a uniform color would add edges that the image does not have, and less blur
would leave the class visible. The score of an image is what the map explains: the logit of the class, or the difference
of two logits. Probabilities would saturate, and would change with evidence for classes that the map is not about. Three
figures are computed:

- deletion: the mean score while cells are removed, those with the highest values first; lower is better
- insertion: the mean score while cells are put back into the blurred image, highest values first; higher is better
- correlation: Spearman's rank correlation between the map's values and the drop of the score when only that cell is
  removed; higher is better

Each is compared with random maps that are as smooth as the map under test. A figure is better than random if it is
beyond the upper 2.5 % of random maps; a map is called faithful if two of the three figures are. A random map fulfills
this for at most 3.75 % of images, however the figures depend on each other: the expected number of figures that pass is
at most 0.075, and two have to. With 39 random maps, the best of them is the limit of the upper 2.5 %, exactly.

Random maps are as probable as their negatives, and inserting the highest values first shows the model the same images
as deleting the lowest first. So both mean scores have the same distribution, and one set of passes serves both.

Letters for shapes: H, W pixels of the model's input; M images or maps, N cells, S points of a curve.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UsageError, WeightsError
from ..models.base import ImageModel
from ..results import FloatArray
from ..text import any_of
from .maps import AttributionMap, cell_means, upsample
from .random_maps import Doubles, Ints, average_ranks, matching_smoothness, random_orders
from .subject import PreparedImage, Subject

STEPS = 4  # parts of a curve: scores are computed after each
RANDOM_MAPS = 39  # whose curves are computed; the highest of 39 is the limit of the upper 2.5 %
RANDOM_CORRELATIONS = 999  # random maps of the correlation, which need no passes through the model
REQUIRED = 2  # of the three figures have to be better than random for a map to be called faithful
TAIL = 0.025  # part of random maps on either side of the interval
CELLS = range(4, 9)  # along a side, if the model has that many patches
REMOVALS = ("blur", "mean")
BLUR = 1 / 8  # standard deviation of the blur, as a fraction of the side
NON_FINITE = "without some parts of this image, the output of the model contains NaN or infinity"
BATCH, BATCH_PIXELS = 64, 1 << 20  # most images, and most pixels, in one pass
ROUNDING = 1e-5  # scores that differ by less than this part of the largest are equal
RESOLUTION = 1 << 20  # values of a map that differ by less than its range divided by this are equal


@dataclass(frozen=True)
class ScoreSettings:
    """How maps are scored.

    steps: points of a curve beyond the first. random_maps: those whose curves are computed. removal: what replaces a
    removed cell: "blur" for a heavily blurred copy of the image, "mean" for its mean color.
    """

    steps: int = STEPS
    random_maps: int = RANDOM_MAPS
    removal: str = "blur"

    def __post_init__(self) -> None:
        """Check the values. Raises UsageError `bad_argument`."""
        if self.steps < 2 or self.random_maps < 1:
            problem = f"steps={self.steps} must be at least 2, and random_maps={self.random_maps} at least 1"
            raise UsageError("bad_argument", problem)
        if self.removal not in REMOVALS:
            raise UsageError("bad_argument", f"removal is {self.removal!r}, expected {any_of(REMOVALS)}")


@dataclass(frozen=True)
class Score:
    """One figure of a map, with the interval of 95 % of random maps and their mean.

    better: the value lies beyond the interval, on the good side.
    """

    value: float
    random_low: float
    random_high: float
    random_mean: float
    better: bool


@dataclass(frozen=True)
class Curve:
    """Scores (S,) while cells are deleted or inserted, and those of random maps: mean and interval of 95 %.

    fractions: the parts (S,) of the cells that are deleted or inserted, from 0 to 1.
    """

    fractions: FloatArray
    values: FloatArray
    random_low: FloatArray
    random_high: FloatArray
    random_mean: FloatArray


@dataclass(frozen=True)
class Faithfulness:
    """How faithful a map is for one image.

    deletion, insertion: mean scores under the curves, in the unit of the logit; correlation: from -1 to 1. cells: rows
    and columns into which the image was divided. smoothness: that of the random maps, as the width of a kernel in
    cells. reason: a sentence that gives the reason for the verdict.
    """

    deletion: Score
    insertion: Score
    correlation: Score
    deletion_curve: Curve
    insertion_curve: Curve
    faithful: bool
    reason: str
    cells: tuple[int, int]
    smoothness: float

    @property
    def verdict(self) -> str:
        """Either "faithful" or "not faithful here"."""
        return "faithful" if self.faithful else "not faithful here"


def score_map(
    subject: Subject,
    image: PreparedImage,
    map: AttributionMap,
    target: int,
    *,
    versus: int | None = None,
    steps: int = STEPS,
    random_maps: int = RANDOM_MAPS,
    seed: int = 0,
) -> Faithfulness:
    """Measure how faithful one map is; `Scorer` does it for several maps of one image with fewer passes.

    target, versus: the classes of the map. steps: points of a curve beyond the first. random_maps: those whose curves
    are computed; with fewer than 39, more than 2.5 % of random maps are beyond the interval. The model computes at most
    189 images: without each of up to 64 cells, and three for each curve.
    Raises UsageError `bad_argument` for classes or numbers out of range, and a map that is not finite; WeightsError
    `non_finite` if the output of the model is not finite without some parts of the image.
    """
    return Scorer(subject, image, target, versus, settings=ScoreSettings(steps, random_maps), seed=seed).score(map)


class Scorer:
    """Scores maps of one image and class. What does not depend on the map is computed once.

    passes: images that the model has computed so far. The results depend on the seed and the pixels of the image, but
    not on the order in which maps are scored.
    """

    def __init__(
        self,
        subject: Subject,
        image: PreparedImage,
        target: int,
        versus: int | None = None,
        *,
        settings: ScoreSettings | None = None,
        seed: int = 0,
    ):
        """Prepare the image; `score_map` explains the arguments. Raises UsageError `bad_argument`."""
        _check(subject, target, versus)
        settings = ScoreSettings() if settings is None else settings
        self.passes = 0
        self._subject, self._image, self._target, self._versus = subject, image, target, versus
        self._height, self._width = image.x.shape[2:]
        self.cells = cell_grid(subject.model, self._height, self._width)
        self._removal = blurred(image.x) if settings.removal == "blur" else _mean_color(image.x)
        self._places = _cell_of_pixels(self.cells, self._height, self._width).to(image.x.device)
        count = math.prod(self.cells)
        self._removed = np.unique(np.linspace(0, count, min(settings.steps, count) + 1).round().astype(np.int64))
        self._random_maps = settings.random_maps
        self._seeds = (seed % (1 << 64), zlib.crc32(image.pixels.tobytes()))
        self._random_curves: dict[float, Doubles] = {}  # scores (M,S) of random maps, by smoothness
        self._random_places: dict[float, Ints] = {}  # the place (M,N) of each cell in the order of a random map

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """Scores of the image and of an image of which everything is removed."""
        kept, removed = self._scores(np.arange(2)[:, None].repeat(math.prod(self.cells), 1) == 1)
        return float(kept), float(removed)

    @cached_property
    def drops(self) -> Doubles:
        """How much the score falls if one cell is removed, as (N,)."""
        drops_N = self._ends[0] - self._scores(np.eye(math.prod(self.cells), dtype=bool))
        return drops_N if np.ptp(drops_N) > ROUNDING * max(map(abs, self._ends)) else np.zeros_like(drops_N)

    def score(self, map: AttributionMap) -> Faithfulness:
        """Measure a map of this image and class, of any resolution. Raises the errors of `score_map`."""
        levels_N = self._levels(map)
        smoothness = matching_smoothness(levels_N.reshape(self.cells))
        random_MS = self._curves_of_random_maps(smoothness)
        order_N = self._order(levels_N)
        curves_2S = self._curves(np.stack([order_N, order_N[::-1]]))  # deletion, and insertion from its end
        areas_2, random_M = self._areas(curves_2S), self._areas(random_MS)
        noise = ROUNDING * max(float(np.abs(random_MS).max()), float(np.abs(curves_2S).max()))
        scores = dict(
            deletion=compare(areas_2[0], random_M, noise, lower_is_better=True),
            insertion=compare(areas_2[1], random_M, noise),
            correlation=compare(*self._correlations(levels_N, smoothness), 1e-9),
        )
        faithful, reason = _verdict(levels_N, self.drops, scores)
        fractions_S = self._removed / self._removed[-1]
        return Faithfulness(
            **scores,
            deletion_curve=_curve(fractions_S, curves_2S[0], random_MS),
            insertion_curve=_curve(1 - fractions_S[::-1], curves_2S[1, ::-1], random_MS[:, ::-1]),
            faithful=faithful,
            reason=reason,
            cells=self.cells,
            smoothness=smoothness,
        )

    def _levels(self, map: AttributionMap) -> Doubles:
        """Return the value of each cell (N,) as a whole number, so that differences by rounding are ties."""
        values = np.asarray(map.values)
        if values.ndim != 2 or not values.size or not np.isfinite(values).all():
            problem = f"the map has the shape {values.shape} or values that are not finite"
            raise UsageError("bad_argument", problem, hint="expected finite values (rows,columns)")
        coarser = values.shape[0] < self.cells[0] or values.shape[1] < self.cells[1]
        pixels = upsample(values, self._height, self._width, smooth=coarser)
        means_N = cell_means(pixels, *self.cells).astype(np.float64).ravel()
        span = float(np.ptp(means_N))
        if span <= 1e-6 * np.abs(means_N).max():
            return np.zeros_like(means_N)
        return np.round((means_N - means_N.min()) / span * RESOLUTION)

    def _order(self, levels_N: Doubles) -> Ints:
        """Return the cells from the highest value to the lowest; chance decides between equal ones, not the place."""
        chance_N = self._rng(0).permutation(len(levels_N))
        return np.lexsort((chance_N, -levels_N))

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((*self._seeds, *stream))

    def _curves_of_random_maps(self, smoothness: float) -> Doubles:
        """Return the scores (M,S) of random maps while their cells are removed."""
        if smoothness not in self._random_curves:
            rng = self._rng(1, int(smoothness * 100))
            orders_MN = random_orders(rng, self._random_maps, self.cells, smoothness)
            self._random_curves[smoothness] = self._curves(orders_MN)
        return self._random_curves[smoothness]

    def _curves(self, orders_MN: Ints) -> Doubles:
        """Return the scores (M,S) while cells are removed in these orders."""
        ranks_MN = np.argsort(orders_MN, axis=1)
        inner = self._removed[1:-1]
        masks_MSN = ranks_MN[:, None] < inner[:, None]
        scores = self._scores(masks_MSN.reshape(-1, orders_MN.shape[1])).reshape(len(orders_MN), len(inner))
        full, empty = self._ends
        return np.pad(scores, ((0, 0), (1, 1)), constant_values=((0, 0), (full, empty)))

    def _areas(self, curves_MS: Doubles) -> Doubles:
        """Return the mean score under each curve (M,), over the part of the removed cells from 0 to 1."""
        fractions_S = self._removed / self._removed[-1]
        areas_M: Doubles = ((curves_MS[:, 1:] + curves_MS[:, :-1]) / 2 * np.diff(fractions_S)).sum(1)
        return areas_M

    def _correlations(self, levels_N: Doubles, smoothness: float) -> tuple[float, Doubles]:
        """Return the rank correlation of the map with the drops, and those of random maps with the same ties."""
        ranks_N, drops_N = average_ranks(levels_N), average_ranks(self.drops)
        ranks_N, drops_N = ranks_N - ranks_N.mean(), drops_N - drops_N.mean()
        norm = np.linalg.norm(ranks_N) * np.linalg.norm(drops_N)
        if smoothness not in self._random_places:
            rng = self._rng(2, int(smoothness * 100))
            orders_MN = random_orders(rng, RANDOM_CORRELATIONS, self.cells, smoothness)
            self._random_places[smoothness] = np.argsort(orders_MN, axis=1)
        random_MN = np.sort(ranks_N)[::-1][self._random_places[smoothness]]
        if norm == 0:
            return 0.0, np.zeros(RANDOM_CORRELATIONS)
        return float(ranks_N @ drops_N / norm), random_MN @ drops_N / norm

    def _scores(self, removed_MN: NDArray[np.bool_]) -> Doubles:
        """Return the score (M,) of the image without these cells."""
        size = max(1, min(BATCH, BATCH_PIXELS // (self._height * self._width)))
        batches = [self._batch(removed_MN[start : start + size]) for start in range(0, len(removed_MN), size)]
        self.passes += len(removed_MN)
        return np.concatenate(batches) if batches else np.zeros(0)

    def _batch(self, removed_MN: NDArray[np.bool_]) -> Doubles:
        masks_M1HW = torch.from_numpy(removed_MN).to(self._places.device)[:, self._places][:, None]
        logits = self._subject.logits(torch.where(masks_M1HW, self._removal, self._image.x)).astype(np.float64)
        scores_M: Doubles = logits[:, self._target] - (0 if self._versus is None else logits[:, self._versus])
        if not np.isfinite(scores_M).all():
            raise WeightsError("non_finite", NON_FINITE)
        return scores_M


def _check(subject: Subject, target: int, versus: int | None) -> None:
    count = subject.model.num_classes
    for index in (target, target if versus is None else versus):
        if not 0 <= index < count:
            raise UsageError("bad_argument", f"there is no class {index}: the model has classes 0 to {count - 1}")
    if versus == target:
        raise UsageError("bad_argument", f"class {target} cannot be compared with itself")


def cell_grid(model: ImageModel, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of cells in which a model's images are removed: 4 to 8 of each, of whole patches.

    A model with fewer patches than 4 has one cell for each; one whose patches are not divisible gets 8 along the side.
    """
    patch = getattr(model.config, "patch_size", 1)
    patch = patch[0] if isinstance(patch, Sequence) else patch
    rows, columns = (_cells_along(max(1, size // patch)) for size in (height, width))
    return rows, columns


def _cells_along(patches: int) -> int:
    if patches <= CELLS[-1]:
        return patches
    return max((count for count in CELLS if patches % count == 0), default=CELLS[-1])


def blurred(x: Tensor) -> Tensor:
    """Return (B,C,H,W) images after a Gaussian blur of an eighth of the side, which leaves broad colors only."""
    down, across = (_blur(size).to(x) for size in x.shape[2:])
    return down @ x @ across.T


def _mean_color(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True).expand_as(x)


def _blur(size: int) -> Tensor:
    """Return (size,size) weights of the blur along an axis; beyond the border, there is nothing to average."""
    places = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / (size * BLUR)) ** 2)
    return weights / weights.sum(1, keepdim=True)


def interval(random_MS: Doubles) -> tuple[Doubles, Doubles]:
    """Return the limits (S,) beyond which another random map lies with a probability of 2.5 % on either side.

    These are order statistics, so the probability is exact if 2.5 % of M + 1 is a whole number, and the lowest that M
    random maps can show otherwise. Accepts (M,) or (M,S) values.
    """
    ordered = np.sort(random_MS, axis=0)
    place = max(1, math.floor(TAIL * (len(ordered) + 1)))
    return ordered[place - 1], ordered[-place]


def compare(value: float, random_M: Doubles, noise: float, *, lower_is_better: bool = False) -> Score:
    """Compare a value with those of random maps (M,).

    noise: differences up to this are not counted: a value that is so close to the interval becomes its limit.
    """
    low, high = interval(random_M)
    if low - noise <= value <= high + noise:
        value = float(np.clip(value, low, high))
    better = value < low if lower_is_better else value > high
    return Score(float(value), float(low), float(high), float(random_M.mean()), bool(better))


def _curve(fractions_S: Doubles, values_S: Doubles, random_MS: Doubles) -> Curve:
    low_S, high_S = interval(random_MS)
    return Curve(*(array.astype(np.float32) for array in (fractions_S, values_S, low_S, high_S, random_MS.mean(0))))


def _verdict(levels_N: Doubles, drops_N: Doubles, scores: dict[str, Score]) -> tuple[bool, str]:
    """Apply the rule: two of three figures are better than random."""
    if not np.ptp(levels_N):
        return False, "the map is constant, so it ranks nothing"
    if not np.ptp(drops_N):
        return False, "no region changes the score when it is removed"
    better = [name for name, score in scores.items() if score.better]
    worse = [name for name in scores if name not in better]
    if len(better) >= REQUIRED:
        exception = f", not in {worse[0]}" if worse else ""
        return True, f"better than 97.5 % of random maps in {_listed(better)}{exception}"
    if better:
        return False, f"better than 97.5 % of random maps in {better[0]} only, not in {_listed(worse)}"
    return False, "not better than random maps in deletion, insertion or correlation"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _cell_of_pixels(cells: tuple[int, int], height: int, width: int) -> Tensor:
    """Return the index (H,W) of the cell that each pixel belongs to."""
    indices = np.arange(math.prod(cells), dtype=np.float32).reshape(cells)
    return torch.from_numpy(upsample(indices, height, width, smooth=False).astype(np.int64))
