"""How well the outputs of a lossy precision agree with those of float32, and the bounds that it must reach."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..text import count_of
from .base import ArrayOutputs, FloatArray

MARGIN = 0.1  # difference of probabilities from which an answer is decided
MIN_DECIDED = 16  # with fewer decided answers, a bound of one percent is meaningless, and ...
MIN_FRACTION = 0.25  # ... a model that is mostly undecided does not know these images
NEIGHBORS = 10
MIN_IMAGES = 3 * NEIGHBORS  # fewer images have no neighborhoods to compare


class Bounds(NamedTuple):
    """The agreement with float32 that a precision must reach; the fields of Verdict of the same names."""

    agreement: float
    cosine: float
    error: float = np.inf
    recall: float = 0.0


# Agreement: with a margin of 0.1, a changed answer is an error of the precision and not a tie. One in a hundred is less
# than what another seed of the same training changes. Cosine: the similarities that users compare with thresholds keep
# their meaning. Error: on 10,000 test images, the CIFAR-10 models lose nothing measurable at errors
# up to 0.1, 0.2 points at 0.16 and 1.3 points at 0.27 (docs/log.md); half for bfloat16, whose errors do not depend on
# ranges that might fit other images badly. Recall: the crops of the package's photographs have many neighbors that are
# as good as tied, of which the CIFAR-10 models keep 93 to 98 % in int8 and 99 % in bfloat16.
BOUNDS = {"bfloat16": Bounds(0.995, 0.999, 0.05, 0.9), "int8": Bounds(0.99, 0.99, 0.1, 0.8)}


class Verdict(NamedTuple):
    """The agreement of a precision with float32 on images."""

    agreement: float  # fraction of the decided answers with the same top class; 1 if there are none
    cosine: float  # mean cosine similarity of the two embeddings of an image
    error: float  # of the logits, relative to their spread over the classes (root mean squares)
    recall: float | None  # fraction of each image's nearest neighbors that stay; None for too few images
    images: int
    decided: int  # images whose two most probable classes differ by MARGIN in float32
    ties_changed: int  # images that are not decided, and whose top class differs
    has_classes: bool = True

    @property
    def counts_answers(self) -> bool:
        """Whether enough answers are decided to judge by them; if not, logits and embeddings are judged only."""
        return self.has_classes and self.decided >= max(MIN_DECIDED, MIN_FRACTION * self.images)

    def shortfalls(self, precision: str) -> list[str]:
        """Return the bounds of `precision` that are not reached, in words."""
        bounds = BOUNDS[precision]
        found = []
        if self.counts_answers and not self.agreement >= bounds.agreement:
            found.append(f"{100 * bounds.agreement:g} % of the decided answers")
        if not self.cosine >= bounds.cosine:
            found.append(f"a cosine of {bounds.cosine:g}")
        if not self.error <= bounds.error:
            found.append(f"a logit error of at most {bounds.error:g}")
        if self.recall is not None and not self.recall >= bounds.recall:
            found.append(f"{100 * bounds.recall:g} % of the neighbors")
        return found

    def passes(self, precision: str) -> bool:
        """Return whether all bounds of `precision` are reached."""
        return not self.shortfalls(precision)

    def __str__(self) -> str:
        parts = []
        if self.counts_answers:
            parts.append(f"{100 * self.agreement:.1f} % same top class in {count_of(self.decided, 'decided answer')}")
            if self.decided < self.images:
                parts.append(f"{self.ties_changed} of {count_of(self.images - self.decided, 'tie')} changed")
        elif self.has_classes:
            decided = f"{count_of(self.decided, 'answer')} {'is' if self.decided == 1 else 'are'} decided"
            parts.append(f"not judged by classes, as only {decided}")
        parts.append(f"cosine {self.cosine:.4f}")
        if self.has_classes:
            parts.append(f"logit error {self.error:.3f} of their spread")
        if self.recall is not None:
            parts.append(f"{100 * self.recall:.0f} % same neighbors")
        return f"{', '.join(parts)} on {count_of(self.images, 'image')}"


def compare(outputs: ArrayOutputs, expected: ArrayOutputs) -> Verdict:
    """Compare two pairs of logits (N,classes) and embeddings (N,width) of the same images.

    expected: in float32. Logits without classes are not compared. A value that is not a number is the worst agreement.
    """
    (logits, embeddings), (exact_logits, exact_embeddings) = outputs, expected
    count, classes = exact_logits.shape
    decided = changed = np.zeros(count, bool)
    if classes > 1:
        changed = logits.argmax(1) != exact_logits.argmax(1)
        powers = np.exp(exact_logits - exact_logits.max(1, keepdims=True))
        second, first = np.sort(powers / powers.sum(1, keepdims=True), axis=1)[:, -2:].T
        decided = first - second >= MARGIN
    cosines = (_unit(embeddings) * _unit(exact_embeddings)).sum(1)
    return Verdict(
        agreement=1 - float(changed[decided].mean()) if decided.any() else 1.0,
        cosine=float(np.nan_to_num(cosines, nan=-1.0).mean()),
        error=_relative_error(logits, exact_logits) if classes else 0.0,
        recall=_recall(embeddings, exact_embeddings) if count >= MIN_IMAGES else None,
        images=count,
        decided=int(decided.sum()),
        ties_changed=int((changed & ~decided).sum()),
        has_classes=classes > 1,
    )


def _relative_error(logits: FloatArray, exact: FloatArray) -> float:
    """Return the error of logits (N,classes) relative to their spread over the classes.

    A value that is added to all logits of an image changes no probability and does not count.
    """
    if exact.shape[1] == 1:
        return _ratio(logits - exact, exact)
    return _ratio(*(part - part.mean(1, keepdims=True) for part in (logits - exact, exact)))


def _ratio(error: FloatArray, spread: FloatArray) -> float:
    """Return the ratio of root mean squares; 0 if both are 0."""
    over, under = (float(np.sqrt(np.square(part, dtype=np.float64).mean())) for part in (error, spread))
    return 0.0 if over == 0 else float(np.nan_to_num(over / max(under, 1e-12), nan=np.inf))


def _recall(embeddings: FloatArray, exact: FloatArray) -> float:
    """Return the fraction of the NEIGHBORS nearest other images by `exact` (N,width) that `embeddings` give, too."""
    near, nearest = (_neighbors(_unit(part)) for part in (embeddings, exact))
    return float(np.mean([np.isin(row, other).mean() for row, other in zip(nearest, near, strict=True)]))


def _neighbors(unit: FloatArray) -> NDArray[np.intp]:
    """Return the indices (N,NEIGHBORS) of the nearest other rows of `unit` (N,width)."""
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argpartition(-similarity, NEIGHBORS, axis=1)[:, :NEIGHBORS]


def _unit(vectors: FloatArray) -> FloatArray:
    """Return vectors (N,width) of length 1."""
    unit: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
