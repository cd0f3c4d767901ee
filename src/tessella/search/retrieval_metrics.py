"""How well the nearest neighbours of an image share its class: what embeddings are worth without a classifier.

Letters for shapes: N images, Q of them that are queries, D width of the embedding, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ..results import l2_normalize

BLOCK = 512  # queries at once: memory is BLOCK x N


@dataclass(frozen=True)
class Retrieval:
    """Shares, 0 to 1; knn and recall by k. queries: images whose class has another one.

    knn: of the images, those whose class has the most votes of their k nearest; of equals, the class that is nearest.
    recall: of the queries, those with one of their class or more among the k nearest (recall@k of metric learning, not
    the share of the class that is found).
    map: mean over the queries of the mean, over the images of their class, of the precision at these images' ranks.
    """

    images: int
    queries: int
    knn: dict[int, float]
    recall: dict[int, float]
    map: float


def retrieval(vectors_ND: Any, labels_N: Any, k: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """Every image is the query once, all others are ordered by cosine, equal ones by position; nothing is approximate.

    An image whose class has no other one counts as wrong for knn, and not at all for recall and map.
    Raises UsageError `bad_argument`.
    """
    import torch

    if not isinstance(k, Sequence) or not all(isinstance(one, int) and not isinstance(one, bool) for one in k):
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
    if not k or any(not 1 <= one < count for one in k):
        raise UsageError("bad_argument", f"k is {tuple(k)!r}, expected numbers from 1 to {count - 1}")
    units_ND = torch.from_numpy(l2_normalize(vectors.astype(np.float32)))
    classes_N = torch.from_numpy(classes.reshape(-1))
    ranks = torch.arange(1, count, dtype=torch.float64)
    knn, recall, precision, queries = dict.fromkeys(k, 0), dict.fromkeys(k, 0), 0.0, 0
    for start in range(0, count, BLOCK):
        own_Q = classes_N[start : start + BLOCK]
        scores_QN = units_ND[start : start + BLOCK] @ units_ND.T
        scores_QN.diagonal(start).fill_(-torch.inf)  # a query is its own last neighbour
        order_QN = scores_QN.sort(dim=1, descending=True, stable=True).indices[:, :-1]
        seen_QN = classes_N[order_QN]
        same_QN = seen_QN == own_Q[:, None]
        found_QN = same_QN.cumsum(1)
        others_Q = found_QN[:, -1]
        queries += int((others_Q > 0).sum())
        precision += float(((same_QN * found_QN / ranks).sum(1) / others_Q.clamp_min(1)).sum())
        for one in k:
            recall[one] += int((found_QN[:, one - 1] > 0).sum())
            near_QK = seen_QN[:, :one]
            votes_QK = (near_QK[:, :, None] == near_QK[:, None, :]).sum(2)
            winner_Q = near_QK.gather(1, votes_QK.argmax(1, keepdim=True))[:, 0]  # the first of equals
            knn[one] += int((winner_Q == own_Q).sum())
    if not queries:
        raise UsageError("bad_argument", f"no two of {count:,} images share a label")
    return Retrieval(
        count, queries, {one: knn[one] / count for one in k}, {one: recall[one] / queries for one in k},
        precision / queries,
    )  # fmt: skip
