"""GRAPH_VERSION is part of fingerprints, so a change of a graph's operations has to raise it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from tessella.data.samples import sample_images
from tessella.data.spec import InputSpec
from tessella.engine import make_plan, open_engine
from tessella.engine.graphs import depthwise
from tessella.engine.graphs.build import layouts_of
from tessella.engine.open import GRAPH_VERSION
from tessella.engine.openvino import OpenVinoEngine
from tessella.weights.network import as_network

from ..models.tiny import TINY, size_of, tiny

RECORD = Path(__file__).with_name("graph_operations.json")


def operations(case: str, precision: str, layout: str) -> str:
    """Return a hash of the operations of a graph in order, with their types, shapes and inputs, without constants."""
    model = tiny(case)
    size = size_of(model)
    model.pretrained_cfg = dict(input_size=(3, *size), num_classes=5)
    network, spec = as_network(model), InputSpec(height=size[0], width=size[1])
    plan = dataclasses.replace(make_plan("cpu", precision, "openvino"), layout=layout)
    engine = open_engine(network, plan, size, spec, sample_images(spec, 24) if precision == "int8" else None)
    assert isinstance(engine, OpenVinoEngine)
    assert not isinstance(engine.source, Path)
    numbers: dict[str, int] = {}
    lines = []
    for node in engine.source.get_ordered_ops():
        numbers[node.get_friendly_name()] = len(numbers)
        inputs = [numbers[value.get_node().get_friendly_name()] for value in node.input_values()]
        shapes = [f"{value.get_element_type()} {value.get_partial_shape()}" for value in node.outputs()]
        lines.append(f"{node.get_type_name()} {inputs} {shapes}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def test_a_changed_graph_has_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    # without AVX-512, the graph of a depthwise convolution has another form of the same operation
    monkeypatch.setattr(depthwise, "vector_features", lambda: frozenset({"avx512"}))
    found = {
        f"{case} {precision} {layout}".strip(): operations(case, precision, layout)
        for case in TINY
        for precision in ("float32", "int8")
        for layout in layouts_of(as_network(tiny(case)))
    }
    record = json.loads(RECORD.read_text())
    changed = [name for name in found if found[name] != record["operations"].get(name)]
    expected = dict(version=GRAPH_VERSION, operations=found)
    assert not changed or record["version"] != GRAPH_VERSION, (
        f"the graphs of {', '.join(changed)} changed: raise GRAPH_VERSION in engine/open.py"
    )
    assert record == expected, f"write this to {RECORD.name}:\n{json.dumps(expected, indent=1)}"
