"""Sample images for measurements: crops of the four photographs in this package (see examples/README.md)."""

from __future__ import annotations

import dataclasses
from importlib import resources

import numpy as np

from .decode import Pixels, decode
from .spec import InputSpec
from .transforms import load_pixels

NAMES = ("astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg")


def sample_images(spec: InputSpec, count: int) -> Pixels:
    """Return (count,height,width,C) uint8, always the same: crops of 15 to 100 % of a photograph, half of them flipped.

    They are resized and cropped as the spec describes. If C is not 3, the channels repeat red, green and blue.
    """
    rgb = dataclasses.replace(spec, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    folder = resources.files("tessella.data") / "photographs"
    photographs = [decode((folder / name).read_bytes()) for name in NAMES]
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        height, width = photograph.shape[:2]
        fraction, ratio = rng.uniform(0.15, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        rows = min(height, round((height * width * fraction / ratio) ** 0.5))
        cols = min(width, round((height * width * fraction * ratio) ** 0.5))
        top, left = rng.integers(height - rows + 1), rng.integers(width - cols + 1)
        crop = photograph[top : top + rows, left : left + cols]
        images.append(load_pixels(np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop), rgb))
    return np.stack(images)[..., np.arange(spec.channels) % 3]
