"""Graphs built without PyTorch give the outputs of the reference: timm's golden values, and the eager models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tessella.data.spec import InputSpec
from tessella.data.transforms import normalise
from tessella.engine.graphs import Products, build_graph, layouts_of, why_not
from tessella.engine.graphs.convit import position_attention
from tessella.engine.graphs.crossvit import resize_matrix
from tessella.engine.openvino import core
from tessella.engine.rewrites.crossvit import resize_matrix as torch_resize_matrix
from tessella.machine import vector_features
from tessella.models import ARCHITECTURES, build
from tessella.models.configs import configure, embedding_width, image_size
from tessella.models.layout import state_layout
from tessella.weights.network import Network

from ..golden_rule import golden_input, golden_tensor
from ..models.test_golden import GOLDEN, LARGE, golden, tolerance
from ..models.tiny import TINY, images, size_of, tiny

CLOSE = 1e-5  # of the standard deviation of an output


def pixel_spec(height: int, width: int) -> InputSpec:
    return InputSpec(height=height, width=width, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def network_of(arch: str, **overrides: object) -> Network:
    """Return a network with the golden weights, made without PyTorch's models."""
    config = configure(arch, **overrides)
    tensors = {name: golden_tensor(name, kind.shape).numpy() for name, kind in state_layout(config).items()}
    classes, pool = config.num_classes, config.global_pool
    return Network(arch, config, classes, pool, embedding_width(config), {}, tensors)


def run(network: Network, images: np.ndarray, spec: InputSpec | None, layout: str = "") -> list[np.ndarray]:
    """Return logits and embedding of the graph in float32."""
    core()
    size = images.shape[1:3] if spec else images.shape[2:]
    graph = build_graph(network, (size[0], size[1]), spec, layout=layout)
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(compiled.create_infer_request().infer([images]).values())


def expected_outputs(model: Any, x: torch.Tensor) -> list[np.ndarray]:
    with torch.inference_mode():
        features = model.forward_features(x)
        return [model.forward_head(features).numpy(), model.forward_head(features, pre_logits=True).numpy()]


def assert_close(actual: list[np.ndarray], expected: list[np.ndarray], bound: float = CLOSE) -> None:
    for what, ours, theirs in zip(("logits", "embedding"), actual, expected, strict=True):
        assert ours.shape == theirs.shape
        difference = np.abs(ours - theirs).max() / theirs.std()
        assert difference < bound, f"{what} is off by {difference:.1e} of its standard deviation"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in golden("models.json")]
)
def test_outputs_of_full_size_models_are_the_golden_ones(name: str) -> None:
    x = golden_input(*golden("models.json")[name]["input_size"][1:]).numpy()
    network = network_of(name)
    with safe_open(GOLDEN / "models.safetensors", "np") as file:
        expected = [file.get_tensor(f"{name}/{what}") for what in ("logits", "pre_logits")]
    for layout in layouts_of(network):
        assert_close(run(network, x, None, layout), expected, tolerance(name))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("classes", [None, 7])
def test_every_architecture_is_the_eager_model_on_pixels(arch: str, classes: int | None) -> None:
    model = build(arch, num_classes=classes).eval()
    state = {name: golden_tensor(name, tuple(value.shape)) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    height, width = image_size(model.config) or (224, 224)
    spec = pixel_spec(height, width)
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    expected = expected_outputs(model, normalise(images, spec))
    network = Network.of(model)
    assert why_not(network) is None
    assert_close(run(network, images, spec), expected, tolerance(arch))


@pytest.mark.parametrize("case", TINY)
@pytest.mark.parametrize("pixels", [True, False])
def test_small_models_in_all_layouts(case: str, pixels: bool) -> None:
    model = tiny(case)
    height, width = size_of(model)
    spec = pixel_spec(height, width)
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
    x = normalise(images, spec)
    network = Network.of(model)
    for layout in layouts_of(network):
        actual = run(network, images if pixels else x.numpy(), spec if pixels else None, layout)
        assert_close(actual, expected_outputs(model, x))


VARIATIONS: list[tuple[str, dict[str, Any]]] = [
    *(("convmixer", dict(global_pool=pool)) for pool in ("max", "avgmax", "catavgmax", "fastcatavgmax")),
    ("convmixer", dict(kernel_size=4)),  # PyTorch pads an even kernel more after than before
    *((case, dict(num_classes=0)) for case in ("convmixer", "convit", "mixer", "crossvit")),
    *((case, dict(in_chans=1)) for case in ("convmixer_relu", "convit", "gmlp", "crossvit", "crossvit_dagger")),
    *((case, dict(global_pool="avg")) for case in ("convit", "crossvit")),
    *(("convit", dict(local_up_to_layer=local, global_pool=pool)) for local in (0, 2) for pool in ("token", "avg")),
    ("convit", dict(use_pos_embed=False, qkv_bias=True)),
    ("convit", dict(img_size=(32, 48))),
    ("mixer", dict(img_size=(32, 48), stem_norm=True)),
    ("resmlp", dict(stem_norm=True)),
    ("crossvit", dict(qkv_bias=False)),
    ("crossvit", dict(crop_scale=True)),
    ("crossvit", dict(depth=((1, 2, 2), (2, 1, 1)), global_pool="token")),
    ("crossvit", dict(img_size=(120, 240))),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("case", "overrides"), VARIATIONS)
def test_configs_other_than_the_published_ones(case: str, overrides: dict[str, Any]) -> None:
    model = tiny(case, **overrides)
    height, width = size_of(model)
    channels = model.config.in_chans
    x = np.random.default_rng(0).standard_normal((2, channels, height, width), np.float32)
    network = Network.of(model)
    assert why_not(network) is None
    for layout in layouts_of(network):
        # the bicubic kernel of PyTorch computes positions in float32
        bound = 1e-4 if case == "crossvit" else CLOSE
        assert_close(run(network, x, None, layout), expected_outputs(model, torch.from_numpy(x)), bound)


def test_negative_and_extreme_gates_of_convit() -> None:
    model = tiny("convit")
    with torch.no_grad():
        model.blocks[0].attn.gating_param.copy_(torch.tensor([-30.0, 0.0, 30.0, 120.0]))
    x = images(model)
    assert_close(run(Network.of(model), x.numpy(), None), expected_outputs(model, x))


def test_batch_norms_with_negative_scales() -> None:
    model = tiny("convmixer_relu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("2.weight", "3.weight")):
                parameter[::2] *= -1
    x = images(model)
    assert_close(run(Network.of(model), x.numpy(), None), expected_outputs(model, x))


def test_position_attention_is_that_of_the_model() -> None:
    model = tiny("convit", img_size=(32, 48))
    attn = model.blocks[0].attn
    expected = attn.position_attention(model.rel_pos).detach().numpy()
    np.testing.assert_allclose(position_attention(attn.pos_proj.weight.detach().numpy(), (4, 6)), expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(240, 224), (408, 384), (32, 48), (5, 3)])
def test_resize_matrix_is_that_of_pytorch(old: int, new: int) -> None:
    np.testing.assert_allclose(resize_matrix(old, new), torch_resize_matrix(old, new).numpy(), atol=1e-12)


def test_models_that_were_changed_by_hand_have_no_graph() -> None:
    model = tiny("mixer")
    assert why_not(Network.of(model)) is None
    model.blocks[0].mlp_tokens.act = torch.nn.SiLU()
    assert "config" in str(why_not(Network.of(model)))
    hooked = tiny("mixer")
    hooked.blocks[0].register_forward_hook(lambda *_: None)
    assert why_not(Network.of(hooked)) is not None
    pruned = tiny("convit")
    pruned.prune_intermediate_layers(1)
    assert why_not(Network.of(pruned)) is not None
    assert "global_pool=''" in str(why_not(Network.of(tiny("mixer", global_pool=""))))


def test_a_model_with_another_classifier_has_a_graph() -> None:
    model = tiny("crossvit")
    model.reset_classifier(3)
    model.eval()
    x = images(model)
    assert why_not(Network.of(model)) is None
    assert_close(run(Network.of(model), x.numpy(), None), expected_outputs(model, x), bound=1e-4)


@pytest.mark.parametrize("features", [frozenset(), frozenset({"avx512"})])
def test_depthwise_convolutions_with_either_kernel(features: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is only a preference: OpenVINO takes another one where it is missing."""
    monkeypatch.setattr("tessella.engine.graphs.depthwise.vector_features", lambda: features)
    model = tiny("convmixer_relu")
    x = images(model)
    assert_close(run(Network.of(model), x.numpy(), None), expected_outputs(model, x))


@pytest.mark.skipif("avx512" not in vector_features(), reason="the kernel needs AVX-512")
@pytest.mark.parametrize(
    ("precision", "side", "preferred"),
    [("float32", 7, True), ("float32", 9, True), ("bfloat16", 7, False), ("bfloat16", 9, True)],
)
def test_the_preferred_kernel_is_used(precision: str, side: int, preferred: bool) -> None:
    """The runtime computes in float32 here, so that the test needs no CPU with bfloat16."""
    network = Network.of(tiny("convmixer_relu", dim=64, kernel_size=side))
    graph = build_graph(network, (32, 32), None, products=Products(precision))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    request = core().compile_model(graph, "CPU", settings).create_infer_request()
    request.infer([np.zeros((1, 3, 32, 32), np.float32)])
    kernels = {row.exec_type for row in request.get_profiling_info() if row.node_type == "GroupConvolution"}
    assert kernels == {"jit_avx512_dw_f32" if preferred else "brgconv_avx512_dw_f32"}
