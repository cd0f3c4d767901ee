"""Similarity in detail: copies score high, different objects with the same outline score low."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tessella.data.spec import InputSpec
from tessella.inspection import detail
from tessella.inspection.alignment import compare_tiles
from tessella.inspection.copies import LIKELY
from tessella.inspection.detail import SIDE, compare_pictures, picture_of, spec_of_pictures
from tessella.inspection.settings import InspectionSettings

from .made import cropped, garment, mirrored, picture, recompressed, scene, tile

NEAR = InspectionSettings().near
SEEDS = range(8)

COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "unchanged": lambda image: image,
    "recompressed": recompressed,
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "mirrored": mirrored,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "90 %, upper left": lambda image: cropped(image, 0.9, 0, 0),
    "80 %, right": lambda image: cropped(image, 0.8, 1, 0.5),
    "90 %, mirrored, recompressed": lambda image: recompressed(mirrored(cropped(image, 0.9, 0.2, 0.9)), 60),
}


def similarity(first: list[Image.Image], second: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarities of pairs (P,): of their tiles, and in detail."""
    found = compare_tiles(*(np.stack([tile(image) for image in side]) for side in (first, second)))
    pictures = [np.stack([picture(image) for image in side]) for side in (first, second)]
    return found.score, compare_pictures(pictures[0], pictures[1], found)


@pytest.mark.parametrize("make", [scene, garment])
@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_recognized_in_both_directions(kind: str, make: Callable[[int, int], Image.Image]) -> None:
    originals = [make(seed, 192) for seed in SEEDS]
    copies = [COPIES[kind](image) for image in originals]
    for first, second in ((originals, copies), (copies, originals)):
        tiles, details = similarity(first, second)
        assert ((tiles >= LIKELY) & (details >= NEAR)).mean() >= 0.85, (tiles, details)


def test_different_garments_with_the_same_outline_are_not_the_same_picture() -> None:
    garments = [garment(seed, 192) for seed in SEEDS]
    first, second = (list(side) for side in zip(*((garments[i], garments[i + 1]) for i in SEEDS[:-1]), strict=True))
    tiles, details = similarity(first, second)
    assert tiles.min() >= LIKELY  # the tiles cannot tell them apart
    assert details.max() < NEAR - 0.1


def test_an_empty_background_is_no_evidence() -> None:
    def on_white(seed: int) -> Image.Image:
        image = Image.new("RGB", (96, 96), "white")
        image.paste(scene(seed).resize((30, 30)), (33, 33))
        return image

    _, details = similarity([on_white(seed) for seed in SEEDS[:-1]], [on_white(seed + 1) for seed in SEEDS[:-1]])
    assert details.max() < NEAR


def test_other_pictures_are_not_the_same_and_flat_ones_are_finite() -> None:
    flat = Image.new("RGB", (96, 96), (90, 90, 90))
    images = [*(scene(seed) for seed in SEEDS), flat]
    first, second = np.triu_indices(len(images), 1)
    _, details = similarity([images[i] for i in first], [images[i] for i in second])
    assert np.isfinite(details).all()
    assert details[(first < len(SEEDS)) & (second < len(SEEDS))].max() < NEAR


def test_no_pairs() -> None:
    assert [part.shape for part in similarity_of_nothing()] == [(0,), (0,)]


def similarity_of_nothing() -> tuple[np.ndarray, np.ndarray]:
    none = np.zeros((0, 32, 32, 3), np.uint8)
    found = compare_tiles(none, none)
    pictures = np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return found.score, compare_pictures(pictures, pictures, found)


def test_the_result_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [scene(seed) for seed in SEEDS]
    second = [cropped(image, 0.9, 0.3, 0.6) for image in first]
    whole = similarity(first, second)[1]
    monkeypatch.setattr(detail, "CHUNK", 3)
    np.testing.assert_allclose(similarity(first, second)[1], whole, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (32, 32), (96, 192), (300, 200)])
def test_pictures_show_the_part_of_an_image_that_the_model_sees(height: int, width: int) -> None:
    spec = spec_of_pictures(InputSpec(height=height, width=width, crop_pct=0.9))
    assert min(spec.height, spec.width) == SIDE
    assert spec.height / spec.width == pytest.approx(height / width, rel=0.02)
    assert spec.crop_pct == 0.9
    assert picture_of(np.zeros((spec.height, spec.width, 3), np.uint8)).shape == (SIDE, SIDE, 3)
