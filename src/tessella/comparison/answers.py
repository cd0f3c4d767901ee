"""How the answers of two models differ: accuracy by class, gained and lost images, and agreement without labels.

Letters for shapes: N images, K classes, T images whose probabilities are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..evaluation.classes import match_classes
from ..results import FloatArray
from .images import ComparedImages, Ints
from .outputs import ImageSample, ModelOutputs
from .paired import PairedDifference, paired_difference
from .subjects import ComparedModel

Mask = NDArray[np.bool_]
Change = Literal["gained", "lost", "changed"]
CHANGES: tuple[Change, ...] = ("gained", "lost", "changed")


class ClassChange(NamedTuple):
    """The images of one class: their number, the accuracies of both models, and how many were gained and lost."""

    label: str
    images: int
    old: float
    new: float
    gained: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class AccuracyChange:
    """Accuracy of both models on the images with a result of both.

    gained: number of images that only the new model classifies correctly; lost: only the old one. change: the
    difference, its interval and p-value. by_class: the classes that have images, in the order of the data.
    """

    images: int
    old: float
    new: float
    gained: int
    lost: int
    change: PairedDifference
    by_class: tuple[ClassChange, ...]


@dataclass(frozen=True, kw_only=True)
class AnswerAgreement:
    """How often both models give the same answer.

    share: of the images. kappa: Cohen's kappa, the share beyond what independent answers of the same frequencies would
    reach; None if both models give a single answer. total_variation: mean total variation distance of the
    softmax probabilities, between 0 and 1, on `judged` images; None if they are not known.
    """

    images: int
    share: float
    kappa: float | None
    total_variation: float | None = None
    judged: int = 0


class ChangedAnswer(NamedTuple):
    """An image whose answer differs. change: "gained", "lost", or "changed" if both are wrong or there is no label.

    row: position of the image. label: the true class, "" without labels. source: the file. old_probability,
    new_probability: calibrated if the model is.
    """

    change: Change
    row: int
    key: str
    source: str
    label: str
    old: str
    old_probability: float
    new: str
    new_probability: float


class SharedClasses(NamedTuple):
    """The classes of both models under common numbers.

    old, new: (K,) number of each class of the old and the new model. true: (C,) number of each class of the data; None
    if the images have no labels, or classes that a model does not have. same: whether both models have the same
    classes. why: why answers cannot be compared with each other or with labels; "" if both can.
    """

    old: Ints
    new: Ints
    true: Ints | None
    same: bool
    why: str = ""

    @property
    def comparable(self) -> bool:
        """Whether an answer of one model can be one of the other."""
        return self.same or self.true is not None


def match_answers(old: ComparedModel, new: ComparedModel, images: ComparedImages) -> SharedClasses:
    """Match the classes of two models and of the images by name.

    The classes of the images are matched as `evaluate` does; all classes of a model can be predicted.
    """
    numbers: dict[str, int] = {}
    sides = []
    for subject in (old, new):
        seen: Counter[str] = Counter()
        sides.append(np.zeros(subject.num_classes, np.int64))
        for i, name in enumerate(subject.labels):  # a name may occur twice, like "crane" in ImageNet
            seen[name] += 1
            sides[-1][i] = numbers.setdefault(f"{name}\0{seen[name]}", len(numbers))
    old_K, new_K = sides
    same = bool(old.num_classes) and set(old_K.tolist()) == set(new_K.tolist())
    why = "" if same else _difference(old, new)
    if images.labels is None or not (old.num_classes and new.num_classes):
        return SharedClasses(old_K, new_K, None, same, why)
    try:
        old_C, new_C = (match_classes(images.classes, subject, False).positions for subject in (old, new))
    except UsageError as error:
        reasons = (f"labels are not used: {error.message}", why)
        return SharedClasses(old_K, new_K, None, same, "; ".join(filter(None, reasons)))
    true_C = len(numbers) + np.arange(len(images.classes))
    old_K[old_C], new_K[new_C] = true_C, true_C
    return SharedClasses(old_K, new_K, true_C, same, "")


def _difference(old: ComparedModel, new: ComparedModel) -> str:
    for subject in (old, new):
        if not subject.num_classes:
            name = subject.name if subject.run is None else f"the run {subject.run}"
            what = "classifier" if subject.run is None else "classes"
            return f"{name} has no {what}, so only embeddings are compared"
    return f"{old.name} and {new.name} have different classes, so only embeddings are compared"


def answers_of(outputs: ModelOutputs, numbers_K: Ints) -> Ints:
    """Return the answer (N,) of each image as the common number of its class; -1 without one."""
    if not len(numbers_K):
        return np.full(len(outputs.answers), -1, np.int64)
    return np.where(outputs.answers >= 0, numbers_K[outputs.answers], -1)


def accuracy_change(old_N: Ints, new_N: Ints, images: ComparedImages, true_C: Ints, both_N: Mask) -> AccuracyChange:
    """Compare answers (N,) with labels, on the images with a result of both models."""
    assert images.labels is not None
    labels_N = images.labels[both_N]
    right_old, right_new = (answers[both_N] == true_C[labels_N] for answers in (old_N, new_N))
    gained_N, lost_N = right_new & ~right_old, right_old & ~right_new
    counts = (
        np.bincount(labels_N[mask], minlength=len(true_C)).tolist() for mask in (right_old, right_new, gained_N, lost_N)
    )
    sizes = np.bincount(labels_N, minlength=len(true_C)).tolist()
    by_class = tuple(
        ClassChange(label, size, old / size, new / size, gained, lost)
        for label, size, old, new, gained, lost in zip(images.classes, sizes, *counts, strict=True)
        if size
    )
    gained, lost, count = int(gained_N.sum()), int(lost_N.sum()), len(labels_N)
    return AccuracyChange(
        images=count,
        old=float(right_old.mean()),
        new=float(right_new.mean()),
        gained=gained,
        lost=lost,
        change=paired_difference(count, gained, lost),
        by_class=by_class,
    )


def agreement_of(old_N: Ints, new_N: Ints, both_N: Mask) -> AnswerAgreement:
    """Compare the answers (N,) of two models, on the images with a result of both."""
    old, new = old_N[both_N], new_N[both_N]
    share = float((old == new).mean())
    size = int(max(old.max(), new.max())) + 1
    chance = float(np.bincount(old, minlength=size) @ np.bincount(new, minlength=size)) / len(old) ** 2
    return AnswerAgreement(images=len(old), share=share, kappa=(share - chance) / (1 - chance) if chance < 1 else None)


def total_variation(old_TK: FloatArray, new_TK: FloatArray, old_K: Ints, new_K: Ints) -> float:
    """Return the mean total variation distance of probabilities (T,K): half of the sum of absolute differences.

    old_K, new_K: common numbers of the classes. Classes with the same number, because they have the same name, count as
    one.
    """
    size = int(max(old_K.max(), new_K.max())) + 1
    difference_CT = np.zeros((size, len(old_TK)))
    np.add.at(difference_CT, old_K, old_TK.T)
    np.subtract.at(difference_CT, new_K, new_TK.T)
    return float(np.abs(difference_CT).sum(0).mean() / 2)


def known_probabilities(
    old: ModelOutputs, new: ModelOutputs, sample: ImageSample, both_N: Mask
) -> tuple[FloatArray, FloatArray] | None:
    """Return the probabilities (T,K) of both models for the same images; None if those of one are not known."""
    keep = both_N[sample.judged]
    if old.probabilities is None or new.probabilities is None or not keep.any():
        return None
    return old.probabilities[keep], new.probabilities[keep]


def changed_answers(
    old: tuple[ComparedModel, ModelOutputs, Ints],
    new: tuple[ComparedModel, ModelOutputs, Ints],
    images: ComparedImages,
    classes: SharedClasses,
    both_N: Mask,
) -> Iterator[ChangedAnswer]:
    """Yield the images whose answers differ, by kind of change, those with the highest new probability first.

    old, new: the model, its outputs, and its answers (N,) under common numbers.
    """
    (old_subject, old_outputs, old_N), (new_subject, new_outputs, new_N) = old, new
    rows = np.flatnonzero(both_N & (old_N != new_N))
    # in the order of the images, because a run has one shard of its listing in memory
    names = [(images.items.key(row), images.items.source(row).path) for row in rows.tolist()]
    kinds = np.full(len(rows), CHANGES.index("changed"))
    if images.labels is not None and classes.true is not None:
        true = classes.true[images.labels[rows]]
        kinds[new_N[rows] == true], kinds[old_N[rows] == true] = CHANGES.index("gained"), CHANGES.index("lost")
    for place in np.lexsort((rows, -new_outputs.confidence[rows], kinds)).tolist():
        row, (key, source) = int(rows[place]), names[place]
        labeled = images.labels is not None and classes.true is not None
        yield ChangedAnswer(
            change=CHANGES[kinds[place]],
            row=row,
            key=key,
            source=source,
            label=images.classes[images.labels[row]] if labeled and images.labels is not None else "",
            old=_label(old_subject.labels, old_outputs.answers[row]),
            old_probability=round(float(old_outputs.confidence[row]), 6),
            new=_label(new_subject.labels, new_outputs.answers[row]),
            new_probability=round(float(new_outputs.confidence[row]), 6),
        )


def _label(labels: Sequence[str], answer: np.int64) -> str:
    return labels[int(answer)] if answer >= 0 else ""
