"""Models that are built for training, and their parameter groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tessella.errors import UsageError
from tessella.training.model import build_model, layer_indices, parameter_groups

from .small_runs import CLASSES, FAMILIES, run, small


@pytest.mark.parametrize("model", FAMILIES)
def test_parameters_are_grouped_by_layer_and_decay(model: str) -> None:
    net, _ = build_model(small(model), CLASSES)
    layers = layer_indices(net)
    names = dict(net.named_parameters())
    assert layers.keys() == names.keys()
    head = {name for name in names if name.startswith("head")}
    blocks = len(net.blocks)
    assert {layers[name] for name in head} == {blocks + 1}
    assert {layer for name, layer in layers.items() if name not in head} == set(range(blocks + 1))
    assert all(layers[name] == blocks for name in names if name.startswith("norm."))
    groups = parameter_groups(net, small(model, layer_decay=0.5, weight_decay=0.3))
    scales = {id(p): (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    excluded = net.no_weight_decay()
    for name, parameter in names.items():
        scale, decay = scales[id(parameter)]
        assert scale == 0.5 ** (blocks + 1 - layers[name])
        assert decay == (0.0 if parameter.ndim <= 1 or name in excluded else 0.3)


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(img_size=4000), "would be resized to"),
        (dict(img_size=1), "smaller than one 4 px patch"),
        (dict(model_args=dict(dim="wide")), "dim is 'wide', expected an integer"),
        (dict(model_args=dict(dim=-3)), "dim is -3, expected 1 or more"),
    ],
)
def test_models_that_cannot_be_built_are_refused(data: Path, tmp_path: Path, changes: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        run(data, tmp_path / "run", small("convmixer_768_32", **changes))
    assert not (tmp_path / "run").exists()
