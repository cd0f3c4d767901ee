"""A calibration: from logits and embedding of an image to probabilities, a prediction set, and whether it is unknown.

It belongs to one model with one set of settings, which its fingerprint names, and is refused for any other.

Letters for shapes: N images, K classes, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..results import FloatArray, Judgment, Output
from .arrays import Floats, conformal_quantile
from .confidence import ConfidenceCurve
from .detectors import Detector
from .prediction_sets import PredictionSets
from .temperature import odds_of_one, scaled_probabilities


class CalibrationData(NamedTuple):
    """The images that a calibration was made from.

    origin: where they are from, as `LabelledImages.origin`. fingerprint: of images and labels. images: their number.
    fitted: how many of them the temperature, the kind of set and the detector were fitted on; the thresholds are from
    the others.
    """

    origin: str
    fingerprint: str
    images: int
    fitted: int


@dataclass(frozen=True, eq=False)
class UnknownDetection:
    """How images that show none of the classes are recognized.

    detector: gives a number per image. scores: of calibration images, ascending (N,). false_alarms: the largest
    share of images of the classes that may be called unknown.
    """

    detector: Detector
    scores: Floats
    false_alarms: float

    @cached_property
    def threshold(self) -> float:
        """The number above which an image is unknown; infinity if there are too few calibration images."""
        return conformal_quantile(self.scores, 1 - self.false_alarms)

    def familiarity(self, scores_N: Floats | float) -> Floats:
        """Return the share of calibration images that look at least as unfamiliar, with the image itself (N,).

        It is a conformal p-value: of images of the classes, at most 5 % have one of 5 % or less.
        """
        lower_N = np.searchsorted(self.scores, scores_N, side="left")
        return np.asarray((len(self.scores) - lower_N + 1) / (len(self.scores) + 1))

    def is_unknown(self, scores_N: Floats) -> NDArray[np.bool_]:
        """Return whether the images with these numbers are unknown (N,)."""
        return np.asarray(scores_N > self.threshold)


class Assessed(NamedTuple):
    """The assessment of N images: sets (N,K) of classes, unknown (N,), familiarity (N,)."""

    sets: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    familiarity: Floats


@dataclass(frozen=True, eq=False)
class Calibration:
    """Temperature, prediction sets and unknown images for one model.

    fingerprint: of the model with its settings, as `Predictor.fingerprint`. model, transform, policy, precision: what
    the fingerprint stands for, in words. labels: of the classes (K,), in the order of the model's output. temperature:
    by which logits are divided. curve, sets, unknown: see these classes. data: what it was made from. figures: what was
    measured when it was made.
    """

    fingerprint: str
    model: str
    transform: str
    policy: str
    precision: str
    labels: tuple[str, ...]
    temperature: float
    curve: ConfidenceCurve
    sets: PredictionSets
    unknown: UnknownDetection
    data: CalibrationData
    figures: Mapping[str, object] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """The promised share of images whose prediction set has the true class."""
        return self.sets.coverage

    def probabilities(self, logits_NK: FloatArray) -> FloatArray:
        """Return the calibrated probabilities (N,K) float32 of logits."""
        return self.curve.apply(logits_NK, self.temperature)

    def assess(self, logits_NK: FloatArray, embeddings_ND: FloatArray) -> Assessed:
        """Return prediction sets and what is unknown; embeddings are as the model gives them, not normalized."""
        scores_N = self.unknown.detector.scores(logits_NK, embeddings_ND)
        return Assessed(
            sets=self.sets.contains(scaled_probabilities(logits_NK, self.temperature)),
            unknown=self.unknown.is_unknown(scores_N),
            familiarity=self.unknown.familiarity(scores_N),
        )

    def judge(self, output: Output) -> Judgment:
        """Return the results of `probabilities` and `assess` for one image, in a fraction of the time."""
        odds = odds_of_one(output.logits, self.temperature)
        detection = self.unknown
        score = float(detection.detector.scores(output.logits[None], output.embedding[None])[0])
        return Judgment(
            probabilities=self.curve.apply_to_one(odds),
            members=self.sets.members(odds.probabilities),
            unknown=score > detection.threshold,
            familiarity=float(detection.familiarity(score)),
        )

    def check_model(self, fingerprint: str, model: str, num_classes: int, width: int) -> None:
        """Raise UsageError `other_calibration` unless this calibration is of the model with this fingerprint.

        num_classes, width: those of the model; only a calibration that was edited can differ from them.
        """
        hint = "run `tessella calibrate` with this model and these settings, or give --no-calibration"
        if fingerprint != self.fingerprint:
            settings = ", ".join((self.model, self.transform, self.policy, self.precision))
            raise UsageError(
                "other_calibration",
                f"the calibration is for {settings} (fingerprint {self.fingerprint}), not for {model} ({fingerprint})",
                hint=hint,
            )
        needed = self.unknown.detector.width or width
        if (len(self.labels), needed) != (num_classes, width):
            raise UsageError(
                "other_calibration",
                f"the calibration has {len(self.labels):,} classes and embeddings of {needed:,} numbers, "
                f"{model} has {num_classes:,} and {width:,}",
                hint=hint,
            )
