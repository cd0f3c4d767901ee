"""The order in which a training run draws images from several sets at stated shares."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checks import show
from ..errors import UsageError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """Several sets of images, each with its share of every batch.

    sizes: number of images of each set; the sets follow each other in one numbering of all images. shares: fraction of
    each set, which sum to 1.
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(
        cls,
        labelled: int,
        unlabelled: tuple[int, ...],
        fraction: float | None = None,
        weights: tuple[float, ...] | None = None,
    ) -> Mixture:
        """Return the mixture of one labeled set and several unlabeled ones, given by their numbers of images.

        fraction: share of all unlabeled images together; None: in proportion to the numbers of images. weights:
        weight of each unlabeled set; None: its number of images. Raises UsageError `bad_argument` for another number
        of weights than unlabeled sets.
        """
        total = labelled + sum(unlabelled)
        fraction = sum(unlabelled) / total if fraction is None else fraction
        if weights is not None and len(weights) != len(unlabelled):
            raise UsageError(
                "bad_argument",
                f"unlabelled_weights is {show(weights)}, for {len(unlabelled)} sets of unlabeled images",
                hint="give one weight for each --unlabelled",
            )
        parts = unlabelled if weights is None else weights
        return cls((labelled, *unlabelled), (1 - fraction, *(fraction * part / sum(parts) for part in parts)))

    def order(self, rng: np.random.Generator, count: int, block: int) -> tuple[Ints, Ints]:
        """Return the (N,) indices of the next `count` images, and how often each was drawn before, as (N,) integers.

        Every run of `block` images, starting with the first, has the stated shares up to one image, in random order.
        Each set is a permutation; when it is used up, another permutation follows.
        """
        sets = _interleaved(self.shares, count)
        for start in range(0, count, block):
            sets[start : start + block] = rng.permutation(sets[start : start + block])
        indices, rounds = np.empty(count, np.int64), np.empty(count, np.int64)
        first = 0
        for k, size in enumerate(self.sizes):
            places = np.flatnonzero(sets == k)
            passes = -(-len(places) // size)
            drawn = [rng.permutation(size) for _ in range(passes)]
            if drawn:
                indices[places] = first + np.concatenate(drawn)[: len(places)]
                rounds[places] = np.arange(len(places)) // size
            first += size
        return indices, rounds

    def sets_of(self, indices: Ints) -> Ints:
        """Return the set of each of the (N,) indices of images, from 0."""
        return np.searchsorted(np.cumsum(self.sizes), indices, side="right")


@functools.lru_cache(maxsize=4)
def _assigned(shares: tuple[float, ...], count: int) -> bytes:
    """Return the set of each of `count` images as int64: always the set that is furthest behind its share."""
    behind = np.zeros(len(shares))
    gain = np.array(shares)
    sets = np.empty(count, np.int64)
    for i in range(count):
        behind += gain
        chosen = int(behind.argmax())
        behind[chosen] -= 1
        sets[i] = chosen
    return sets.tobytes()


def _interleaved(shares: tuple[float, ...], count: int) -> Ints:
    """Return the (N,) set of each of `count` images, a new array."""
    return np.frombuffer(_assigned(shares, count), np.int64).copy()
