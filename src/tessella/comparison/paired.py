"""Exact statistics of two classifiers on the same images: McNemar's test, and an interval that agrees with it.

Of n images, `gained` are correct for the new model only and `lost` for the old one only; all others say nothing about
which model is better. If neither is, each of the m = gained + lost images is gained with probability 1/2: the exact
conditional test of McNemar (1947, doi:10.1007/BF02295996) is the binomial test of that, with twice the smaller tail as
its p-value.

The interval is for the difference of the accuracies, d = p (2 q - 1), where p is the probability that an image is
gained or lost, and q that such an image is gained. Scaling the interval of Clopper and Pearson for q by m/n would treat
m/n as if it were p: where one model is almost always the better one, such intervals contain the true difference in half
of all cases only (`scripts/bench compare` has the figures). Therefore the exact limits of q and of p are combined by
melding, as in M. P. Fay and K. Lumbard, "Confidence intervals for difference in proportions for matched pairs
compatible with exact McNemar's or sign tests", Statistics in Medicine 40 (2021), doi:10.1002/sim.8829. The lower limit
is a quantile of P (2 Q - 1), where Q ~ Beta(gained, lost + 1), and P ~ Beta(m, n - m + 1) where 2 Q - 1 is positive,
Beta(m + 1, n - m) where it is negative; these are the distributions whose quantiles are the limits of Clopper and
Pearson. The upper limit is the same with both models exchanged. So the interval excludes 0 if and only if p < 1 -
confidence.

Letters for shapes: N numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Doubles = NDArray[np.float64]

CONFIDENCE = 0.95
POINTS = 4_001  # of the grids: limits are off by about 1e-6 of the width, by up to 3e-4 if all images differ
REACH = 15.0  # standard deviations on either side of the mean that a grid covers
STEPS = 60  # of the bisection, which halves the error with each
MOST_TERMS = 100_000  # of a continued fraction, which needs about the square root of the number of images
TINY = 1e-300


class PairedDifference(NamedTuple):
    """The difference of two accuracies, new minus old, its confidence interval, and the p-value of McNemar's test."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(images: int, gained: int, lost: int, confidence: float = CONFIDENCE) -> PairedDifference:
    """Return the difference of two accuracies on the same images with its interval, see the top of this module.

    gained, lost: number of images that only the new, or only the old model classifies correctly.
    Raises UsageError `bad_argument` for numbers that are impossible.
    """
    if not (images > 0 and min(gained, lost) >= 0 and gained + lost <= images and 0 < confidence < 1):
        raise UsageError(
            "bad_argument",
            f"{gained} gained and {lost} lost of {images} images, confidence {confidence}; expected at least one "
            "image, no more gained and lost ones than images, and a confidence between 0 and 1",
        )
    tail = (1 - confidence) / 2
    return PairedDifference(
        difference=(gained - lost) / images,
        low=_lower_limit(images, gained, lost, tail),
        high=-_lower_limit(images, lost, gained, tail),
        p_value=mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Return the p-value of the exact conditional test of McNemar: twice the smaller tail, at most 1."""
    more, fewer = max(gained, lost), min(gained, lost)
    if not more:
        return 1.0
    return min(1.0, 2 * float(beta_cdf(np.array([0.5]), more, fewer + 1)[0]))


def _lower_limit(images: int, gained: int, lost: int, tail: float) -> float:
    """Return the `tail` quantile of P (2 Q - 1)."""
    differing = gained + lost
    below_half = float(beta_cdf(np.array([0.5]), gained, lost + 1)[0])  # probability that 2 Q - 1 is at most 0
    positive = below_half < tail
    q_N, mass_N = _cells(gained, lost + 1)
    side_N = q_N > 0.5 if positive else q_N < 0.5
    scale_N, mass_N = np.abs(2 * q_N[side_N] - 1), mass_N[side_N]
    shape = (differing, images - differing + 1) if positive else (differing + 1, images - differing)
    grid_N = _grid(*shape)
    cdf_N = beta_cdf(grid_N, *shape)

    def at_most(size: float) -> float:
        """Return the probability that |P (2 Q - 1)| is at most `size`, on this side of 0."""
        return float(mass_N @ np.interp(size / scale_N, grid_N, cdf_N, left=0.0, right=1.0))

    # on the positive side the probability below the limit is that of all negative values and of smaller positive ones,
    # on the negative side that of larger negative ones
    wanted = tail - below_half if positive else float(mass_N.sum()) - tail
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) < wanted else (low, middle)
    return low if positive else -high


def _cells(a: float, b: float) -> tuple[Doubles, Doubles]:
    """Divide the range of Beta(a,b) into cells, none of which contains 1/2; return middles (N,) and masses (N,)."""
    if not a:
        return np.zeros(1), np.ones(1)
    edges_N = _grid(a, b)
    if edges_N[0] < 0.5 < edges_N[-1]:
        edges_N = np.unique(np.append(edges_N, 0.5))
    return (edges_N[1:] + edges_N[:-1]) / 2, np.diff(beta_cdf(edges_N, a, b))


def _grid(a: float, b: float) -> Doubles:
    """Return points (N,) that cover all but a negligible part of Beta(a,b); a single one if it has no spread."""
    mean = a / (a + b)
    spread = REACH * math.sqrt(mean * (1 - mean) / (a + b + 1))
    return np.linspace(max(mean - spread, 0.0), min(mean + spread, 1.0), POINTS if spread else 1)


def beta_cdf(x_N: Doubles, a: float, b: float) -> Doubles:
    """Return the distribution function (N,) of Beta(a,b), the regularized incomplete beta function.

    With a = 0, all of the probability is at 0, with b = 0 at 1. P(X >= a) of a binomial X with a + b - 1 trials is
    this function at the probability of success. It is computed by the continued fraction in section 8.17(v) of the
    NIST Digital Library of Mathematical Functions.
    """
    if not a:
        return np.ones_like(x_N)
    if not b:
        return np.asarray(x_N >= 1, np.float64)
    turned_N = x_N > (a + 1) / (a + b + 2)  # where the fraction of the other tail converges faster
    result_N = np.empty_like(x_N)
    result_N[~turned_N] = _lower_tail(x_N[~turned_N], a, b)
    result_N[turned_N] = 1 - _lower_tail(1 - x_N[turned_N], b, a)
    return result_N


def _lower_tail(x_N: Doubles, a: float, b: float) -> Doubles:
    fraction_N, upper_N, lower_N = np.ones_like(x_N), np.ones_like(x_N), np.zeros_like(x_N)
    for term in range(1, MOST_TERMS):
        half = term // 2
        if term % 2:
            factor_N = -(a + half) * (a + b + half) * x_N / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            factor_N = half * (b - half) * x_N / ((a + 2 * half - 1) * (a + 2 * half))
        lower_N = 1 / _not_zero(1 + factor_N * lower_N)
        upper_N = _not_zero(1 + factor_N / upper_N)
        fraction_N *= upper_N * lower_N
        if np.all(np.abs(upper_N * lower_N - 1) < 1e-14):
            break
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    with np.errstate(divide="ignore"):  # the logarithm of 0
        front_N = np.exp(a * np.log(x_N) + b * np.log1p(-x_N) - log_beta) / a
    return front_N / fraction_N


def _not_zero(values_N: Doubles) -> Doubles:
    return np.where(np.abs(values_N) < TINY, TINY, values_N)
