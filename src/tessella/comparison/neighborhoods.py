"""Embeddings of two models for the same images: shared neighbors, and an orthogonal alignment of new to old ones.

The alignment is the orthogonal matrix that minimizes the distances between old embeddings and aligned new ones
(P. H. Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31 (1966),
doi:10.1007/BF02289451): with the singular value decomposition X_old^T X_new = U S V^T, it is U V^T. If the widths
differ, it is semi-orthogonal: a narrower new embedding is turned into a subspace of the old space, of a wider one the
subspace is kept that has most in common with the old embedding. It is judged on half of the images after fitting it to
the other half; the one that is written is fitted to all of them. Fewer images than dimensions would leave some
directions undetermined, so that many images are required.

Letters for shapes: N images, Q queries, D width of the old embedding, F width of the new one, k neighbors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..results import FloatArray, l2_normalize
from .images import Ints

NEIGHBORS = 10
LEAST_IMAGES = 3 * NEIGHBORS  # of fewer, the nearest ten are a large part
IMAGES_PER_DIMENSION = 3  # of the narrower embedding; an alignment is fitted to half of them and judged on the rest
NUMBERS = 1 << 24  # cosines in memory at a time


@dataclass(frozen=True, kw_only=True)
class NeighborOverlap:
    """The share of each image's nearest neighbors by one embedding that are among those by the other.

    images: number of images, all of which are compared. chance: the expected share for unrelated embeddings.
    """

    images: int
    share: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class AlignmentFigures:
    """How well aligned new embeddings replace old ones, on images that the alignment was not fitted to.

    fitted, judged: numbers of images, which are disjoint. kept: of the ten images nearest to a query by the old
    embeddings, the share that are found if the query is a new embedding, aligned, and all others are old ones.
    kept_reverse: if the query is an old embedding, and all others are aligned new ones. itself: share of the images
    that are nearest to their own aligned embedding. rerun: the share if all are new embeddings, as after running the
    collection again.
    """

    fitted: int
    judged: int
    kept: float
    kept_reverse: float
    itself: float
    rerun: float


def neighbor_overlap(old_ND: FloatArray, new_NF: FloatArray) -> NeighborOverlap | None:
    """Compare the neighbors by unit vectors (N,D) and (N,F); None for too few images."""
    count = len(old_ND)
    if count < LEAST_IMAGES:
        return None
    share = shared(nearest_others(old_ND, old_ND), nearest_others(new_NF, new_NF))
    return NeighborOverlap(images=count, share=share, chance=NEIGHBORS / (count - 1))


def fit_alignment(old_ND: FloatArray, new_NF: FloatArray) -> FloatArray:
    """Return the semi-orthogonal matrix (D,F) that turns unit vectors (N,F) into those (N,D) of the same images."""
    products_DF = old_ND.astype(np.float64).T @ new_NF
    left, _, right = np.linalg.svd(products_DF, full_matrices=False)
    return np.asarray(left @ right, np.float32)


def judge_alignment(old_ND: FloatArray, new_NF: FloatArray, seed: int) -> tuple[FloatArray, AlignmentFigures] | None:
    """Fit an alignment (D,F) to the unit vectors (N,D) and (N,F); judge one of one half of them on the other half.

    Returns None for too few images.
    """
    count = len(old_ND)
    if count < images_needed(old_ND.shape[1], new_NF.shape[1]):
        return None
    order = np.random.default_rng(seed).permutation(count)
    fitted, judged = order[: count // 2], np.sort(order[count // 2 :])
    old, new = old_ND[judged], new_NF[judged]
    aligned = l2_normalize(new @ fit_alignment(old_ND[fitted], new_NF[fitted]).T)
    present = nearest_others(old, old)
    figures = AlignmentFigures(
        fitted=len(fitted),
        judged=len(judged),
        kept=shared(present, nearest_others(aligned, old)),
        kept_reverse=shared(present, nearest_others(old, aligned)),
        itself=float((nearest(aligned, old, 1)[:, 0] == np.arange(len(old))).mean()),
        rerun=shared(present, nearest_others(new, new)),
    )
    return fit_alignment(old_ND, new_NF), figures


def images_needed(old_width: int, new_width: int) -> int:
    """Return the number of images from which an alignment of embeddings with these widths is fitted and judged."""
    return max(IMAGES_PER_DIMENSION * min(old_width, new_width), 2 * LEAST_IMAGES)


def nearest(queries_QD: FloatArray, others_ND: FloatArray, count: int, *, skip_own: bool = False) -> Ints:
    """Return the indices (Q,k) of the `count` unit vectors (N,D) with the highest cosines, in any order.

    skip_own: query i is not compared with vector i.
    """
    found = []
    step = max(NUMBERS // len(others_ND), 1)
    for start in range(0, len(queries_QD), step):
        cosines = queries_QD[start : start + step] @ others_ND.T
        if skip_own:
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -2
        found.append(np.argpartition(-cosines, count - 1, axis=1)[:, :count])
    return np.concatenate(found)


def nearest_others(queries_ND: FloatArray, others_ND: FloatArray) -> Ints:
    """Return the indices (N,k) of the vectors (N,D) of other images that are nearest to each query (N,D)."""
    return nearest(queries_ND, others_ND, NEIGHBORS, skip_own=True)


def shared(first_Nk: Ints, second_Nk: Ints) -> float:
    """Return the mean share of the neighbors (N,k) of an image that are also in the other row (N,k)."""
    return float((first_Nk[:, :, None] == second_Nk[:, None, :]).any(2).mean())
