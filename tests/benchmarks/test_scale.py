"""`benchmarks/scale.py`: what a failure costs in the simulation."""

from __future__ import annotations

import pytest

from .test_photographs import load

scale = load("scale")


def test_a_lost_shard_waits_until_its_failure_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "ROWS", 20)  # a shard of 10 images for each of two nodes
    monkeypatch.setattr(scale, "AWAY", 1000.0)
    seconds = []
    for seed in range(10):
        found = scale.simulate(1.0, 2, 10, 0.02, (0.0, 1.0), 0.0, 0.0, seed)
        if found["redone"]:
            seconds.append(3600 * found["hours"])
    assert len(seconds) > 2
    assert min(seconds) > 1000
