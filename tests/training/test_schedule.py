"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest

from tessella.training.config import TrainConfig
from tessella.training.presets import preset_config
from tessella.training.schedule import learning_rate


def test_onecycle_is_the_schedule_of_convmixers_authors() -> None:
    config = preset_config("convmixer")
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert rates[0] == 0
    assert rates[400] == max(rates) == pytest.approx(0.01)
    assert rates[200] == pytest.approx(0.005)
    assert rates[800] == pytest.approx(0.01 / 20)
    assert rates[999] == pytest.approx(0.01 / 20 / 200)


def test_warmup_and_cosine() -> None:
    config = TrainConfig(lr=1.0, schedule="cosine", warmup_fraction=0.1, warmup_lr=0.2, min_lr=0.01)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2 + 0.8 * 0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx((1.0 + 0.01) / 2)
    assert rates[99] == pytest.approx(0.01, abs=0.002)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_linear_ends_near_zero_and_constant_is_constant() -> None:
    linear = TrainConfig(lr=2.0, schedule="linear", warmup_fraction=0.2)
    assert learning_rate(linear, 60, 100) == pytest.approx(1.0)
    assert learning_rate(linear, 99, 100) == pytest.approx(2.0 / 80)
    constant = TrainConfig(schedule="constant", warmup_fraction=0.0)
    assert {learning_rate(constant, step, 9) for step in range(9)} == {TrainConfig.lr}
