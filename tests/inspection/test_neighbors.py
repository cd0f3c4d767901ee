"""Nearest neighbors in blocks are those of a direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from tessella.inspection import neighbors
from tessella.inspection.neighbors import find_neighbors
from tessella.results import l2_normalize


def vectors(count: int, width: int = 12) -> np.ndarray:
    rng = np.random.default_rng(count)
    return l2_normalize(rng.standard_normal((count, width)).astype(np.float32)).astype(np.float16)


@pytest.mark.parametrize(("queries", "block"), [(7, 5), (64, 13), (1000, 1000)])
def test_neighbors_are_those_of_all_pairs(queries: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "QUERIES", queries)
    monkeypatch.setattr(neighbors, "BLOCK", block)
    vectors_ND = vectors(50)
    found = find_neighbors(vectors_ND, 4)
    cosines = vectors_ND.astype(np.float32) @ vectors_ND.astype(np.float32).T
    np.fill_diagonal(cosines, -2)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :4]
    np.testing.assert_allclose(found.cosine, np.take_along_axis(cosines, order, 1), atol=1e-5)
    np.testing.assert_array_equal(found.row, order)


def test_fewer_images_than_neighbors() -> None:
    found = find_neighbors(vectors(3), 10)
    assert (np.sort(found.row[:, :2], axis=1) == [[1, 2], [0, 2], [0, 1]]).all()
    assert (found.row[:, 2:] == -1).all()
    assert (found.cosine[:, 2:] == -1).all()
    assert find_neighbors(vectors(1), 2).row.tolist() == [[-1, -1]]
    assert find_neighbors(np.zeros((0, 4), np.float16), 2).row.shape == (0, 2)


def test_images_of_a_group_count_as_one() -> None:
    vectors_ND = vectors(9)
    group_N = np.array([0, 1, 0, 1, 4, 5, 0, 7, 8])
    found = find_neighbors(vectors_ND, 5, group_N=group_N)
    firsts = np.unique(group_N)
    alone = find_neighbors(vectors_ND[firsts], 5)
    np.testing.assert_array_equal(found.row[firsts], firsts[alone.row])
    np.testing.assert_array_equal(found.cosine[firsts], alone.cosine)
    np.testing.assert_array_equal(found.row, found.row[group_N])
    assert find_neighbors(vectors_ND, 2, group_N=np.zeros(9, np.int64)).row.tolist() == [[-1, -1]] * 9
    assert find_neighbors(np.zeros((0, 4), np.float16), 2, group_N=np.zeros(0, np.int64)).row.shape == (0, 2)


def test_progress_reaches_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "QUERIES", 20)
    seen: list[tuple[str, int, int]] = []
    find_neighbors(vectors(50), 3, progress=lambda *event: seen.append(event))
    assert seen == [("neighbors", 20, 50), ("neighbors", 40, 50), ("neighbors", 50, 50)]
