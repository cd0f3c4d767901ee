"""The training of the photograph model: its first stage stops after an exact step, and its settings are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.data.datasets import open_split
from tessella.data.unlabelled import TrainingImages
from tessella.errors import TrainingError

from ..training.small_runs import make_images, small
from .test_photographs import load

train_photographs = load("train_photographs")


@pytest.mark.parametrize("steps", [4, 6])
def test_a_stage_stops_after_an_exact_step(tmp_path: Path, steps: int) -> None:
    images = TrainingImages(*open_split(str(make_images(tmp_path / "data"))))
    config, run = small("convmixer_768_32", epochs=4), tmp_path / "run"
    assert train_photographs.steps_done(run) == 0
    train_photographs.train_until(images, run, config, steps)
    assert train_photographs.steps_done(run) == steps
    assert not (run / "model.safetensors").exists()
    train_photographs.write_averaged(run, tmp_path / "averaged")
    assert (tmp_path / "averaged" / "model.safetensors").is_file()


def test_an_interruption_by_the_user_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = TrainingImages(*open_split(str(make_images(tmp_path / "data"))))
    monkeypatch.setattr(train_photographs, "steps_done", lambda run: 2)
    with pytest.raises(TrainingError, match="stopped by SIGINT"):
        train_photographs.train_until(images, tmp_path / "run", small("convmixer_768_32", epochs=4), 3)


def test_the_settings_are_those_of_the_two_stages() -> None:
    first, second = map(train_photographs.read_settings, train_photographs.SETTINGS)
    assert (first.model, first.init_from, second.init_from) == ("convmixer_384_8_ks5_p8", "scratch", "pretrained")
    assert first.img_size == second.img_size == 96
