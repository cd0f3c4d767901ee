"""Check the first passes of a runtime whose streams share weights: each stream must give the same outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..data.decode import Pixels
from .base import ArrayOutputs, FloatArray
from .difference import TOLERANCE, relative_difference

Images: TypeAlias = "Pixels | FloatArray"
Infer: TypeAlias = Callable[[Images], ArrayOutputs]


class DisagreementError(Exception):
    """Two passes over the same images gave different outputs."""


@dataclass
class _Probe:
    """Images of one batch size, their outputs, and how many passes agreed with these."""

    images: Images
    outputs: ArrayOutputs
    checks: int = 0


class FirstPasses:
    """Compares passes over the same images until each of several streams has probably computed some of each batch size.

    A stream prepares kernels and weights in its first pass of a batch size. Twice in this project, outputs of a first
    pass of OpenVINO 2026.4 with two streams were wrong, and later ones were right; the cause is not known. So the
    first pass is repeated, and passes that follow it compute the same images before their own. A runtime does not
    tell which stream computes a pass; with twice as many passes as streams, most likely every one did. The threads of
    all streams compute these passes at the same time, which takes as long as two batches for each batch size.
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
        same = all(np.array_equal(*pair, equal_nan=True) for pair in zip(found, expected, strict=True))
        if not same and (error := relative_difference(found, expected)) > self.tolerance:
            parts = [np.abs(a - b).reshape(len(a), -1).max(1, initial=0) for a, b in zip(found, expected, strict=True)]
            wrong = np.flatnonzero(~(np.maximum(*parts) <= self.tolerance * expected[0].std()))
            raise DisagreementError(
                f"outputs of the same {len(found[0])} images differ by {error:.2g} of their standard deviation, "
                f"those of the images {', '.join(map(str, wrong))}"
            )

    def _count(self, size: int, probe: _Probe) -> None:
        with self._lock:
            if size not in self._done:
                probe = self._probes.setdefault(size, probe)
                probe.checks += 1
                if probe.checks >= self.enough:
                    self._done.add(size)
                    del self._probes[size]
