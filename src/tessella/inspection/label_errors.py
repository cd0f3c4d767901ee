"""Probable label errors by confident learning (Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068).

Every image is predicted by a linear classifier on embeddings that was trained without it: the images are divided into
folds, and copies of an image are in one fold, because a classifier that has seen the copy repeats its label. With the
out-of-fold probabilities p, confident learning needs three formulas:

- the threshold of a class is the mean of p(class) over the images with that label;
- an image counts as one of another class if p of that class reaches its threshold (if several do, the class with the
  highest p): these counts are the confident joint, from which the number of label errors is estimated;
- images are ranked by the margin max p(other class) - p(label).

Letters for shapes: N images, D width of the embedding, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..evaluation.classifiers import choose_strength, fit, hold_out
from ..results import FloatArray
from .settings import ProgressCallback

Ints = NDArray[np.int64]

MAX_FITTED = 50_000  # images that the classifier of a fold is trained on; more would need hours for many classes
LEAST = 5  # images of a class, copies counted once: with fewer, a fold may leave no example of the class
MASS = 1e-12  # smallest probability


@dataclass(frozen=True)
class LabelErrors:
    """Out-of-fold predictions of N labeled images, and what confident learning says about their labels.

    probability: (N,) of the given label. suggested: (N,) the most probable other class. margin: (N,) its probability
    minus that of the label, -1 to 1. confident: (N,) whether the image counts as one of another class. estimated: the
    number of label errors by the confident joint. accuracy: fraction of the labels that the classifier predicts.
    judged: (N,) False for images of classes that are too small.
    """

    probability: FloatArray
    suggested: Ints
    margin: FloatArray
    confident: NDArray[np.bool_]
    estimated: int
    accuracy: float
    judged: NDArray[np.bool_]


def find_label_errors(
    vectors_ND: NDArray[np.float16],
    labels_N: Ints,
    group_N: Ints,
    classes: int,
    *,
    folds: int = 5,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> LabelErrors | None:
    """Judge the labels (N,) of images with embeddings (N,D).

    group_N: an integer (N,) that copies of an image share. progress: called with ("folds", folds done, folds). Returns
    None if fewer than two classes have enough images.
    """
    originals = np.unique(group_N, return_index=True)[1]
    sizes_K = np.bincount(labels_N[originals], minlength=classes)
    judged_N = (sizes_K >= LEAST)[labels_N]
    if (sizes_K >= LEAST).sum() < 2:
        return None
    rows = np.flatnonzero(judged_N)
    used_K, labels = np.unique(labels_N[rows], return_inverse=True)
    rng = np.random.default_rng(seed)
    fold_N = assign_folds(labels, group_N[rows], folds, rng)
    probabilities_NK = out_of_fold(vectors_ND[rows], labels, fold_N, len(used_K), rng, progress=progress)
    found = judge_labels(probabilities_NK, labels)

    def everywhere(values: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
        full = np.full(len(labels_N), fill, values.dtype)
        full[rows] = values
        return full

    return LabelErrors(
        probability=everywhere(found.probability, 1).astype(np.float32),
        suggested=everywhere(used_K[found.suggested], -1).astype(np.int64),
        margin=everywhere(found.margin, -1).astype(np.float32),
        confident=everywhere(found.confident, 0).astype(bool),
        estimated=found.estimated,
        accuracy=found.accuracy,
        judged=judged_N,
    )


def assign_folds(labels_N: Ints, group_N: Ints, folds: int, rng: np.random.Generator) -> Ints:
    """Return the fold (N,) of each image: groups are not divided, and each fold has about the same share of a class."""
    _, first, inverse = np.unique(group_N, return_index=True, return_inverse=True)
    order = rng.permutation(len(first))
    order = order[np.argsort(labels_N[first[order]], kind="stable")]
    fold = np.empty(len(first), np.int64)
    fold[order] = np.arange(len(first)) % folds
    return fold[inverse]


def out_of_fold(
    vectors_ND: NDArray[np.float16],
    labels_N: Ints,
    fold_N: Ints,
    classes: int,
    rng: np.random.Generator,
    *,
    progress: ProgressCallback | None = None,
) -> FloatArray:
    """Return the probabilities (N,K) of each image by a classifier that was trained on the other folds.

    The strength of the penalty is selected once, on held-out images.
    """
    sample = np.sort(rng.permutation(len(labels_N))[:MAX_FITTED])
    x, y = vectors_ND[sample].astype(np.float32), labels_N[sample]
    strength = choose_strength(x, y, hold_out(y, rng), classes)
    probabilities_NK = np.zeros((len(labels_N), classes), np.float32)
    folds = int(fold_N.max()) + 1
    for fold in range(folds):
        inside = fold_N == fold
        others = np.flatnonzero(~inside)
        others = np.sort(rng.permutation(others)[:MAX_FITTED])
        head = fit(vectors_ND[others].astype(np.float32), labels_N[others], classes, strength)
        logits_NK = head(vectors_ND[inside].astype(np.float32))
        logits_NK = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
        probabilities_NK[inside] = logits_NK / logits_NK.sum(1, keepdims=True)
        if progress:
            progress("folds", fold + 1, folds)
    return probabilities_NK


def judge_labels(probabilities_NK: FloatArray, labels_N: Ints) -> LabelErrors:
    """Apply confident learning to out-of-fold probabilities (N,K) and labels (N,); every class needs an image."""
    count, classes = probabilities_NK.shape
    rows = np.arange(count)
    own_N = probabilities_NK[rows, labels_N]
    sizes_K = np.maximum(np.bincount(labels_N, minlength=classes), 1)
    threshold_K = np.bincount(labels_N, own_N, classes) / sizes_K
    reaching_NK = np.where(probabilities_NK >= np.maximum(threshold_K, MASS), probabilities_NK, -1)
    confident_class_N = reaching_NK.argmax(1)
    is_counted = reaching_NK.max(1) >= 0
    joint_KK = np.zeros((classes, classes))
    np.add.at(joint_KK, (labels_N[is_counted], confident_class_N[is_counted]), 1)
    # each row of the joint is scaled to the number of images with that label
    row_sums_K = joint_KK.sum(1)
    off_diagonal_K = np.divide(row_sums_K - np.diag(joint_KK), row_sums_K, out=np.zeros(classes), where=row_sums_K > 0)
    others_NK = probabilities_NK.copy()
    others_NK[rows, labels_N] = -1
    suggested_N = others_NK.argmax(1)
    return LabelErrors(
        probability=own_N,
        suggested=suggested_N,
        margin=others_NK[rows, suggested_N] - own_N,
        confident=is_counted & (confident_class_N != labels_N),
        estimated=round(float((off_diagonal_K * np.bincount(labels_N, minlength=classes)).sum())),
        accuracy=float((probabilities_NK.argmax(1) == labels_N).mean()),
        judged=np.ones(count, bool),
    )
