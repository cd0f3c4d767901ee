"""Classification metrics: accuracy, loss, calibration, and confused classes.

N images, K classes. All figures are computed from six numbers per image (`Answers`), so the (N,K) logits need not be
kept. Fractions are between 0 and 1; a figure that no image contributes to is None.

The figures are computed with NumPy, and tests compare them with torchmetrics. torchmetrics itself is not used because
version 1.9.0 puts a confidence of exactly 1 into a separate calibration bin, interprets logits between 0 and 1 as
probabilities, includes classes without examples in averages, refuses a single class, and rounds fractions
to float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError, WeightsError

BINS = 15  # for the expected calibration error
TOP = 5  # top-5 is not reported for 5 classes or fewer: it would always be 1

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """The predictions of a model for N images, one entry per image."""

    index: Ints  # position of the image in its data set
    label: Ints  # index of the true class
    predicted: Ints  # index of the class with the highest logit, the first if several are equal
    confidence: Floats  # softmax probability of the predicted class
    loss: Floats  # negative log-likelihood of the true class
    rank: Ints  # rank of the true class: 0 is correct, below 5 is correct by top-5

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted class is the true one, (N,)."""
        return self.rank == 0


class Bin(NamedTuple):
    """The images whose confidence is in [lower, upper); the last bin includes `upper`."""

    lower: float
    upper: float
    images: int
    confidence: float | None  # mean; None in an empty bin
    accuracy: float | None


class Coverage(NamedTuple):
    """Coverage and accuracy by confidence threshold; one entry per distinct confidence, the highest first."""

    threshold: Floats  # images with at least this confidence are answered
    coverage: Floats  # fraction of the images that is answered
    accuracy: Floats  # accuracy on the answered images

    def at(self, threshold: float) -> tuple[float, float | None]:
        """Return (coverage, accuracy) at a threshold; the accuracy is None if no image is answered."""
        answered = int((self.threshold >= threshold).sum())
        if not answered:
            return 0.0, None
        return float(self.coverage[answered - 1]), float(self.accuracy[answered - 1])


class ClassMetrics(TypedDict):
    """Figures of one class: None for a class without examples; precision is 0 for a class that is never predicted."""

    label: str
    count: int  # images of the class
    precision: float | None
    recall: float | None
    f1: float | None


class ConfusedPair(TypedDict):
    """Images of one class that were predicted as another."""

    true: str
    predicted: str
    count: int
    fraction: float  # of the images of the true class


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Classification metrics of a set of images. Macro averages are over the classes that have examples."""

    classes: tuple[str, ...]  # (K,)
    count: int  # images measured
    errors: Mapping[str, int]  # images that could not be read, by error code; not included in any other figure
    top1: float
    top5: float | None  # None for fewer than six classes
    loss: float  # mean negative log-likelihood
    ece: float  # expected calibration error: 15 bins of equal width, confidence of the predicted class
    bins: tuple[Bin, ...]
    precision: float  # macro average
    recall: float  # macro average
    f1: float  # macro average
    per_class: list[ClassMetrics]
    confusion: Ints  # (K,K) images, [true, predicted]

    @property
    def total(self) -> int:
        """Number of images, including those that could not be read."""
        return self.count + sum(self.errors.values())

    @property
    def top1_of_all(self) -> float:
        """Top-1 accuracy if images that could not be read count as wrong."""
        return self.top1 * self.count / self.total

    @property
    def top5_of_all(self) -> float | None:
        """Top-5 accuracy if images that could not be read count as wrong."""
        return None if self.top5 is None else self.top5 * self.count / self.total


def metrics(
    logits_NK: ArrayLike, labels_N: ArrayLike, classes: Sequence[str], *, errors: Mapping[str, int] | None = None
) -> Metrics:
    """Return the metrics of (N,K) logits and (N,) labels, given as arrays or CPU tensors.

    errors: see `metrics_of`. Raises the errors of `judge` and `metrics_of`.
    """
    return metrics_of(judge(logits_NK, labels_N), classes, errors=errors)


def judge(logits_NK: ArrayLike, labels_N: ArrayLike, index: Ints | None = None) -> Answers:
    """Compare (N,K) logits with the (N,) indices of the true classes.

    index: positions of the images in their data set, 0 to N-1 by default.
    Raises UsageError `bad_argument` for shapes or labels that do not fit, WeightsError `non_finite` if a logit is NaN
    or infinite.
    """
    logits = np.asarray(logits_NK, np.float64)
    labels = np.asarray(labels_N)
    if logits.ndim != 2 or not logits.shape[1] or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise UsageError(
            "bad_argument",
            f"logits of shape {logits.shape} and labels of shape {labels.shape} ({labels.dtype}), "
            "expected (N,K) and (N,) integers",
        )
    labels = labels.astype(np.int64)
    images, classes = logits.shape
    if images and not (labels.min() >= 0 and labels.max() < classes):
        raise UsageError(
            "bad_argument", f"labels go from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}"
        )
    index = np.arange(images) if index is None else np.asarray(index, np.int64)
    bad = index[~np.isfinite(logits).all(1)]
    if len(bad):
        raise WeightsError(
            "non_finite",
            f"the logits contain NaN or infinity for {len(bad)} of {images} images, the first is image {bad[0]}",
            hint="use --precision float32 and --engine eager; if that does not help, the weights are damaged",
        )
    true_logit = np.take_along_axis(logits, labels[:, None], 1)
    before_true = np.arange(classes) < labels[:, None]
    highest = logits.max(1)
    log_total = np.log(np.exp(logits - highest[:, None]).sum(1))  # probabilities relative to the highest
    return Answers(
        index=index,
        label=labels,
        predicted=logits.argmax(1),
        confidence=np.exp(-log_total),
        loss=highest + log_total - true_logit[:, 0],
        rank=((logits > true_logit) | ((logits == true_logit) & before_true)).sum(1),
    )


def join(parts: Sequence[Answers]) -> Answers:
    """Concatenate the answers of several groups of images."""
    names = [field.name for field in dataclasses.fields(Answers)]
    return Answers(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def metrics_of(answers: Answers, classes: Sequence[str], *, errors: Mapping[str, int] | None = None) -> Metrics:
    """Compute all figures of the answers.

    errors: number of images without an answer, by error code. The confusion matrix takes 8 K^2 bytes.
    Raises UsageError `bad_argument` if there are no answers.
    """
    if not len(answers.label):
        raise UsageError("bad_argument", "there are no images to evaluate", hint="give images with labels")
    size = len(classes)
    confusion = np.zeros((size, size), np.int64)  # 3.8 GB for 21,843 classes, but untouched pages take no memory
    np.add.at(confusion, (answers.label, answers.predicted), 1)
    indices = (answers.label, answers.predicted, answers.label[answers.correct])
    true, predicted, correct = (np.bincount(column, minlength=size) for column in indices)
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(true, 1)
    f1 = 2 * correct / np.maximum(true + predicted, 1)
    per_class = [
        ClassMetrics(
            label=label,
            count=int(count),
            precision=float(precision[i]) if count else None,
            recall=float(recall[i]) if count else None,
            f1=float(f1[i]) if count else None,
        )
        for i, (label, count) in enumerate(zip(classes, true, strict=True))
    ]
    has_examples = true > 0
    return Metrics(
        classes=tuple(classes),
        count=len(answers.label),
        errors=dict(errors or {}),
        top1=float(answers.correct.mean()),
        top5=float((answers.rank < TOP).mean()) if len(classes) > TOP else None,
        loss=float(answers.loss.mean()),
        ece=calibration_error(answers),
        bins=calibration_bins(answers),
        precision=float(precision[has_examples].mean()),
        recall=float(recall[has_examples].mean()),
        f1=float(f1[has_examples].mean()),
        per_class=per_class,
        confusion=confusion,
    )


def calibration_bins(answers: Answers) -> tuple[Bin, ...]:
    """Group the images by confidence into 15 bins of equal width."""
    edges = np.linspace(0, 1, BINS + 1)
    place = np.minimum(np.searchsorted(edges, answers.confidence, side="right") - 1, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    confidence = np.bincount(place, answers.confidence, minlength=BINS)
    correct = np.bincount(place, answers.correct, minlength=BINS)
    return tuple(
        Bin(
            lower=float(edges[i]),
            upper=float(edges[i + 1]),
            images=int(n),
            confidence=float(confidence[i] / n) if n else None,
            accuracy=float(correct[i] / n) if n else None,
        )
        for i, n in enumerate(counts)
    )


def calibration_error(answers: Answers) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy over `calibration_bins`."""
    bins = calibration_bins(answers)
    gaps = [group.images * abs((group.confidence or 0) - (group.accuracy or 0)) for group in bins]
    return sum(gaps) / len(answers.label)


def coverage(answers: Answers) -> Coverage:
    """Return accuracy against the fraction of images answered when the least confident ones are rejected."""
    order = np.argsort(-answers.confidence, kind="stable")
    confidence = answers.confidence[order]
    answered = np.arange(1, len(order) + 1)
    # images of equal confidence are answered together
    last = np.append(confidence[1:] != confidence[:-1], True)[: len(order)]
    correct = answers.correct[order].cumsum()
    return Coverage(confidence[last], (answered / max(len(order), 1))[last], (correct / answered)[last])


def worst_mistakes(answers: Answers) -> Ints:
    """Return the rows (M,) of `answers` that are wrong, the most confident first."""
    wrong = np.flatnonzero(~answers.correct)
    return wrong[np.argsort(-answers.confidence[wrong], kind="stable")]


def confused(measured: Metrics, limit: int | None = None) -> list[ConfusedPair]:
    """Return the pairs of classes that are confused, the most frequent first; limit: number of pairs, None for all."""
    true, predicted = measured.confusion.nonzero()
    true, predicted = true[true != predicted], predicted[true != predicted]
    counts = measured.confusion[true, predicted]
    order = np.argsort(-counts, kind="stable")[:limit]
    return [
        ConfusedPair(
            true=measured.classes[true[i]],
            predicted=measured.classes[predicted[i]],
            count=int(counts[i]),
            fraction=float(counts[i] / measured.per_class[true[i]]["count"]),
        )
        for i in order
    ]


def as_dict(measured: Metrics) -> dict[str, object]:
    """Return the metrics for JSON; the confusion matrix as [true, predicted, images] per pair that occurs."""
    true, predicted = measured.confusion.nonzero()
    pairs = zip(true.tolist(), predicted.tolist(), measured.confusion[true, predicted].tolist(), strict=True)
    return dict(
        images=measured.total,
        count=measured.count,
        errors=dict(measured.errors),
        top1=measured.top1,
        top5=measured.top5,
        top1_of_all=measured.top1_of_all,
        top5_of_all=measured.top5_of_all,
        loss=measured.loss,
        ece=measured.ece,
        precision=measured.precision,
        recall=measured.recall,
        f1=measured.f1,
        bins=[group._asdict() for group in measured.bins],
        per_class=measured.per_class,
        confusion=[list(pair) for pair in pairs],
    )
