"""Minimize a smooth function with L-BFGS and a line search for the strong Wolfe conditions, in NumPy.

The method and its constants are those of chapters 3 and 7 of Nocedal and Wright, Numerical Optimization, 2006.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Objective = Callable[[Floats], tuple[float, Floats]]  # a point -> the value and the gradient there

HISTORY = 20  # steps that approximate the curvature
SUFFICIENT_DECREASE, CURVATURE = 1e-4, 0.9  # of the strong Wolfe conditions
MAX_EVALUATIONS = 25  # per line search
SMALLEST_CHANGE = 1e-9  # of the value, or of any component of the point


class _Trial(NamedTuple):
    """A point on the line of a search: its distance, the value and slope there, and the gradient."""

    step: float
    value: float
    slope: float
    gradient: Floats


def minimize(objective: Objective, start: Floats, steps: int, gradient_tolerance: float) -> Floats:
    """Return a point at which no component of the gradient exceeds the tolerance, or the one after `steps` steps.

    It also stops when a step changes neither the value nor the point by more than SMALLEST_CHANGE. start: the first
    point, of any shape, which is not changed.
    """
    point = start.copy()
    value, gradient = objective(point)
    history: deque[tuple[Floats, Floats, float]] = deque(maxlen=HISTORY)
    for _ in range(steps):
        if np.abs(gradient).max() <= gradient_tolerance:
            break
        direction = _direction(gradient, history)
        first_step = 1.0 if history else min(1.0, 1 / float(np.abs(gradient).sum()))
        here = _Trial(0.0, value, float(np.vdot(gradient, direction)), gradient)
        found = _search(objective, point, direction, here, first_step)
        moved, turned = found.step * direction, found.gradient - gradient
        if (curvature := float(np.vdot(moved, turned))) > 1e-10:
            history.append((moved, turned, curvature))
        point = point + moved
        change, value, gradient = abs(found.value - value), found.value, found.gradient
        if change < SMALLEST_CHANGE or np.abs(moved).max() <= SMALLEST_CHANGE:
            break
    return point


def _direction(gradient: Floats, history: deque[tuple[Floats, Floats, float]]) -> Floats:
    """Return the product of the negative gradient and the inverse of the approximated curvature."""
    direction = -gradient
    weights = []
    for moved, turned, curvature in reversed(history):
        weight = float(np.vdot(moved, direction)) / curvature
        weights.append(weight)
        direction = direction - weight * turned
    if history:
        _, turned, curvature = history[-1]
        direction *= curvature / float(np.vdot(turned, turned))
    for (moved, turned, curvature), weight in zip(history, reversed(weights), strict=True):
        direction += (weight - float(np.vdot(turned, direction)) / curvature) * moved
    return direction


def _search(objective: Objective, point: Floats, direction: Floats, here: _Trial, step: float) -> _Trial:
    """Return a trial that meets the strong Wolfe conditions, or the lowest one after MAX_EVALUATIONS."""
    low: _Trial = here  # the lowest trial with a sufficient decrease
    high: _Trial | None = None  # the other end of an interval that has a solution; None while there is no upper end
    for _ in range(MAX_EVALUATIONS):
        value, gradient = objective(point + step * direction)
        trial = _Trial(step, value, float(np.vdot(gradient, direction)), gradient)
        if value > here.value + SUFFICIENT_DECREASE * step * here.slope or value >= low.value:
            high = trial
        elif abs(trial.slope) <= -CURVATURE * here.slope:
            return trial
        else:
            if trial.slope * (high.step - low.step if high else 1) >= 0:
                high = low
            low = trial
        step = _between(low, high) if high else 4 * step
    return low


def _between(low: _Trial, high: _Trial) -> float:
    """Return the minimum of the cubic through both trials, at least a tenth of the interval away from its ends."""
    width = high.step - low.step
    first = low.slope + high.slope - 3 * (high.value - low.value) / width
    square = first * first - low.slope * high.slope
    fraction = 0.5
    if square >= 0:
        root = float(np.copysign(np.sqrt(square), width))
        if denominator := high.slope - low.slope + 2 * root:
            fraction = 1 - (high.slope + root - first) / denominator
    return low.step + min(max(fraction, 0.1), 0.9) * width
