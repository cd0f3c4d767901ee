"""Test the checks of input specs, and timm's rules for the configuration of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tessella.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from tessella.data.factory import create_transform
from tessella.data.spec import InputSpec, resolve_data_config, resolve_model_data_config
from tessella.errors import UsageError, WeightsError


@pytest.mark.parametrize(
    "fields",
    [
        dict(height=0),
        dict(width=-3),
        dict(height=22.5),
        dict(interpolation="cubic"),
        dict(crop_mode="centre"),
        dict(crop_pct=0.0),
        dict(crop_pct=math.nan),
        dict(crop_pct=math.inf),
        dict(crop_pct=1e-308),
        dict(mean=(0.5, 0.5, math.nan)),
        dict(std=(0.5, 0.5, math.inf)),
        dict(mean=(0.5, 0.5)),
        dict(std=(0.5, 0.5, 0.0)),
    ],
)
def test_invalid_specs_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        InputSpec(**fields)
    assert error.value.code == "bad_argument"


def test_cfg_round_trip(golden_dir: Path) -> None:
    spec = InputSpec(height=240, width=200, crop_pct=0.9, crop_mode="border", interpolation="lanczos", mean=(0, 0, 0))
    assert InputSpec.from_cfg(spec.to_cfg()) == spec
    assert InputSpec.from_cfg({}) == InputSpec()
    assert InputSpec.from_cfg({"mean": [0.5], "std": [0.25], "url": "x"}).std == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    "cfg",
    [
        {"input_size": 224},
        {"input_size": [224, 224]},
        {"input_size": [3, "a", 224]},
        {"interpolation": "random"},
        {"crop_pct": "much"},
        {"mean": "abc"},
        {"mean": [0.5, 0.5]},
        {"std": [0, 0, 0]},
    ],
)
def test_invalid_cfgs_are_refused(cfg: dict[str, Any]) -> None:
    with pytest.raises(WeightsError) as error:
        InputSpec.from_cfg(cfg)
    assert error.value.code == "bad_config"


def test_resolve_data_config() -> None:
    default = resolve_data_config()
    assert default == dict(
        input_size=(3, 224, 224),
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        crop_pct=0.875,
        crop_mode="center",
    )
    cfg = dict(input_size=[3, 240, 240], test_input_size=[3, 288, 288], crop_pct=0.9, test_crop_pct=1.0, mean=[0.5])
    assert resolve_data_config({}, cfg)["input_size"] == (3, 240, 240)
    assert resolve_data_config({}, cfg)["mean"] == (0.5, 0.5, 0.5)
    tested = resolve_data_config({}, cfg, use_test_size=True)
    assert (tested["input_size"], tested["crop_pct"]) == ((3, 288, 288), 1.0)
    explicit_size = dict(input_size=(1, 32, 48), img_size=64, in_chans=2, crop_pct=0.5)
    assert resolve_data_config(explicit_size, cfg)["input_size"] == (1, 32, 48)
    assert resolve_data_config(dict(img_size=64), cfg)["input_size"] == (3, 64, 64)
    assert resolve_data_config(dict(img_size=64, in_chans=1), cfg)["input_size"] == (1, 64, 64)
    assert resolve_data_config(dict(crop_pct=None), cfg)["crop_pct"] == 0.9
    assert resolve_data_config(dict(crop_pct=0.5), cfg, use_test_size=True)["crop_pct"] == 0.5
    arrays = dict(input_size=np.array([3, 32, 48]), mean=np.array([0.5, 0.25, 1.0]))
    resolved = resolve_data_config(arrays, cfg)
    assert (resolved["input_size"], resolved["mean"]) == ((3, 32, 48), (0.5, 0.25, 1.0))
    assert resolve_data_config(dict(img_size=np.int64(64)), cfg)["input_size"] == (3, 64, 64)
    model = SimpleNamespace(pretrained_cfg=cfg)
    assert resolve_model_data_config(model) == resolve_data_config({}, cfg)
    create_transform(**resolve_model_data_config(model), is_training=False)


@pytest.mark.parametrize("channels", [1, 4])
def test_three_means_for_other_channels_are_averaged(channels: int) -> None:
    cfg = dict(input_size=(channels, 32, 32), mean=(0.2, 0.4, 0.9), std=(0.1, 0.2, 0.6))
    resolved = resolve_data_config(pretrained_cfg=cfg)
    assert resolved["mean"] == pytest.approx((0.5,) * channels)
    assert resolved["std"] == pytest.approx((0.3,) * channels)
    assert InputSpec.from_cfg(cfg).channels == channels
    explicit = resolve_data_config(dict(mean=(0.2, 0.4, 0.9)), cfg)
    with pytest.raises(UsageError, match="do not give"):
        create_transform(**explicit)
    assert resolve_data_config(dict(in_chans=channels, img_size=32))["mean"] == pytest.approx(
        (0.449,) * channels, abs=1e-3
    )


def test_the_fill_is_a_color_whatever_the_mean() -> None:
    assert InputSpec(mean=(-1.0, 0.5, 2.0)).fill == (0, 128, 255)
