"""Mosaics: every tile is where it belongs, unchanged, and the chosen ones are spread evenly."""

from __future__ import annotations

import numpy as np
import pytest

from tessella.explain.mosaics import choose_evenly, filter_pictures, make_mosaic, scale_tiles


def numbered(count: int, height: int, width: int) -> np.ndarray:
    return np.arange(count * height * width, dtype=np.float32).reshape(count, height, width)


def test_tiles_stand_in_rows_with_gaps() -> None:
    tiles = numbered(5, 2, 3)
    mosaic = make_mosaic(tiles, 3, size=3, gap=1)
    assert mosaic.cell == 1
    assert mosaic.picture.shape == (5, 11)
    assert np.array_equal(mosaic.picture[:2, :3], tiles[0])
    assert np.array_equal(mosaic.picture[:2, 8:], tiles[2])
    assert np.array_equal(mosaic.picture[3:, 4:7], tiles[4])
    assert np.isnan(mosaic.picture[2]).all()
    assert np.isnan(mosaic.picture[:, [3, 7]]).all()
    assert np.isnan(mosaic.picture[3:, 8:]).all()  # there is no sixth tile
    assert np.isfinite(mosaic.picture).sum() == tiles.size


def test_small_tiles_are_magnified_in_blocks() -> None:
    tiles = numbered(2, 2, 3)
    mosaic = make_mosaic(tiles, 2, size=13, gap=5)
    assert mosaic.cell == 4
    assert mosaic.picture.shape == (8, 12 + 5 + 12)
    assert np.array_equal(mosaic.picture[:, 17:], tiles[1].repeat(4, 0).repeat(4, 1))


def test_large_tiles_keep_their_size() -> None:
    assert make_mosaic(numbered(1, 60, 20), 1, size=48).picture.shape == (60, 20)


def test_groups_of_columns_are_farther_apart() -> None:
    mosaic = make_mosaic(np.ones((4, 2, 2), np.float32), 4, size=2, gap=1, group=2)
    filled = "".join("x" if value else " " for value in np.isfinite(mosaic.picture[0]))
    assert filled == "xx xx    xx xx"


@pytest.mark.parametrize("group", [0, 2])
def test_centers_are_those_of_the_tiles(group: int) -> None:
    tiles = np.zeros((6, 3, 5), np.float32)
    tiles[:, 1, 2] = np.arange(1, 7)
    mosaic = make_mosaic(tiles, 3, size=5, gap=2, group=group)
    found = mosaic.picture[np.ix_(mosaic.y.astype(int), mosaic.x.astype(int))]
    assert found.ravel().tolist() == [1, 2, 3, 4, 5, 6]


def test_colored_tiles_have_white_gaps() -> None:
    mosaic = make_mosaic(np.zeros((2, 2, 2, 3), np.float32), 2, size=2, gap=1)
    assert mosaic.picture.shape == (2, 5, 3)
    assert (mosaic.picture[:, 2] == 1).all()
    assert not mosaic.picture[:, [0, 1, 3, 4]].any()


def test_scaled_tiles_keep_zero_and_sign() -> None:
    tiles = np.array([[[4, -8], [0, 2]], [[0, 0], [0, 0]], [[0.1, 0.2], [0, 0]]], np.float32)
    expected = np.array([[[0.5, -1], [0, 0.25]], [[0, 0], [0, 0]], [[0.5, 1], [0, 0]]])
    assert np.allclose(scale_tiles(tiles), expected)
    assert scale_tiles(tiles).dtype == np.float32


def test_filters_become_pictures_around_gray() -> None:
    filters = np.zeros((2, 1, 2, 3), np.float32)
    filters[0, 0, 0] = [2, -2, 1]
    pictures = filter_pictures(filters)
    assert np.allclose(pictures[0, 0, 0], [1, 0, 0.75])
    assert (pictures[0, 0, 1] == 0.5).all()
    assert (pictures[1] == 0.5).all()


@pytest.mark.parametrize(
    ("count", "most", "chosen"),
    [(3, 5, [0, 1, 2]), (5, 5, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (10, 4, [0, 3, 6, 9]), (0, 4, []), (7, 1, [0])],
)
def test_chosen_evenly(count: int, most: int, chosen: list[int]) -> None:
    assert choose_evenly(count, most).tolist() == chosen


def test_chosen_are_distinct_for_all_sizes() -> None:
    for count in range(1, 60):
        for most in range(2, 60):
            chosen = choose_evenly(count, most)
            assert len(set(chosen.tolist())) == min(count, most)
            assert chosen[0] == 0
            assert chosen[-1] == count - 1
