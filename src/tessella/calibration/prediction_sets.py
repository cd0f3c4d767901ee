"""Conformal prediction sets: the most probable classes, enough to contain the true one for, say, 90 % of the images.

The score of a class is the sum of the probabilities of all classes down to it, APS (arXiv:2006.02544), plus a penalty
for each class beyond the first few, RAPS (arXiv:2009.14193), which makes sets of models with many classes smaller. The
scores are not randomized: the same image always gets the same set. A set contains the classes whose score is at most a
quantile of the scores of the true classes of calibration images: one for all classes ("marginal": 90 % of all images
are covered) or one per class ("per class": 90 % of the images of every class).

The most probable class is always in the set. For a model that is right more often than the coverage asks for, this
covers more images than promised.

Letters for shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Ints, conformal_quantile


@dataclass(frozen=True, eq=False)
class PredictionSets:
    """The rule that makes prediction sets.

    coverage: the share of images whose set has to contain the true class. penalty, free_ranks: RAPS adds `penalty` to a
    score for each rank after the first `free_ranks`; APS has a penalty of 0. per_class: whether every class has a
    threshold of its own. scores, labels: scores of the true classes of the calibration images (N,), ascending, and
    these classes (N,). num_classes: K.
    """

    coverage: float
    penalty: float
    free_ranks: int
    per_class: bool
    scores: Floats
    labels: Ints
    num_classes: int

    @property
    def method(self) -> str:
        """The name of the score, "APS" or "RAPS"."""
        return "RAPS" if self.penalty else "APS"

    @cached_property
    def thresholds(self) -> Floats:
        """The highest score of a class in a set, for each class (K,); infinity for a class with too few images."""
        if not self.per_class:
            return np.full(self.num_classes, conformal_quantile(self.scores, self.coverage))
        return np.array(
            [conformal_quantile(self.scores[self.labels == k], self.coverage) for k in range(self.num_classes)]
        )

    def contains(self, probabilities_NK: Floats) -> NDArray[np.bool_]:
        """Return which classes are in the sets of images with these probabilities, (N,K)."""
        ranks_NK, scores_NK = set_scores(probabilities_NK, self.penalty, self.free_ranks)
        contained: NDArray[np.bool_] = (scores_NK <= self.thresholds) | (ranks_NK == 0)
        return contained

    def members(self, probabilities_K: Floats) -> Ints:
        """Return the classes (M,) in the set of one image, the most probable first: `contains` for one row, faster."""
        order_K = np.argsort(-probabilities_K, kind="stable")
        scores_K = probabilities_K[order_K].cumsum() + self._penalties
        contained_K = scores_K <= self.thresholds[order_K]
        contained_K[0] = True
        return order_K[contained_K]

    @cached_property
    def _penalties(self) -> Floats:
        """What is added to the score of each rank (K,)."""
        return rank_penalties(self.num_classes, self.penalty, self.free_ranks)


def rank_penalties(num_classes: int, penalty: float, free_ranks: int) -> Floats:
    """Return what is added to the score of the most probable class, of the next one, and so on (K,)."""
    return penalty * np.maximum(np.arange(num_classes) + 1.0 - free_ranks, 0)


def set_scores(probabilities_NK: Floats, penalty: float, free_ranks: int) -> tuple[Ints, Floats]:
    """Return the rank of each class, 0 for the most probable one, and its score, both (N,K).

    Of equal probabilities, the lower index comes first.
    """
    num_classes = probabilities_NK.shape[1]
    order_NK = np.argsort(-probabilities_NK, axis=1, kind="stable")
    sums_NK = np.take_along_axis(probabilities_NK, order_NK, 1).cumsum(axis=1)
    sums_NK += rank_penalties(num_classes, penalty, free_ranks)
    ranks_NK, scores_NK = np.empty_like(order_NK), np.empty_like(sums_NK)
    np.put_along_axis(ranks_NK, order_NK, np.broadcast_to(np.arange(num_classes), order_NK.shape), 1)
    np.put_along_axis(scores_NK, order_NK, sums_NK, 1)
    return ranks_NK, scores_NK


def true_scores(probabilities_NK: Floats, labels_N: Ints, penalty: float, free_ranks: int) -> Floats:
    """Return the scores of the true classes (N,) of images with these probabilities."""
    _, scores_NK = set_scores(probabilities_NK, penalty, free_ranks)
    return np.take_along_axis(scores_NK, labels_N[:, None], 1)[:, 0]
