"""`scripts/bench heads`: average precision, the marks, and one row per condition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessella.search import Index, build_index

from ..bulk.runs import Image, random_vectors, unit, write_run
from .test_photographs import load

heads = load("heads")


def test_average_precision() -> None:
    scores = np.array([0.1, 0.9, 0.8, 0.7], np.float32)
    assert heads.average_precision(scores, np.array([False, True, False, True])) == pytest.approx((1 + 2 / 3) / 2)


def test_hard_marks_are_the_most_similar_of_other_classes() -> None:
    vectors = unit(random_vectors(40, 0))
    positive = np.arange(40) < 20
    yes, no = heads.marks(vectors, positive, 3, "hard", np.random.default_rng(0))
    similarities = vectors @ vectors[yes].mean(0)
    assert (yes < 20).all()
    assert (no >= 20).all()
    assert similarities[no].min() >= np.delete(similarities[20:], no - 20).max()


def test_every_condition_has_a_row(tmp_path: Path) -> None:
    vectors = random_vectors(2, 0)[np.arange(60) % 2] + 0.3 * random_vectors(60, 1)
    run = write_run(tmp_path / "run", [Image(f"{'ab'[i % 2]}/{i}.jpg", vector) for i, vector in enumerate(vectors)])
    build_index(run)
    rows = [*heads.measure(Index(run))]
    assert len(rows) == 2 * 3 * 6
    assert {row["method"] for row in rows} >= {"head", "mean", "mean - 0.25 no"}
    assert all(row["map"] > 0.9 for row in rows if row["method"] == "head")
