"""Outputs and key layouts match timm's, for the weights and inputs described in `golden/README.md`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tessella.models import ARCHITECTURES, build
from tessella.weights.catalogue import OWN_ARCHITECTURES

from ..golden_rule import fill_golden, golden_input

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def tolerance(name: str) -> float:
    """Return the largest allowed difference, in standard deviations of the golden tensor.

    A float32 forward is off by up to 8e-6 here; the rest is room for another machine's order of summation. CrossViT's
    resized branch is off by 3e-5, as float32 holds the positions that its bicubic kernel reads no better.
    """
    return 1e-4 if name.startswith("crossvit") else 2e-5


@functools.cache
def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text())


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the initialization of weights that are overwritten, which takes a quarter of the time of this file."""
    for name in ("kaiming_uniform_", "trunc_normal_", "xavier_uniform_", "normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


LARGE = {"convit_base", "mixer_b16_224", "convmixer_1536_20", "convmixer_768_32"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in golden("models.json")]
)
@pytest.mark.usefixtures("uninitialised")
def test_outputs_are_the_reference(name: str) -> None:
    expected = golden("models.json")[name]
    model = build(name)
    fill_golden(model)
    with torch.inference_mode():
        features, intermediates = model.forward_intermediates(golden_input(*expected["input_size"][1:]))
        features_list = features if isinstance(features, list) else [features]
        got = {
            "logits": model.forward_head(features),
            "pre_logits": model.forward_head(features, pre_logits=True),
            **{f"features.{i}": part.flatten(1)[:, ::499] for i, part in enumerate(features_list)},
            **{f"intermediates.{i}": part.flatten(1)[:, ::1999] for i, part in enumerate(intermediates)},
        }
    assert [list(part.shape) for part in features_list] == expected["features"]
    assert [list(part.shape) for part in intermediates] == expected["intermediates"]
    with safe_open(GOLDEN / "models.safetensors", "pt") as file:
        entries = [entry for entry in file.keys() if entry.startswith(f"{name}/")]  # noqa: SIM118 (not a dict)
        assert {"logits", "pre_logits", "features.0", "intermediates.0"} <= {e.partition("/")[2] for e in entries}
        for entry in entries:
            reference = file.get_tensor(entry)
            difference = (got[entry.partition("/")[2]] - reference).abs().max() / reference.std()
            assert difference < tolerance(name), f"{entry} is off by {difference:.1e} of its standard deviation"


def test_forward_gives_the_golden_outputs() -> None:
    """Run `forward` of one full-size model; `test_contract.py` runs it for every family."""
    expected = golden("models.json")["mixer_s32_224"]
    model = build("mixer_s32_224")
    fill_golden(model)
    with torch.inference_mode(), safe_open(GOLDEN / "models.safetensors", "pt") as file:
        reference = file.get_tensor("mixer_s32_224/logits")
        logits = model(golden_input(*expected["input_size"][1:]))
    assert (logits - reference).abs().max() / reference.std() < tolerance("mixer_s32_224")


@pytest.mark.parametrize("name", list(golden("state_dicts.json")))
def test_layout_is_the_published_one(name: str) -> None:
    expected = golden("state_dicts.json")[name]
    with torch.device("meta"):
        model = build(name)
    layout = [(entry, list(value.shape)) for entry, value in model.state_dict().items()]
    assert layout == list(expected["state_dict"].items())
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["params"]
    assert model.num_features == expected["num_features"]


def test_every_architecture_has_a_reference() -> None:
    assert set(ARCHITECTURES) - set(OWN_ARCHITECTURES) == set(golden("state_dicts.json"))
    assert len(golden("state_dicts.json")) == 32
