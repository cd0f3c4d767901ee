"""Exact, near and similar copies, and their groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from tessella.data.decode import Pixels
from tessella.inspection import copies as copies_module
from tessella.inspection.copies import Copies, candidate_pairs, find_copies
from tessella.inspection.measuring import ReadPictures
from tessella.inspection.neighbors import Neighbors, find_neighbors
from tessella.inspection.settings import InspectionSettings

from .made import cropped, garment, measurements, picture, recompressed, scene

NEAR = InspectionSettings().near


def copies_of(images: list[Image.Image], vectors: np.ndarray, equal: tuple[int, int] | None = None) -> Copies:
    made = measurements(vectors, images)
    if equal:
        made.sha256[equal[1]] = made.sha256[equal[0]]
    return find_copies(made, find_neighbors(made.vectors, 10), NEAR, "some model", reader(images))


def reader(images: list[Image.Image], missing: Sequence[int] = ()) -> ReadPictures:
    """Return a function that gives pictures of the images, except for the missing ones."""
    return lambda indices: {i: picture(images[i]) for i in indices if i not in missing}


def pairs_of(copies: Copies, kind: str) -> set[tuple[int, int]]:
    chosen = copies.kind == kind
    return set(zip(copies.i[chosen].tolist(), copies.j[chosen].tolist(), strict=True))


def apart(count: int) -> np.ndarray:
    return np.eye(count, count + 4)


def test_equal_bytes_are_exact_whatever_the_embeddings_say() -> None:
    copies = copies_of([scene(i) for i in range(6)], apart(6), equal=(1, 4))
    assert pairs_of(copies, "exact") == {(1, 4)}
    assert copies.score.tolist() == [1]
    assert copies.group.tolist() == [0, 1, 2, 3, 1, 5]


def test_a_group_of_equal_bytes_is_compared_once() -> None:
    """Images 0, 2 and 3 are equal, and 0 could not be read; 1 and 4 are equal, too, and nearly the same picture."""
    images = [scene(0), recompressed(scene(0)), scene(0), scene(0), recompressed(scene(0)), scene(5)]
    made = measurements(np.ones((6, 3)), images)
    made.sha256[[2, 3]], made.sha256[4] = made.sha256[0], made.sha256[1]
    made.status[0], made.tiles[0] = "decode_timeout", 0
    neighbors = find_neighbors(made.vectors, 10)
    neighbors.cosine[0], neighbors.cosine[neighbors.row == 0] = -1, -1
    copies = find_copies(made, neighbors, NEAR, "some model", reader(images, missing=[0]))
    assert pairs_of(copies, "exact") == {(0, 2), (0, 3), (1, 4)}
    assert pairs_of(copies, "near") == {(1, 2)}
    assert pairs_of(copies, "similar") == {(1, 5), (2, 5)}
    assert copies.group.tolist() == [0, 0, 0, 0, 0, 5]


def test_near_duplicates_are_confirmed_by_their_pixels() -> None:
    images = [scene(0), scene(1), recompressed(scene(1)), cropped(scene(1), 0.8), scene(4)]
    copies = copies_of(images, np.ones((5, 3)))
    assert pairs_of(copies, "near") == {(1, 2), (1, 3), (2, 3)}
    assert copies.group.tolist() == [0, 1, 1, 1, 4]
    assert pairs_of(copies, "similar") == {(0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (2, 4), (3, 4)}


def test_different_garments_on_one_wall_are_not_copies() -> None:
    images = [garment(0), garment(1), recompressed(garment(1), 75)]
    copies = copies_of(images, np.ones((3, 3)))
    assert pairs_of(copies, "near") == {(1, 2)}
    assert pairs_of(copies, "similar") == {(0, 1), (0, 2)}
    assert copies.group.tolist() == [0, 1, 1]


def test_images_are_compared_in_groups_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image for seed in range(5) for image in (scene(seed), recompressed(scene(seed)))]
    whole = copies_of(images, np.ones((10, 3)))
    assert pairs_of(whole, "near") == {(i, i + 1) for i in range(0, 10, 2)}
    monkeypatch.setattr(copies_module, "PICTURES", 2)
    parts = copies_of(images, np.ones((10, 3)))
    assert pairs_of(parts, "near") == pairs_of(whole, "near")
    np.testing.assert_allclose(parts.score, whole.score, atol=1e-5)


def test_an_image_that_can_no_longer_be_read_is_no_copy() -> None:
    images = [scene(0), recompressed(scene(0)), scene(1), recompressed(scene(1))]
    made = measurements(np.repeat(np.eye(2, 3), 2, 0), images)
    copies = find_copies(made, find_neighbors(made.vectors, 10), NEAR, "some model", reader(images, missing=[1]))
    assert pairs_of(copies, "near") == {(2, 3)}
    assert copies.group.tolist() == [0, 1, 2, 2]


def test_only_images_with_similar_tiles_are_read_again() -> None:
    images = [scene(0), recompressed(scene(0)), scene(1), scene(2)]
    made = measurements(np.ones((4, 3)), images)
    asked: list[int] = []

    def read(indices: Sequence[int]) -> dict[int, Pixels]:
        asked.extend(indices)
        return {i: picture(images[i]) for i in indices}

    find_copies(made, find_neighbors(made.vectors, 10), NEAR, "some model", read)
    assert asked == [0, 1]


def test_pictures_with_distant_embeddings_are_not_compared() -> None:
    copies = copies_of([scene(1), recompressed(scene(1))], apart(2))
    assert len(copies.i) == 0
    assert copies.group.tolist() == [0, 1]


def test_flat_pictures_are_not_near_duplicates() -> None:
    flat = [Image.new("RGB", (64, 64), (value, value, value)) for value in (80, 81, 200)]
    copies = copies_of(flat, np.ones((3, 3)))
    assert len(copies.i) == 0


def test_unreadable_files_with_equal_hashes_of_zero_are_no_copies() -> None:
    made = measurements(apart(3))
    made.sha256[:] = 0
    copies = find_copies(made, find_neighbors(made.vectors, 10), NEAR, "some model", reader([]))
    assert len(copies.i) == 0


def test_candidates_are_pairs_once() -> None:
    neighbors = Neighbors(
        np.array([[0.9, 0.8], [0.9, 0.1], [0.8, -1]], np.float32), np.array([[1, 2], [0, 2], [0, -1]])
    )
    i, j, cosine = candidate_pairs(neighbors, 0.5)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 1), (0, 2)]
    assert cosine.tolist() == np.array([0.9, 0.8], np.float32).tolist()
