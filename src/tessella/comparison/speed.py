"""The speed of two loaded models, measured in alternating rounds as `tessella bench` does."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..performance.measuring import TURN_SECONDS, contender_of, take_turns
from ..predictor import Predictor

BATCH, ROUNDS = 8, 5


class Speed(NamedTuple):
    """Images per second of both models from pixels to outputs, medians of the rounds, and their ratio.

    ratio: speed of the new model relative to the old one, the median of the rounds; lowest, highest: of a round.
    """

    old: float
    new: float
    ratio: float
    lowest: float
    highest: float
    batch: int
    rounds: int


def measure_speed(old: Predictor, new: Predictor, rounds: int = ROUNDS, turn_seconds: float = TURN_SECONDS) -> Speed:
    """Time both models on random images, in batches of 8, in rounds in which they take turns."""
    contenders = [contender_of(_pass_of(predictor), predictor.plan.device, turn_seconds)[0] for predictor in (old, new)]
    take_turns(contenders, rounds)
    for contender in contenders:
        if contender.error is not None:
            raise contender.error
    before, after = (contender.seconds for contender in contenders)
    ratios = [first / second for first, second in zip(before, after, strict=True)]
    return Speed(
        old=BATCH / statistics.median(before),
        new=BATCH / statistics.median(after),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        batch=BATCH,
        rounds=len(ratios),
    )


def _pass_of(predictor: Predictor) -> Callable[[], object]:
    """Return a function that runs one batch through the engine, on all of its streams."""
    shape = (BATCH, *predictor.engine.shape)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return lambda: deque(predictor.engine.imap([pixels]), maxlen=0)
