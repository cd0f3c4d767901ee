"""Check the first passes of a runtime with several streams: all streams must give the same outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..data.decode import Pixels
from .base import ArrayOutputs, FloatArray
from .difference import TOLERANCE, relative_difference

Images: TypeAlias = "Pixels | FloatArray"
ROUNDS = 2  # a wrong first pass differs from the second, and a stream that is always wrong differs from the others


class DisagreementError(Exception):
    """Two passes over the same images gave different outputs."""


class FirstPasses:
    """Compares all streams on the same images before outputs for a new batch size are returned.

    A stream prepares kernels and weights in its first pass of a batch size. In two benchmarks of this project, the
    outputs of such a pass were wrong (OpenVINO 2026.4, two streams), and those of later passes were right; the cause is
    not known. The check takes as long as ROUNDS batches, because all streams run at the same time.
    """

    def __init__(self, streams: int, precision: str):
        self.streams = streams
        self.tolerance = TOLERANCE[precision]
        self._lock = threading.Lock()
        self._checked: set[int] = set()  # batch sizes

    def check(self, images: Images, run_streams: Callable[[Images], Sequence[ArrayOutputs]]) -> None:
        """Check the batch size of `images`, unless it was checked before or there is only one stream.

        run_streams: computes the images in every stream at the same time, and returns logits (B,classes) and embedding
        (B,width) of each. May be called by several threads, of which one checks while the others wait.
        Raises DisagreementError.
        """
        size = len(images)
        if self.streams < 2 or size in self._checked:
            return
        with self._lock:
            if size in self._checked:
                return
            first, *others = [outputs for _ in range(ROUNDS) for outputs in run_streams(images)]
            for outputs in others:
                self._compare(outputs, first)
            self._checked.add(size)

    def _compare(self, found: ArrayOutputs, expected: ArrayOutputs) -> None:
        """Raise DisagreementError unless the outputs of two passes over the same images agree."""
        pairs = list(zip(found, expected, strict=True))
        if all(np.array_equal(*pair, equal_nan=True) for pair in pairs):
            return
        if (error := relative_difference(found, expected)) > self.tolerance:
            different = {int(row) for pair in pairs for row in self._different_rows(*pair)}
            raise DisagreementError(
                f"two passes over the same batch of {len(found[0])} gave different outputs for the images "
                f"{', '.join(map(str, sorted(different)))}, by {error:.2g} of the standard deviation"
            )

    @np.errstate(invalid="ignore")  # infinity minus infinity
    def _different_rows(self, found: FloatArray, expected: FloatArray) -> NDArray[np.intp]:
        differences = np.abs(found - expected).reshape(len(found), -1).max(1, initial=0)
        return np.flatnonzero(~(differences <= self.tolerance * expected.std())) if expected.size else np.array([], int)
