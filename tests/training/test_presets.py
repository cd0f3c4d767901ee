"""Presets, and how the command line chooses among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tessella.errors import UsageError
from tessella.training.config import TrainConfig, read_config
from tessella.training.presets import PRESETS, choose_config, preset_config
from tessella.weights.catalogue import default_model


@pytest.mark.parametrize("preset", ["", *PRESETS])
def test_a_preset_is_the_same_after_json(preset: str) -> None:
    config = preset_config(preset, seed=3)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert config.seed == 3


def test_presets_are_what_their_authors_published() -> None:
    """The values are those in the repositories of the papers."""
    convmixer, convit, crossvit, mixer = (preset_config(name) for name in ("convmixer", "convit", "crossvit", "mixer"))
    assert (convmixer.epochs, convmixer.batch_size, convmixer.lr, convmixer.eps) == (300, 640, 0.01, 1e-3)
    assert (convmixer.weight_decay, convmixer.max_grad_norm, convmixer.schedule) == (2e-5, 1.0, "onecycle")
    assert (convmixer.mixing.mixup, convmixer.mixing.cutmix, convmixer.erasing.prob) == (0.5, 0.5, 0.25)
    for config, batch_size, lr in ((convit, 1024, 1e-3), (crossvit, 4096, 4e-3)):
        assert (config.batch_size, config.lr, config.repeats) == (batch_size, lr, 3)
        assert (config.drop_path_rate, config.weight_decay) == (0.1, 0.05)
        assert config.augmentation.auto_augment == "rand-m9-mstd0.5-inc1"
        assert (config.mixing.mixup, config.mixing.cutmix, config.warmup_lr, config.min_lr) == (0.8, 1.0, 1e-6, 1e-5)
        assert config.lr == pytest.approx(5e-4 * batch_size / 512)
        assert config.warmup_fraction * config.epochs == pytest.approx(5)
    assert (mixer.loss, mixer.schedule) == ("binary", "linear")
    assert (mixer.lr, mixer.min_lr, mixer.max_grad_norm) == (1e-3, 1e-5, 1.0)


def test_the_preset_for_distillation_follows_its_paper() -> None:
    config = preset_config("distill", teacher="teacher.onnx")
    assert (config.distill_weight, config.distill_target, config.uses_labels) == (1.0, "both", False)
    assert (config.optimizer, config.schedule, config.min_lr) == ("adamw", "cosine", 0.0)
    assert config.mixing.mixup > 0
    assert config.augmentation.scale == (0.35, 1.0)
    assert config.epochs >= 100
    assert config.ema_decay > 0


def test_the_config_that_the_command_line_chooses(tmp_path: Path) -> None:
    config, description = choose_config("mixer_b16_224.goog_in21k_ft_in1k", None, None, False, {})
    assert (config.init_from, config.epochs) == ("pretrained", preset_config("finetune").epochs)
    assert "pretrained weights, preset finetune: settings" in description
    config, description = choose_config("mixer_s16_224", None, None, False, dict(epochs=2))
    assert (config.init_from, config.epochs, config.schedule) == ("scratch", 2, "linear")
    assert "small-data" in description
    scratch = choose_config("local-dir:run", None, None, True, {})[0]
    assert (scratch.init_from, scratch.probe) == ("scratch", False)
    for preset in (None, "finetune"):  # without a model, the built-in one is fine-tuned
        config, description = choose_config(None, preset, None, False, {})
        assert (config.model, config.init_from, config.probe) == (default_model("embed"), "pretrained", True)
        assert description == (
            f"{config.model}: pretrained weights, preset finetune: settings of this project for fine-tuning a "
            "pretrained model"
        )
    architecture, _, _ = default_model("embed").partition(".")
    for preset, scratch_only in ((None, True), ("finetune", True), ("small-data", False), ("distill", False)):
        teacher = dict(teacher="teacher.onnx") if preset == "distill" else {}
        config = choose_config(None, preset, None, scratch_only, teacher)[0]
        assert (config.model, config.init_from) == (architecture, "scratch")
    config = choose_config("mixer_b16_224", "finetune", None, False, {})[0]  # there are default weights
    assert (config.model, config.init_from) == ("mixer_b16_224.goog_in21k_ft_in1k", "pretrained")
    with pytest.raises(UsageError, match="no pretrained weights of 'mixer_s16_224'"):
        choose_config("mixer_s16_224", "finetune", None, False, {})
    file = tmp_path / "train.json"
    file.write_text(json.dumps(dict(config=preset_config("convit").as_dict(), data="0")))
    assert choose_config(None, None, str(file), False, dict(lr=0.5))[0] == preset_config("convit", lr=0.5)
    file.write_text('{"epochs": 3}')  # without initial weights
    assert choose_config(None, None, str(file), False, {})[0] == TrainConfig(epochs=3)
    for name, init_from in (("mixer_b16_224.goog_in21k_ft_in1k", "pretrained"), ("mixer_s16_224", "scratch")):
        config, description = choose_config(name, None, str(file), False, {})
        assert (config.init_from, config.epochs) == (init_from, 3)
        assert f"{name}: {dict(pretrained='pretrained', scratch='random')[init_from]} weights" in description
    assert choose_config("mixer_b16_224.goog_in21k_ft_in1k", None, str(file), True, {})[0].init_from == "scratch"


def test_the_default_model_in_python_is_that_of_the_command_line() -> None:
    assert TrainConfig().model == default_model("embed").partition(".")[0]
    assert preset_config("finetune") == choose_config(None, None, None, False, {})[0]
    assert preset_config("finetune", start="scratch").model == preset_config("small-data").model == TrainConfig().model
    assert preset_config("finetune", model="mixer_s16_224").model == "mixer_s16_224"


def test_arguments_that_exclude_each_other_and_unknown_presets_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text("{}")
    with pytest.raises(UsageError, match="only one of them"):
        choose_config(None, "convit", str(file), False, {})
    with pytest.raises(UsageError, match="no preset"):
        choose_config(None, "convnet", None, False, {})


def test_files_that_are_not_configs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text in ("{", "[1]"):
        file.write_text(text)
        with pytest.raises(UsageError):
            read_config(file)
    with pytest.raises(UsageError, match="could not be read"):
        read_config(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("preset", "changes", "text"),
    [
        ("distill", {}, "the preset distill is given"),
        (None, dict(distill_target="logits"), "distill_target is given"),  # although that is the default
        ("finetune", dict(distill_weight=0.5), "distill_weight is given"),
    ],
)
def test_distillation_without_a_teacher_is_refused(
    tmp_path: Path, preset: str | None, changes: dict[str, Any], text: str
) -> None:
    model = "convmixer_256_8_ks3_p4.cifar10"
    with pytest.raises(UsageError, match=text) as caught:
        choose_config(model, preset, None, False, changes)
    assert (caught.value.code, caught.value.hint) == ("bad_argument", "--teacher MODEL")
    config, _ = choose_config(model, preset, None, False, changes | dict(teacher="teacher.onnx"))
    assert config.teacher == "teacher.onnx"
    file = tmp_path / "train.json"
    file.write_text(json.dumps(TrainConfig(model=model).as_dict()))  # has every setting
    choose_config(None, None, str(file), False, {})
    file.write_text(json.dumps(config.as_dict()))
    choose_config(None, None, str(file), False, changes)  # the teacher is in the file
