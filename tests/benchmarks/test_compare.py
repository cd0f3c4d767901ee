"""`scripts/bench compare`: exact coverage of the intervals, and a row per pair of models."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from .test_photographs import load

compare = load("compare")


def test_the_scaled_interval_is_that_of_clopper_and_pearson() -> None:
    expected = stats.binomtest(9, 12).proportion_ci(0.95, "exact")
    low, high = compare.scaled_interval(50, 9, 3)
    assert low == pytest.approx((2 * expected.low - 1) * 12 / 50, abs=1e-9)
    assert high == pytest.approx((2 * expected.high - 1) * 12 / 50, abs=1e-9)
    assert compare.scaled_interval(50, 0, 0) == (0, 0)


def test_the_scaled_interval_misses_a_difference_that_is_always_a_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its upper limit is the observed share, which is below the true one about half of the time."""
    monkeypatch.setattr(compare, "DIFFERING", (0.3,))
    monkeypatch.setattr(compare, "BETTER", (0.5, 1.0))
    even, better = compare.measure_interval(20)
    assert even["melded_coverage"] >= 0.95
    assert better["melded_coverage"] >= 0.95
    assert better["scaled_coverage"] < 0.7
    assert better["difference"] == 0.3


def test_probabilities_are_those_of_scipy() -> None:
    for count, total, rate in [(0, 5, 0.0), (5, 5, 1.0), (3, 9, 0.2), (70, 100, 0.8)]:
        assert compare.log_binomial(count, total, rate) == pytest.approx(stats.binom.logpmf(count, total, rate))


def test_every_pair_has_a_row(shared_data: Path, tmp_path: Path) -> None:
    models = ["mixer_ti_p4_32", "gmixer_ti_p4_32"]
    rows = compare.measure_pairs(str(shared_data / "cifar10-test.parquet"), models, 900, tmp_path)
    assert [(row["old"], row["new"]) for row in rows] == [tuple(models), tuple(models[::-1])]
    assert {row["images"] for row in rows} == {900}
    there, back = rows
    assert there["difference"] == -back["difference"]
    assert (there["low"], there["high"]) == pytest.approx((-back["high"], -back["low"]), rel=1e-4)
    assert all(0 <= row[name] <= 1 for row in rows for name in ("kept", "kept_centered", "precision_aligned", "itself"))
