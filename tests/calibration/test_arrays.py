"""The conformal quantile: what it is by definition, and that it keeps its promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.calibration.arrays import conformal_quantile, images_needed


@given(st.lists(st.floats(-100, 100), max_size=50), st.floats(0.001, 0.999))
def test_it_is_the_smallest_score_with_enough_scores_up_to_it(scores: list[float], share: float) -> None:
    ordered = np.sort(np.array(scores, np.float64))
    needed = (len(scores) + 1) * share
    enough = [score for score in ordered if (ordered <= score).sum() >= needed - 1e-9]
    assert conformal_quantile(ordered, share) == (min(enough) if enough else math.inf)


def test_nine_images_are_enough_for_nine_tenths_and_eight_are_not() -> None:
    assert conformal_quantile(np.arange(9.0), 0.9) == 8
    assert conformal_quantile(np.arange(8.0), 0.9) == math.inf
    assert images_needed(0.9) == 9


@given(st.floats(0.01, 0.999))
def test_the_number_of_images_needed_is_the_smallest_with_a_finite_quantile(share: float) -> None:
    needed = images_needed(share)
    assert math.isfinite(conformal_quantile(np.zeros(needed), share))
    assert needed == 1 or conformal_quantile(np.zeros(needed - 1), share) == math.inf


@pytest.mark.parametrize(("count", "share"), [(20, 0.9), (50, 0.8), (199, 0.95)])
def test_a_later_score_is_below_the_quantile_as_often_as_promised(count: int, share: float) -> None:
    """By exchangeability, with a probability of exactly ceil((n + 1) * share) / (n + 1)."""
    rng, draws = np.random.default_rng(0), 40_000
    scores = rng.standard_normal((draws, count + 1))
    calibration = np.sort(scores[:, :-1], axis=1)
    covered = np.mean(
        [later <= conformal_quantile(row, share) for row, later in zip(calibration, scores[:, -1], strict=True)]
    )
    exact = math.ceil((count + 1) * share - 1e-9) / (count + 1)
    assert covered == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / draws))
