"""The model that a command uses without --model, and runs that were started when the default was another one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tessella
from tessella import Predictor, bulk
from tessella.errors import UsageError
from tessella.weights import catalogue
from tessella.weights.open import open_network

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


@pytest.mark.usefixtures("_former_defaults")
@pytest.mark.parametrize("options", [["--scratch"], ["--preset", "small-data"], ["--config", "{}/config.json"]])
def test_training_from_random_weights_keeps_the_architecture_of_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    data = str(make_images(tmp_path / "data", count=16, side=32))
    (tmp_path / "config.json").write_text('{"lr": 0.001}')
    options = [text.format(tmp_path) for text in options]
    command = ("train", data, *options, "--epochs", "1", "--batch-size", "4", "--workers", "0", "--img-size", "32")
    former, _, _ = FORMER.partition(".")
    assert run(*command, "-o", str(tmp_path / "run"))[1].startswith(f"{former}: random weights")
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    change_defaults(monkeypatch)
    assert run(*command, "-o", str(tmp_path / "run"))[1].startswith(f"{former}: random weights")
    assert json.loads((tmp_path / "run" / "train.json").read_text())["config"]["model"] == former
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    new, _, _ = EMBEDDER.partition(".")
    assert run(*command, "-o", str(tmp_path / "new"))[1].startswith(f"{new}: random weights")


def test_a_run_is_recorded_with_the_tag_of_its_weights_and_resumed_with_or_without_it(tmp_path: Path) -> None:
    default = catalogue.default_model()
    arch, _, _ = default.partition(".")
    run("run", str(EXAMPLES), "-o", str(tmp_path / "new"), "-m", arch)
    assert model_of_run(tmp_path / "new") == default
    earlier = Predictor(open_network(arch), name=arch)
    bulk.run([str(EXAMPLES)], tmp_path / "old", earlier)  # with the name that earlier versions recorded
    assert model_of_run(tmp_path / "old") == arch
    for out in (str(tmp_path / "new"), str(tmp_path / "old")):
        for model in ((), ("-m", arch), ("-m", default)):
            assert "nothing left to do" in run("run", str(EXAMPLES), "-o", out, *model)[1]
        run("index", out)
        run("search", out, CAT, "-m", arch)
        assert f"(measured for {default})" in run("dedup", out)[1]
    assert model_of_run(tmp_path / "old") == arch


def test_a_training_is_recorded_with_the_tag_of_its_weights_and_resumed_with_or_without_it(tmp_path: Path) -> None:
    default = catalogue.default_model()
    arch, _, _ = default.partition(".")
    data = str(make_images(tmp_path / "data", count=16, side=32))
    command = ("train", data, "-o", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "8", "--workers", "0")
    assert run(*command, "-m", arch, "--preset", "finetune")[1].startswith(f"{default}: pretrained weights")
    record = tmp_path / "run" / "train.json"
    settings = json.loads(record.read_text())
    assert settings["config"]["model"] == default
    settings["config"]["model"] = arch  # as earlier versions recorded it
    record.write_text(json.dumps(settings))
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    for model in ((), ("-m", arch, "--preset", "finetune"), ("-m", default)):
        run(*command, *model)
    assert json.loads(record.read_text()) == settings
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("calibrate", "tessella.evaluation.calibrator"),
        ("inspect", "tessella.inspection.inspector"),
        ("probe", "tessella.evaluation.linear_probe"),
    ],
)
def test_the_help_names_the_default_that_is_loaded(
    command: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str | None] = []

    def stop(name: str | None = None, **_: object) -> None:
        loaded.append(name)
        raise UsageError("bad_argument", "stopped by the test")

    monkeypatch.setattr(f"{module}.load", stop)
    make_images(tmp_path / "data", count=16, side=32)
    run(command, str(tmp_path / "data"), status=2)
    named = {catalogue.default_model("classify"): "CIFAR-10", catalogue.default_model("embed"): "photographs"}
    text = " ".join(run(command, "--help")[0].split()).replace("- ", "-")  # lines are broken after hyphens, too
    assert f"[default: the built-in model for {named[loaded[0] or catalogue.default_model()]}]" in text
