"""Random images, operations applied to them, and assertions on distributions of random numbers."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from PIL import Image

from tessella.data.operations import OPERATIONS, Warp


def picture(height: int, width: int) -> np.ndarray:
    """Return a (height,width,3) uint8 image of noise, always the same for a size."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_fraction(hits: int, trials: int, probability: float) -> None:
    """Assert that the hits are within four standard deviations of their expected number."""
    std = math.sqrt(trials * probability * (1 - probability))
    assert abs(hits - trials * probability) <= 4 * std, (hits / trials, probability)


def assert_even(values: list[float], low: float, high: float) -> None:
    """Assert that the values lie between low and high, a quarter of them in each quarter of that range."""
    assert low <= min(values)
    assert max(values) <= high
    quarters = Counter(min(int(4 * (value - low) / (high - low)), 3) for value in values)
    for quarter in range(4):
        assert_fraction(quarters[quarter], len(values), 0.25)


def apply(
    name: str, argument: float, pixels: np.ndarray, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """Return the pixels after one operation."""
    warp = Warp(resample, fillcolor=(7, 8, 9))
    return np.asarray(OPERATIONS[name].apply(Image.fromarray(pixels), argument, warp))
