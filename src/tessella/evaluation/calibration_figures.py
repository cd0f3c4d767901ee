"""Figures about a calibration, measured on images that it was not fitted on.

The images are divided into parts, REPEATS times at random. Each part is judged by a calibration of the same kind that
was fitted on the others, so every image is judged once per repeat. Means are over all of that.

Letters for shapes: N images, K classes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..calibration.arrays import images_needed
from ..calibration.calibration import Calibration, UnknownDetection
from ..calibration.detectors import DetectorKind
from ..calibration.fitting import CalibrationSettings, DetectorFigures, Fitted, LabeledOutputs, fit
from ..calibration.prediction_sets import PredictionSets, true_scores
from ..calibration.temperature import scaled_probabilities
from ..results import FloatArray
from .metrics import Answers, Floats, Ints, calibration_error, join, judge

REPEATS = 4
FOLDS = (5, 10, 20, 40)  # numbers of parts: more of them if too few images would be left for finite thresholds
LEVEL = 0.95  # of the ranges in which figures are expected
LEAST_IN_CLASS = 10  # images of a class that can be the worst one


class Expected(NamedTuple):
    """The range in which a measured share is expected, LEVEL of the time, if the promise holds."""

    low: float
    high: float


class ClassCoverage(NamedTuple):
    """The coverage of one class, on a number of images, and the range in which it is expected."""

    label: str
    coverage: float
    images: int
    expected: Expected


class Judged(NamedTuple):
    """How calibrations judged N images: whether the set has the true class, with the most probable class always
    in it (covered) and without (exact); the size of the set; whether the image was called unknown. All are (N,).
    """

    covered: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    sizes: Ints
    unknown: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class CalibrationFigures:
    """How well a calibration keeps its promises; shares are from 0 to 1.

    images: number of images. top1: accuracy. ece, loss: expected calibration error (15 bins) and mean negative
    log-likelihood, before and after. coverage: share of images whose set has the true class; exact_coverage: the same
    if the most probable class were not always in the set; expected: the range for the latter. worst: the class with
    the lowest coverage, among those with at least LEAST_IN_CLASS images. set_size: mean number of classes; single:
    share of sets with one class. false_alarms: share of the images that was called unknown. detectors: how well
    each tells unknown images from these, the best first; empty without unknown images.
    """

    images: int
    top1: float
    ece_before: float
    ece_after: float
    loss_before: float
    loss_after: float
    coverage: float
    exact_coverage: float
    expected: Expected
    worst: ClassCoverage | None
    set_size: float
    single: float
    false_alarms: float
    false_alarms_expected: Expected
    detectors: tuple[DetectorFigures, ...]
    folds: int
    repeats: int = REPEATS

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON."""
        values = dict(vars(self))
        values |= {name: list(value) for name, value in values.items() if isinstance(value, Expected)}
        worst = None if self.worst is None else self.worst._asdict() | dict(expected=list(self.worst.expected))
        return values | dict(worst=worst, detectors=[row._asdict() for row in self.detectors])


def measure_figures(
    outputs: LabeledOutputs,
    fitted: Fitted,
    settings: CalibrationSettings,
    labels: tuple[str, ...],
) -> CalibrationFigures:
    """Return the figures of calibrations like `fitted`, for the images that it was fitted on.

    labels: of the classes (K,).
    """
    kind: DetectorKind = fitted.unknown.detector.kind
    settings = dataclasses.replace(settings, per_class=fitted.sets.per_class, detector=kind)
    folds = choose_folds(fitted, settings)
    rounds = [_judge_all(outputs, settings, folds, seed) for seed in range(REPEATS)]
    judged = [one for _, one in rounds]
    before = judge(outputs.logits, outputs.labels)
    count = len(outputs.labels)
    held = _left(len(fitted.sets.scores), folds)  # images that gave the thresholds of one part
    quiet = expected_share(1 - settings.false_alarms, count, held)
    coverage_N = np.mean([one.covered for one in judged], axis=0)
    sizes_N = np.concatenate([one.sizes for one in judged])
    return CalibrationFigures(
        images=count,
        top1=float(before.correct.mean()),
        ece_before=calibration_error(before),
        ece_after=float(np.mean([calibration_error(answers) for answers, _ in rounds])),
        loss_before=float(before.loss.mean()),
        loss_after=float(np.mean([answers.loss.mean() for answers, _ in rounds])),
        coverage=float(coverage_N.mean()),
        exact_coverage=float(np.mean([one.exact for one in judged])),
        expected=expected_share(settings.coverage, count, held),
        worst=_worst_class(coverage_N, outputs.labels, labels, settings.coverage, held),
        set_size=float(sizes_N.mean()),
        single=float((sizes_N == 1).mean()),
        false_alarms=float(np.mean([one.unknown for one in judged])),
        false_alarms_expected=Expected(1 - quiet.high, 1 - quiet.low),
        detectors=fitted.detectors,
        folds=folds,
    )


def choose_folds(fitted: Fitted, settings: CalibrationSettings) -> int:
    """Return a number of parts that leaves enough images for finite thresholds, if those of `fitted` are finite.

    With infinite thresholds, the figures would say that every set has all classes, or that no image is called unknown.
    """
    count = len(fitted.sets.scores)
    counts_K = np.bincount(fitted.sets.labels, minlength=fitted.sets.num_classes)
    covered = int(counts_K.min()) if settings.per_class else count
    needed = [(covered, images_needed(settings.coverage)), (count, images_needed(1 - settings.false_alarms))]
    finite = [(images, least) for images, least in needed if images >= least]
    return next((folds for folds in FOLDS if all(_left(images, folds) >= least for images, least in finite)), FOLDS[-1])


def _left(images: int, folds: int) -> int:
    """Return the number of images that are left when one of several parts is put aside."""
    return int((1 - 1 / folds) * images)


def _judge_all(outputs: LabeledOutputs, settings: CalibrationSettings, folds: int, seed: int) -> tuple[Answers, Judged]:
    """Return answers and judgments for all images, in their order, each by a calibration fitted on other images."""
    count = len(outputs.labels)
    order_N = np.random.default_rng(seed).permutation(count)
    answers, judged = [], []
    for number, part in enumerate(np.array_split(order_N, folds)):
        others = np.setdiff1d(order_N, part)
        fitted = fit(outputs.take(others), dataclasses.replace(settings, seed=seed * folds + number), least=0)
        later = outputs.take(part)
        answers.append(judge(calibrated_logits(fitted, later.logits), later.labels, part))
        judged.append(judge_sets(later, fitted.temperature, fitted.sets, fitted.unknown))
    back = np.argsort(order_N)
    return join(answers), Judged(*(np.concatenate(column)[back] for column in zip(*judged, strict=True)))


def calibrated_logits(fitted: Fitted | Calibration, logits_NK: FloatArray) -> FloatArray:
    """Return logits (N,K) whose softmax is calibrated: the logarithms of the calibrated probabilities."""
    return np.log(np.maximum(fitted.curve.apply(logits_NK, fitted.temperature), np.finfo(np.float32).tiny))


def judge_sets(outputs: LabeledOutputs, temperature: float, sets: PredictionSets, unknown: UnknownDetection) -> Judged:
    """Return how a calibration judges images with known classes."""
    probabilities_NK = scaled_probabilities(outputs.logits, temperature)
    contained_NK = sets.contains(probabilities_NK)
    scores_N = true_scores(probabilities_NK, outputs.labels, sets.penalty, sets.free_ranks)
    return Judged(
        covered=contained_NK[np.arange(len(outputs.labels)), outputs.labels],
        exact=np.asarray(scores_N <= sets.thresholds[outputs.labels]),
        sizes=contained_NK.sum(axis=1),
        unknown=unknown.is_unknown(unknown.detector.scores(outputs.logits, outputs.embeddings)),
    )


def _worst_class(
    coverage_N: Floats, labels_N: Ints, labels: tuple[str, ...], promised: float, held: int
) -> ClassCoverage | None:
    """Return the class with the lowest coverage, if any has enough images. held: images that gave the thresholds."""
    counts_K = np.bincount(labels_N, minlength=len(labels))
    covered_K = np.bincount(labels_N, coverage_N, minlength=len(labels))
    share_K = np.where(counts_K >= LEAST_IN_CLASS, covered_K / np.maximum(counts_K, 1), np.inf)
    worst = int(share_K.argmin())
    if math.isinf(share_K[worst]):
        return None
    images = int(counts_K[worst])
    expected = expected_share(promised, images, round(held * images / len(labels_N)))
    return ClassCoverage(labels[worst], float(share_K[worst]), images, expected)


def expected_share(share: float, images: int, calibration_images: int) -> Expected:
    """Return the range in which the share of `images` later images below a conformal quantile is expected.

    share: that was promised. calibration_images: number of scores that gave the quantile. Given these scores, the
    probability of a later image follows a beta distribution (Vovk, arXiv:1209.2673), so the number of images is
    beta-binomial.
    """
    rank = min(max(math.ceil((calibration_images + 1) * share - 1e-9), 1), calibration_images + 1)
    a, b = rank, max(calibration_images + 1 - rank, 1e-9)
    k = np.arange(images)
    # the ratio of the probabilities of k + 1 and of k images
    ratios = np.log(images - k) - np.log(k + 1) + np.log(a + k) - np.log(images - k - 1 + b)
    logarithms = np.concatenate(([0.0], ratios.cumsum()))
    shares = np.exp(logarithms - logarithms.max())
    below = shares.cumsum() / shares.sum()
    low, high = np.searchsorted(below, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Expected(float(low / images), float(min(high, images) / images))
