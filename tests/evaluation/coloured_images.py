"""Folders of noisy colored images, and tiny models with five classes, for tests of probes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tessella.engine import make_plan
from tessella.evaluation.settings import ProbeSettings
from tessella.predictor import Predictor

from ..models.tiny import size_of, tiny

NO_SHOTS = ProbeSettings(shots=())


COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}


def picture(rng: np.random.Generator, colour: tuple[int, ...], noise: int = 50) -> bytes:
    pixels = np.array(colour) + rng.integers(-noise, noise + 1, (8, 8, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_images(root: Path, count: int, seed: int = 0) -> Path:
    """Write `count` noisy images of each color."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(picture(rng, colour))
    return root


def predictor_of(case: str, **overrides: Any) -> Predictor:
    net = tiny(case, **overrides)
    size = size_of(net)
    net.pretrained_cfg = dict(input_size=(3, *size), num_classes=net.num_classes, tag="old", label_names=tuple("abcde"))
    return Predictor(net, plan=make_plan("cpu", engine="eager", model=net, size=size))
