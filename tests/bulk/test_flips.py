"""A flipped bit in any file of a run or its index is found, or changes nothing that is read."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from .flips import flip_index, flip_run, make_index, make_runs


def test_flipped_bits_in_a_run_are_found(tmp_path: Path) -> None:
    """24 bits here, 200 in `scripts/soak flips`."""
    rng = random.Random(15)
    results = Counter(flip_run(run, rng)[1] for run in make_runs(tmp_path) for _ in range(12))
    assert results["found"] > 12


def test_flipped_bits_in_an_index_are_found(tmp_path: Path) -> None:
    rng = random.Random(15)
    index = make_index(tmp_path)
    results = Counter(flip_index(index, rng)[1] for _ in range(24))
    assert results["found"] > 12
