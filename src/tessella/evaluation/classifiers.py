"""Classifiers on embeddings: k nearest neighbors and logistic regression, and the selection of their parameters.

Shape suffixes: N images, D width of the embedding, K classes, k neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..results import FloatArray, l2_normalize
from . import lbfgs
from .head import LinearHead
from .metrics import Floats, Ints

NEIGHBORS = (1, 3, 5, 10, 20, 50)  # values of k to choose from
TEMPERATURE = 0.07  # a neighbor's vote is exp(cosine / TEMPERATURE)
STRENGTHS = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # strengths of the L2 penalty to choose from: see `fit`
FEW_SHOT_STRENGTH = 0.4  # times D, the squared norm of a scaled embedding; few shots are too few to select it
HELD_OUT, MAX_HELD_OUT = 0.2, 5_000  # fraction and largest number of training images held out for the selection
MAX_FITTED = 20_000  # images to select the penalty with; it is relative to a sum, so it is also right for more images
DRAWS = 5  # random draws of the few-shot examples
STEPS, GRADIENT_TOLERANCE = 200, 1e-5  # L-BFGS stops after this number of steps, or if no gradient is larger
CHUNK = 8_192  # images whose logits are in memory at a time


@dataclass(frozen=True)
class FewShot:
    """Accuracy of a linear classifier trained on `shots` examples per class."""

    shots: int
    draws: int
    top1: float  # mean over the draws
    spread: float  # standard deviation over the draws


# --- choices ----------------------------------------------------------------------------------------------------------


def hold_out(labels_N: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Select training images (N,) to hold out: the same fraction of each class, but never all of a class."""
    fraction = min(HELD_OUT, MAX_HELD_OUT / len(labels_N))
    held_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        members = rng.permutation(np.flatnonzero(labels_N == label))
        held_N[members[: min(max(round(fraction * len(members)), 1), len(members) - 1)]] = True
    return held_N


def choose_neighbors(x_ND: FloatArray, labels_N: Ints, held_N: NDArray[np.bool_], classes: int) -> int:
    """Return the smallest k with the highest accuracy on the held-out images, or 1 if there are none."""
    if not held_N.any():
        return 1
    cosines_Nk, votes_Nk = neighbors(x_ND[held_N], x_ND[~held_N], labels_N[~held_N], max(NEIGHBORS))
    allowed = [k for k in NEIGHBORS if k <= cosines_Nk.shape[1]]
    logits = {k: vote(cosines_Nk[:, :k], votes_Nk[:, :k], classes) for k in allowed}
    return max(allowed, key=lambda k: float((logits[k].argmax(1) == labels_N[held_N]).mean()))


def choose_strength(x_ND: FloatArray, labels_N: Ints, held_N: NDArray[np.bool_], classes: int) -> float:
    """Return the L2 strength with the lowest loss on the held-out images; the few-shot strength if there are none.

    Strengths are tried from strong to weak, each fit starting from the previous solution, until the loss rises.
    """
    if not held_N.any():
        return FEW_SHOT_STRENGTH * x_ND.shape[1]
    fitted = np.flatnonzero(~held_N)
    fitted = fitted[:: -(-len(fitted) // MAX_FITTED)]  # evenly spaced: images may be sorted by class
    scale = Scale.of(x_ND[fitted])
    z_ND, y_N = scale(x_ND[fitted]), labels_N[fitted]
    held_ND, held_labels_N = scale(x_ND[held_N]), labels_N[held_N]
    solution: Floats | None = None
    losses: list[float] = []
    for strength in STRENGTHS:
        solution = minimize(z_ND, y_N, classes, strength, solution)
        losses.append(_losses(logits_of(held_ND, solution), held_labels_N)[0] / len(held_labels_N))
        if losses[-1] > min(losses):
            break
    return STRENGTHS[int(np.argmin(losses))]


# --- nearest neighbors ------------------------------------------------------------------------------------------------


def neighbors(x_ND: FloatArray, bank_ND: FloatArray, labels_N: Ints, count: int) -> tuple[FloatArray, Ints]:
    """Return the cosines (N,k) and labels (N,k) of the nearest vectors in the bank, the highest cosine first.

    k is `count`, or the size of the bank if that is smaller.
    """
    queries_ND, bank_ND = l2_normalize(x_ND), l2_normalize(bank_ND)
    count = min(count, len(bank_ND))
    rows = max(2**25 // len(bank_ND), 1)  # 128 MB of cosines
    cosines, labels = [], []
    for first in range(0, len(queries_ND), rows):
        negative = -(queries_ND[first : first + rows] @ bank_ND.T)
        nearest = np.argpartition(negative, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(negative, nearest, 1), axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, 1)
        cosines.append(-np.take_along_axis(negative, nearest, 1))
        labels.append(labels_N[nearest])
    return np.concatenate(cosines), np.concatenate(labels)


def vote(cosines_Nk: FloatArray, labels_Nk: Ints, classes: int) -> FloatArray:
    """Return (N,K) logits: the logarithm of the votes of each class, weighted by exp(cosine / TEMPERATURE)."""
    votes_NK = np.zeros((len(cosines_Nk), classes), np.float32)
    weights_Nk = np.exp((cosines_Nk - cosines_Nk[:, :1]) / np.float32(TEMPERATURE))
    np.add.at(votes_NK, (np.arange(len(votes_NK))[:, None], labels_Nk), weights_Nk)
    # a class without votes gets a thousandth of the nearest neighbor's, so that the loss stays finite
    logits: FloatArray = np.log(np.maximum(votes_NK, np.float32(1e-3)))
    return logits


# --- logistic regression ----------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """The affine map x -> (x - mean) * factor, which can be folded into the classifier that follows it."""

    mean: NDArray[np.float64]  # (D,)
    factor: NDArray[np.float64]  # (D,)

    @classmethod
    def of(cls, x_ND: FloatArray, by_component: bool = True) -> Scale:
        """Return the scale to mean 0 and variance 1, for each component or for all together.

        A component with almost no variance is set to zero, because scaling would amplify its noise.
        """
        mean_D, std_D = x_ND.mean(0, dtype=np.float64), x_ND.std(0, dtype=np.float64)
        if not by_component:
            std_D = np.full_like(std_D, np.sqrt((std_D**2).mean()))
        varies = std_D > 1e-5 * np.maximum(np.abs(mean_D), 1e-3 * std_D.max())
        return cls(mean_D, np.divide(1, std_D, out=np.zeros_like(std_D), where=varies))

    def __call__(self, x_ND: FloatArray) -> Floats:
        """Return the scaled (N,D) embeddings in float64."""
        return (x_ND - self.mean) * self.factor


def fit(x_ND: FloatArray, labels_N: Ints, classes: int, strength: float, by_component: bool = True) -> LinearHead:
    """Fit a linear classifier: minimize the sum of cross-entropies + strength / 2 * |weights|^2 on scaled embeddings.

    The scale is folded into the classifier. Embeddings are not normalized to length 1, because this cannot be folded
    into a linear layer.
    """
    scale = Scale.of(x_ND, by_component)
    solution = minimize(scale(x_ND), labels_N, classes, strength)
    weight_KD = solution[:, :-1] * scale.factor
    bias_K = solution[:, -1] - weight_KD @ scale.mean
    return LinearHead(weight_KD.astype(np.float32), bias_K.astype(np.float32))


def logits_of(z_ND: Floats, solution: Floats) -> Floats:
    """Return the (N,K) logits of scaled embeddings; solution: (K,D+1) from `minimize`."""
    return z_ND @ solution[:, :-1].T + solution[:, -1]


def _losses(logits_NK: Floats, labels_N: Ints) -> tuple[float, Floats]:
    """Return the sum of the cross-entropies, and the probabilities (N,K). The logits are overwritten."""
    rows = np.arange(len(labels_N))
    logits_NK -= logits_NK.max(1, keepdims=True)
    true_N = logits_NK[rows, labels_N]
    np.exp(logits_NK, out=logits_NK)
    total_N = logits_NK.sum(1)
    logits_NK /= total_N[:, None]
    return float((np.log(total_N) - true_N).sum()), logits_NK


def minimize(z_ND: Floats, labels_N: Ints, classes: int, strength: float, start: Floats | None = None) -> Floats:
    """Return the solution of `fit` for scaled embeddings, by full-batch L-BFGS: (K,D+1), weights and then biases.

    start: a nearby solution to start from.
    """
    count = len(z_ND)

    def objective(solution: Floats) -> tuple[float, Floats]:
        total = strength / 2 * float(np.vdot(solution[:, :-1], solution[:, :-1]))
        gradient = strength * solution
        gradient[:, -1] = 0
        for first in range(0, count, CHUNK):
            z, labels = z_ND[first : first + CHUNK], labels_N[first : first + CHUNK]
            loss, excess = _losses(logits_of(z, solution), labels)
            excess[np.arange(len(labels)), labels] -= 1
            total += loss
            gradient[:, :-1] += excess.T @ z
            gradient[:, -1] += excess.sum(0)
        return total / count, gradient / count

    first = np.zeros((classes, z_ND.shape[1] + 1)) if start is None else start
    return lbfgs.minimize(objective, first, STEPS, GRADIENT_TOLERANCE)


def few_shot(
    x_ND: FloatArray,
    labels_N: Ints,
    val_ND: FloatArray,
    val_labels_N: Ints,
    shots: Sequence[int],
    classes: Sequence[str],
    rng: np.random.Generator,
) -> tuple[list[FewShot], list[str]]:
    """Measure linear classifiers trained on a few images per class; return the results, and notes on missing ones.

    The examples of a draw for more shots contain those for fewer. All components are scaled by the same factor,
    because the spread of a single component cannot be estimated from so few images.
    """
    sizes = np.bincount(labels_N, minlength=len(classes))
    least = int(sizes.argmin())
    notes = [
        f"no few-shot result for {n} examples per class: {classes[least]!r} has {sizes[least]}"
        for n in shots
        if n > sizes[least]
    ]
    possible = [n for n in shots if n <= sizes[least]]
    top1: dict[int, list[float]] = {n: [] for n in possible}
    strength = FEW_SHOT_STRENGTH * x_ND.shape[1]
    for _ in range(DRAWS if possible else 0):
        orders = [rng.permutation(np.flatnonzero(labels_N == label)) for label in range(len(classes))]
        for n in possible:
            rows = np.concatenate([order[:n] for order in orders])
            head = fit(x_ND[rows], labels_N[rows], len(classes), strength, by_component=False)
            top1[n].append(float((head(val_ND).argmax(1) == val_labels_N).mean()))
    return [FewShot(n, DRAWS, float(np.mean(v)), float(np.std(v, ddof=1))) for n, v in top1.items()], notes
