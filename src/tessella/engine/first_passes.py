"""Check the first passes of a runtime whose streams share weights: each stream must give the same outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..data.decode import Pixels
from .base import ArrayOutputs, FloatArray
from .difference import TOLERANCE, relative_difference

Images: TypeAlias = "Pixels | FloatArray"
Infer: TypeAlias = Callable[[Images], ArrayOutputs]


class DisagreementError(Exception):
    """Two passes over the same images gave different outputs."""


@dataclass
class _Probe:
    """Images of one batch size, their outputs, and the number of passes that reproduced these."""

    images: Images
    outputs: ArrayOutputs
    checks: int = 0


class FirstPasses:
    """Checks that several streams give the same outputs for the same images, in the first passes of each batch size.

    A stream prepares kernels and weights in its first pass of a batch size. In two benchmarks of this project, the
    outputs of such a pass were wrong (OpenVINO 2026.4, two streams), and those of later passes were right; the cause is
    not known. Therefore, the first pass of a batch size is repeated and compared, and its images and outputs are kept
    as a probe. Each of the next passes first computes the probe, and has to reproduce its outputs. A runtime does not
    tell which stream computes a pass, so twice as many passes as streams are checked, which makes it likely that every
    stream was. All streams compute these passes at the same time, so the checks of a batch size take as long as two
    batches.
    """

    def __init__(self, streams: int, precision: str):
        self.enough = 2 * streams if streams > 1 else 0
        self.tolerance = TOLERANCE[precision]
        self._lock = threading.Lock()
        self._probes: dict[int, _Probe] = {}
        self._done: set[int] = set()  # batch sizes

    def run(self, infer: Infer, images: Images) -> ArrayOutputs:
        """Return `infer(images)`: logits (B,classes), embeddings (B,width). May be called by several threads.

        Raises DisagreementError if a pass of this batch size gave other outputs than an earlier one of the same images.
        """
        size = len(images)
        if not self.enough or size in self._done:
            return infer(images)
        probe = self._probes.get(size)
        if probe is None:
            first, outputs = infer(images), infer(images)
            self._compare(first, outputs)
            probe = _Probe(images.copy(), (outputs[0].copy(), outputs[1].copy()))  # the caller may change its own
        else:
            self._compare(infer(probe.images), probe.outputs)
            outputs = infer(images)
        self._count(size, probe)
        return outputs

    def _compare(self, found: ArrayOutputs, expected: ArrayOutputs) -> None:
        """Raise DisagreementError unless the outputs of two passes over the same images agree."""
        pairs = list(zip(found, expected, strict=True))
        if all(np.array_equal(*pair, equal_nan=True) for pair in pairs):
            return
        if (error := relative_difference(found, expected)) > self.tolerance:
            wrong = {int(row) for pair in pairs for row in self._different_rows(*pair)}
            raise DisagreementError(
                f"two passes over the same {len(found[0])} images gave different outputs for the images "
                f"{', '.join(map(str, sorted(wrong)))}, by {error:.2g} of the standard deviation"
            )

    @np.errstate(invalid="ignore")  # infinity minus infinity
    def _different_rows(self, found: FloatArray, expected: FloatArray) -> NDArray[np.intp]:
        differences = np.abs(found - expected).reshape(len(found), -1).max(1, initial=0)
        return np.flatnonzero(~(differences <= self.tolerance * expected.std())) if expected.size else np.array([], int)

    def _count(self, size: int, probe: _Probe) -> None:
        with self._lock:
            if size not in self._done:
                probe = self._probes.setdefault(size, probe)
                probe.checks += 1
                if probe.checks >= self.enough:
                    self._done.add(size)
                    del self._probes[size]
