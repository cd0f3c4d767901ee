"""Temperature scaling: one number by which logits are divided, so that probabilities match how often they are right.

Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, with the targets of Platt scaling (Platt,
Probabilistic Outputs for Support Vector Machines, 1999). The order of the classes does not change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..results import FloatArray
from .arrays import Floats, Ints

LOWEST, HIGHEST = 1e-3, 1e3  # bounds of the temperature
MAX_STEPS = 100
TOLERANCE = 1e-9  # of the logarithm of the temperature


def fit_temperature(logits_NK: FloatArray, labels_N: Ints) -> float:
    """Return the temperature that minimizes the mean cross-entropy of (N,K) logits and smoothed true classes (N,).

    A model that is right for all of a few images would get the temperature 0, and be certain of everything. So
    1 / (N + 2) of each target, as if one of N + 2 images were wrong, is given to the most probable other class.

    The loss is convex in the inverse of the temperature, so the zero of its slope is found by Newton's method inside a
    bracket that is halved where a step would leave it. A model whose logits carry no information gets HIGHEST.
    """
    logits = logits_NK.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    target_N = _smoothed_targets(logits, labels_N)
    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    point = 0.0
    for _ in range(MAX_STEPS):
        slope, curvature = _derivatives(logits, target_N, float(np.exp(point)))
        low, high = (point, high) if slope < 0 else (low, point)
        following = point - slope / curvature if curvature > 0 else (low + high) / 2
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - point) < TOLERANCE:
            break
        point = following
    return float(np.exp(-point))


def _smoothed_targets(logits_NK: Floats, labels_N: Ints) -> Floats:
    """Return the mean logit (N,) under the target distribution of each image."""
    rows_N = np.arange(len(labels_N))
    true_N = logits_NK[rows_N, labels_N]
    if logits_NK.shape[1] < 2:
        return true_N
    others_NK = logits_NK.copy()
    others_NK[rows_N, labels_N] = -np.inf
    weight = 1 / (len(labels_N) + 2)
    return np.asarray((1 - weight) * true_N + weight * others_NK.max(axis=1))


class Odds(NamedTuple):
    """Outputs for N images after temperature scaling.

    best: the most probable class (N,). ratios: the probabilities of the classes, divided by that of the most probable
    one (N,K), which has 0. rest: their sum (N,).
    """

    best: Ints
    ratios: Floats
    rest: Floats


def odds_of(logits_NK: FloatArray, temperature: float) -> Odds:
    """Return the odds of the classes for logits, which are divided by the temperature."""
    rows_N, best_N = np.arange(len(logits_NK)), logits_NK.argmax(axis=1)
    scaled_NK = logits_NK.astype(np.float64) / temperature
    ratios_NK = np.exp(scaled_NK - scaled_NK[rows_N, best_N][:, None])
    ratios_NK[rows_N, best_N] = 0.0
    return Odds(best_N, ratios_NK, ratios_NK.sum(axis=1))


class OddsOfOne(NamedTuple):
    """The same as `Odds` for one image: ratios and probabilities are (K,)."""

    best: int
    ratios: Floats
    rest: float
    probabilities: Floats


def odds_of_one(logits_K: FloatArray, temperature: float) -> OddsOfOne:
    """Return `odds_of` and `scaled_probabilities` for one image with logits (K,)."""
    scaled_K = logits_K.astype(np.float64) / temperature
    best = int(logits_K.argmax())
    ratios_K = np.exp(scaled_K - scaled_K[best])
    ratios_K[best] = 0.0
    rest = float(ratios_K.sum())
    probabilities_K = ratios_K / (1 + rest)
    probabilities_K[best] = 1.0 / (1 + rest)
    return OddsOfOne(best, ratios_K, rest, probabilities_K)


def scaled_probabilities(logits_NK: FloatArray, temperature: float) -> Floats:
    """Return the softmax (N,K) float64 of logits that are divided by the temperature."""
    best_N, ratios_NK, rest_N = odds_of(logits_NK, temperature)
    ratios_NK[np.arange(len(best_N)), best_N] = 1.0
    ratios_NK /= 1 + rest_N[:, None]
    return ratios_NK


def _derivatives(logits_NK: Floats, target_N: Floats, scale: float) -> tuple[float, float]:
    """Return the first and (an upper estimate of) the second derivative of the loss by the logarithm of `scale`.

    target_N: mean logits under the targets. scale: the inverse of the temperature. With u = log(scale),
    d/du = scale * d/dscale.
    """
    powers_NK = np.exp(scale * logits_NK)
    powers_NK /= powers_NK.sum(axis=1, keepdims=True)
    mean_N = (powers_NK * logits_NK).sum(axis=1)
    variance_N = (powers_NK * logits_NK**2).sum(axis=1) - mean_N**2
    slope = float(scale * (mean_N - target_N).mean())
    return slope, float(scale**2 * variance_N.mean()) + max(slope, 0.0)
