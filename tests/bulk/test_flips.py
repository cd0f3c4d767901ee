"""A flipped bit in any file of a run or its index is found, or changes nothing that is read."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from .flips import flip_index, flip_run, make_index, make_runs


def test_flipped_bits_in_a_run_are_found(tmp_path: Path) -> None:
    """24 bits here, 200 in `scripts/soak flips`."""
    chance = random.Random(15)
    ended = Counter(flip_run(run, chance)[1] for run in make_runs(tmp_path) for _ in range(12))
    assert ended["found"] > 12


def test_flipped_bits_in_an_index_are_found(tmp_path: Path) -> None:
    chance = random.Random(15)
    index = make_index(tmp_path)
    ended = Counter(flip_index(index, chance)[1] for _ in range(24))
    assert ended["found"] > 12
