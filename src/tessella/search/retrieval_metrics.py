"""Retrieval metrics: how well nearest neighbors share the class of an image, without a classifier.

Letters for shapes: N images, Q queries of a block, D width of the embedding, K neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from ..results import l2_normalize

BLOCK = 512  # queries per block: memory is BLOCK x N


@dataclass(frozen=True)
class Retrieval:
    """Retrieval metrics as fractions between 0 and 1; knn and recall by k.

    queries: number of images whose class has at least one other image.
    knn: fraction of the images whose class has the most votes among the k nearest; ties go to the nearest class.
    recall: fraction of the queries with at least one image of their class among the k nearest (recall@k as in metric
    learning, not the fraction of the class that is found).
    map: mean average precision over the queries.
    """

    images: int
    queries: int
    knn: dict[int, float]
    recall: dict[int, float]
    map: float


def retrieval(vectors_ND: ArrayLike, labels_N: ArrayLike, k: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """Compute retrieval metrics of embeddings (N,D) with labels (N,), with every image as the query once.

    All other images are ranked by cosine similarity, ties by position; nothing is approximate. An image without
    another one of its class counts as wrong for knn, and is ignored for recall and map.
    Raises UsageError `bad_argument`.
    """
    if not isinstance(k, Sequence) or not all(isinstance(count, int) and not isinstance(count, bool) for count in k):
        raise UsageError("bad_argument", f"k is {str(k)[:80]!r}, expected whole numbers, such as (1, 5, 10)")
    try:
        vectors, labels = np.asarray(vectors_ND), np.asarray(labels_N)
        classes = np.unique(labels, return_inverse=True)[1]
    except (ValueError, TypeError) as error:
        raise UsageError("bad_argument", f"vectors or labels cannot be converted to arrays: {error}") from None
    count = len(vectors) if vectors.ndim else 0
    is_real = vectors.dtype.kind in "fiu"
    if vectors.ndim != 2 or labels.shape != (count,) or count < 2 or not is_real or not np.isfinite(vectors).all():
        raise UsageError(
            "bad_argument",
            f"vectors of shape {vectors.shape} and type {vectors.dtype}, and labels of shape {labels.shape}; expected "
            "finite numbers (N,D) and (N,), of two images or more",
        )
    if not k or any(not 1 <= neighbors < count for neighbors in k):
        raise UsageError("bad_argument", f"k is {tuple(k)!r}, expected numbers from 1 to {count - 1}")
    units_ND, classes_N = l2_normalize(vectors.astype(np.float32)), classes.reshape(-1)
    ranks = np.arange(1, count)
    knn, recall, precision, queries = dict.fromkeys(k, 0), dict.fromkeys(k, 0), 0.0, 0
    for start in range(0, count, BLOCK):
        classes_Q = classes_N[start : start + BLOCK]
        scores_QN = units_ND[start : start + BLOCK] @ units_ND.T
        rows = np.arange(len(classes_Q))
        scores_QN[rows, start + rows] = -np.inf  # a query is its own last neighbor
        ranked_QN = classes_N[_order(scores_QN)[:, :-1]]
        same_QN = ranked_QN == classes_Q[:, None]
        found_QN = same_QN.cumsum(1)
        others_Q = found_QN[:, -1]
        queries += int((others_Q > 0).sum())
        precision += float(((same_QN * found_QN / ranks).sum(1) / np.maximum(others_Q, 1)).sum())
        for neighbors in k:
            recall[neighbors] += int((found_QN[:, neighbors - 1] > 0).sum())
            near_QK = ranked_QN[:, :neighbors]
            votes_QK = (near_QK[:, :, None] == near_QK[:, None, :]).sum(2)
            winner_Q = near_QK[rows, votes_QK.argmax(1)]  # the first of equals
            knn[neighbors] += int((winner_Q == classes_Q).sum())
    if not queries:
        raise UsageError("bad_argument", f"no two of {count:,} images share a label")
    return Retrieval(
        images=count,
        queries=queries,
        knn={neighbors: knn[neighbors] / count for neighbors in k},
        recall={neighbors: recall[neighbors] / queries for neighbors in k},
        map=precision / queries,
    )


def _order(scores_QN: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the positions of each row's scores, the highest first and equal ones by position.

    Sorting integers of the score and the position is several times as fast as a stable sort of floating-point numbers.
    """
    bits = (scores_QN + np.float32(0)).view(np.int32)  # adding zero makes -0 equal to 0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers in the order of the floating-point numbers
    keys = ((~rising).astype(np.int64) << 32) | np.arange(scores_QN.shape[1])
    keys.sort(axis=1)
    return keys & 0xFFFFFFFF
