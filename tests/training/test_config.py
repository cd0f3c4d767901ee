"""Configs: what is refused, and how they are read from JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tessella.errors import UsageError
from tessella.training.config import FORMER_NAMES, TrainConfig, differences, read_config


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (dict(epochs=0), "epochs is 0"),
        (dict(epochs="many"), "epochs is 'many'"),
        (dict(epoch=3), "did you mean epochs"),
        (dict(optimizer="magic"), "expected one of 'adamw', 'muon', 'sgd'"),
        (dict(label_smoothing=1.5), "expected 0 to 1"),
        (dict(augmentation=dict(crop="round")), "crop"),
        (dict(augmentation=3), "augmentation"),
        (dict(mixing=dict(nonsense=1)), "no field 'nonsense'"),
        (dict(lr=True), "lr is True"),
        (dict(lr=float("nan")), "lr is nan, expected 0 to 1000"),
        (dict(lr=float("inf")), "lr is inf"),
        (dict(lr=0), "lr is 0, expected more than 0"),
        (dict(layer_decay=-1.0), "layer_decay is -1.0"),
        (dict(seed=-1), "seed is -1"),
        (dict(seed=2**64), "seed is 18446744073709551616"),
        (dict(img_size=100_000), "img_size is 100000, expected 1 to 4000"),
        (dict(epochs=10**12), "epochs is 1000000000000"),
        (dict(mean=[0.5, float("nan"), 0.5]), "mean is"),
        (dict(std=[0.0, 0.5, 0.5]), "std is"),
        (dict(erasing=dict(prob=float("nan"))), "nan"),
        (dict(mixing=dict(mixup=float("nan"))), "nan"),
        (dict(mixing=dict(cutmix=-1.0)), "-1.0"),
        (dict(augmentation=dict(scale=[float("nan"), 1.0])), "nan"),
        (dict(augmentation=dict(color_jitter=float("inf"))), "inf"),
        (dict(distill_target="features"), "expected one of 'logits', 'embedding', 'both'"),
        (dict(teacher_std=[0.0, 0.5, 0.5]), "teacher_std is"),
        (dict(teacher_layout="CHWN"), "teacher_layout is 'CHWN'"),
        (dict(unlabelled_fraction=1.5), "unlabelled_fraction is 1.5, expected 0 to 1"),
        (dict(unlabelled_weights=[1.0, 0.0]), "unlabelled_weights is"),
        (dict(unlabelled_weights=[]), "unlabelled_weights is"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig.from_dict(wrong)
    assert caught.value.code == "bad_argument"
    assert text in str(caught.value)


FORMER_VALUES: dict[str, Any] = {  # a valid value of every field that had another name
    "start": "pretrained",
    "part": "head",
    "accumulate": 4,
    "clip_norm": 1.0,
    "smoothing": 0.3,
    "keep_statistics": True,
    "warmup": 0.2,
    "drop_path": 0.1,
    "ema": 0.99,
    "keep": 5,
}


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_former_names_of_settings_are_accepted(tmp_path: Path, former: str) -> None:
    name, value = FORMER_NAMES[former], FORMER_VALUES[former]
    assert getattr(TrainConfig.from_dict({former: value}), name) == value != getattr(TrainConfig(), name)
    file = tmp_path / "config.json"
    for content in ({former: value}, dict(config={former: value}, data="", val="")):
        file.write_text(json.dumps(content))
        assert read_config(file) == {name: value}
    with pytest.raises(UsageError, match=f"has both '{name}' and its former name '{former}'") as caught:
        TrainConfig.from_dict({former: value, name: value})
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(epochs="many"), "epochs is 'many', expected int"),
        (dict(mixing=dict(mixup=[])), "mixing.mixup is of type list, expected float"),
        (dict(augmentation=dict(scale=[0.5])), "augmentation.scale is of type list, expected array of length 2"),
        (dict(mean=[0.5, "half"]), "mean.1 is 'half', expected float"),
        (dict(erasing=dict(mode="blur")), "erasing.mode is 'blur', expected one of 'const', 'rand', 'pixel'"),
        (dict(schedule="\ud800"), r"the config has '\ud800', which is not valid Unicode"),
        ([], "the config is of type list, expected a JSON object"),
        ({3: 4}, "the config is of type dict, expected a JSON object"),
    ],
)
def test_messages_name_the_setting_and_what_is_expected(values: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig.from_dict(values)
    assert caught.value.message == message


def test_a_whole_number_equals_the_same_float() -> None:
    assert differences(TrainConfig(lr=1), TrainConfig(lr=1.0)) == {}
    assert differences(TrainConfig(lr=1), TrainConfig(lr=0.5)) == {"lr": ("1.0", "0.5")}
    args = differences(TrainConfig(model_args=dict(a=(1, 2))), TrainConfig(model_args=dict(a=[1, 2], b=1)))
    assert args == {"model_args.b": ("unset", "1")}


def test_an_architecture_equals_its_default_checkpoint() -> None:
    short, full = TrainConfig(model="mixer_b16_224"), TrainConfig(model="mixer_b16_224.goog_in21k_ft_in1k")
    assert differences(short, full) == differences(full, short) == {}
    other = TrainConfig(model="mixer_b16_224.goog_in21k")
    assert differences(short, other) == {"model": (f'"{short.model}"', f'"{other.model}"')}


def test_the_guide_lists_the_former_names() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "training.md").read_text()
    for former, name in FORMER_NAMES.items():
        assert f"| `{former}` | `{name}` |" in guide
