"""Robust standard scores, remote embeddings, and images that are odd in size, brightness, sharpness or color."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tessella.inspection.neighbors import find_neighbors
from tessella.inspection.outliers import find_odd, find_remote, standard_scores
from tessella.results import l2_normalize

from .made import measurements, scene


def test_scores_are_standard_deviations_for_normal_values() -> None:
    values = np.random.default_rng(0).normal(10, 2, 20_000)
    assert standard_scores(values).std() == pytest.approx(1, abs=0.03)
    outlier = np.append(values, 10 + 2 * 8)
    assert standard_scores(outlier)[-1] == pytest.approx(8, abs=0.3)


def test_few_or_equal_values_are_never_odd() -> None:
    assert not standard_scores(np.array([1.0, 1, 1, 1000])).any()
    equal = np.append(np.ones(100), 1.001)
    assert standard_scores(equal, 0.5)[-1] == pytest.approx(0.002, abs=1e-4)


def ring(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return l2_normalize((np.eye(1, 16) + 0.2 * rng.standard_normal((count, 16))).astype(np.float32))


def test_remote_embeddings_have_high_scores() -> None:
    vectors = ring(80, 0)
    vectors[7] = -vectors[7]
    vectors = vectors.astype(np.float16)
    found = find_remote(vectors, np.zeros(80, np.int64), np.arange(80), find_neighbors(vectors, 10))
    assert found.overall.argmax() == 7
    assert found.overall[7] > 5
    assert np.delete(found.overall, 7).max() < 5


def test_two_copies_of_an_outlier_are_outliers() -> None:
    vectors = ring(80, 0)
    vectors[7] = vectors[8] = -vectors[7]
    vectors = vectors.astype(np.float16)
    neighbors = find_neighbors(vectors, 10)
    group = np.arange(80)
    group[8] = 7
    found = find_remote(vectors, np.zeros(80, np.int64), group, neighbors)
    assert found.overall[[7, 8]].min() > 5


def test_many_copies_of_an_outlier_are_outliers_of_their_class() -> None:
    vectors = ring(80, 0)
    vectors[60:] = -vectors[60]
    vectors = vectors.astype(np.float16)
    group = np.minimum(np.arange(80), 60)
    neighbors = find_neighbors(vectors, 10, group_N=group)
    found = find_remote(vectors, np.zeros(80, np.int64), group, neighbors)
    assert found.overall[60:].min() > 5
    assert found.in_class[60:].min() > 5
    assert max(found.overall[:60].max(), found.in_class[:60].max()) < 5


def test_an_image_can_be_remote_in_its_class_alone() -> None:
    first, second = ring(60, 1), np.roll(ring(60, 2), 3, axis=1)
    vectors = np.concatenate([first, second]).astype(np.float16)
    labels = np.repeat([0, 1], 60)
    labels[0] = 1  # lies among the images of class 0
    found = find_remote(vectors, labels, np.arange(120), find_neighbors(vectors, 10))
    assert found.in_class[0] > 5
    assert found.overall[0] < 5
    unlabeled = find_remote(vectors, np.full(120, -1), np.arange(120), find_neighbors(vectors, 10))
    assert not unlabeled.in_class.any()


def test_odd_images_are_named_with_their_reason() -> None:
    images = [scene(i) for i in range(60)]
    images[1] = Image.new("RGB", (96, 96), (90, 40, 40))
    images[2] = Image.fromarray((np.array(images[2]) * 0.08).astype(np.uint8))
    images[3] = Image.fromarray((255 - np.array(images[3]) * 0.08).astype(np.uint8))
    images[4] = images[4].filter(ImageFilter.GaussianBlur(9))
    images[5] = images[5].convert("L").convert("RGB")
    images[6] = images[6].resize((300, 90))
    images[7] = images[7].resize((20, 20))
    found = find_odd(measurements(ring(60, 0), images), 4)
    kinds = {(odd.image, odd.kind) for odd in found}
    names = ("uniform", "dark", "bright", "blurred", "gray", "elongated", "small")
    assert set(enumerate(names, 1)) <= kinds
    assert {image for image, _ in kinds} == set(range(1, 8)), kinds
    (dark,) = (odd for odd in found if odd.kind == "dark")
    assert "of 255, the median is" in dark.reason
    assert dark.score >= 4


def test_landscapes_among_portraits_are_not_elongated() -> None:
    images = [scene(i).resize((96, 72) if i % 8 == 0 else (72, 96)) for i in range(60)]
    images[1] = images[1].resize((60, 200))
    images[2] = images[2].resize((200, 60))
    found = [odd for odd in find_odd(measurements(ring(60, 0), images), 5) if odd.kind == "elongated"]
    assert [odd.image for odd in found] == [1, 2]
    assert found[0].score == found[1].score
    assert "the longer side is 3.33 times the shorter one, the median is 1.33" in found[0].reason


def test_gray_images_are_not_odd_among_many() -> None:
    images = [scene(i) if i % 4 else scene(i).convert("L").convert("RGB") for i in range(60)]
    assert not [odd for odd in find_odd(measurements(ring(60, 0), images), 5) if odd.kind == "gray"]


def test_unreadable_images_are_not_judged() -> None:
    made = measurements(ring(40, 0))
    made.status[:] = "corrupt_image"
    assert find_odd(made, 5) == []
