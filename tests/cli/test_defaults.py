"""The model that a command uses without --model, and runs that were started when the default was another one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tessella
from tessella.weights import catalogue

from ..training.small_runs import make_images
from .test_cli import EXAMPLES, run

FORMER, CLASSIFIER, EMBEDDER = "convmixer_256_8_ks3_p4.cifar10", "gmixer_ti_p4_32.cifar10", "mixer_ti_p4_32.cifar10"
CAT = str(EXAMPLES / "cat.jpg")


@pytest.fixture
def _former_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "DEFAULT_MODELS", dict(classify=(FORMER,), embed=(FORMER,)))


def change_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "DEFAULT_MODELS", dict(classify=(CLASSIFIER, FORMER), embed=(EMBEDDER, FORMER)))


def model_of_run(out: Path) -> str:
    return str(json.loads((out / "run.json").read_text())["model"])


def test_each_task_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_defaults(monkeypatch)
    assert f"model: {CLASSIFIER}\n" in run("classify", CAT, "--verbose")[1]
    assert f"model: {EMBEDDER}\n" in run("embed", CAT, "--verbose")[1]
    assert json.loads(run("info", "--json")[0])["name"] == EMBEDDER
    assert tessella.load().name == EMBEDDER
    run("run", CAT, "-o", str(tmp_path / "run"))
    assert model_of_run(tmp_path / "run") == EMBEDDER
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "data" / name / "1.png")
    assert json.loads(run("evaluate", str(tmp_path / "data"), "--json")[0])["model"] == CLASSIFIER


@pytest.mark.usefixtures("_former_defaults")
def test_a_run_keeps_the_default_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("run", CAT, "-o", str(tmp_path / "run"))
    run(*command)
    change_defaults(monkeypatch)
    run(*command)
    assert model_of_run(tmp_path / "run") == FORMER
    run("run", CAT, "-o", str(tmp_path / "new"))
    assert model_of_run(tmp_path / "new") == EMBEDDER
    assert f"model '{FORMER}', now '{EMBEDDER}'" in run(*command, "-m", EMBEDDER, status=2)[1]
    run("run", CAT, "-o", str(tmp_path / "other"), "-m", CLASSIFIER)  # never the default for runs
    assert f"model '{CLASSIFIER}', now '{EMBEDDER}'" in run("run", CAT, "-o", str(tmp_path / "other"), status=2)[1]


@pytest.mark.usefixtures("_former_defaults")
def test_training_keeps_the_default_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = str(make_images(tmp_path / "data", count=16, side=32))
    command = ("train", data, "-o", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "4", "--workers", "0")
    assert run(*command)[1].startswith(f"{FORMER}: ")
    change_defaults(monkeypatch)
    assert run(*command)[1].startswith(f"{FORMER}: ")
    settings = json.loads((tmp_path / "run" / "train.json").read_text())
    assert settings["config"]["model"] == FORMER
    assert f'model was "{FORMER}", now "{EMBEDDER}"' in run(*command, "-m", EMBEDDER, status=2)[1]
