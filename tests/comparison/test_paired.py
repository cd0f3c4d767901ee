"""The exact test and the interval: values of scipy, agreement of both, and coverage by complete enumeration."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats

from tessella.comparison.paired import beta_cdf, mcnemar, paired_difference
from tessella.errors import UsageError


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 40), (7, 3), (250, 251), (0.5, 0.5), (3, 9_998), (120_000, 130_001)])
def test_the_beta_distribution_is_that_of_scipy(a: float, b: float) -> None:
    x = stats.beta.ppf(np.array([1e-12, 1e-4, 0.025, 0.3, 0.5, 0.9, 0.975, 1 - 1e-6]), a, b)
    x = np.concatenate(([0.0, 1.0], x))
    assert np.allclose(beta_cdf(x, a, b), stats.beta.cdf(x, a, b), rtol=1e-7, atol=1e-13)


def test_a_distribution_without_spread_is_a_step() -> None:
    x = np.array([0.0, 0.3, 1.0])
    assert beta_cdf(x, 0, 5).tolist() == [1, 1, 1]
    assert beta_cdf(x, 5, 0).tolist() == [0, 0, 1]


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (3, 11), (40, 12), (500, 612)])
def test_the_p_value_is_that_of_the_binomial_test(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_the_limits_are_quantiles_of_the_melded_distribution() -> None:
    """Drawn numbers instead of integration."""
    rng = np.random.default_rng(0)
    for images, gained, lost in [(50, 9, 2), (1000, 80, 40), (10_000, 300, 290), (30, 0, 4), (25, 4, 21), (25, 25, 0)]:
        m, draws = gained + lost, 400_000
        q = rng.beta(gained, lost + 1, draws) if gained else np.zeros(draws)
        p_low = rng.beta(m, images - m + 1, draws)
        p_high = rng.beta(m + 1, images - m, draws) if m < images else np.ones(draws)
        low = np.quantile(np.where(q > 0.5, p_low, p_high) * (2 * q - 1), 0.025)
        measured = paired_difference(images, gained, lost)
        assert measured.low == pytest.approx(low, abs=0.004 * (measured.high - measured.low) + 1e-4)
        assert measured.low <= measured.difference <= measured.high


def test_without_differing_images_the_limits_are_those_of_a_rate_of_zero() -> None:
    """The rule of three, exactly: 1 - 0.025^(1/n)."""
    result = paired_difference(40, 0, 0)
    assert (result.difference, result.p_value) == (0, 1)
    assert result.high == -result.low == pytest.approx(1 - 0.025 ** (1 / 40), abs=1e-5)


def test_exchanging_the_models_changes_the_sign() -> None:
    there, back = paired_difference(200, 31, 12), paired_difference(200, 12, 31)
    assert (there.low, there.high, there.difference) == (-back.high, -back.low, -back.difference)


def test_the_interval_excludes_zero_exactly_if_the_test_rejects() -> None:
    decisions = set()
    for gained in range(16):
        for lost in range(16):
            result = paired_difference(60, gained, lost)
            assert (result.low > 0 or result.high < 0) == (result.p_value < 0.05)
            decisions.add(result.p_value < 0.05)
    assert decisions == {True, False}


@functools.cache
def interval(images: int, gained: int, lost: int) -> tuple[float, float]:
    difference, low, high, _ = paired_difference(images, gained, lost)
    assert -1 <= low <= difference <= high <= 1
    return low, high


@pytest.mark.parametrize(("differing", "better"), [(0.1, 0.5), (0.1, 0.8), (0.3, 0.6), (0.3, 1.0), (0.8, 0.9)])
def test_the_interval_contains_the_true_difference_often_enough(differing: float, better: float) -> None:
    """The probability is exact: a sum over all outcomes, nothing is drawn."""
    images, truth, covered = 20, differing * (2 * better - 1), 0.0
    for m in range(images + 1):
        for gained in range(m + 1):
            low, high = interval(images, gained, m - gained)
            if low <= truth <= high:
                covered += stats.binom.pmf(m, images, differing) * stats.binom.pmf(gained, m, better)
    assert 0.95 <= covered <= 1


def test_impossible_numbers_are_refused() -> None:
    for wrong in [(0, 0, 0), (5, 3, 3), (5, -1, 2)]:
        with pytest.raises(UsageError) as caught:
            paired_difference(*wrong)
        assert caught.value.code == "bad_argument"
