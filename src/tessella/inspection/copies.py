"""Copies of images: equal bytes, nearly the same picture, and pictures that are merely similar.

Candidates are nearest neighbors by embedding. `alignment` compares their tiles, and `detail` compares the images of
pairs whose tiles are similar. Exact and near duplicates form groups, which are transitive; similar pairs do not.

Letters for shapes: N images, P pairs, K neighbors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..results import FloatArray
from ..search.duplicates import SimilarityThreshold, join
from .alignment import Similarity, compare_tiles
from .detail import compare_pictures
from .measuring import Measurements, ReadPictures
from .neighbors import Neighbors
from .settings import ProgressCallback

Ints = NDArray[np.int64]

CANDIDATE = 0.75  # cosine from which the pixels of two neighbors are compared
FLAT = 4.0  # standard deviation of the luma below which a picture shows too little to be recognized
LIKELY = 0.8  # similarity of the tiles from which the images themselves are compared; nearly all copies have more
PAIRS = 4_096  # whose tiles are compared between two reports of progress
PICTURES = 512  # pairs of images that are in memory at the same time: at most 28 MB


@dataclass(frozen=True)
class Copies:
    """Pairs of images that are copies, and the groups that exact and near duplicates form.

    i, j: (P,) images, i < j. An exact copy is paired with the first image of these bytes. Of images with equal bytes,
    only the first that could be read is in near and similar pairs, which hold for all of them. kind: (P,) "exact",
    "near" or "similar". score: (P,) structural similarity, 1 for equal bytes: of the images if their tiles are similar
    enough to compare them, else of the tiles. cosine: (P,) of the embeddings. mirrored: (P,). group: (N,) the first
    image of each image's group, itself without a copy.
    """

    i: Ints
    j: Ints
    kind: NDArray[np.str_]
    score: FloatArray
    cosine: FloatArray
    mirrored: NDArray[np.bool_]
    group: Ints


def find_copies(
    measured: Measurements,
    neighbors: Neighbors,
    near: float,
    model: str,
    read: ReadPictures,
    *,
    likely: float = LIKELY,
    progress: ProgressCallback | None = None,
) -> Copies:
    """Find the copies among N images.

    near: structural similarity from which two pictures are the same. model: its threshold tells which pictures are
    similar. read: reads images again, as from `picture_reader`. likely: similarity of tiles from which images are read
    again. progress: called with ("pairs", pairs compared, number of pairs) and then with "details" instead of "pairs".
    """
    exact_i, exact_j = _equal_bytes(measured)
    count, ones = len(exact_i), np.ones(len(exact_i), np.float32)
    group = join(np.arange(len(measured.status)), exact_i, exact_j)
    i, j, cosine = _distinct(_first_readable(measured, group), *candidate_pairs(neighbors))
    has_content = measured.statistics[:, 1] >= FLAT
    chosen = has_content[i] & has_content[j]
    i, j, cosine = i[chosen], j[chosen], cosine[chosen]
    found = _compare_tiles(measured, i, j, progress)
    rows = np.flatnonzero(found.score >= likely)
    score, is_near = found.score.copy(), np.zeros(len(i), bool)
    score[rows] = compare_details(read, i[rows], j[rows], found.take(rows), progress)
    is_near[rows] = score[rows] >= near
    kept = is_near | (cosine >= SimilarityThreshold.of(model).value)
    kind = np.where(is_near, "near", "similar")
    return Copies(
        i=np.concatenate((exact_i, i[kept])),
        j=np.concatenate((exact_j, j[kept])),
        kind=np.concatenate((np.full(count, "exact", "<U7"), kind[kept])),
        score=np.concatenate((ones, score[kept])),
        cosine=np.concatenate((ones, cosine[kept])),
        mirrored=np.concatenate((np.zeros(count, bool), found.mirrored[kept])),
        group=join(group, i[is_near], j[is_near]),
    )


def equal_files(measured: Measurements) -> Ints:
    """Return the first image (N,) with the bytes of each image."""
    return join(np.arange(len(measured.status)), *_equal_bytes(measured))


def _compare_tiles(measured: Measurements, i: Ints, j: Ints, progress: ProgressCallback | None) -> Similarity:
    """Compare the tiles of pairs (P,)."""
    parts = [compare_tiles(measured.tiles[i[:0]], measured.tiles[j[:0]])]
    for first in range(0, len(i), PAIRS):
        rows = slice(first, first + PAIRS)
        parts.append(compare_tiles(measured.tiles[i[rows]], measured.tiles[j[rows]]))
        if progress:
            progress("pairs", min(first + PAIRS, len(i)), len(i))
    return Similarity(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compare_details(
    read: ReadPictures, i: Ints, j: Ints, found: Similarity, progress: ProgressCallback | None
) -> FloatArray:
    """Return the similarity (P,) of the images of pairs; 0 if one of them can no longer be read."""
    score = np.zeros(len(i), np.float32)
    for first in range(0, len(i), PICTURES):
        rows = np.arange(first, min(first + PICTURES, len(i)))
        pictures = read(np.union1d(i[rows], j[rows]).tolist())
        rows = rows[[a in pictures and b in pictures for a, b in zip(i[rows].tolist(), j[rows].tolist(), strict=True)]]
        if len(rows):
            first_PFF3, second_PFF3 = (np.stack([pictures[k] for k in side[rows].tolist()]) for side in (i, j))
            score[rows] = compare_pictures(first_PFF3, second_PFF3, found.take(rows))
        if progress:
            progress("details", min(first + PICTURES, len(i)), len(i))
    return score


def candidate_pairs(neighbors: Neighbors, least: float = CANDIDATE) -> tuple[Ints, Ints, FloatArray]:
    """Return the pairs i < j (P,) of neighbors with at least this cosine, each once, and their cosines (P,)."""
    one, place = np.nonzero(neighbors.cosine >= least)
    other = neighbors.row[one, place]
    i, j = np.minimum(one, other), np.maximum(one, other)
    _, first = np.unique(i * len(neighbors.row) + j, return_index=True)
    return i[first], j[first], neighbors.cosine[one, place][first]


def _first_readable(measured: Measurements, group: Ints) -> Ints:
    """Return the first image (N,) of each image's group of equal bytes that could be read; itself if there is none."""
    first = np.arange(len(group))
    rows = np.flatnonzero(measured.ok)[::-1]
    first[group[rows]] = rows  # of several values for one place, the last one stays
    return np.where(measured.ok, first[group], np.arange(len(group)))


def _distinct(first: Ints, i: Ints, j: Ints, cosine: FloatArray) -> tuple[Ints, Ints, FloatArray]:
    """Return pairs (P,) as pairs of the first images of their groups, i < j, each once; none within a group.

    Which copies happen to be among the neighbors of an image is arbitrary if it has many.
    """
    i, j = np.minimum(first[i], first[j]), np.maximum(first[i], first[j])
    _, places = np.unique(i * len(first) + j, return_index=True)
    places = places[i[places] != j[places]]
    return i[places], j[places], cosine[places]


def _equal_bytes(measured: Measurements) -> tuple[Ints, Ints]:
    """Return each image with the bytes of an earlier one, after the first of them: pairs (P,)."""
    first: dict[bytes, int] = {}
    pairs = []
    for row in np.flatnonzero(measured.sha256.any(1)).tolist():
        earlier = first.setdefault(measured.sha256[row].tobytes(), row)
        if earlier != row:
            pairs.append((earlier, row))
    i, j = np.array(pairs, np.int64).reshape(-1, 2).T
    return i, j
