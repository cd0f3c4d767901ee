"""Models that were changed by hand: engines compute what their modules compute, or refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tessella.data.spec import InputSpec
from tessella.engine import make_plan, open_engine
from tessella.engine.graphs import why_not
from tessella.errors import UsageError
from tessella.predictor import Predictor
from tessella.weights.network import Network

from ..models.tiny import size_of, tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))


def scaled(factor: float) -> Callable[..., torch.Tensor]:
    return lambda module, inputs, output: output * factor  # the factor is in the closure, not in the code


def circular(model: Any) -> None:
    conv = model.blocks[0][0].fn[0]
    conv.padding, conv.padding_mode = (1, 1), "circular"
    conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


def large_eps(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.eps = 0.5


def other_gelu(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def no_block(model: Any) -> None:
    model.blocks[1] = nn.Identity()


def hooked(model: Any) -> None:
    model.blocks[0].register_forward_hook(scaled(1.5))


def other_features(model: Any) -> None:
    usual = model.forward_features
    model.forward_features = lambda x: 0.5 * usual(x)


def attention_scale(model: Any) -> None:
    model.blocks[0].attn.scale = 3.0


CHANGES: list[tuple[str, Callable[[Any], None]]] = [
    ("convmixer", circular),
    ("convmixer", large_eps),
    ("convit", large_eps),
    ("mixer", large_eps),
    ("mixer", other_gelu),
    ("mixer", no_block),
    ("gmlp", hooked),
    ("mixer", other_features),
    ("convit", attention_scale),
]


def changed(case: str, change: Callable[[Any], None]) -> Any:
    model = tiny(case)
    change(model)
    return model


def outputs(model: Any, engine: str) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of an engine and of the model itself for the same pixels."""
    size = size_of(model)
    spec = InputSpec(height=size[0], width=size[1])
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    network = Network.of(model)
    plan = make_plan("cpu", "float32", engine, 2, "latency", network, size)
    actual = open_engine(network, plan, size, spec)(pixels)[0]
    expected = open_engine(network, make_plan("cpu", "float32", "eager"), size, spec)(pixels)[0]
    return actual, expected


@pytest.mark.parametrize("engine", ["openvino", "rewritten"])
@pytest.mark.parametrize(("case", "change"), CHANGES)
def test_engines_compute_what_the_modules_compute(case: str, change: Callable[[Any], None], engine: str) -> None:
    model = changed(case, change)
    assert why_not(Network.of(model)) is not None
    actual, expected = outputs(model, engine)
    assert np.abs(actual - expected).max() <= 2e-5 * expected.std()
    unchanged, _ = outputs(tiny(case), "rewritten")
    assert np.abs(unchanged - expected).max() > 5e-5 * expected.std()  # the change has an effect


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_changed_models_with_the_same_weights_share_no_conversion(engine: str) -> None:
    hooks = [scaled(1.5), scaled(0.25)]
    for hook in hooks:
        model = tiny("mixer")
        model.blocks[0].register_forward_hook(hook)
        actual, expected = outputs(model, engine)
        assert np.abs(actual - expected).max() <= 1e-4 * expected.std()


def test_fingerprints_of_changed_models_differ() -> None:
    def fingerprint(change: Callable[[Any], None] | None) -> str:
        model = tiny("mixer")
        size = size_of(model)
        model.pretrained_cfg = dict(input_size=(3, *size), num_classes=5)
        if change:
            change(model)
        return Predictor(model).fingerprint

    def halved(model: Any) -> None:
        model.blocks[0].register_forward_hook(scaled(0.5))

    found = [fingerprint(change) for change in (None, large_eps, other_gelu, hooked, halved)]
    assert len(set(found)) == len(found)
    assert fingerprint(hooked) == found[3]  # the same change has the same fingerprint


def test_a_model_that_cannot_be_exported_is_never_taken_from_a_cache() -> None:
    def data_dependent(model: Any) -> None:
        usual = model.forward_features
        model.forward_features = lambda x: usual(x) if float(x.sum()) > 0 else 2 * usual(x)

    first, second = (Network.of(changed("mixer", data_dependent)).changes for _ in range(2))
    assert first
    assert first != second


def test_changes_that_engines_would_not_see_are_refused() -> None:
    with_hook, with_forward = tiny("mixer"), tiny("mixer")
    with_hook.register_forward_hook(scaled(2.0))
    with_forward.forward = lambda x: x
    for model in (with_hook, with_forward):
        with pytest.raises(UsageError, match="engines do not call") as caught:
            Network.of(model)
        assert "forward_features" in caught.value.hint


@pytest.mark.parametrize("case", ["convmixer", "convit", "mixer", "crossvit", "gmlp", "resmlp"])
def test_use_in_training_and_notes_are_no_changes(case: str) -> None:
    model = tiny(case).train()
    model.set_grad_checkpointing(True)
    model.note = "mine"
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    model.reset_classifier(7)
    assert why_not(Network.of(model)) is None
    assert Network.of(model).changes == ""
