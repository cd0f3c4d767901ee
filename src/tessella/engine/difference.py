"""How far outputs are from those that are expected, and how far they may be."""

from __future__ import annotations

import numpy as np

from .base import ArrayOutputs, FloatArray

# Largest difference, relative to the standard deviation of the outputs. Between batch sizes, a lossy precision rounds
# sums in a different order, as in the test that a server does before it is ready.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.1}


def relative_difference(found: ArrayOutputs, expected: ArrayOutputs) -> float:
    """Return the largest difference of logits (N,classes) or embeddings (N,width), relative to their own deviation.

    NaN, infinity and arrays of different shapes give infinity.
    """
    return max(_difference(*pair) for pair in zip(found, expected, strict=True))


@np.errstate(invalid="ignore")  # infinity minus infinity
def _difference(found: FloatArray, expected: FloatArray) -> float:
    if found.shape != expected.shape:
        return np.inf
    if not expected.size:
        return 0.0
    error = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    return float(np.nan_to_num(error / max(float(expected.std(dtype=np.float64)), 1e-12), nan=np.inf, posinf=np.inf))
