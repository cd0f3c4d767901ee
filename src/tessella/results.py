"""The results of a model: outputs, scores, named predictions and records.

The types are below the pipeline, which creates them, and below `records`, which writes them to files; they need only
NumPy, so that an exported model, a bulk run and the search use them without PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, UsageError
from .text import html_table

FloatArray = NDArray[np.float32]
NON_FINITE = "the output of the model for this image contains NaN or infinity"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class: its index in the model's output, its label, its softmax probability, its WordNet id if any."""

    index: int
    label: str
    probability: float
    synset: str = ""

    def _repr_html_(self) -> str:
        """Return HTML for Jupyter: one row, escaped."""
        rows = [(self.index, self.label, f"{100 * self.probability:.1f} %", self.synset)]
        return html_table(("index", "label", "probability", "WordNet id"), rows)


class Scores(NamedTuple):
    """Results for N images: probabilities (N,classes) float32, embeddings (N,width) float32 of unit length."""

    probabilities: FloatArray
    embeddings: FloatArray

    def __repr__(self) -> str:
        shapes = (f"{name}=float32 {array.shape}" for name, array in zip(self._fields, self, strict=True))
        return f"Scores({', '.join(shapes)})"

    def _repr_html_(self) -> str:
        """Return HTML for Jupyter: the most probable class of the first ten images."""
        best = self.probabilities[:10].argmax(1) if self.probabilities.size else ()
        rows = [(i, int(k), f"{100 * self.probabilities[i, k]:.1f} %") for i, k in enumerate(best)]
        return f"<p>{self!r}</p>" + html_table(("image", "most probable class", "probability"), rows)


class Output(NamedTuple):
    """The model's output for one image: logits (classes,) and embedding (width,), both float32, not normalized."""

    logits: FloatArray
    embedding: FloatArray

    @property
    def is_finite(self) -> bool:
        """Return whether no number is NaN or infinite."""
        return is_finite(self.logits) and is_finite(self.embedding)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a calibrated model says about its own answer for one image.

    prediction_set: the classes that contain the true one with the stated coverage, most probable first, with their
    calibrated probabilities. unknown: whether the image probably shows none of the classes. familiarity: the share of
    calibration images that look at least as unfamiliar to the model, from 0 (unlike all) to 1. unlisted: the number of
    less probable classes of the set that are not listed; a server lists up to 100.
    """

    prediction_set: tuple[Prediction, ...]
    unknown: bool
    familiarity: float
    unlisted: int = 0

    @property
    def set_size(self) -> int:
        """The number of classes in the set."""
        return len(self.prediction_set) + self.unlisted


class Judgment(NamedTuple):
    """What a calibration says about one image.

    probabilities: of the classes (K,) float32. members: the classes in its prediction set (M,), the most probable
    first. unknown, familiarity: as in `Assessment`.
    """

    probabilities: FloatArray
    members: NDArray[np.int64]
    unknown: bool
    familiarity: float


class OutputCalibration(Protocol):
    """What records need of a calibration, see `calibration.Calibration`."""

    def judge(self, output: Output, /) -> Judgment:
        """Return what is said about one image."""
        ...


@dataclass(frozen=True)
class Record:
    """The result for one input; every input has exactly one.

    status: "ok" or the code of the error. message: the error's message; empty if status is "ok". top: the most
    probable classes, best first. assessment: what a calibrated model says about these classes. features: feature maps
    of blocks, shallow to deep. Fields that were not requested, or that an error prevents, are empty or None.
    """

    key: str
    status: str
    message: str = ""
    top: tuple[Prediction, ...] = ()
    embedding: FloatArray | None = None  # (width,), unit length
    features: tuple[FloatArray, ...] = ()  # each (channels,rows,columns)
    assessment: Assessment | None = None


@dataclass(frozen=True)
class ClassNames:
    """Labels of a model's classes, in the order of its output, and their WordNet ids; () if they have none."""

    labels: tuple[str, ...]
    synsets: tuple[str, ...] = ()

    def top_predictions(self, probabilities: FloatArray, top: int) -> tuple[Prediction, ...]:
        """Return the `top` most probable classes, best first; of equal probabilities the lower index comes first.

        probabilities: (classes,) float32.
        """
        negated = -probabilities
        candidates = np.arange(len(negated))
        if 0 < top < len(negated):  # sort only what may be among the best: of equal values, all; NaN comes last
            candidates = np.flatnonzero(~(negated > np.partition(negated, top - 1)[top - 1]))
        return self.predictions(probabilities, candidates[np.argsort(negated[candidates], kind="stable")][:top])

    def predictions(self, probabilities: FloatArray, indices: NDArray[np.int64]) -> tuple[Prediction, ...]:
        """Return the classes with these indices (M,), in this order; probabilities: (classes,) float32."""
        numbers = indices.tolist()
        columns = (numbers, map(self.labels.__getitem__, numbers), probabilities[indices].tolist())
        if not self.synsets:
            return tuple(map(Prediction, *columns))  # without a loop in Python: sets can have hundreds of classes
        return tuple(map(Prediction, *columns, map(self.synsets.__getitem__, numbers)))


def make_record(
    key: str,
    outcome: Output | ImageError,
    classes: ClassNames,
    *,
    top: int,
    embed: bool,
    calibration: OutputCalibration | None = None,
    most_listed: int | None = None,
) -> Record:
    """Return the record of one image: its `top` classes and, with `embed`, its embedding of unit length.

    calibration: for the probabilities of the classes, and the assessment; None for the softmax, without an assessment.
    most_listed: how many classes of a prediction set are listed; None for all.
    An error becomes a record with its code; so do outputs with NaN or infinity, whose code is `non_finite`.
    """
    if isinstance(outcome, ImageError):
        return Record(key, outcome.code, str(outcome))
    if not outcome.is_finite:
        return Record(key, "non_finite", NON_FINITE)
    embedding = l2_normalize(outcome.embedding[None])[0] if embed else None
    if not top:
        return Record(key, "ok", embedding=embedding)
    if calibration is None:
        return Record(key, "ok", "", classes.top_predictions(softmax(outcome.logits[None])[0], top), embedding)
    probabilities_K, members_M, unknown, familiarity = calibration.judge(outcome)
    listed = classes.predictions(probabilities_K, members_M[:most_listed])
    assessment = Assessment(listed, unknown, familiarity, len(members_M) - len(listed))
    return Record(key, "ok", "", classes.top_predictions(probabilities_K, top), embedding, assessment=assessment)


def check_top(top: int) -> int:
    """Return a number of classes as an int; UsageError `bad_argument` for anything else."""
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 0:
        raise UsageError("bad_argument", f"top is {top!r}, expected a number of classes, 0 or more")
    return int(top)


def is_finite(array: FloatArray) -> bool:
    """Return whether no element is NaN or infinite."""
    return bool(np.isfinite(array).all())


def softmax(logits: FloatArray) -> FloatArray:
    """Return the softmax of each row: (N,classes) -> (N,classes) float32, rows that sum to 1."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def l2_normalize(vectors: FloatArray) -> FloatArray:
    """Scale each row to length 1: (N,D) -> (N,D) float32; a row of zeros stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
