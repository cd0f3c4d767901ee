"""One pass over the images: what is stored, and that an interrupted pass continues where it stopped."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data.all_splits import SplitImages, open_all_splits
from tessella.errors import OutputError, UsageError
from tessella.inspection import measuring
from tessella.inspection.measuring import Measurements, measure
from tessella.inspection.pixel_statistics import STATISTICS, statistics_of, tile_of
from tessella.predictor import Predictor
from tessella.storage import folder_lock

from ..evaluation.small_data import NAMES, predictor_of
from .made import save, scene


@pytest.fixture
def images(tmp_path: Path) -> SplitImages:
    """Return 30 images of two classes, of which two cannot be read."""
    root = tmp_path / "images"
    for i in range(30):
        save(scene(i, 40 + i), root / "ab"[i % 2] / f"{i}.png")
    (root / "a" / "4.png").write_bytes(b"")
    (root / "b" / "7.png").write_bytes(b"no image at all")
    return open_all_splits([root])


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "PART_IMAGES", 6)  # becomes 8, a multiple of the batch size 4


def same(one: Measurements, other: Measurements) -> bool:
    names = ("status", "sha256", "bytes", "width", "height", "vectors", "statistics", "tiles")
    return one.messages == other.messages and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in names
    )


def test_what_is_stored_of_an_image(images: SplitImages, predictor: Predictor) -> None:
    found = measure(images, predictor)
    codes = {images.images.key(i): str(found.status[i]) for i in np.flatnonzero(~found.ok).tolist()}
    assert codes == {"a/4.png": "empty", "b/7.png": "unsupported_format"}
    assert set(found.messages) == set(np.flatnonzero(~found.ok).tolist())
    for i in np.flatnonzero(found.ok).tolist()[:6]:
        data = images.images.read(i)
        assert found.sha256[i].tobytes().hex() == hashlib.sha256(data).hexdigest()
        assert (found.bytes[i], found.width[i], found.height[i]) == (len(data), *Image.open(io.BytesIO(data)).size)
        np.testing.assert_allclose(found.vectors[i], predictor.embed([data])[0], atol=2e-3)
    assert not found.vectors[~found.ok].any()


def test_statistics_say_what_their_names_say() -> None:
    def of(pixels: np.ndarray) -> dict[str, float]:
        return dict(zip(STATISTICS, statistics_of(pixels).tolist(), strict=True))

    checks = np.zeros((64, 64, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 255
    smooth = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    white, red = np.full((64, 64, 3), 255, np.uint8), np.full((64, 64, 3), (200, 0, 0), np.uint8)
    assert of(white)["brightness"] == pytest.approx(255, abs=0.1)
    assert of(white)["contrast"] == pytest.approx(0, abs=1e-3)
    assert of(checks)["sharpness"] > of(smooth)["sharpness"] + 5
    assert of(checks)["colorfulness"] == 0
    assert of(red)["colorfulness"] > 50


def test_a_tile_is_the_mean_of_what_it_covers() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    expected = pixels.reshape(32, 3, 32, 2, 3).mean((1, 3))
    assert np.abs(tile_of(pixels) - expected).max() < 1  # rows and columns are rounded one after the other
    small = pixels[:32, :32]
    assert tile_of(small) is small


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_pass_continues_with_the_same_numbers(
    images: SplitImages, predictor: Predictor, tmp_path: Path
) -> None:
    whole = measure(images, predictor)

    def stop(task: str, done: int, total: int) -> None:
        assert (task, total) == ("images", 30)
        if done == 19:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(images, predictor, tmp_path / "out", progress=stop)
    parts = sorted(path.name for path in (tmp_path / "out" / "parts").iterdir())
    assert parts == ["part-000000.npz", "part-000001.npz"]
    counts: list[int] = []
    resumed = measure(images, predictor, tmp_path / "out", progress=lambda _, done, total: counts.append(done))
    assert counts == list(range(17, 31))
    assert same(resumed, whole)
    counts.clear()
    assert same(measure(images, predictor, tmp_path / "out", progress=lambda *event: counts.append(1)), whole)
    assert counts == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_bits(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("damage", [cut, flip_bits, lambda path: path.write_bytes(b""), Path.unlink])
def test_damaged_parts_are_made_again(
    damage: Callable[[Path], object], images: SplitImages, predictor: Predictor, tmp_path: Path
) -> None:
    whole = measure(images, predictor, tmp_path)
    damage(tmp_path / "parts" / "part-000001.npz")
    counts: list[int] = []
    assert same(measure(images, predictor, tmp_path, progress=lambda _, done, total: counts.append(done)), whole)
    assert len(counts) == 8


@pytest.mark.usefixtures("small_parts")
def test_a_pipe_instead_of_a_part_is_an_error(images: SplitImages, predictor: Predictor, tmp_path: Path) -> None:
    """Reading it would wait forever."""
    (tmp_path / "parts").mkdir()
    os.mkfifo(tmp_path / "parts" / "part-000000.npz")
    with pytest.raises(OutputError, match="part-000000"):
        measure(images, predictor, tmp_path)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_other_data_or_another_model_are_not_used(
    images: SplitImages, predictor: Predictor, tmp_path: Path
) -> None:
    measure(images, predictor, tmp_path / "out")
    counts: list[int] = []
    fewer = open_all_splits([tmp_path / "images" / "a", tmp_path / "images" / "b"], unlabeled=True)
    measure(fewer, predictor, tmp_path / "out", progress=lambda *event: counts.append(1))
    assert len(counts) == len(fewer)
    counts.clear()
    other = predictor_of(NAMES[:3])
    assert other.fingerprint != predictor.fingerprint
    found = measure(fewer, other, tmp_path / "out", progress=lambda *event: counts.append(1))
    assert len(counts) == len(fewer)
    assert same(found, measure(fewer, other))


@pytest.mark.usefixtures("small_parts")
def test_parts_of_files_that_were_replaced_are_made_again(predictor: Predictor, tmp_path: Path) -> None:
    """Bitmaps of equal dimensions have equal sizes, so names and sizes stay the same."""
    root = tmp_path / "images"
    for i in range(12):
        save(scene(i), root / "ab"[i % 2] / f"{i}.bmp")
    measure(open_all_splits([root]), predictor, tmp_path / "out")
    replaced = save(scene(20), root / "b" / "11.bmp")
    os.utime(replaced, ns=(0, 5))
    counts: list[int] = []
    images = open_all_splits([root])
    found = measure(images, predictor, tmp_path / "out", progress=lambda *event: counts.append(1))
    assert same(found, measure(images, predictor))
    assert len(counts) == 4  # those of the second part


@pytest.mark.usefixtures("small_parts")
def test_parts_with_an_image_that_can_be_read_now_are_made_again(predictor: Predictor, tmp_path: Path) -> None:
    """Such as after its permissions were changed, which does not change when it was modified."""
    root = tmp_path / "images"
    for i in range(12):
        save(scene(i), root / "ab"[i % 2] / f"{i}.bmp")
    for name in ("a/2.bmp", "b/11.bmp"):
        data = (root / name).read_bytes()
        (root / name).write_bytes(bytes(len(data)))
        os.utime(root / name, ns=(0, 5))
    images = open_all_splits([root])
    assert np.count_nonzero(measure(images, predictor, tmp_path / "out").ok) == 10
    (root / "b" / "11.bmp").write_bytes(data)
    os.utime(root / "b" / "11.bmp", ns=(0, 5))
    counts: list[int] = []
    found = measure(images, predictor, tmp_path / "out", progress=lambda *event: counts.append(1))
    assert same(found, measure(images, predictor))
    assert np.count_nonzero(found.ok) == 11
    assert len(counts) == 4  # the first part still has an image that cannot be read


def test_one_process_at_a_time(images: SplitImages, predictor: Predictor, tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(UsageError) as error:
        measure(images, predictor, tmp_path)
    assert error.value.code == "busy"


def test_tiles_of_many_images_are_kept_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MAPPED_IMAGES", 10)
    made = Measurements.empty(12, 4)
    assert isinstance(made.tiles, np.memmap)
    made.tiles[3] = 7
    assert made.tiles[3].min() == 7
    assert made.tiles[4].max() == 0
