"""Pictures, copies of them, and measurements, made for tests of the inspection."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tessella.inspection.detail import SIDE
from tessella.inspection.measuring import Measurements
from tessella.inspection.pixel_statistics import TILE, statistics_of
from tessella.results import l2_normalize


def scene(seed: int, side: int = 96) -> Image.Image:
    """Return a picture with a smooth background and a few shapes: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 216, (6, 6, 3), np.uint8))
    image = small.resize((side, side), Image.Resampling.BICUBIC)
    for _ in range(6):
        width, height = rng.integers(side // 10, side // 3, 2)
        left, top = rng.integers(0, side - width), rng.integers(0, side - height)
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        image.paste(color, (int(left), int(top), int(left + width), int(top + height)))
    return image


def garment(seed: int, side: int = 96) -> Image.Image:
    """Return dark trousers on a plain wall: the outline and the wall are always the same, the cloth is not."""
    rng = np.random.default_rng(seed)
    unit = side // 16
    cloth = Image.fromarray(rng.integers(10, 90, (32, 32), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    image = Image.fromarray(np.linspace(170, 210, side, dtype=np.uint8)[:, None].repeat(side, 1))
    for left, top, right, bottom in ((4, 1, 12, 5), (4, 5, 7, 15), (9, 5, 12, 14)):
        box = (left * unit, top * unit, right * unit, bottom * unit)
        image.paste(cloth.crop(box), box)
    return image.convert("RGB")


def cropped(image: Image.Image, fraction: float, left: float = 0.5, top: float = 0.5) -> Image.Image:
    """Return a part of an image: left, top: 0 for the left or upper end, 1 for the other."""
    width, height = (round(fraction * side) for side in image.size)
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    return image.crop((x, y, x + width, y + height))


def recompressed(image: Image.Image, quality: int = 40) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def mirrored(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image)


def tile(image: Image.Image) -> NDArray[np.uint8]:
    return np.array(image.resize((TILE, TILE), Image.Resampling.BOX))


def picture(image: Image.Image) -> NDArray[np.uint8]:
    return np.array(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def save(image: Image.Image, path: Path, quality: int = 75) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)  # PNG ignores it
    return path


def measurements(vectors: NDArray[np.floating], images: list[Image.Image] | None = None) -> Measurements:
    """Return measurements of readable images with these embeddings (N,D), each with other bytes."""
    count = len(vectors)
    images = [scene(i) for i in range(count)] if images is None else images
    made = Measurements.empty(count, vectors.shape[1])
    made.vectors[:] = l2_normalize(vectors.astype(np.float32))
    made.sha256[:] = np.random.default_rng(0).integers(1, 256, made.sha256.shape, np.uint8)
    for i, image in enumerate(images):
        made.tiles[i] = tile(image)
        made.statistics[i] = statistics_of(np.array(image.convert("RGB")))
        made.width[i], made.height[i] = image.size
        made.bytes[i] = 1000
    return made
