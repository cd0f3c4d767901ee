"""The photograph model is written to the package in float16, with a row and a card that follow from its runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tessella
from tessella.training.config import TrainConfig

from ..training.small_runs import make_images, small
from ..training.small_runs import run as train
from .test_photographs import load

register_photographs = load("register_photographs")
MODEL = "convmixer_768_32"
FIGURES = """model,clothing_knn,clothing_linear,photos_recall,photos_top1,photos_top5
teacher.tflite,0.798,0.856,0.747,0.881,0.984
convmixer_768_32,0.809,0.859,0.0783,0.0164,
"""


@pytest.fixture
def builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that stands for the one of the built-in models."""
    folder = tmp_path / "builtin"
    folder.mkdir()
    (folder / "builtin.json").write_text(json.dumps([dict(name="other.cifar10")]))
    monkeypatch.setattr(register_photographs, "BUILTIN_FOLDER", folder)
    monkeypatch.setattr(register_photographs, "ROOT", tmp_path)
    monkeypatch.setattr(register_photographs, "SETTINGS", (tmp_path / "1.json", tmp_path / "2.json"))
    return folder


def test_a_chain_of_runs_is_registered(tmp_path: Path, builtin: Path) -> None:
    data, figures = make_images(tmp_path / "data"), tmp_path / "figures.csv"
    figures.write_text(FIGURES)
    runs = [tmp_path / "first", tmp_path / "second"]
    config = small(MODEL, epochs=2)
    train(data, runs[0], config)
    changes = dict(model=f"local-dir:{runs[0]}", model_args={}, init_from="pretrained", epochs=1)
    follow = TrainConfig.from_dict({**config.as_dict(), **changes})
    train(data, runs[1], follow)
    settings = register_photographs.SETTINGS
    for file, run in zip(settings, runs, strict=True):
        file.write_text(json.dumps(json.loads((run / "train.json").read_text())["config"]))
    for _ in range(2):  # the second time, its row is replaced
        assert register_photographs.register(runs, figures, settings) == f"{MODEL}.photographs"
        other, row = json.loads((builtin / "builtin.json").read_text())
    assert other["name"] == "other.cifar10"
    assert (row["num_classes"], row["crop_pct"], "label_names" in row) == (2, 1.0, False)
    assert "correct for only 1.6 % of photographs" in row["class_warning"]
    file = builtin / row["file"]
    assert file.stat().st_size < 0.7 * (runs[1] / "model.safetensors").stat().st_size
    shipped = tessella.create_model(MODEL, checkpoint_path=file, num_classes=2, **config.model_args).state_dict()
    for name, value in tessella.create_model(f"local-dir:{runs[1]}", pretrained=True).state_dict().items():
        np.testing.assert_allclose(shipped[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
    card = (builtin / f"{MODEL}.photographs.md").read_text()
    assert "| `convmixer_768_32` | 80.9 % | 85.9 % | 7.8 % | 1.6 % |  |" in card
    assert "    python benchmarks/train_photographs.py ../shared/data RUN\n" in card
    assert card.count("\n| 3 | ") == 1  # epochs of both runs
    assert "was stopped" not in card


def test_a_run_with_other_settings_is_refused(tmp_path: Path, builtin: Path) -> None:
    train(make_images(tmp_path / "data"), tmp_path / "run", small(MODEL, epochs=1))
    file = register_photographs.SETTINGS[0]
    file.write_text(json.dumps(small(MODEL, epochs=1, lr=0.1).as_dict()))
    with pytest.raises(SystemExit, match=r"was not made with .*1\.json: lr differ"):
        register_photographs.register([tmp_path / "run"], tmp_path / "figures.csv", [file])
    assert [path.name for path in builtin.iterdir()] == ["builtin.json"]
