"""Learning rate schedules."""

from __future__ import annotations

import itertools
import math

from .config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, 0 <= step < steps: a linear warm-up, then `config.schedule`.

    The schedule "onecycle" is that of ConvMixer's authors and has no other warm-up: it is linear from 0 to `lr` at 2/5
    of the steps, to `lr / 20` at 4/5, and to 0 at the end.
    """
    progress = step / steps
    if config.schedule == "onecycle":
        points = ((0.0, 0.0), (0.4, config.lr), (0.8, config.lr / 20), (1.0, 0.0))
        for (start, low), (end, high) in itertools.pairwise(points):
            if progress <= end:
                return low + (high - low) * (progress - start) / (end - start)
    warmup_steps = config.warmup_fraction * steps
    if step < warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * min((step + 1) / warmup_steps, 1.0)
    if config.schedule == "constant":
        return config.lr
    left = 1.0 - (step - warmup_steps) / max(steps - warmup_steps, 1)
    fraction = left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return config.min_lr + (config.lr - config.min_lr) * fraction
