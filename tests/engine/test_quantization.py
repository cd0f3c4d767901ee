"""int8 graphs: close to float32, with the products that are named left exact, and saved as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.data.samples import sample_images
from tessella.data.spec import InputSpec
from tessella.engine import make_plan, open_engine
from tessella.engine.agreement import BOUNDS, Bounds
from tessella.engine.base import Engine
from tessella.engine.gate import open_gated
from tessella.engine.open import open_graph
from tessella.engine.openvino import OpenVinoEngine, core
from tessella.engine.quantization.calibrate import MAX_PAIR_ERROR, calibrate, observe, without_inaccurate_pairs
from tessella.engine.quantization.observe import Statistics
from tessella.engine.quantization.quantize import Quantizer
from tessella.engine.quantization.search import find_exact, product_errors
from tessella.engine.runtime import op
from tessella.errors import UsageError
from tessella.machine import vector_features
from tessella.weights.network import Network, as_network

from ..models.tiny import TINY, size_of, tiny

PAIR = (".left", ".right")  # suffixes of the names of the factors of a product of two activations


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    return tmp_path


def parts(case: str) -> tuple[Network, tuple[int, int], InputSpec, Any]:
    """Return a small network, its size and spec, and images to calibrate on."""
    model = tiny(case)
    size = size_of(model)
    model.pretrained_cfg = dict(input_size=(3, *size), num_classes=5)
    spec = InputSpec(height=size[0], width=size[1])
    return as_network(model), size, spec, sample_images(spec, 24)


def opened(case: str, precision: str = "int8", exact: tuple[str, ...] = (), layout: str = "") -> tuple[Engine, Any]:
    network, size, spec, images = parts(case)
    plan = dataclasses.replace(make_plan("cpu", precision, "openvino"), exact=exact, layout=layout)
    return open_engine(network, plan, size, spec, images), images


def product(name: str) -> str:
    """Return the name of the product that statistics with this name belong to."""
    return name.removesuffix(PAIR[0]).removesuffix(PAIR[1])


def spread_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(actual - expected).mean()) / expected.std())


@pytest.mark.parametrize("case", TINY)
def test_outputs_are_close_to_float32(case: str) -> None:
    engine, images = opened(case)
    exact, _ = opened(case, "float32")
    for actual, expected in zip(engine(images), exact(images), strict=True):
        assert 0 < spread_error(actual, expected) < 0.15


@pytest.mark.parametrize("layout", ["left", "right"])
def test_both_layouts_of_the_product_across_patches_are_quantized(layout: str) -> None:
    engine, images = opened("mixer", layout=layout)
    exact, _ = opened("mixer", "float32")
    assert 0 < spread_error(engine(images)[0], exact(images)[0]) < 0.15


@pytest.mark.parametrize("case", ["convmixer_relu", "mixer", "gmlp", "convit", "crossvit"])
def test_all_measured_products_run_in_8_bits(case: str) -> None:
    engine, images = opened(case)
    assert isinstance(engine, OpenVinoEngine)
    nodes = [
        {name: str(value.value) for name, value in node.get_rt_info().items()}
        for node in engine.current.model.get_runtime_model().get_ops()
    ]
    products = [node for node in nodes if node["layerType"] in ("FullyConnected", "Convolution", "MatMul")]
    network, size, *_ = parts(case)
    measured = calibrate(network, engine.plan, size, images)
    of_attention = [name for name in measured if name.endswith(PAIR)]
    # with AVX-512, one kernel computes both products of attention and the softmax; else, they are two products
    attention = [node for node in nodes if "MatMul" in node["originalLayersNames"] and node["layerType"] == "Subgraph"]
    blocks = {name.partition(".attn.")[0] for name in of_attention}
    in_8_bits = [sum(node["runtimePrecision"] in ("u8", "i8") for node in nodes) for nodes in (products, attention)]
    assert in_8_bits[0] + 2 * in_8_bits[1] == len(measured) - len(of_attention) // 2
    assert in_8_bits[1] in (0, len(blocks))
    assert "avx512" not in vector_features() or in_8_bits[1] == len(blocks)
    assert bool(blocks) == (case in ("convit", "crossvit"))


@pytest.mark.parametrize("case", ["convit", "crossvit"])
def test_attention_in_8_bits_is_accurate(case: str) -> None:
    network, size, spec, images = parts(case)
    plan = make_plan("cpu", "int8", "openvino")
    errors = product_errors(network, plan, size, spec, images, calibrate(network, plan, size, images))
    of_attention = {name: error for name, error in errors.items() if name.endswith(("attn.scores", "attn.values"))}
    assert {name.rpartition(".")[2] for name in of_attention} == {"scores", "values"}
    assert all(0 < error <= MAX_PAIR_ERROR for error in of_attention.values())


def test_attention_that_would_be_inaccurate_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network, size, spec, images = parts("convit")
    plan = make_plan("cpu", "int8", "openvino")
    statistics = calibrate(network, plan, size, images)
    errors = product_errors(network, plan, size, spec, images, statistics)
    worst = max((name for name in errors if name.endswith("attn.values")), key=errors.__getitem__)
    monkeypatch.setattr("tessella.engine.quantization.calibrate.MAX_PAIR_ERROR", 0.999 * errors[worst])
    kept = without_inaccurate_pairs(statistics, errors)
    assert {product(name) for name in statistics.keys() - kept.keys()} >= {worst}
    assert all(name.endswith(PAIR) for name in statistics.keys() - kept.keys())
    monkeypatch.setattr("tessella.engine.quantization.calibrate.MAX_PAIR_ERROR", 0.0)
    assert not [name for name in without_inaccurate_pairs(statistics, errors) if name.endswith(PAIR)]


def test_products_of_attention_can_be_left_exact() -> None:
    network, size, _, images = parts("crossvit")
    plan = make_plan("cpu", "int8", "openvino")
    names = {product(name) for name in calibrate(network, plan, size, images)}
    engine, _ = opened("crossvit", exact=tuple(names))
    exact, _ = opened("crossvit", "float32")
    np.testing.assert_allclose(engine(images)[0], exact(images)[0], rtol=1e-4, atol=1e-5)


def test_products_that_are_named_stay_exact() -> None:
    network, size, _, images = parts("mixer")
    plan = make_plan("cpu", "int8", "openvino")
    names = tuple(calibrate(network, plan, size, images))
    assert "blocks.0.mlp_channels.fc1" in names
    assert not [name for name in names if name.startswith(("stem", "head"))]
    engine, _ = opened("mixer", exact=names)
    exact, _ = opened("mixer", "float32")
    np.testing.assert_allclose(engine(images)[0], exact(images)[0], rtol=1e-4, atol=1e-5)


def test_the_hash_depends_on_everything_that_determines_the_numbers() -> None:
    first, _ = opened("mixer")
    again, _ = opened("mixer")
    assert first.graph_hash == again.graph_hash
    other, _ = opened("mixer", exact=("blocks.0.mlp_channels.fc1",))
    network, size, spec, images = parts("mixer")
    others = open_engine(network, make_plan("cpu", "int8", "openvino"), size, spec, images[:5])
    assert len({first.graph_hash, other.graph_hash, others.graph_hash}) == 3


def test_a_saved_graph_gives_the_same_outputs(tmp_path: Path) -> None:
    engine, images = opened("convmixer")
    assert isinstance(engine, OpenVinoEngine)
    engine.save(tmp_path)
    read = open_graph(tmp_path / "model.xml", engine.plan, engine.size, engine.spec)
    for actual, expected in zip(read(images), engine(images), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert core() is core()


def test_normalized_batches_are_quantized_too() -> None:
    network, size, spec, images = parts("mixer")
    plan = make_plan("cpu", "int8", "openvino")
    batch = ((images / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2).astype(np.float32)
    engine = open_engine(network, plan, size, None, images)
    assert isinstance(engine, OpenVinoEngine)
    expected = open_engine(network, plan, size, spec, images)(images)[0]
    np.testing.assert_allclose(engine(batch)[0], expected, rtol=1e-3, atol=0.02 * expected.std())


def test_statistics_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    network, size, spec, images = parts("gmixer")
    plan = make_plan("cpu", "int8", "openvino")
    together = observe(network, plan, size, spec, images)
    monkeypatch.setattr("tessella.engine.quantization.calibrate.images_per_request", lambda *_: 7)
    for name, row in observe(network, plan, size, spec, images).items():
        for field in ("low", "high", "mean"):
            expected = getattr(together[name], field)
            np.testing.assert_allclose(getattr(row, field), expected, rtol=1e-4, atol=1e-4)
        assert (row.low <= row.mean).all()
        assert (row.mean <= row.high).all()
    names = ("blocks.0.mlp_channels.fc1.gate", "blocks.0.mlp_channels.fc1.value")
    gate, value = (together[name] for name in names)
    np.testing.assert_array_equal(gate.weight, value.weight)  # they read the same value


def test_one_image_does_not_widen_a_range() -> None:
    network, size, spec, images = parts("mixer")
    plan = make_plan("cpu", "int8", "openvino")
    usual = np.repeat(images[:1], 39, axis=0)
    glaring = np.where(np.indices(images[0].shape).sum(0) % 2, 255, 0).astype(np.uint8)[None]
    with_one = observe(network, plan, size, spec, np.concatenate([usual, glaring]))
    without = observe(network, plan, size, spec, usual)
    for name, row in with_one.items():
        np.testing.assert_allclose(row.high, without[name].high, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["convmixer", "mixer", "crossvit"])
def test_the_errors_of_products_are_measured_on_exact_inputs(case: str) -> None:
    network, size, spec, images = parts(case)
    plan = make_plan("cpu", "int8", "openvino")
    statistics = calibrate(network, plan, size, images)
    errors = product_errors(network, plan, size, spec, images, statistics)
    assert set(errors) == {product(name) for name in statistics}
    assert all(0 < error < 0.1 for error in errors.values())


def test_the_search_finds_the_fewest_products() -> None:
    errors = {f"p{i}": float(i) for i in range(20)}
    tried: list[int] = []

    def passes(exact: tuple[str, ...]) -> bool:
        tried.append(len(exact))
        return {"p19", "p18", "p17"} <= set(exact)

    assert find_exact(errors, passes) == ("p19", "p18", "p17")
    assert len(tried) <= 6
    assert find_exact(errors, lambda exact: False) is None
    assert find_exact(errors, passes, seconds=0) == tuple(f"p{i}" for i in range(19, 9, -1))  # the first that passed


def test_products_that_fail_the_gate_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network, size, spec, images = parts("mixer")
    plan = make_plan("cpu", "int8", "openvino", 8, "throughput", network, size)
    whole = open_gated(network, plan, size, spec, images)
    error = float(whole.plan.choice("precision").reason.split("logit error ")[1].split()[0])
    monkeypatch.setitem(BOUNDS, "int8", Bounds(0.0, 0.0, 0.5 * error))
    monkeypatch.setattr("tessella.engine.quantization.search.MAX_FRACTION", 1.0)
    engine = open_gated(network, plan, size, spec, images)
    assert engine.plan.precision == "int8"
    assert engine.plan.exact
    reason = engine.plan.choice("precision").reason
    assert f"{len(engine.plan.exact)} products stay in float32: {engine.plan.exact[0]}" in reason


def test_fast_is_the_fastest_that_passes_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    network, size, spec, _ = parts("mixer")
    plan = make_plan("cpu", "fast", "auto", 8, "throughput", network, size)
    first = open_gated(network, plan, size, spec)
    assert first.plan.precision in ("float32", "bfloat16", "int8")
    assert "the fastest that passes" in first.plan.choice("precision").reason
    monkeypatch.setattr("tessella.engine.fast._candidates", lambda *_: pytest.fail("compared again"))
    again = open_gated(network, plan, size, spec)
    assert again.plan == first.plan
    assert again.graph_hash == first.graph_hash


def test_fast_is_exact_if_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("bfloat16", "int8"):
        monkeypatch.setitem(BOUNDS, precision, Bounds(1.0, 1.1))
    network, size, spec, _ = parts("convmixer")
    engine = open_gated(network, make_plan("cpu", "fast", "auto", 8, "throughput", network, size), size, spec)
    assert engine.plan.precision == "float32"
    assert "a cosine of 1.1 is required" in engine.plan.choice("precision").reason


def test_int8_is_refused_for_a_model_without_a_graph() -> None:
    network, size, spec, images = parts("mixer")
    changed = dataclasses.replace(network, is_standard=False)
    with pytest.raises(UsageError, match="int8 is not available for this mixer_s16_224, because") as caught:
        open_engine(changed, make_plan("cpu", "int8", "openvino"), size, spec, images)
    assert caught.value.code == "bad_argument"


def test_products_across_patches_do_not_overflow_without_vnni() -> None:
    """Without VNNI, kernels add 128 to a signed value on the left, and add two products in 16 bits."""
    reach, random = 3.0, np.random.default_rng(0)
    row = Statistics(np.full(6, -reach), np.full(6, reach), np.zeros(6), np.ones(6))
    x = op.parameter([1, 6, 4], np.float32)
    weight = random.choice([-1.0, 1.0], (5, 6)).astype(np.float32)
    product = Quantizer({"tokens": row}).from_left("tokens", x, weight, np.zeros(5, np.float32))
    rounded = product.input_value(0).get_node().input_value(1).get_node()
    assert rounded.get_type_name() == "FakeQuantize"
    low, high = (rounded.input_value(index).get_node().get_vector()[0] for index in (1, 2))
    largest = round(reach / ((high - low) / 255))  # integer of the largest measured input
    assert (127 + 128) * 2 * largest <= 2**15 - 1
    assert largest >= 63  # and the range that is left is used
