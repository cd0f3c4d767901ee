"""Temperature scaling: one number by which logits are divided, so that probabilities match how often they are right.

Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599. The order of the classes does not change.
"""

from __future__ import annotations

import numpy as np

from ..results import FloatArray, softmax
from .arrays import Floats, Ints

LOWEST, HIGHEST = 1e-3, 1e3  # bounds of the temperature
MAX_STEPS = 100
TOLERANCE = 1e-9  # of the logarithm of the temperature


def fit_temperature(logits_NK: FloatArray, labels_N: Ints) -> float:
    """Return the temperature that minimizes the mean cross-entropy of (N,K) logits and the (N,) true classes.

    The loss is convex in the inverse of the temperature, so the zero of its slope is found by Newton's method inside a
    bracket that is halved where a step would leave it. A model whose answers are all correct would get 0; it gets
    LOWEST, and one whose logits say nothing HIGHEST.
    """
    logits = logits_NK.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    true_N = np.take_along_axis(logits, labels_N[:, None], 1)[:, 0]
    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    point = 0.0
    for _ in range(MAX_STEPS):
        slope, curvature = _derivatives(logits, true_N, float(np.exp(point)))
        low, high = (point, high) if slope < 0 else (low, point)
        following = point - slope / curvature if curvature > 0 else (low + high) / 2
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - point) < TOLERANCE:
            break
        point = following
    return float(np.exp(-point))


def scaled_probabilities(logits_NK: FloatArray, temperature: float) -> FloatArray:
    """Return the softmax (N,K) float32 of logits that are divided by the temperature."""
    return softmax(logits_NK / np.float32(temperature))


def _derivatives(logits_NK: Floats, true_N: Floats, scale: float) -> tuple[float, float]:
    """Return the first and (an upper estimate of) the second derivative of the loss by the logarithm of `scale`.

    scale: the inverse of the temperature. With u = log(scale), d/du = scale * d/dscale.
    """
    powers_NK = np.exp(scale * logits_NK)
    powers_NK /= powers_NK.sum(axis=1, keepdims=True)
    mean_N = (powers_NK * logits_NK).sum(axis=1)
    variance_N = (powers_NK * logits_NK**2).sum(axis=1) - mean_N**2
    slope = float(scale * (mean_N - true_N).mean())
    return slope, float(scale**2 * variance_N.mean()) + max(slope, 0.0)
