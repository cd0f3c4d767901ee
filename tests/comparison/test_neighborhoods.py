"""Shared neighbors and alignments: compared with plain loops, and with rotations that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessella.comparison import neighborhoods
from tessella.comparison.neighborhoods import (
    fit_alignment,
    images_needed,
    judge_alignment,
    nearest,
    neighbor_overlap,
)

from ..bulk.runs import random_vectors, unit


def clustered(rows: int, width: int, seed: int = 0) -> Any:
    """Return unit vectors around 20 centers."""
    centers = random_vectors(20, seed, width)
    return unit(centers[np.arange(rows) % 20] + 0.4 * random_vectors(rows, seed + 1, width))


def rotation(width: int, seed: int) -> Any:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0].astype(np.float32)


def test_overlap_is_the_mean_share_of_common_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = clustered(90, 12), unit(clustered(90, 12) + 0.3 * random_vectors(90, 9, 12))
    shares = []
    for i in range(90):
        sets = []
        for vectors in (old, new):
            cosines = vectors @ vectors[i]
            cosines[i] = -2
            sets.append(set(np.argsort(-cosines)[:10].tolist()))
        shares.append(len(sets[0] & sets[1]) / 10)
    for numbers in (1 << 24, 90 * 7):  # in one block, and in many
        monkeypatch.setattr(neighborhoods, "NUMBERS", numbers)
        result = neighbor_overlap(old, new)
        assert result is not None
        assert result.share == pytest.approx(np.mean(shares))
        assert 0.2 < result.share < 0.9
        assert result.chance == 10 / 89


def test_few_images_have_no_neighborhoods() -> None:
    vectors = clustered(29, 8)
    assert neighbor_overlap(vectors, vectors) is None
    assert (images_needed(8, 300), images_needed(400, 300)) == (60, 900)
    for count, width in [(59, 8), (95, 32)]:
        assert judge_alignment(clustered(count, width), clustered(count, width), 0) is None
        assert judge_alignment(clustered(count + 1, width), clustered(count + 1, width), 0) is not None


def test_a_query_is_not_its_own_neighbor() -> None:
    vectors = clustered(50, 8)
    assert (nearest(vectors, vectors, 1)[:, 0] == np.arange(50)).all()
    assert not (nearest(vectors, vectors, 10, skip_own=True) == np.arange(50)[:, None]).any()


def test_a_rotation_is_undone() -> None:
    old = clustered(300, 16)
    turn = rotation(16, 3)
    matrix = fit_alignment(old, old @ turn)
    assert np.allclose(matrix, turn, atol=1e-5)
    judged = judge_alignment(old, old @ turn, 0)
    assert judged is not None
    figures = judged[1]
    assert (figures.kept, figures.kept_reverse, figures.itself, figures.rerun) == (1, 1, 1, 1)
    assert (figures.fitted, figures.judged) == (150, 150)


@pytest.mark.parametrize(("old_width", "new_width"), [(16, 24), (24, 16)])
def test_widths_may_differ(old_width: int, new_width: int) -> None:
    """All images lie in a space of eight dimensions, which both embeddings keep."""
    hidden = clustered(400, 8)
    old = hidden @ rotation(old_width, 1)[:8]
    new = hidden @ rotation(new_width, 2)[:8]
    judged = judge_alignment(old, new, 0)
    assert judged is not None
    matrix, figures = judged
    assert matrix.shape == (old_width, new_width)
    narrow = matrix if old_width > new_width else matrix.T
    assert np.allclose(narrow.T @ narrow, np.eye(min(old_width, new_width)), atol=1e-5)
    assert figures.kept > 0.99
    assert figures.itself > 0.99


def test_unrelated_embeddings_are_not_aligned() -> None:
    """A matrix turns the images that it is fitted to towards each other; the other half shows that it does no more."""
    old, new = unit(random_vectors(256, 1, 64)), unit(random_vectors(256, 2, 64))
    judged = judge_alignment(old, new, 0)
    assert judged is not None
    matrix, figures = judged
    assert figures.kept < 0.25
    assert figures.itself < 0.1
    assert (nearest(unit(new @ matrix.T), old, 1)[:, 0] == np.arange(256)).mean() > 0.3
