"""Every change of an artifact or its receipt is detected, and nothing else is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tessella.verification import replay

from .conftest import KINDS
from .mutations import MUTATIONS, detect


@pytest.mark.parametrize("kind", KINDS)
def test_every_mutation_is_detected(kind: str, artifacts: dict[str, Path], receipts: dict[str, Path]) -> None:
    """36 per kind here, 1,000 in `scripts/soak mutations`."""
    rng = random.Random(22)
    for mutate in MUTATIONS:
        for _ in range(4):
            with mutate(artifacts[kind], receipts[kind], rng):
                assert detect(artifacts[kind], receipts[kind]), mutate.__name__
    assert not replay(receipts[kind], artifacts[kind]).failed  # everything is as it was
