"""Small models and folders of images that tests of evaluation share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tessella.data.datasets import LabelledImages
from tessella.data.labels import labels_for
from tessella.engine import make_plan
from tessella.errors import ImageError
from tessella.evaluation.evaluator import Evaluation, evaluate
from tessella.evaluation.settings import EvaluationSettings
from tessella.predictor import Predictor

from ..models.tiny import tiny

NAMES = ("ant", "bee", "cat", "dog", "eel")


SYNSETS = labels_for("imagenet-1k").synsets


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse.repeat(8, 0).repeat(8, 1))


def model_of(names: Iterable[str] = NAMES) -> Any:
    names = tuple(names)
    model = tiny("mixer", num_classes=len(names))
    model.pretrained_cfg = dict(
        input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=len(names), label_names=names
    )
    outputs = Predictor(model, plan=make_plan("cpu", engine="eager")).outputs(map(picture, range(1, 31)))
    logits = np.stack([item.logits for item in outputs if not isinstance(item, ImageError)])
    with torch.no_grad():
        model.head.bias -= torch.tensor(logits.mean(0))  # all classes are predicted
    return model


def predictor_of(names: Iterable[str] = NAMES, batch_size: int = 4) -> Predictor:
    return Predictor(model_of(names), plan=make_plan("cpu", engine="eager", batch_size=batch_size))


def folder_of(root: Path, classes: Iterable[str], each: int = 6, name: str = "{}.png") -> Path:
    number = 0
    for label in classes:
        (root / label).mkdir(parents=True)
        for _ in range(each):
            number += 1
            picture(number).save(root / label / name.format(number), "PNG")
    return root


def logits_of(predictor: Predictor, images: LabelledImages) -> np.ndarray:
    """Return (N,K) logits, computed one image at a time."""
    model = predictor.model
    rows = []
    for i in range(len(images)):
        (output,) = Predictor(model, plan=make_plan("cpu", engine="eager")).outputs([images.read(i)])
        assert not isinstance(output, ImageError)
        rows.append(output.logits)
    return np.stack(rows)


def run(data: Any, models: Any, **options: Any) -> list[Evaluation]:
    settings = dict(engine="eager", precision="float32", device="cpu") | options
    return list(evaluate(data, models, EvaluationSettings(**settings)))
