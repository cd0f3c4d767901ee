"""The nearest neighbors of every image, by the cosine of embeddings: exact, in blocks, with bounded memory.

Time grows with the square of the number of images: all pairs are compared, as products of blocks.

Letters for shapes: N images, Q queries, D width of the embedding, B images of a block, K neighbors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..results import FloatArray
from .settings import ProgressCallback

QUERIES, BLOCK = 1_024, 4_096  # images per block of rows and of columns: a block of cosines has 16 MB


class Neighbors(NamedTuple):
    """The K nearest neighbors of N images, the nearest first.

    cosine: (N,K) float32, -1 where there are fewer neighbors; row: (N,K) int64, -1 there.
    """

    cosine: FloatArray
    row: NDArray[np.int64]


def find_neighbors(
    vectors_ND: NDArray[np.float16],
    count: int,
    *,
    group_N: NDArray[np.int64] | None = None,
    label: str = "neighbors",
    progress: ProgressCallback | None = None,
) -> Neighbors:
    """Return the `count` nearest neighbors of each image by embeddings (N,D) of unit length; no image is its own.

    group_N: (N,) integers that copies share. Of a group, only the first image is searched, and only it is found: all
    have its neighbors. Without it, an image with more than `count` copies would have no other neighbors. progress:
    called with (label, images done, number of images searched).
    """
    if group_N is not None:
        _, firsts, places = np.unique(group_N, return_index=True, return_inverse=True)
        found = find_neighbors(vectors_ND[firsts], count, label=label, progress=progress)
        row_NK = np.where(found.row >= 0, firsts[found.row], -1) if len(firsts) else found.row
        return Neighbors(found.cosine[places], row_NK[places])
    total = len(vectors_ND)
    cosine_NK = np.full((total, count), -1, np.float32)
    row_NK = np.full((total, count), -1, np.int64)
    for first in range(0, total, QUERIES):
        queries_QD = vectors_ND[first : first + QUERIES].astype(np.float32)
        rows = slice(first, first + len(queries_QD))
        best = Neighbors(cosine_NK[rows], row_NK[rows])
        for left in range(0, total, BLOCK):
            cosines_QB = queries_QD @ vectors_ND[left : left + BLOCK].astype(np.float32).T
            own = np.arange(first, first + len(queries_QD)) - left
            inside = (own >= 0) & (own < cosines_QB.shape[1])
            cosines_QB[np.flatnonzero(inside), own[inside]] = -2
            _merge(best, cosines_QB, left)
        if progress:
            progress(label, first + len(queries_QD), total)
    return Neighbors(cosine_NK, row_NK)


def _merge(best: Neighbors, cosines_QB: FloatArray, left: int) -> None:
    """Put the columns of a block that are nearer than the farthest of the best neighbors among them, in place."""
    count = best.cosine.shape[1]
    is_nearer = cosines_QB > best.cosine[:, -1:]
    for query in np.flatnonzero(is_nearer.any(1)):
        columns = np.flatnonzero(is_nearer[query])
        if len(columns) > count:
            columns = columns[np.argpartition(-cosines_QB[query, columns], count - 1)[:count]]
        cosines = np.concatenate((best.cosine[query], cosines_QB[query, columns]))
        found = np.concatenate((best.row[query], columns + left))
        order = np.argsort(-cosines, kind="stable")[:count]
        best.cosine[query], best.row[query] = cosines[order], found[order]
