"""Structural similarity after alignment: copies score high, other pictures score low."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tessella.inspection import alignment
from tessella.inspection.alignment import compare_tiles

from .made import cropped, mirrored, recompressed, scene, tile

NEAR = 0.9  # of tiles; copies have more
PICTURES = [scene(seed) for seed in range(12)]

COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "unchanged": lambda image: image,
    "recompressed": recompressed,
    "smaller": lambda image: image.resize((40, 40), Image.Resampling.BICUBIC),
    "mirrored": mirrored,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "90 %, upper left": lambda image: cropped(image, 0.9, 0, 0),
    "80 %, right": lambda image: cropped(image, 0.8, 1, 0.5),
    "70 %, center": lambda image: cropped(image, 0.7),
    "80 %, mirrored, recompressed": lambda image: recompressed(mirrored(cropped(image, 0.8, 0.2, 0.9)), 60),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_recognized_in_both_directions(kind: str) -> None:
    first = np.stack([tile(image) for image in PICTURES])
    second = np.stack([tile(COPIES[kind](image)) for image in PICTURES])
    for one, other in ((first, second), (second, first)):
        found = compare_tiles(one, other)
        assert (found.score >= NEAR).mean() >= 0.9, found.score
        assert (found.mirrored == ("mirrored" in kind)).all()


def test_the_scale_tells_which_is_the_crop() -> None:
    first = np.stack([tile(image) for image in PICTURES])
    second = np.stack([tile(cropped(image, 0.7)) for image in PICTURES])
    assert abs(np.median(compare_tiles(first, second).scale) - 0.7) < 0.05
    assert abs(np.median(compare_tiles(second, first).scale) - 1 / 0.7) < 0.1


def test_other_pictures_are_not_the_same() -> None:
    tiles = np.stack([tile(image) for image in PICTURES])
    first, second = np.triu_indices(len(PICTURES), 1)
    score = compare_tiles(tiles[first], tiles[second]).score
    assert score.max() < NEAR
    assert np.isfinite(score).all()


def test_unchanged_pictures_score_one_and_flat_ones_are_finite() -> None:
    tiles = np.stack([tile(image) for image in PICTURES])
    assert compare_tiles(tiles, tiles).score == pytest.approx(1, abs=1e-3)
    flat = np.full((2, 32, 32, 3), 90, np.uint8)
    assert np.isfinite(compare_tiles(flat, flat[::-1]).score).all()


def test_no_pairs() -> None:
    none = np.zeros((0, 32, 32, 3), np.uint8)
    assert [len(column) for column in compare_tiles(none, none)] == [0] * 6


def test_the_result_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.stack([tile(image) for image in PICTURES])
    second = np.stack([tile(recompressed(image)) for image in PICTURES])
    whole = compare_tiles(first, second)
    monkeypatch.setattr(alignment, "CHUNK", 5)
    np.testing.assert_allclose(compare_tiles(first, second).score, whole.score, atol=1e-5)
