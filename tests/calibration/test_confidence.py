"""The curve makes confidences honest, changes no order, and stays near the identity with few images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.calibration.confidence import ConfidenceCurve, fit_curve
from tessella.calibration.fitting import CalibrationSettings, fit
from tessella.calibration.temperature import odds_of_one
from tessella.evaluation.calibration_figures import calibrated_logits
from tessella.evaluation.metrics import calibration_error, judge
from tessella.results import softmax

from .made import CONFIDENCE, made_outputs


def crooked(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits whose confidence is too high in the middle and too low at the ends, and labels."""
    outputs = made_outputs(count, 10, seed, spread=2.5)
    centered = outputs.logits - outputs.logits.max(1, keepdims=True)
    return (-np.sqrt(-centered) * 1.5).astype(np.float32), outputs.labels


def test_it_helps_where_a_temperature_does_not() -> None:
    logits, labels = crooked(20_000)
    later, truth = crooked(20_000, seed=1)
    outputs = made_outputs(20_000, 10)._replace(logits=logits, labels=labels)
    fitted = fit(outputs, CalibrationSettings())
    scaled = calibration_error(judge(later / fitted.temperature, truth))
    curved = calibration_error(judge(calibrated_logits(fitted, later), truth))
    assert scaled > 0.03
    assert curved < 0.016  # 20,000 images of perfect probabilities have 0.005


def test_the_identity_is_temperature_scaling() -> None:
    logits = made_outputs(200, 10).logits
    expected = softmax(logits / np.float32(1.7))
    assert ConfidenceCurve().apply(logits, 1.7) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(1, 12),
    intercept=st.floats(-5, 5),
    slope=st.floats(-2, 5),
    bend=st.floats(-3, 3),
    scale=st.sampled_from([0.01, 1.0, 30.0, 2000.0]),
)
def test_probabilities_sum_to_one_and_keep_their_order(
    seed: int, classes: int, intercept: float, slope: float, bend: float, scale: float
) -> None:
    logits = (np.random.default_rng(seed).normal(0, scale, (20, classes))).astype(np.float32)
    curve = ConfidenceCurve(intercept, slope, (1.0,), (bend,))
    probabilities = curve.apply(logits, 0.9)
    assert probabilities.sum(1) == pytest.approx(np.ones(20), abs=1e-5)
    assert (probabilities >= 0).all()
    assert (probabilities.argmax(1) == logits.argmax(1)).all()
    for row in range(20):
        order = np.argsort(-logits[row], kind="stable")
        assert (np.diff(probabilities[row][order]) <= 1e-7).all()


def test_equal_logits_keep_the_first_class_ahead() -> None:
    probabilities = ConfidenceCurve(intercept=-5).apply(np.zeros((1, 4), np.float32), 1.0)
    assert probabilities.argmax() == 0
    assert probabilities[0] == pytest.approx(np.full(4, 0.25), abs=1e-3)


def test_few_images_leave_it_near_the_identity() -> None:
    outputs = made_outputs(5)
    curve = fit_curve(outputs.logits, outputs.labels, CONFIDENCE)
    later = made_outputs(100, seed=1).logits
    assert curve.apply(later, CONFIDENCE) == pytest.approx(ConfidenceCurve().apply(later, CONFIDENCE), abs=0.25)


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_is_always_right_or_wrong_has_a_finite_curve(right: bool) -> None:
    outputs = made_outputs(300)
    labels = outputs.logits.argmax(1) if right else outputs.logits.argmin(1)
    curve = fit_curve(outputs.logits, labels, CONFIDENCE)
    assert np.isfinite([curve.intercept, curve.slope, *curve.bends]).all()
    mean = float(curve.confidence(np.linspace(-1, 5, 50)).mean())
    assert mean > 0.8 if right else mean < 0.1


@pytest.mark.parametrize("slope", [1e6, -1e6])
def test_a_steep_curve_gives_finite_probabilities(slope: float) -> None:
    """A file that was edited may have any slope; exp() of its log-odds would overflow."""
    logits = np.array([[4.0, 0.0, -1.0], [1.0, 0.9, 0.8]], np.float32)
    curve = ConfidenceCurve(slope=slope)
    together = curve.apply(logits, 1.0)
    assert np.isfinite(together).all()
    for row, alone in zip(together, logits, strict=True):
        np.testing.assert_allclose(curve.apply_to_one(odds_of_one(alone, 1.0)), row, rtol=1e-6)
