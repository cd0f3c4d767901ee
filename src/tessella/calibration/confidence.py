"""A curve from the confidence of a model to how often it is right.

After temperature scaling, models that were trained with mixed images and smoothed labels are still overconfident in
some ranges and underconfident in others. The curve is a logistic regression of being right on the log-odds of the
most probable class, in pieces that meet at a few knots; Platt scaling of the confidence has no knots. The other classes
share what is left in their former proportions, and the most probable class stays the most probable one.

Letters for shapes: N images, K classes, M knots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..results import FloatArray
from .arrays import Floats, Ints
from .temperature import OddsOfOne, odds_of

KNOTS = 3  # with 6, calibration errors were the same
LOWEST, HIGHEST = -10.0, 12.0  # of log-odds
PENALTY = 1.0  # on differences from the identity, in units of one image
STEPS = 50
MARGIN = 1.0001  # by which the most probable class stays ahead of the next one
SAFE = 0.51  # no other class can have more than what is left of this
MAX_LOG_ODDS = 700.0  # of an answer that is wrong; exp() of more overflows
TINY = 1e-290  # a sum of the other classes that counts as 0


@dataclass(frozen=True, eq=False)
class ConfidenceCurve:
    """The log-odds of being right: intercept + slope * x + the sum of bends * max(x - knots, 0), for log-odds x.

    knots, bends: (M,), as tuples, since they are stored as text.
    """

    intercept: float = 0.0
    slope: float = 1.0
    knots: tuple[float, ...] = ()
    bends: tuple[float, ...] = ()

    def apply(self, logits_NK: FloatArray, temperature: float) -> FloatArray:
        """Return the calibrated probabilities (N,K) float32 of logits, before they are divided by the temperature."""
        best_N, ratios_NK, rest_N = odds_of(logits_NK, temperature)
        if not ratios_NK.shape[1]:
            return ratios_NK.astype(np.float32)
        has_rest_N = rest_N > TINY
        safe_N = np.where(has_rest_N, rest_N, 1.0)
        next_N = MARGIN * ratios_NK.max(axis=1) / safe_N  # the share of the next class in what is left
        confidence_N = np.maximum(self.confidence(-np.log(safe_N)), next_N / (1 + next_N))
        confidence_N = np.where(has_rest_N, confidence_N, 1.0)
        ratios_NK *= ((1 - confidence_N) / safe_N)[:, None]
        ratios_NK[np.arange(len(best_N)), best_N] = confidence_N
        return ratios_NK.astype(np.float32)

    def apply_to_one(self, odds: OddsOfOne) -> FloatArray:
        """Return what `apply` does for one image (K,)."""
        if odds.rest <= TINY:
            return odds.probabilities.astype(np.float32)
        x = min(max(-math.log(odds.rest), LOWEST), HIGHEST)
        value = self.intercept + self.slope * x
        for knot, bend in zip(self.knots, self.bends, strict=True):
            value += bend * max(x - knot, 0.0)
        confidence = 1 / (1 + math.exp(-max(value, -MAX_LOG_ODDS)))
        if confidence < SAFE:
            share = MARGIN * float(odds.ratios.max()) / odds.rest
            confidence = max(confidence, share / (1 + share))
        probabilities_K = odds.ratios * ((1 - confidence) / odds.rest)
        probabilities_K[odds.best] = confidence
        return probabilities_K.astype(np.float32)

    def confidence(self, log_odds_N: Floats) -> Floats:
        """Return how often the model is right (N,), for log-odds (N,) of the most probable class."""
        x_N = log_odds_N.clip(LOWEST, HIGHEST)
        value_N = self.intercept + self.slope * x_N
        for knot, bend in zip(self.knots, self.bends, strict=True):
            value_N = value_N + bend * np.maximum(x_N - knot, 0)
        return np.asarray(1 / (1 + np.exp(-np.maximum(value_N, -MAX_LOG_ODDS))))


def fit_curve(logits_NK: FloatArray, labels_N: Ints, temperature: float) -> ConfidenceCurve:
    """Return the curve for logits (N,K) and the true classes (N,), by Newton's method.

    Few images leave it near the identity, because differences from that are penalized.
    """
    best_N, _, rest_N = odds_of(logits_NK, temperature)
    log_odds_N = (-np.log(np.maximum(rest_N, TINY))).clip(LOWEST, HIGHEST)
    right_N = (best_N == labels_N).astype(np.float64)
    knots = np.unique(np.quantile(log_odds_N, np.arange(1, KNOTS + 1) / (KNOTS + 1)))
    terms = [np.ones(len(log_odds_N)), log_odds_N, *(np.maximum(log_odds_N - knot, 0) for knot in knots)]
    terms_NM = np.stack(terms, axis=1)
    identity = np.zeros(terms_NM.shape[1])
    identity[1] = 1.0
    weights = identity.copy()
    for _ in range(STEPS):
        share_N = 1 / (1 + np.exp(-(terms_NM @ weights).clip(-50, 50)))
        slope = terms_NM.T @ (share_N - right_N) + PENALTY * (weights - identity)
        curvature = (terms_NM * (share_N * (1 - share_N))[:, None]).T @ terms_NM + PENALTY * np.eye(len(weights))
        step = np.linalg.solve(curvature, slope)
        weights = weights - step * min(1.0, 1 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    intercept, slope_weight, *bends = weights.tolist()
    return ConfidenceCurve(intercept, slope_weight, tuple(knots.tolist()), tuple(bends))
