"""Predicted classes that should not be relied on: which commands say so, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.info import info
from tessella.weights.catalogue import BUILTIN_FOLDER, CATALOGUE, class_warning, default_model

from ..test_builtin import CIFAR10_MODEL
from .test_cli import CAT, run

MODEL = default_model("embed")
WARNING = f"{MODEL}: {CATALOGUE[MODEL].class_warning}; use its embeddings\n"


def test_the_warning_of_a_model() -> None:
    assert "correct for only" in class_warning(MODEL) == class_warning(MODEL.partition(".")[0])
    for name in (CIFAR10_MODEL, "hf-hub:org/model", "local-dir:run", "", "mine"):
        assert class_warning(name) == ""
    assert class_warning(MODEL) in info(MODEL).notes


def test_the_warning_is_printed_once_beside_the_classes(tmp_path: Path) -> None:
    for options in ([], ["--json"], ["--out", str(tmp_path / "classes.csv")], [CAT]):
        out, messages = run("classify", CAT, "-m", MODEL, *options)
        assert messages.count(WARNING) == 1
        assert WARNING not in out
    for number, options in enumerate(([], ["--json"])):
        assert run("run", CAT, "-o", str(tmp_path / f"run{number}"), *options)[1].count(WARNING) == 1


def test_no_warning_is_printed_without_classes_or_for_other_weights(tmp_path: Path) -> None:
    weights = str(BUILTIN_FOLDER / str(CATALOGUE[MODEL].file))
    for command in (
        ["classify", CAT, "-m", MODEL, "--quiet"],
        ["classify", CAT, "-m", MODEL, "--checkpoint", weights],
        ["classify", CAT, "-m", CIFAR10_MODEL],
        ["embed", CAT, "-m", MODEL],
        ["run", CAT, "-m", MODEL, "--top", "0", "-o", str(tmp_path / "embeddings")],
        ["run", CAT, "-m", MODEL, "--checkpoint", weights, "-o", str(tmp_path / "checkpoint")],
        ["run", CAT, "-m", MODEL, "--quiet", "-o", str(tmp_path / "quiet")],
        ["run", CAT, "-m", CIFAR10_MODEL, "-o", str(tmp_path / "cifar10")],
    ):
        assert "correct for only" not in run(*command)[1]


@pytest.mark.parametrize(("model", "command"), [(MODEL, "embed"), (CIFAR10_MODEL, "classify")])
def test_export_suggests_what_the_model_is_good_for(tmp_path: Path, model: str, command: str) -> None:
    folder = tmp_path / "exported"
    messages = run("export", model, str(folder))[1]
    assert messages.endswith(f'use it: tessella {command} --model "local-dir:{folder}" photo.jpg\n')
    warned = "correct for only" in run("classify", CAT, "-m", f"local-dir:{folder}")[1]
    assert warned == (command == "embed")
