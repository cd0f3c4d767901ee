"""Retrieval metrics match figures computed by hand and with plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from tessella.errors import UsageError
from tessella.search import retrieval_metrics as retrieval_metrics
from tessella.search.retrieval_metrics import retrieval

from ..bulk.runs import unit


def test_figures_computed_by_hand() -> None:
    """Vectors at 0, 10, 30 and 100 degrees with classes a a b b, and one at 101 degrees with its own class."""
    angles = np.radians([0, 10, 30, 100, 101])
    result = retrieval(np.stack([np.cos(angles), np.sin(angles)], 1), ["a", "a", "b", "b", "c"], (1, 2, 4))
    # neighbors: 0: 1 2 3 4; 1: 0 2 3 4; 2: 1 0 3 4; 3: 4 2 1 0; 4: 3 2 1 0
    assert (result.images, result.queries) == (5, 4)
    assert result.knn == {1: 2 / 5, 2: 2 / 5, 4: 0.0}  # of four neighbors two are always of another class
    assert result.recall == {1: 2 / 4, 2: 3 / 4, 4: 1.0}
    assert result.map == pytest.approx((1 + 1 + 1 / 3 + 1 / 2) / 4)


def test_figures_computed_with_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_metrics, "BLOCK", 32)
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (120, 4)).astype(np.float32) + 0.5  # many equal cosines
    labels = rng.integers(0, 7, 120)
    result = retrieval(vectors, labels, (1, 5))
    cosines = unit(vectors) @ unit(vectors).T
    precisions, correct, hits = [], {1: 0, 5: 0}, {1: 0, 5: 0}
    for i in range(120):
        order = [j for j in sorted(range(120), key=lambda j: (-cosines[i, j], j)) if j != i]
        same = [labels[j] == labels[i] for j in order]
        ranks = [rank for rank, is_same in enumerate(same, 1) if is_same]
        precisions.append(np.mean([(n + 1) / rank for n, rank in enumerate(ranks)]))
        for k in (1, 5):
            near_labels = [labels[j] for j in order[:k]]
            voted = max(near_labels, key=lambda label: (near_labels.count(label), -near_labels.index(label)))
            correct[k] += voted == labels[i]
            hits[k] += any(same[:k])
    assert result.map == pytest.approx(np.mean(precisions), abs=1e-9)
    assert result.knn == {k: correct[k] / 120 for k in correct}
    assert result.recall == {k: hits[k] / 120 for k in hits}


def test_scores_are_ordered_as_by_a_stable_sort() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=(20, 300)), 1).astype(np.float32)  # many equal ones
    scores[:, :4] = [-np.inf, 0.0, -0.0, 1e-40]
    assert np.array_equal(retrieval_metrics._order(scores), np.argsort(-scores, axis=1, kind="stable"))


@pytest.mark.parametrize(
    ("vectors", "labels", "k"),
    [
        (np.ones((3, 2)), [1, 2], (1,)),
        (np.ones((1, 2)), [1], (1,)),
        (np.ones((3, 2)), [1, 1, 3], (3,)),
        (np.ones((3, 2)), [1, 2, 3], (1,)),
        (np.full((3, 2), np.nan), [1, 1, 3], (1,)),
    ],
)
def test_arguments_that_do_not_match_are_refused(vectors: ArrayLike, labels: list[int], k: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        retrieval(vectors, labels, k)
