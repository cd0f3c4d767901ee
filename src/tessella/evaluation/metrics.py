"""What a model's answers on labelled images are worth: accuracy, loss, calibration, and which classes it confuses.

N images, K classes. Six numbers an image (`Answers`) are all that is needed, so no (N,K) logits are kept. Shares are
0..1; what no image tells is None.

The sums are NumPy's, and tests compare them with torchmetrics, which is not used here for what version 1.9.0 does: a
confidence of exactly 1 has a calibration bin of its own, logits that happen to lie in 0..1 are taken for
probabilities, averages count classes without examples, a single class is refused, shares are rounded to float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, WeightsError

BINS = 15  # of the calibration error
TOP = 5  # top-5 says nothing where there are no more classes than that

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """Of N images, one entry each."""

    index: Ints  # position of the image in its data
    label: Ints  # index of the true class
    predicted: Ints  # index of the class with the highest logit; of equal ones the first
    confidence: Floats  # softmax probability of the predicted class
    loss: Floats  # minus the logarithm of the true class's probability
    rank: Ints  # of the true class: 0 is right, under 5 is right by top-5

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.rank == 0


class Bin(NamedTuple):
    """The images whose confidence is in [lower, upper), in the last bin also `upper`."""

    lower: float
    upper: float
    images: int
    confidence: float | None  # mean; None in an empty bin
    accuracy: float | None


class Coverage(NamedTuple):
    """What answering only above a threshold gives; one entry for each confidence that occurs, the highest first."""

    threshold: Floats  # images of at least this confidence are answered
    coverage: Floats  # share of the images that are
    accuracy: Floats  # of these

    def at(self, threshold: float) -> tuple[float, float | None]:
        """(coverage, accuracy) of answering from this confidence on; the accuracy is None where nothing is answered."""
        answered = int((self.threshold >= threshold).sum())
        if not answered:
            return 0.0, None
        return float(self.coverage[answered - 1]), float(self.accuracy[answered - 1])


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How well the classes are told apart. The macro averages are over the classes that have examples."""

    classes: tuple[str, ...]  # (K,)
    count: int  # images measured
    errors: Mapping[str, int]  # images that could not be read, by the code of the error: not in any other figure
    top1: float
    top5: float | None  # None under six classes
    loss: float  # mean negative log-likelihood
    ece: float  # expected calibration error: 15 bins of equal width, confidence of the predicted class
    bins: tuple[Bin, ...]
    precision: float  # macro
    recall: float
    f1: float
    # dict(label, count, precision, recall, f1): None for a class without examples; precision 0 for one never predicted
    per_class: list[dict[str, Any]]
    confusion: Ints  # (K,K) images, [true, predicted]

    @property
    def total(self) -> int:
        """Images given: measured, and not read."""
        return self.count + sum(self.errors.values())

    @property
    def top1_of_all(self) -> float:
        """Top-1 if an image that could not be read counts as wrong."""
        return self.top1 * self.count / self.total

    @property
    def top5_of_all(self) -> float | None:
        return None if self.top5 is None else self.top5 * self.count / self.total


def metrics(
    logits_NK: Any, labels_N: Any, classes: Sequence[str], *, errors: Mapping[str, int] | None = None
) -> Metrics:
    """`metrics_of` the answers that the logits give; arrays or CPU tensors. Raises as `judge` and `metrics_of` do."""
    return metrics_of(judge(logits_NK, labels_N), classes, errors=errors)


def judge(logits_NK: Any, labels_N: Any, index: Ints | None = None) -> Answers:
    """Logits and the true classes' indices -> what is to be known of each image.

    index: positions of the images, else 0..N-1. Raises UsageError `bad_argument` for shapes or labels that do not fit,
    WeightsError `non_finite` where a logit is NaN or infinite.
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
            f"the model's answer holds NaN or infinity for {len(bad)} of {images} images, the first is image {bad[0]}",
            hint="use --precision float32 and --engine eager; where that does not help, the weights are damaged",
        )
    own = np.take_along_axis(logits, labels[:, None], 1)
    first = np.arange(classes) < labels[:, None]
    highest = logits.max(1)
    log_total = np.log(np.exp(logits - highest[:, None]).sum(1))  # of the probabilities relative to the highest
    return Answers(
        index=index,
        label=labels,
        predicted=logits.argmax(1),
        confidence=np.exp(-log_total),
        loss=highest + log_total - own[:, 0],
        rank=((logits > own) | ((logits == own) & first)).sum(1),
    )


def join(parts: Sequence[Answers]) -> Answers:
    """One after the other."""
    names = [field.name for field in dataclasses.fields(Answers)]
    return Answers(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def metrics_of(answers: Answers, classes: Sequence[str], *, errors: Mapping[str, int] | None = None) -> Metrics:
    """All figures. errors: images that gave no answer, by the code of their error.

    The confusions take 8 K^2 bytes. Raises UsageError `bad_argument` where there is no answer.
    """
    if not len(answers.label):
        raise UsageError("bad_argument", "there are no images to evaluate", hint="give images with labels")
    size = len(classes)
    confusion = np.zeros((size, size), np.int64)  # of 21,843 classes 3.8 GB, of which untouched pages take no memory
    np.add.at(confusion, (answers.label, answers.predicted), 1)
    picked = (answers.label, answers.predicted, answers.label[answers.right])
    true, called, right = (np.bincount(some, minlength=size) for some in picked)
    shares = dict(
        precision=right / np.maximum(called, 1),
        recall=right / np.maximum(true, 1),
        f1=2 * right / np.maximum(true + called, 1),
    )
    per_class = [
        dict(label=label, count=int(count))
        | {name: float(values[i]) if count else None for name, values in shares.items()}
        for i, (label, count) in enumerate(zip(classes, true, strict=True))
    ]
    bins = calibration_bins(answers)
    gaps = [one.images * abs((one.confidence or 0) - (one.accuracy or 0)) for one in bins]
    return Metrics(
        classes=tuple(classes),
        count=len(answers.label),
        errors=dict(errors or {}),
        top1=float(answers.right.mean()),
        top5=float((answers.rank < TOP).mean()) if len(classes) > TOP else None,
        loss=float(answers.loss.mean()),
        ece=sum(gaps) / len(answers.label),
        bins=bins,
        **{name: float(values[true > 0].mean()) for name, values in shares.items()},
        per_class=per_class,
        confusion=confusion,
    )


def calibration_bins(answers: Answers) -> tuple[Bin, ...]:
    """The images by confidence, in 15 bins of equal width."""
    edges = np.linspace(0, 1, BINS + 1)
    place = np.minimum(np.searchsorted(edges, answers.confidence, side="right") - 1, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    confidence = np.bincount(place, answers.confidence, minlength=BINS)
    right = np.bincount(place, answers.right, minlength=BINS)
    return tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(n),
            float(confidence[i] / n) if n else None, float(right[i] / n) if n else None)
        for i, n in enumerate(counts)
    )  # fmt: skip


def coverage(answers: Answers) -> Coverage:
    """Accuracy against the share of images that are answered, when those of low confidence are not."""
    order = np.argsort(-answers.confidence, kind="stable")
    confidence = answers.confidence[order]
    answered = np.arange(1, len(order) + 1)
    last = np.append(confidence[1:] != confidence[:-1], True)[: len(order)]  # images of one confidence go together
    right = answers.right[order].cumsum()
    return Coverage(confidence[last], (answered / max(len(order), 1))[last], (right / answered)[last])


def worst_mistakes(answers: Answers) -> Ints:
    """Rows of `answers` that are wrong, the most confident first."""
    wrong = np.flatnonzero(~answers.right)
    return wrong[np.argsort(-answers.confidence[wrong], kind="stable")]


def confused(found: Metrics, most: int | None = None) -> list[dict[str, Any]]:
    """dict(true, predicted, count, share) of the pairs of classes that are confused, the most frequent first.

    share: of the images of the true class. most: how many pairs, None for all.
    """
    true, predicted = found.confusion.nonzero()
    true, predicted = true[true != predicted], predicted[true != predicted]
    counts = found.confusion[true, predicted]
    order = np.argsort(-counts, kind="stable")[:most]
    return [
        dict(true=found.classes[true[i]], predicted=found.classes[predicted[i]], count=int(counts[i]),
             share=float(counts[i] / found.per_class[true[i]]["count"]))
        for i in order
    ]  # fmt: skip


def as_dict(found: Metrics) -> dict[str, Any]:
    """For JSON; the confusions are [true, predicted, images] for each pair of class indices that occurs."""
    true, predicted = found.confusion.nonzero()
    pairs = zip(true.tolist(), predicted.tolist(), found.confusion[true, predicted].tolist(), strict=True)
    return dict(
        images=found.total,
        count=found.count,
        errors=dict(found.errors),
        top1=found.top1,
        top5=found.top5,
        top1_of_all=found.top1_of_all,
        top5_of_all=found.top5_of_all,
        loss=found.loss,
        ece=found.ece,
        precision=found.precision,
        recall=found.recall,
        f1=found.f1,
        bins=[one._asdict() for one in found.bins],
        per_class=found.per_class,
        confusion=[list(pair) for pair in pairs],
    )
