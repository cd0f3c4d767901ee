"""Opening models: what a name refers to, the mode that inputs suggest, the samples for a lossy precision."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella import Predictor, UsageError
from tessella.engine import Plan, make_plan
from tessella.loading import (
    MAX_SAMPLES,
    LoadSettings,
    OpenedModel,
    check_model_args,
    choose_mode,
    find_exported,
    find_samples,
    open_model,
    open_planned,
)
from tessella.pipeline import ImageReader

from .test_builtin import CIFAR10_MODEL

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CAT = EXAMPLES / "cat.jpg"


def settings_for(name: str = CIFAR10_MODEL, **changes: object) -> LoadSettings:
    return dataclasses.replace(LoadSettings(name=name, model_args={}), **changes)  # type: ignore[arg-type]


def test_a_model_is_recorded_with_its_tag_if_its_published_weights_are_loaded(tmp_path: Path) -> None:
    arch, _, _ = CIFAR10_MODEL.partition(".")
    assert settings_for(arch).recorded_name == settings_for(CIFAR10_MODEL).recorded_name == CIFAR10_MODEL
    own_weights: list[dict[str, Any]] = [
        dict(pretrained=False),
        dict(checkpoint_path="x.pth"),
        dict(model_args=dict(pretrained_cfg={})),
    ]
    for changes in own_weights:
        assert settings_for(arch, **changes).recorded_name == arch
    for name in (f"hf-hub:org/{arch}", f"local-dir:{arch}"):
        assert settings_for(name).recorded_name == name
    predictor = tessella.load(arch)
    assert predictor.name == CIFAR10_MODEL
    assert predictor.fingerprint == tessella.load(CIFAR10_MODEL).fingerprint
    checkpoint = tessella.save_pretrained(tessella.create_model(arch, pretrained=True), tmp_path) / "model.safetensors"
    assert tessella.load(arch, checkpoint_path=checkpoint).name == arch
    assert tessella.load(arch, pretrained=False).name == arch


def test_the_mode_follows_the_inputs(tmp_path: Path) -> None:
    shutil.copy(CAT, tmp_path / "some.tar")
    assert choose_mode([str(CAT)]) == "latency"
    archive, long_name = str(tmp_path / "some.tar"), "a" * 5000
    many: list[list[str]] = [[], [""], [str(CAT)] * 2, [str(EXAMPLES)], [archive], ["-"], [long_name], ["s3://b/x"]]
    for inputs in many:
        assert choose_mode(inputs) == "throughput", inputs


def test_samples_are_listed_up_to_a_limit(tmp_path: Path) -> None:
    assert [Path(source.path).name for source in find_samples(str(CAT))] == ["cat.jpg"]
    assert len(find_samples("-", itertools.repeat(f"{CAT}\n"))) == MAX_SAMPLES  # a list without an end
    with pytest.raises(UsageError, match="contains no images"):
        find_samples("-", [])


def test_a_predictor_accepts_an_opened_model() -> None:
    model, plan = open_planned(settings_for(batch_size=3))
    spec = Predictor(model).spec
    opened = open_model(model, ImageReader(spec), name="mine", plan=plan)
    assert isinstance(opened, OpenedModel)
    predictor = Predictor(opened, transform="fast", policy="timm")
    assert (predictor.name, predictor.engine, predictor.card) == ("mine", opened.engine, opened.card)
    assert {row.what: row.chosen for row in predictor.plan.choices}["batch"] == "3 images"
    assert predictor.fingerprint == tessella.load(CIFAR10_MODEL, transform="fast", policy="timm").fingerprint
    assert np.array_equal(
        predictor.embed(CAT), tessella.load(CIFAR10_MODEL, transform="fast", policy="timm").embed(CAT)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        dict(device="warp"),
        dict(device="cuda:99"),
        dict(engine="openvino", precision="bfloat7"),
        dict(engine="onnxruntime", precision="bfloat16"),
        dict(batch_size=0),
        dict(mode="fast"),
    ],
    ids=str,
)
def test_settings_are_refused_before_weights_are_loaded(wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.weights.factory.create_model", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError) as refused:
        open_planned(settings_for(**wrong))
    with pytest.raises(UsageError) as same:
        make_plan(**wrong)
    assert (refused.value.code, str(refused.value)) == (same.value.code, str(same.value))


def test_one_plan_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []

    def counted(*arguments: Any) -> Plan:
        plans.append(make_plan(*arguments))
        return plans[-1]

    monkeypatch.setattr("tessella.loading.make_plan", counted)
    predictor = tessella.load(batch_size=5)
    assert [plan.batch_size for plan in plans] == [5]
    assert predictor.plan.choices[: len(plans[0].choices)] == plans[0].choices


def test_only_a_local_folder_can_be_an_exported_model(tmp_path: Path) -> None:
    assert find_exported(settings_for()) is None
    tessella.save_pretrained(tessella.create_model(CIFAR10_MODEL, pretrained=True), tmp_path / "model")
    assert find_exported(settings_for(f"local-dir:{tmp_path / 'model'}")) is None


@pytest.mark.parametrize(("name", "hint"), [("devise", "device"), ("features_only", "Predictor.features")])
def test_arguments_that_no_model_has_are_refused(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_model_args({name: 1}, ["device", "mode"])
    assert hint in caught.value.hint


def test_arguments_of_a_model_are_passed_on() -> None:
    check_model_args({"img_size": 256, "depth": 2}, ["device", "mode", "depths"])
