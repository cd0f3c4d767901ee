"""The temperature minimizes the cross-entropy, also where a model is always right or knows nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from tessella.calibration.temperature import HIGHEST, LOWEST, fit_temperature, scaled_probabilities
from tessella.evaluation.metrics import judge
from tessella.results import softmax

from .made import CONFIDENCE, made_outputs


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Return the mean cross-entropy with one of N + 2 images moved to the most probable other class."""
    scaled = logits.astype(np.float64) / temperature
    others = scaled.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    weight = 1 / (len(labels) + 2)
    losses = [judge(scaled, targets).loss.mean() for targets in (labels, others.argmax(1))]
    return float((1 - weight) * losses[0] + weight * losses[1])


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, 300),
    classes=st.integers(2, 30),
    spread=st.floats(0.01, 30),
)
def test_no_other_temperature_has_a_lower_loss(seed: int, count: int, classes: int, spread: float) -> None:
    outputs = made_outputs(count, classes, seed, spread)
    found = fit_temperature(outputs.logits, outputs.labels)
    best = minimize_scalar(
        lambda log: loss(outputs.logits, outputs.labels, np.exp(log)),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options=dict(xatol=1e-6),
    )
    assert LOWEST <= found <= HIGHEST
    assert loss(outputs.logits, outputs.labels, found) <= best.fun + 1e-9


def test_the_confidence_of_a_made_model_is_recovered() -> None:
    outputs = made_outputs(100_000)
    assert fit_temperature(outputs.logits, outputs.labels) == pytest.approx(CONFIDENCE, rel=0.02)


def test_a_useless_model_gets_the_highest_temperature() -> None:
    outputs = made_outputs(200)
    assert fit_temperature(outputs.logits, outputs.logits.argmin(1)) == pytest.approx(HIGHEST, rel=1e-6)


@pytest.mark.parametrize("count", [1, 20, 200])
def test_a_model_that_is_right_for_a_few_images_is_not_certain(count: int) -> None:
    outputs = made_outputs(count)
    found = fit_temperature(outputs.logits, outputs.logits.argmax(1))
    error = 1 - scaled_probabilities(outputs.logits, found).max(1).mean()
    assert 0.1 / (count + 2) < error < 10 / (count + 2)


def test_one_class_needs_no_temperature() -> None:
    assert LOWEST <= fit_temperature(np.ones((5, 1), np.float32), np.zeros(5, np.int64)) <= HIGHEST


def test_constant_logits_do_not_divide_by_zero() -> None:
    found = fit_temperature(np.zeros((50, 4), np.float32), np.arange(50) % 4)
    assert LOWEST <= found <= HIGHEST


def test_the_order_of_the_classes_does_not_change() -> None:
    logits = made_outputs(100, 20).logits
    before, after = scaled_probabilities(logits, 1.0), scaled_probabilities(logits, 3.7)
    assert (before.argsort(1, kind="stable") == after.argsort(1, kind="stable")).all()
    assert after == pytest.approx(softmax(logits / np.float32(3.7)), abs=1e-6)
    assert after.sum(1) == pytest.approx(np.ones(100), abs=1e-6)
