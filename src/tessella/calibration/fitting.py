"""Fit a calibration to the outputs of a model for labeled images that it was not trained on.

Half of the images decide (temperature, APS or RAPS, marginal or per class, detector), and the others give the
thresholds, so that the guarantees for later images do not depend on these decisions. Only the curve that calibrates the
confidences is fitted on all images; sets and detectors do not use it.

Letters for shapes: N images, K classes, D width of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import check_fields
from ..errors import UsageError
from ..results import FloatArray
from .arrays import Ints, images_needed
from .calibration import UnknownDetection
from .confidence import ConfidenceCurve, fit_curve
from .detectors import KINDS, DetectorKind, auroc, false_positive_rate, fit_detector
from .prediction_sets import PredictionSets, true_scores
from .temperature import fit_temperature, scaled_probabilities

MIN_IMAGES = 40  # with fewer, the thresholds are meaningless
FITTED_SHARE = 0.5
PER_CLASS_IMAGES = 50  # per class, among those that give the thresholds, for sets per class to be the default
PENALTIES = (0.0, 0.001, 0.01, 0.1, 1.0)
FREE_RANKS = (1, 2, 5, 10)
DEFAULT_DETECTOR: DetectorKind = "combined"


class LabeledOutputs(NamedTuple):
    """Outputs for N images: logits (N,K) and embeddings (N,D) float32 as the model gives them, and labels (N,)."""

    logits: FloatArray
    embeddings: FloatArray
    labels: Ints

    def take(self, places: Ints | NDArray[np.bool_]) -> LabeledOutputs:
        """Return the outputs of some of the images; places: their positions (M,), or which ones (N,)."""
        return LabeledOutputs(self.logits[places], self.embeddings[places], self.labels[places])


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """What a user may choose.

    coverage: share of images whose prediction set has to contain the true class. false_alarms: largest share of images
    of the classes that may be called unknown. per_class: whether the coverage is promised for every class; None: if all
    of them have enough images. detector: one of `detectors.KINDS`; None: the best one for images that show none of the
    classes, or DEFAULT_DETECTOR without any. seed: decides how the images are divided.
    """

    coverage: float = 0.9
    false_alarms: float = 0.05
    per_class: bool | None = None
    detector: DetectorKind | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError `bad_argument` for a value out of range."""
        check_fields(self)
        for name, value in (("coverage", self.coverage), ("false_alarms", self.false_alarms)):
            if not 0 < value < 1:
                raise UsageError("bad_argument", f"{name} is {value!r}, expected a number between 0 and 1")
        if self.seed < 0:
            raise UsageError("bad_argument", f"seed is {self.seed}, expected 0 or more")


class DetectorFigures(NamedTuple):
    """How well a detector tells unknown images from known ones: AUROC, and FPR at 95 % recall of the known ones."""

    kind: DetectorKind
    auroc: float
    false_positives: float


@dataclass(frozen=True)
class Fitted:
    """A fitted calibration without the facts about its model.

    detectors: the comparison, the best one first; empty without unknown images. fitted: number of images that decided.
    """

    temperature: float
    curve: ConfidenceCurve
    sets: PredictionSets
    unknown: UnknownDetection
    detectors: tuple[DetectorFigures, ...]
    fitted: int


def fit(
    outputs: LabeledOutputs,
    settings: CalibrationSettings,
    unknown: LabeledOutputs | None = None,
    *,
    least: int = MIN_IMAGES,
) -> Fitted:
    """Fit temperature, prediction sets and the detection of unknown images.

    unknown: outputs for images that show none of the classes, to choose the detector by; their labels are not used.
    Raises UsageError `bad_argument` for fewer than `least` images.
    """
    if len(outputs.labels) < least:
        raise UsageError(
            "bad_argument",
            f"{len(outputs.labels)} labeled images are too few for a calibration, at least {least} are needed",
            hint="give more images that the model was not trained on",
        )
    deciding, holding = halves(outputs, settings.seed)
    temperature = fit_temperature(deciding.logits, deciding.labels)
    sets = _fit_sets(deciding, holding, temperature, settings)
    figures = () if unknown is None else compare_detectors(deciding, holding, unknown)
    kind = settings.detector or (figures[0].kind if figures else DEFAULT_DETECTOR)
    detector = fit_detector(kind, *deciding)
    scores = np.sort(detector.scores(holding.logits, holding.embeddings))
    detection = UnknownDetection(detector, scores, settings.false_alarms)
    # all images: the sets do not depend on it, and the order of the classes does not either
    curve = fit_curve(outputs.logits, outputs.labels, temperature)
    return Fitted(temperature, curve, sets, detection, figures, len(deciding.labels))


def halves(outputs: LabeledOutputs, seed: int) -> tuple[LabeledOutputs, LabeledOutputs]:
    """Return the images that decide, and those that give the thresholds."""
    first, second = split(len(outputs.labels), FITTED_SHARE, np.random.default_rng(seed))
    return outputs.take(first), outputs.take(second)


def split(count: int, share: float, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Divide N images at random; return the positions (M,) in each part, ascending. share: of the first part.

    Classes are not balanced, so that both parts and later images remain exchangeable.
    """
    order_N = rng.permutation(count)
    place = round(share * count)
    return np.sort(order_N[:place]), np.sort(order_N[place:])


# --- prediction sets --------------------------------------------------------------------------------------------------


def _fit_sets(
    deciding: LabeledOutputs, holding: LabeledOutputs, temperature: float, settings: CalibrationSettings
) -> PredictionSets:
    """Choose between APS and RAPS, and between marginal sets and sets per class; take the scores of `holding`."""
    num_classes = deciding.logits.shape[1]
    counts_K = np.bincount(holding.labels, minlength=num_classes)
    per_class = settings.per_class
    if per_class is None:
        per_class = bool(counts_K.min() >= max(PER_CLASS_IMAGES, images_needed(settings.coverage)))
    first, second = split(len(deciding.labels), FITTED_SHARE, np.random.default_rng(settings.seed))
    best, smallest = (0.0, 1), np.inf
    for penalty in PENALTIES:
        for free_ranks in FREE_RANKS if penalty else FREE_RANKS[:1]:
            sets = make_sets(deciding.take(first), temperature, settings.coverage, per_class, penalty, free_ranks)
            probabilities = scaled_probabilities(deciding.logits[second], temperature)
            size = float(sets.contains(probabilities).sum(axis=1).mean())
            if size < smallest * 0.99:  # APS, or the weaker penalty, unless a stronger one clearly makes sets smaller
                best, smallest = (penalty, free_ranks), size
    return make_sets(holding, temperature, settings.coverage, per_class, *best)


def make_sets(
    outputs: LabeledOutputs, temperature: float, coverage: float, per_class: bool, penalty: float, free_ranks: int
) -> PredictionSets:
    """Return the rule for prediction sets whose thresholds are from these outputs."""
    probabilities = scaled_probabilities(outputs.logits, temperature)
    scores = true_scores(probabilities, outputs.labels, penalty, free_ranks)
    order = np.argsort(scores, kind="stable")
    return PredictionSets(
        coverage=coverage,
        penalty=penalty,
        free_ranks=free_ranks,
        per_class=per_class,
        scores=scores[order],
        labels=outputs.labels[order],
        num_classes=outputs.logits.shape[1],
    )


# --- unknown images ---------------------------------------------------------------------------------------------------


def compare_detectors(
    deciding: LabeledOutputs, holding: LabeledOutputs, unknown: LabeledOutputs
) -> tuple[DetectorFigures, ...]:
    """Return the figures of all detectors, the best one first: fitted on `deciding`, judged on the others."""
    rows = []
    for kind in KINDS:
        detector = fit_detector(kind, *deciding)
        known_N = detector.scores(holding.logits, holding.embeddings)
        unknown_M = detector.scores(unknown.logits, unknown.embeddings)
        rows.append(DetectorFigures(kind, auroc(known_N, unknown_M), false_positive_rate(known_N, unknown_M)))
    return tuple(sorted(rows, key=lambda row: -row.auroc))
