"""Tests of the Mixer family: weights per patch position, gates, Affine, initialization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.errors import UsageError, WeightsError
from tessella.models import build
from tessella.models.base import ImageModel
from tessella.models.layers import DropPath
from tessella.models.mixer import INDEXED_BY_N, SUMS_OVER_N, GluMlp, SpatialGatingUnit

from .tiny import TINY, images, tiny

KINDS = ["mixer", "gmixer", "resmlp", "gmlp"]


# --- another image size -----------------------------------------------------------------------------------------------


def low_pass(weight: Tensor, dim: int, grid: tuple[int, int]) -> Tensor:
    """Return `weight` limited to the lowest cosines over the grid, so that it is as smooth as a trained weight."""

    def basis(n: int) -> Tensor:
        waves = torch.cos(math.pi * torch.arange(3)[:, None] * (torch.arange(n) + 0.5) / n)
        return waves / waves.norm(dim=1, keepdim=True)

    rows, cols = (basis(n).T @ basis(n) for n in grid)
    maps = weight.movedim(dim, -1).unflatten(-1, grid)
    return (rows @ maps @ cols).flatten(-2).movedim(-1, dim)


def smooth_model(kind: str, size: tuple[int, int]) -> ImageModel:
    """Return a model with weights that vary slowly over positions, as do the tokens of a smooth image."""
    model = tiny(kind, img_size=size)
    state = model.state_dict()
    for name, weight in state.items():
        if name.endswith(SUMS_OVER_N):
            state[name] = low_pass(weight, 1, model.stem.grid)
        if name.endswith(INDEXED_BY_N):
            state[name] = low_pass(state[name], 0, model.stem.grid)
    model.load_state_dict(state)
    return model


def scene(size: tuple[int, int]) -> Tensor:
    """Return (2,3,H,W) images of the same slow waves at any resolution."""
    y, x = ((torch.arange(n) + 0.5) / n for n in size)
    waves = [torch.cos(math.pi * (a * y[:, None] + b * x) + a - b) for a in (0, 1, 2) for b in (0, 1)]
    return torch.stack(waves).unflatten(0, (2, 3))


def embedding(model: ImageModel, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.forward_head(model.forward_features(x), pre_logits=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("old", "new"), [((64, 64), (128, 128)), ((64, 96), (96, 64)), ((128, 128), (64, 96))])
def test_resampled_weights_see_the_same_scene(kind: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    model, other = smooth_model(kind, old), tiny(kind, img_size=new)
    other.load_state_dict(other.resample_state_dict(model.state_dict(), old))
    expected, got = embedding(model, scene(old)), embedding(other, scene(new))
    # Relative to the difference between the two images: 0.01 to 0.03, and 0.06 to 0.8 if sums are not scaled.
    apart = (expected[0] - expected[1]).norm()
    assert (got - expected).norm(dim=1).max() < 0.04 * apart


@pytest.mark.parametrize("kind", KINDS)
def test_resampling_to_the_same_size_is_exact(kind: str) -> None:
    model = tiny(kind, img_size=(32, 48))
    state = model.state_dict()
    resampled = tiny(kind, img_size=(32, 48)).resample_state_dict(state, [32, 48])
    assert list(resampled) == list(state)
    assert all(torch.equal(resampled[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", KINDS)
def test_resampling_changes_only_weights_over_positions(kind: str) -> None:
    model = tiny(kind, img_size=32)
    other = tiny(kind, img_size=(48, 64))
    state = model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    resampled = other.resample_state_dict(state, (32, 32))
    target = other.state_dict()
    for name, value in resampled.items():
        assert value.shape == target[name].shape, name
        if target[name].shape == state[name].shape:
            assert torch.equal(value, state[name]), name
    assert all(torch.equal(before[name], value) for name, value in state.items())


def test_resampled_sums_keep_their_value() -> None:
    """A constant signal gives the same pre-activations on four times as many patches."""
    model, other = tiny("mixer", img_size=32), tiny("mixer", img_size=64)
    old = model.state_dict()["blocks.0.mlp_tokens.fc1.weight"]
    new = other.resample_state_dict(model.state_dict(), (32, 32))["blocks.0.mlp_tokens.fc1.weight"]
    assert torch.allclose(new.sum(1), old.sum(1), atol=0.2 * old.sum(1).std())


def test_resampling_refuses_a_size_other_than_the_weights() -> None:
    model = tiny("mixer", img_size=64)
    with pytest.raises(WeightsError) as wrong_weights:
        model.resample_state_dict(tiny("mixer").state_dict(), (48, 48))
    assert wrong_weights.value.code == "wrong_shape"
    with pytest.raises(UsageError) as wrong_size:
        model.resample_state_dict(tiny("mixer").state_dict(), (33, 32))
    assert wrong_size.value.code == "bad_argument"
    assert "source 33x32" in wrong_size.value.message


# --- arguments --------------------------------------------------------------------------------------------------------


def test_lists_from_json_build_the_same_model() -> None:
    model = tiny("mixer", img_size=[32, 48], mlp_ratio=[0.5, 4.0])
    assert model.config.img_size == (32, 48)
    assert model.stem.grid == (4, 6)


@pytest.mark.parametrize(
    ("kind", "ratio", "tokens", "channels"),
    [("mixer", (0.5, 4.0), 8, 64), ("mixer", 2.0, 32, 32), ("gmixer", (1.0, 3), 16, 48), ("gmixer", 2, 32, 32)],
)
def test_both_ratios_refer_to_the_width(kind: str, ratio: Any, tokens: int, channels: int) -> None:
    block = tiny(kind, mlp_ratio=ratio).blocks[0]
    assert block.mlp_tokens.fc1.out_features == tokens
    assert block.mlp_channels.fc1.out_features == channels


@pytest.mark.parametrize(
    ("kind", "overrides", "says"),
    [
        ("mixer", dict(kind="mlp"), "'mlp'"),
        ("mixer", dict(mlp_ratio=(1, 2, 3)), "(1, 2, 3)"),
        ("resmlp", dict(mlp_ratio=(1, 2)), "expected one number"),
        ("gmlp", dict(mlp_ratio=(1, 2)), "expected one number"),
        ("gmlp", dict(embed_dim=5, mlp_ratio=3), "odd"),
        ("gmixer", dict(embed_dim=5, mlp_ratio=(1, 2)), "odd"),
        ("mixer", dict(img_size=33), "33x33"),
        ("mixer", dict(img_size=(32, 0)), "(32, 0)"),
    ],
)
def test_impossible_arguments(kind: str, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        tiny(kind, **overrides)
    assert caught.value.code == "bad_argument"
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_stem_norm(kind: str) -> None:
    model = tiny(kind, stem_norm=True)
    added = set(model.state_dict()) - set(tiny(kind).state_dict())
    assert (
        added == {"stem.norm.alpha", "stem.norm.beta"} if kind == "resmlp" else {"stem.norm.weight", "stem.norm.bias"}
    )
    x = images(model)
    assert not torch.equal(model(x), tiny(kind)(x))


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_rates(kind: str) -> None:
    """Rates are constant for ResMLP, as in its authors' code, and grow with depth for the others."""
    model = tiny(kind, num_blocks=3, drop_path_rate=0.2)
    rates = [next(m.rate for m in block.modules() if isinstance(m, DropPath)) for block in model.blocks]
    assert rates == pytest.approx([0.2, 0.2, 0.2] if kind == "resmlp" else [0.0, 0.1, 0.2])


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_second_half_of_the_hidden_units_is_the_gate() -> None:
    torch.manual_seed(0)
    mlp = GluMlp(3, 8)
    x = torch.randn(2, 5, 3)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    gated = hidden[..., :4] * hidden[..., 4:] * hidden[..., 4:].sigmoid()
    assert torch.allclose(mlp(x), gated @ mlp.fc2.weight.T + mlp.fc2.bias, atol=1e-6)


def test_spatial_gate_mixes_the_second_half_across_patches() -> None:
    torch.manual_seed(0)
    unit = SpatialGatingUnit(6, 5)
    x = torch.randn(2, 5, 6)
    gate = F.layer_norm(x[..., 3:], (3,), eps=1e-5)
    mixed = torch.einsum("mn,bnc->bmc", unit.proj.weight, gate) + unit.proj.bias[:, None]
    assert torch.allclose(unit(x), x[..., :3] * mixed, atol=1e-6)


def test_resmlp_block_is_the_formula() -> None:
    model = tiny("resmlp")
    block = model.blocks[0]
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    y = block.norm1.alpha * x + block.norm1.beta
    mixed = torch.einsum("mn,bnc->bmc", block.linear_tokens.weight, y) + block.linear_tokens.bias[:, None]
    x1 = x + block.ls1 * mixed
    expected = x1 + block.ls2 * block.mlp_channels(block.norm2.alpha * x1 + block.norm2.beta)
    assert torch.allclose(block(x), expected, atol=1e-5)


# --- training from scratch --------------------------------------------------------------------------------------------


def fresh(kind: str, **overrides: Any) -> dict[str, Tensor]:
    """Return the initial weights, by name, of a model that is large enough for statistics."""
    arch, small = TINY[kind]
    torch.manual_seed(0)
    return build(arch, **{**small, "embed_dim": 64, "num_blocks": 1, "img_size": 64, **overrides}).state_dict()


def is_xavier(weight: Tensor) -> bool:
    bound = math.sqrt(6 / sum(weight.shape))
    return bool(0.97 * bound < weight.abs().max() <= bound and abs(weight.std() / (bound / math.sqrt(3)) - 1) < 0.05)


def is_tiny_normal(tensor: Tensor) -> bool:
    return bool(0.6e-6 < tensor.std() < 1.4e-6 and abs(tensor.mean()) < 1e-6)


def is_constant(value: float) -> Callable[[Tensor], bool]:
    return lambda tensor: bool((tensor == value).all())


@pytest.mark.parametrize(
    ("kind", "name", "rule"),
    [
        ("mixer", "blocks.0.mlp_tokens.fc1.weight", is_xavier),
        ("mixer", "blocks.0.mlp_channels.fc2.weight", is_xavier),
        ("mixer", "blocks.0.mlp_tokens.fc1.bias", is_tiny_normal),
        ("mixer", "blocks.0.mlp_channels.fc2.bias", is_tiny_normal),
        ("mixer", "stem.proj.bias", is_constant(0.0)),
        ("mixer", "head.weight", is_constant(0.0)),
        ("mixer", "head.bias", is_constant(0.0)),
        ("mixer", "norm.weight", is_constant(1.0)),
        ("resmlp", "blocks.0.linear_tokens.weight", is_xavier),
        ("resmlp", "blocks.0.linear_tokens.bias", is_constant(0.0)),
        ("resmlp", "blocks.0.mlp_channels.fc1.bias", is_tiny_normal),
        ("resmlp", "blocks.0.ls1", is_constant(torch.tensor(1e-4).item())),
        ("resmlp", "blocks.0.norm2.alpha", is_constant(1.0)),
        ("resmlp", "norm.beta", is_constant(0.0)),
        ("gmlp", "blocks.0.mlp_channels.gate.proj.weight", is_tiny_normal),
        ("gmlp", "blocks.0.mlp_channels.gate.proj.bias", is_constant(1.0)),
        ("gmlp", "blocks.0.mlp_channels.fc1.weight", is_xavier),
    ],
)
def test_initial_weights(kind: str, name: str, rule: Callable[[Tensor], bool]) -> None:
    assert rule(fresh(kind)[name])


@pytest.mark.parametrize("mlp", ["mlp_tokens", "mlp_channels"])
def test_initial_gate_of_gmixer_is_the_same_for_every_input(mlp: str) -> None:
    state = fresh("gmixer")
    weight, bias = state[f"blocks.0.{mlp}.fc1.weight"], state[f"blocks.0.{mlp}.fc1.bias"]
    half = len(bias) // 2
    assert is_tiny_normal(weight[half:])
    assert is_constant(1.0)(bias[half:])
    assert is_tiny_normal(bias[:half])
    bound = math.sqrt(6 / sum(weight.shape))
    assert abs(weight[:half].std() / (bound / math.sqrt(3)) - 1) < 0.05


def test_initial_stem_is_lecun_normal() -> None:
    weight = fresh("mixer")["stem.proj.weight"]
    std = (3 * 8 * 8) ** -0.5
    assert abs(weight.std() / std - 1) < 0.03
    assert 2.1 * std < weight.abs().max() <= 2 * std / 0.87962566


def test_nlhb() -> None:
    assert is_constant(torch.tensor(-math.log(10)).item())(fresh("mixer", num_classes=10, nlhb=True)["head.bias"])


def test_resmlp_exempts_its_affine_from_weight_decay() -> None:
    names = tiny("resmlp").no_weight_decay()
    blocks = {f"blocks.{i}.norm{j}.{part}" for i in (0, 1) for j in (1, 2) for part in ("alpha", "beta")}
    assert names == blocks | {"norm.alpha", "norm.beta"}
    for kind in ("mixer", "gmixer", "gmlp"):
        assert tiny(kind).no_weight_decay() == set()
