"""L-BFGS finds known minima, in about as few evaluations as PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessella.evaluation.lbfgs import Floats, minimize


def rosenbrock(point: Floats) -> tuple[float, Floats]:
    x, y = point
    return float((1 - x) ** 2 + 100 * (y - x * x) ** 2), np.array(
        [2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)]
    )


@pytest.mark.parametrize("start", [(-1.2, 1.0), (5.0, -3.0), (0.0, 0.0), (1.0, 1.0)])
def test_a_curved_valley(start: tuple[float, float]) -> None:
    first = np.array(start)
    assert minimize(rosenbrock, first, 200, 1e-8) == pytest.approx([1, 1], abs=1e-5)
    assert first.tolist() == list(start)


def test_a_quadratic_of_any_shape() -> None:
    rng = np.random.default_rng(0)
    scales, minimum = 10 ** rng.uniform(-1, 2, (5, 4)), rng.normal(size=(5, 4))

    def quadratic(point: Floats) -> tuple[float, Floats]:
        return float((scales * (point - minimum) ** 2).sum() / 2), scales * (point - minimum)

    assert np.abs(minimize(quadratic, np.zeros((5, 4)), 200, 1e-7) - minimum).max() < 1e-3


def test_a_minimum_far_beyond_the_first_step() -> None:
    def flat(point: Floats) -> tuple[float, Floats]:
        return float(np.hypot(1, point[0] - 1e6)), (point - 1e6) / np.hypot(1, point - 1e6)

    assert minimize(flat, np.zeros(1), 200, 1e-8) == pytest.approx(1e6, abs=1e-4)


def test_it_stops_after_the_given_number_of_steps() -> None:
    point = np.array([-1.2, 1.0])
    values = [rosenbrock(minimize(rosenbrock, point, steps, 0.0))[0] for steps in range(8)]
    assert values[0] == rosenbrock(point)[0]
    assert sorted(values, reverse=True) == values


def test_about_as_many_evaluations_as_pytorch() -> None:
    """Both on logistic regression, to the same tolerance."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    z, labels = rng.normal(size=(400, 30)) + 2 * np.eye(30)[rng.integers(0, 5, 400)], rng.integers(0, 5, 400)
    inputs, targets = torch.from_numpy(z), torch.from_numpy(labels)
    counts = {"ours": 0, "torch": 0}

    def value_of(weight: Any, name: str) -> Any:
        counts[name] += 1
        loss = torch.nn.functional.cross_entropy(inputs @ weight.T, targets) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss.detach()

    def objective(point: Floats) -> tuple[float, Floats]:
        weight = torch.from_numpy(point).requires_grad_()
        return float(value_of(weight, "ours")), weight.grad.numpy()

    found = minimize(objective, np.zeros((5, 30)), 200, 1e-6)
    weight = torch.zeros(5, 30, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=200, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Any:
        optimizer.zero_grad()
        return value_of(weight, "torch")

    optimizer.step(closure)
    assert np.abs(found - weight.detach().numpy()).max() < 1e-3
    assert counts["ours"] <= 1.5 * counts["torch"], counts
