"""Tiny engines whose outputs say which image they belong to, and images that carry a number."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
from PIL import Image

import tessella.data
from tessella.data.decode import Pixels
from tessella.data.spec import InputSpec
from tessella.engine.base import ArrayOutputs, Engine, TensorOutputs
from tessella.engine.exported import Card
from tessella.engine.plan import Plan
from tessella.loading import OpenedModel
from tessella.predictor import Predictor
from tessella.results import FloatArray

SIZE = 8
SPEC = InputSpec(height=SIZE, width=SIZE, crop_pct=1.0)
CLASSES = 3
PHOTOGRAPH = (Path(tessella.data.__file__).parent / "photographs" / "astronaut.jpg").read_bytes()


def numbers(*values: float) -> FloatArray:
    return np.array(values, np.float32)


class FakeEngine(Engine):
    """An engine whose logits and embedding have the number of the image.

    gate: when it is cleared, batches wait. held: the number of those that do. fail: the exception of the next batches.
    not_finite: numbers of images whose outputs are NaN. calls: the sizes of all batches that were started.
    """

    def __init__(self, *, batch_size: int = 8, streams: int = 2):
        super().__init__(None, Plan("cpu", "float32", "openvino", batch_size, streams, (), streams), (SIZE, SIZE), SPEC)
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()
        self.held = 0
        self.fail: BaseException | None = None
        self.not_finite: set[int] = set()
        self.calls: list[int] = []

    def run(self, x: object) -> TensorOutputs:
        raise NotImplementedError

    def __call__(self, images_BHWC: Pixels) -> ArrayOutputs:
        self.calls.append(len(images_BHWC))
        with self.lock:
            self.held += 1
        assert self.gate.wait(60)
        with self.lock:
            self.held -= 1
        if self.fail is not None:
            raise self.fail
        found = number_of_pixels(images_BHWC)
        found[np.isin(found, [*self.not_finite])] = np.nan
        return np.stack([found] * CLASSES, axis=1), -np.stack([found] * 2, axis=1)


def fake_predictor(name: str, engine: Engine) -> Predictor:
    """Return a Predictor that runs the engine."""
    labels = tuple(map(str, range(CLASSES)))
    card = Card(name, "fake", "openvino", "float32", CLASSES, 2, SPEC, labels, (), {"fake": name})
    return Predictor(OpenedModel(engine, card, "made for tests"))


def number_of_pixels(images_BHWC: Pixels) -> FloatArray:
    """Return the number of each image, (N,)."""
    corner = images_BHWC[:, 0, 0, :].astype(np.int64)
    found: FloatArray = (corner * [1, 256, 65536]).sum(1).astype(np.float32)
    return found


def pixels_of(number: int) -> Pixels:
    """Return an image (SIZE,SIZE,3) with a number below 2**24 as its color."""
    return np.full((SIZE, SIZE, 3), [number & 255, number >> 8 & 255, number >> 16], np.uint8)


def encoded(number: int) -> bytes:
    """Return a small file with that image."""
    file = io.BytesIO()
    Image.fromarray(pixels_of(number)).save(file, "BMP")
    return file.getvalue()
