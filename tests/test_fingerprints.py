"""Fingerprints do not change: files that carry another fingerprint are refused.

`python -m tests.test_fingerprints` records them again, after NUMERIC_CONTRACT was raised or architectures were added.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import tessella
from tessella.data.spec import InputSpec
from tessella.engine import make_plan
from tessella.fingerprint import config_text, hash_identity, identify
from tessella.models import ARCHITECTURES, build
from tessella.models.base import ImageModel
from tessella.predictor import Predictor
from tessella.weights import save_pretrained
from tessella.weights.catalogue import CATALOGUE
from tessella.weights.open import open_network

from .models.tiny import NUM_CLASSES, TINY
from .test_builtin import CIFAR10_MODEL

RECORDED = Path(__file__).resolve().parent / "golden" / "fingerprints.json"
BUILTIN = [row.name for row in CATALOGUE.values() if row.file]
recorded = functools.cache(lambda: json.loads(RECORDED.read_text()))


@contextmanager
def no_weights() -> Iterator[None]:
    """Build models without allocating their weights."""
    with torch.device("meta"):
        yield


def fixed_model(case: str, **overrides: Any) -> ImageModel:
    """Return a small model whose weights are multiples of 1/16, which are the same on every machine."""
    arch, small = TINY[case]
    model = build(arch, **{"num_classes": NUM_CLASSES, **small, **overrides})
    state = {}
    for name, value in model.state_dict().items():
        numbers = (torch.arange(value.numel()) % 17 - 8) / 16
        state[name] = numbers.reshape(value.shape).to(value.dtype)
    model.load_state_dict(state, strict=True)
    size = getattr(model.config, "img_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    model.pretrained_cfg = dict(
        input_size=(3, height, width), interpolation="bicubic", crop_pct=0.9, mean=(0.5, 0.25, 0.125), std=(0.5,) * 3
    )
    return model


def predictor_of(
    model: ImageModel, *, cfg: dict[str, Any] | None = None, engine: str = "eager", **more: Any
) -> Predictor:
    """Return a Predictor in float32 on the CPU; `cfg` replaces fields of the model's `pretrained_cfg`."""
    model.pretrained_cfg |= cfg or {}
    return Predictor(model, plan=make_plan("cpu", "float32", engine), **more)


SETTINGS: dict[str, Callable[[], Predictor]] = {
    "policy timm": lambda: predictor_of(fixed_model("convmixer"), policy="timm"),
    "transform fast": lambda: predictor_of(fixed_model("convmixer"), transform="fast"),
    "both": lambda: predictor_of(fixed_model("convmixer"), transform="fast", policy="timm"),
    "rewritten": lambda: predictor_of(fixed_model("convmixer"), engine="rewritten"),
    "no classifier": lambda: predictor_of(fixed_model("convmixer", num_classes=0)),
    "pool": lambda: predictor_of(fixed_model("convit", global_pool="avg")),
    "rectangle": lambda: predictor_of(fixed_model("mixer", img_size=(32, 48))),
    "other field": lambda: predictor_of(fixed_model("convmixer", drop_rate=0.5)),
    "interpolation": lambda: predictor_of(fixed_model("convmixer"), cfg=dict(interpolation="bilinear")),
    "crop": lambda: predictor_of(fixed_model("convmixer"), cfg=dict(crop_pct=1.0, crop_mode="squash")),
    "colours": lambda: predictor_of(fixed_model("convmixer"), cfg=dict(mean=(0.0,) * 3, std=(1.0,) * 3)),
    "half weights": lambda: predictor_of(fixed_model("convmixer").half()),
    "bfloat16 eager": lambda: tessella.load(CIFAR10_MODEL, device="cpu", engine="eager", precision="bfloat16"),
    "bfloat16 rewritten": lambda: tessella.load(CIFAR10_MODEL, device="cpu", engine="rewritten", precision="bfloat16"),
}


def config_of(arch: str) -> Any:
    """Return the config of the architecture's model, in which an image size may have become a pair."""
    with no_weights():
        return build(arch).config


def test_all_architectures_and_models_are_recorded() -> None:
    stored = recorded()
    assert stored["configs"].keys() == ARCHITECTURES.keys()
    assert stored["tiny"].keys() == TINY.keys()
    assert stored["settings"].keys() == SETTINGS.keys()
    assert stored["built-in"].keys() == set(BUILTIN)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_text_of_a_config(arch: str) -> None:
    assert config_text(config_of(arch)) == recorded()["configs"][arch]


@pytest.mark.parametrize("case", TINY)
def test_the_fingerprint_of_a_small_model_of_each_kind(case: str) -> None:
    predictor = predictor_of(fixed_model(case))
    assert dict(config=predictor.identity["config"], fingerprint=predictor.fingerprint) == recorded()["tiny"][case]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fingerprint_with_other_settings(name: str) -> None:
    assert SETTINGS[name]().fingerprint == recorded()["settings"][name]


@pytest.mark.parametrize("name", BUILTIN)
def test_the_fingerprint_of_a_built_in_model(name: str) -> None:
    assert tessella.load(name).fingerprint == recorded()["built-in"][name]


def test_what_changes_the_results_changes_the_fingerprint() -> None:
    """An engine in float32 does not, and neither does the order of the weights in memory."""
    plain = recorded()["tiny"]["convmixer"]["fingerprint"]
    settings = dict(recorded()["settings"])
    assert settings.pop("rewritten") == plain
    assert len({plain, *settings.values()}) == len(settings) + 1
    channels_last = fixed_model("convmixer").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert predictor_of(channels_last).fingerprint == plain


# --- fields that are added to a config --------------------------------------------------------------------------------

FAMILIES = ("convmixer", "convit", "mixer", "crossvit")  # one small model for each class of configs


def with_field(config: Any, name: str, kind: Any, default: Any) -> Any:
    """Return the class of `config` with one more field, before the others that have a default."""
    old = dataclasses.fields(config)
    required = [(field.name, field.type) for field in old if field.default is dataclasses.MISSING]
    others = [(field.name, field.type, field.default) for field in old if field.default is not dataclasses.MISSING]
    fields: Any = [*required, (name, kind, default), *others]
    return dataclasses.make_dataclass(type(config).__name__, fields, frozen=True)


@pytest.mark.parametrize("case", FAMILIES)
def test_a_new_field_with_its_default_changes_no_fingerprint(case: str) -> None:
    model = fixed_model(case)
    values = {field.name: getattr(model.config, field.name) for field in dataclasses.fields(model.config)}
    larger = with_field(model.config, "gain", float, 1.0)
    assert repr(larger(**values)) != repr(model.config)
    assert config_text(larger(**values)) == recorded()["tiny"][case]["config"]
    model.config = larger(**values)
    assert predictor_of(model).fingerprint == recorded()["tiny"][case]["fingerprint"]


@pytest.mark.parametrize("case", FAMILIES)
def test_a_new_field_with_another_value_changes_the_fingerprint(case: str) -> None:
    model = fixed_model(case)
    text = config_text(model.config)
    values = {field.name: getattr(model.config, field.name) for field in dataclasses.fields(model.config)}
    larger = with_field(model.config, "gain", float, 1.0)
    assert config_text(larger(**values, gain=0.5)) == f"{text[:-1]}, gain=0.5)"
    fingerprints = {recorded()["tiny"][case]["fingerprint"]}
    for gain in (0.5, 0.25):
        model.config = larger(**values, gain=gain)
        fingerprints.add(predictor_of(model).fingerprint)
    assert len(fingerprints) == 3


def test_new_fields_are_sorted_by_name_and_compared_with_the_default_of_a_factory() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        width: int
        stages: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
        gain: float = 1.0
        bias: bool = False

    assert config_text(Config(8)) == "Config(width=8)"  # no default: always there
    assert config_text(Config(8, [1, 2], 1.0, False)) == "Config(width=8)"
    assert config_text(Config(8, [2], 0.5, True)) == "Config(bias=True, gain=0.5, stages=[2], width=8)"


def test_the_functions_and_a_predictor_give_the_same_fingerprint() -> None:
    predictor = predictor_of(fixed_model("mixer"), policy="timm")
    identity = identify(predictor.model, predictor.spec)
    assert identity == predictor.identity
    fingerprint = hash_identity(identity, policy="timm", transform="exact", precision="float32")
    assert fingerprint == predictor.fingerprint != recorded()["tiny"]["mixer"]["fingerprint"]


@pytest.mark.parametrize("case", TINY)
def test_the_fingerprint_of_weights_that_are_read_without_pytorch(case: str, tmp_path: Path) -> None:
    model = fixed_model(case)
    network = open_network(f"local-dir:{save_pretrained(model, tmp_path)}")
    assert network.module is None
    # a config.json states the image size as (height, width)
    network = dataclasses.replace(network, config=model.config)
    identity = identify(network, InputSpec.from_cfg(network.pretrained_cfg))
    fingerprint = hash_identity(identity, policy="tessella", transform="exact", precision="float32")
    assert fingerprint == recorded()["tiny"][case]["fingerprint"]


def record() -> None:
    tiny = {case: predictor_of(fixed_model(case)) for case in TINY}
    facts = dict(
        configs={arch: config_text(config_of(arch)) for arch in ARCHITECTURES},
        tiny={
            case: dict(config=predictor.identity["config"], fingerprint=predictor.fingerprint)
            for case, predictor in tiny.items()
        },
        settings={name: make().fingerprint for name, make in SETTINGS.items()},
    ) | {"built-in": {name: tessella.load(name).fingerprint for name in BUILTIN}}
    RECORDED.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    record()
