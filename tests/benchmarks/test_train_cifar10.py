"""The recipe of the models for CIFAR-10: it trains all of them, resumes, never reads the test images; registration."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tessella.data.row_cache import RowCache
from tessella.training import EpochEvent, TrainConfig, TrainingEvent
from tessella.training.distillation import OUTPUTS
from tessella.training.loop import train

from ..data.labelled import write_parquet
from .test_photographs import load

recipe, register = load("train_cifar10"), load("register")
SETTINGS, STUDENTS = recipe.SETTINGS, recipe.STUDENTS  # those of the real models
TINY = {  # the changed fields of the architectures that are trained
    "convmixer_256_8_ks5_p2": dict(dim=8, depth=1),
    "gmixer_ti_p4_32": dict(embed_dim=8, num_blocks=1),
    "convit_ti_p4_32": dict(embed_dim=4, num_heads=3, depth=2, local_up_to_layer=1),
}
SECOND = {"gmixer_ti_p4_32-2": dict(lr=1e-4, epochs=2)}  # the changed settings of a run that starts from another one
RUNS = (*TINY, *SECOND)
TEST = dict(images=10_000, top1=0.5, top5=0.9, loss=1.5, ece=0.01)


class Trained(NamedTuple):
    """out: OUT. names: of the runs, when they end an epoch. written: of the runs, once per row of the teacher."""

    out: Path
    names: list[str]
    written: list[str]


def make_parquet(path: Path) -> None:
    """Write 100 images of two classes."""
    rng = np.random.default_rng(0)
    labels, images = [i % 2 for i in range(100)], []
    for label in labels:
        pixels, file = rng.integers(0, 140, (32, 32, 3), np.uint8) + np.uint8(110 * label), io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    write_parquet(path, labels, ("dark", "bright"), images=images)


def write_settings(folder: Path) -> Path:
    """Write the settings of tiny models, of which one has a second run; return the folder."""
    for name, args in TINY.items():
        settings = json.loads((SETTINGS / f"{name}.json").read_text())
        settings |= dict(model_args=args, epochs=1, batch_size=16)
        (folder / f"{name}.json").write_text(json.dumps(settings))
    for run, changes in SECOND.items():
        settings = json.loads((folder / f"{run.removesuffix(recipe.SECOND)}.json").read_text())
        (folder / f"{run}.json").write_text(json.dumps(settings | changes))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Train tiny models in the place of the real ones."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    make_parquet(data / "cifar10-train.parquet")
    (data / "cifar10-test.parquet").write_bytes(b"must not be read")
    names: list[str] = []
    written: list[str] = []
    put = RowCache.put

    def counted(cache: RowCache, *args: Any) -> None:
        written.append(cache.path.parent.name)
        put(cache, *args)

    def watched(images: object, run: Path, config: TrainConfig, on_event: object) -> Path:
        def watch(event: TrainingEvent) -> None:
            if isinstance(event, EpochEvent):
                names.append(run.name)

        return train(images, run, config, workers=0, on_event=watch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "SETTINGS", write_settings(tmp_path_factory.mktemp("settings")))
        patch.setattr(recipe, "STUDENTS", tuple(name for name in TINY if name != recipe.TEACHER))
        patch.setattr(recipe, "train", watched)
        patch.setattr(RowCache, "put", counted)
        recipe.train_models(data / "cifar10-train.parquet", out)
        yield Trained(out, names, written)


def test_all_models_are_trained_in_order(trained: Trained) -> None:
    out, names, _ = trained
    assert names == [*TINY, "gmixer_ti_p4_32-2", "gmixer_ti_p4_32-2"]
    for name in RUNS:
        assert (out / name / "model.safetensors").is_file()
        held_out = json.loads((out / name / "report" / "report.json").read_text())["metrics"]["count"]
        assert 0 < held_out < 30
    for name in (*recipe.STUDENTS, *SECOND):
        record = json.loads((out / name / "train.json").read_text())
        assert record["config"]["teacher"] == f"local-dir:{out / recipe.TEACHER}"
    first = str(out / "gmixer_ti_p4_32" / "model.safetensors")
    assert record["config"]["init_from"] == first


def test_the_outputs_of_the_teacher_are_computed_once(trained: Trained) -> None:
    first, *others = [name for name in TINY if name != recipe.TEACHER]
    assert others
    assert set(trained.written) == {first, *SECOND}  # a second run has crops of its own
    assert not list(trained.out.rglob(OUTPUTS))


def test_a_finished_run_is_not_trained_again(trained: Trained) -> None:
    out, names, _ = trained
    before = list(names)
    recipe.train_models(out / "data" / "cifar10-train.parquet", out)
    assert names == before


@pytest.fixture
def builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for the one of the built-in models, with the row of another ConvMixer."""
    row = dict(name="convmixer_384_8_ks5_p8.cifar10", license="apache-2.0", first_conv="stem.0")
    (tmp_path / "builtin.json").write_text(json.dumps([row]))
    monkeypatch.setattr(register, "BUILTIN_FOLDER", tmp_path)
    return tmp_path


def test_a_model_is_registered(trained: Trained, builtin: Path) -> None:
    run = trained.out / recipe.TEACHER
    for _ in range(2):  # the second time, its row is replaced
        assert register.register(run, TEST) == f"{recipe.TEACHER}.cifar10"
        row, other = json.loads((builtin / "builtin.json").read_text())
    assert other["name"] == "convmixer_384_8_ks5_p8.cifar10"
    assert (row["name"], row["first_conv"], row["num_classes"]) == (f"{recipe.TEACHER}.cifar10", "stem.0", 2)
    assert row["accuracy"] == dict(cifar10=dict(top1=50.0, top5=90.0, img_size=32))
    assert (builtin / row["file"]).read_bytes() == (run / "model.safetensors").read_bytes()
    card = (builtin / f"{recipe.TEACHER}.cifar10.md").read_text()
    assert "The teacher was" not in card
    assert "450 parameters" in card
    assert "\n    python benchmarks/train_cifar10.py cifar10-train.parquet OUT\n" in card
    assert card.count("\n| 1 | ") == 1
    assert str(trained.out) not in card


def test_the_card_of_a_student_names_its_teacher(trained: Trained, builtin: Path) -> None:
    (builtin / "builtin.json").write_text(json.dumps([dict(name="gmixer_other.cifar10")]))
    name = register.register(trained.out / "gmixer_ti_p4_32-2", TEST)
    card = (builtin / f"{name}.md").read_text()
    assert f"The teacher was `{recipe.TEACHER}`" in card
    assert "The last 2 epochs are a second run" in card
    assert [line.split(" | ")[0] for line in card.splitlines() if line[:3].strip("| ").isdigit()] == [
        "| 1",
        "| 2",
        "| 3",
    ]


def test_a_run_with_other_settings_is_refused(trained: Trained, builtin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe.read_settings
    monkeypatch.setattr(recipe, "read_settings", lambda name, **changes: before(name, lr=0.5, **changes))
    with pytest.raises(SystemExit, match=r"was not made with the settings of gmixer_ti_p4_32: lr differ"):
        register.register(trained.out / "gmixer_ti_p4_32-2", TEST)
    assert [path.name for path in builtin.iterdir()] == ["builtin.json"]


def test_a_first_run_is_refused_if_there_is_a_second(trained: Trained, builtin: Path) -> None:
    with pytest.raises(SystemExit, match=r"is not the last run of gmixer_ti_p4_32, which is gmixer_ti_p4_32-2"):
        register.register(trained.out / "gmixer_ti_p4_32", TEST)


def test_a_second_run_from_other_weights_is_refused(trained: Trained, builtin: Path, tmp_path: Path) -> None:
    for name in ("gmixer_ti_p4_32", "gmixer_ti_p4_32-2"):
        shutil.copytree(trained.out / name, tmp_path / name)
    record = tmp_path / "gmixer_ti_p4_32-2" / "train.json"
    record.write_text(record.read_text().replace("gmixer_ti_p4_32/model.safetensors", "other/model.safetensors"))
    with pytest.raises(SystemExit, match=r"started from .*/other/model.safetensors instead of gmixer_ti_p4_32/model"):
        register.register(tmp_path / "gmixer_ti_p4_32-2", TEST)


def test_the_settings_are_those_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "SETTINGS", SETTINGS)
    monkeypatch.setattr(recipe, "STUDENTS", STUDENTS)
    settings = {name: recipe.read_settings(name) for name in recipe.run_names()}
    assert sorted(path.stem for path in SETTINGS.glob("*.json")) == sorted(settings)
    assert [config.model for config in settings.values()] == [run.removesuffix(recipe.SECOND) for run in settings]
    crops = [(settings[name].augmentation, settings[name].batch_size, settings[name].repeats) for name in STUDENTS]
    assert all(crop == crops[0] for crop in crops)  # the students share the teacher's outputs
    assert {(config.seed, config.select, config.img_size) for config in settings.values()} == {(0, "last", 32)}
