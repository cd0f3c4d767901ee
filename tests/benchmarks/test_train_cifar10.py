"""The recipe of the models for CIFAR-10: it trains all of them in order, resumes, and never reads the test images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessella
from tessella.training import EpochEvent, TrainConfig, TrainingEvent
from tessella.training.loop import train

from ..data.labelled import write_parquet
from .test_photographs import load

recipe = load("train_cifar10")
CONVMIXER = "convmixer_256_8_ks3_p4"
TINY = {  # the changed fields of the architectures that are trained
    "convmixer-1": dict(dim=8, depth=1, kernel_size=3),
    "convmixer-2": dict(dim=8, depth=1, kernel_size=5),
    "gmixer_ti_p4_32": dict(embed_dim=8, num_blocks=1),
    "convit_ti_p4_32": dict(embed_dim=4, num_heads=3, depth=2, local_up_to_layer=1),
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the models by tiny ones and two of the students, trained for an epoch; return the folder of settings."""
    folder = tmp_path / "settings"
    folder.mkdir()
    for name, args in TINY.items():
        settings = json.loads((recipe.SETTINGS / f"{name}.json").read_text())
        settings |= dict(model_args=args, epochs=1, batch_size=16)
        if name in recipe.STAGES:
            settings["model"] = CONVMIXER
        (folder / f"{name}.json").write_text(json.dumps(settings))
    monkeypatch.setattr(recipe, "SETTINGS", folder)
    monkeypatch.setattr(recipe, "STUDENTS", tuple(name for name in TINY if name not in recipe.STAGES))
    return folder


def make_parquet(path: Path) -> None:
    """Write 100 images of two classes."""
    rng = np.random.default_rng(0)
    labels, images = [i % 2 for i in range(100)], []
    for label in labels:
        pixels, file = rng.integers(0, 140, (32, 32, 3), np.uint8) + np.uint8(110 * label), io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    write_parquet(path, labels, ("dark", "bright"), images=images)


def test_all_models_are_trained_and_resumed(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_parquet(tmp_path / "cifar10-train.parquet")
    (tmp_path / "cifar10-test.parquet").write_bytes(b"must not be read")
    trained: list[str] = []

    def watched(images: object, out: Path, config: TrainConfig, on_event: object) -> Path:
        def watch(event: TrainingEvent) -> None:
            if isinstance(event, EpochEvent):
                trained.append(out.name)

        return train(images, out, config, workers=0, on_event=watch)  # type: ignore[arg-type]

    monkeypatch.setattr(recipe, "train", watched)
    out = tmp_path / "out"
    recipe.train_models(tmp_path / "cifar10-train.parquet", out)
    names = [*recipe.STAGES, *recipe.STUDENTS]
    assert trained == names
    assert all((out / name / "model.safetensors").is_file() for name in names)
    for name in names:
        held_out = json.loads((out / name / "report" / "report.json").read_text())["metrics"]["count"]
        assert 0 < held_out < 30
    for name in recipe.STUDENTS:
        record = json.loads((out / name / "train.json").read_text())
        assert record["config"]["teacher"] == f"local-dir:{out / 'convmixer-2'}"
    recipe.train_models(tmp_path / "cifar10-train.parquet", out)
    assert trained == names  # nothing was trained again


def test_a_widened_model_is_the_same_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = tessella.create_model(CONVMIXER, dim=8, depth=2, kernel_size=3).eval()
    tessella.save_pretrained(small, tmp_path / "small")
    recipe.widen(tmp_path / "small" / "model.safetensors", 5, tmp_path / "wide.safetensors")
    wide = tessella.create_model(
        CONVMIXER, dim=8, depth=2, kernel_size=5, checkpoint_path=tmp_path / "wide.safetensors"
    )
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(wide.eval()(images), small(images))


def test_the_settings_are_those_of_the_recipe() -> None:
    settings = {name: recipe.read_settings(name) for name in (*recipe.STAGES, *recipe.STUDENTS)}
    assert sorted(path.stem for path in recipe.SETTINGS.glob("*.json")) == sorted(settings)
    assert [settings[name].model for name in recipe.STUDENTS] == list(recipe.STUDENTS)
    assert {(config.seed, config.select, config.img_size) for config in settings.values()} == {(0, "last", 32)}
    assert settings["convmixer-1"].model_args == dict(kernel_size=3)
