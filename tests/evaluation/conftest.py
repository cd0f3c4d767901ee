"""Fixtures that tests of evaluation share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tessella.engine import make_plan
from tessella.evaluation import figures as report_figures
from tessella.plots import figures
from tessella.predictor import Predictor
from tessella.weights.save import save_pretrained

from ..models.tiny import tiny
from .coloured_images import predictor_of as five_classes
from .coloured_images import write_images
from .small_data import NAMES, folder_of, model_of


@pytest.fixture(scope="module")
def imagenet() -> Predictor:
    """Return an untrained model with the classes of ImageNet."""
    model = tiny("convmixer_relu", num_classes=1000)
    model.pretrained_cfg = dict(input_size=(3, 32, 32), num_classes=1000)
    return Predictor(model, plan=make_plan("cpu", engine="eager", batch_size=8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "data", NAMES)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    return f"local-dir:{save_pretrained(model_of(), tmp_path / 'saved')}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write 24 training and 10 validation images of each of three classes; one file per split is not an image."""
    write_images(tmp_path / "data" / "train", 24)
    write_images(tmp_path / "data" / "val", 10, seed=1)
    (tmp_path / "data" / "train" / "green" / "7.png").write_bytes(b"no image")
    (tmp_path / "data" / "val" / "blue" / "3.png").write_bytes(b"")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return five_classes("mixer")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the figures in the order in which they are drawn."""
    kept: list[Any] = []
    original = figures.render

    def keep(figure: Any, suffix: str = ".png") -> bytes:
        kept.append(figure)
        return original(figure, suffix)

    monkeypatch.setattr(report_figures, "render", keep)
    monkeypatch.setattr(figures, "render", keep)
    return kept
