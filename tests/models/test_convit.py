"""ConViT: positions on any grid, the class token, position embeddings for other image sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from tessella.errors import TessellaError
from tessella.models import build
from tessella.models.convit import GPSA, ConViT, ConViTConfig, relative_positions

from ..golden_rule import fill_golden, golden_input

GRIDS = [(3, 3), (2, 5), (4, 16), (1, 1)]


def small(**overrides: Any) -> ConViT:
    """Return a model with two local blocks and a global one on 4x4 patches, with the golden weights."""
    arguments = dict(embed_dim=4, num_heads=4, depth=3, local_up_to_layer=2, patch_size=8, img_size=32, num_classes=5)
    model = ConViT(ConViTConfig(**{**arguments, **overrides}))
    fill_golden(model)
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def brute_force_positions(rows: int, cols: int) -> Tensor:
    patches = [(row, col) for row in range(rows) for col in range(cols)]
    return torch.tensor([[[x - x0, y - y0, (x - x0) ** 2 + (y - y0) ** 2] for y, x in patches] for y0, x0 in patches])


@torch.inference_mode()
def test_float64_forward_is_the_reference(golden_dir: Path) -> None:
    """The golden values were computed in float64, so the only difference is their rounding to float32."""
    model = build("convit_tiny")
    fill_golden(model)
    got = model.double()(golden_input(224, 224).double())
    with safe_open(golden_dir / "models.safetensors", "pt") as file:
        reference = file.get_tensor("convit_tiny/logits")
    assert (got - reference).abs().max() / reference.std() < 1e-6


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
def test_relative_positions_are_those_of_the_grid(grid: tuple[int, int]) -> None:
    table = relative_positions(grid)
    assert torch.equal(table, brute_force_positions(*grid).to(table.dtype))
    model = small(img_size=(8 * grid[0], 8 * grid[1]))
    assert torch.equal(model.rel_pos, table)
    assert "rel_pos" not in model.state_dict()


def test_position_attention_is_the_same_for_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = GPSA.position_attention

    def recorded(self: GPSA, rel_NN3: Tensor) -> Tensor:
        position_HNN = original(self, rel_NN3)
        shapes.append(position_HNN.shape)
        assert torch.allclose(position_HNN.sum(-1), torch.ones(()))
        return position_HNN

    monkeypatch.setattr(GPSA, "position_attention", recorded)
    small()(noise(6, 3, 32, 32))
    assert shapes == [(4, 16, 16)] * 2  # one per local block, without a batch axis


def test_half_precision_keeps_positions_exact() -> None:
    """A 20x20 grid has squared distances up to 722; bfloat16 represents all integers only up to 256."""
    model = small(img_size=160).bfloat16()
    table = brute_force_positions(20, 20)
    assert torch.equal(model.rel_pos, table.to(model.rel_pos.dtype))
    attn = model.blocks[0].attn
    assert isinstance(attn, GPSA)
    scores_HNN = (table.double() @ attn.pos_proj.weight.double().T + attn.pos_proj.bias.double()).permute(2, 0, 1)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            got = attn.position_attention(model.rel_pos)
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), scores_HNN.softmax(-1), atol=1e-5)


@torch.no_grad()
def slow_convit(model: ConViT, image_CHW: Tensor) -> Tensor:
    """Compute the logits of one image from the weights, with loops over patches, heads and pairs."""
    cfg, w = model.config, model.state_dict()
    heads, patch, width = cfg.num_heads, cfg.patch_size, cfg.embed_dim * cfg.num_heads
    rows, cols = image_CHW.shape[1] // patch, image_CHW.shape[2] // patch
    places = [(row, col) for row in range(rows) for col in range(cols)]
    pixels = [image_CHW[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].flatten() for r, c in places]
    x = torch.stack(pixels) @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = x + w["pos_embed"][0]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    for i in range(cfg.depth):
        if i == cfg.local_up_to_layer:
            x = torch.cat((w["cls_token"][0], x))
        local, block = i < cfg.local_up_to_layer, f"blocks.{i}"
        n = norm(f"{block}.norm1", x)
        if local:
            q, k = linear(f"{block}.attn.qk", n).chunk(2, -1)
            v = linear(f"{block}.attn.v", n)
        else:
            q, k, v = linear(f"{block}.attn.qkv", n).chunk(3, -1)
        out = []
        for h in range(heads):
            part = slice(h * cfg.embed_dim, (h + 1) * cfg.embed_dim)
            attention = (q[:, part] @ k[:, part].T / math.sqrt(cfg.embed_dim)).softmax(-1)
            if local:
                wx, wy, wd = w[f"{block}.attn.pos_proj.weight"][h].tolist()
                position = torch.empty(len(places), len(places))
                for a, (row, col) in enumerate(places):
                    for b, (row2, col2) in enumerate(places):
                        dx, dy = col2 - col, row2 - row
                        position[a, b] = wx * dx + wy * dy + wd * (dx * dx + dy * dy)
                gate = w[f"{block}.attn.gating_param"][h].sigmoid()
                attention = (1 - gate) * attention + gate * position.softmax(-1)
            out.append(attention @ v[:, part])
        x = x + linear(f"{block}.attn.proj", torch.cat(out, -1))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    return linear("head", norm("norm", x)[0])


@pytest.mark.parametrize("img_size", [(32, 128), (40, 24), (32, 32)])
def test_any_grid_is_the_plain_computation(img_size: tuple[int, int]) -> None:
    """32x128 px is 4x16 = 64 patches, a square number: a grid derived from sqrt(N) would be wrong without an error."""
    model = small(img_size=img_size)
    images = noise(2, 3, *img_size)
    expected = torch.stack([slow_convit(model, image) for image in images])
    assert torch.allclose(model(images), expected, atol=1e-5)


def test_positions_differ_between_wide_and_tall_grids() -> None:
    wide, tall = small(img_size=(32, 128), use_pos_embed=False), small(img_size=(128, 32), use_pos_embed=False)
    tall.load_state_dict(wide.state_dict())
    assert "pos_embed" not in wide.state_dict()
    image = noise(1, 3, 32, 128)
    assert not torch.allclose(wide(image), tall(image.mT), atol=1e-3)


# --- a new model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_local_init_makes_each_head_attend_to_its_neighbour(strength: float) -> None:
    attn = GPSA(ConViTConfig(embed_dim=3, num_heads=4))
    attn.local_init(strength)
    expected = strength * torch.tensor([[-1, -1, -1], [-1, 1, -1], [1, -1, -1], [1, 1, -1]])
    assert torch.equal(attn.pos_proj.weight, expected)
    assert torch.equal(attn.v.weight, torch.eye(12))
    assert torch.equal(attn.gating_param, torch.ones(4))


def test_local_init_of_nine_heads_peaks_on_the_3x3_neighbourhood() -> None:
    model = ConViT(ConViTConfig(embed_dim=4, num_heads=9, depth=1, patch_size=8, img_size=40))
    attn = model.blocks[0].attn
    assert isinstance(attn, GPSA)
    centre_HN = attn.position_attention(model.rel_pos)[:, 12]  # from the middle of the 5x5 grid
    neighbours = {(row, col) for row in (1, 2, 3) for col in (1, 2, 3)}
    assert {divmod(int(place), 5) for place in centre_HN.argmax(-1)} == neighbours


def test_local_init_does_not_change_heads_beyond_the_square() -> None:
    attn = GPSA(ConViTConfig(embed_dim=3, num_heads=5))
    before = attn.pos_proj.weight[4].clone()
    attn.local_init(1.0)
    assert torch.equal(attn.pos_proj.weight[4], before)


# --- the class token --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local_up_to_layer", [3, 99])
def test_the_class_token_is_added_even_without_a_global_block(local_up_to_layer: int) -> None:
    images = noise(2, 3, 32, 32)
    model = small(local_up_to_layer=local_up_to_layer, global_pool="avg")
    features, intermediates = model.forward_intermediates(images, norm=True, output_fmt="NLC")
    assert isinstance(features, Tensor)
    assert features.shape == (2, 17, 16)
    assert torch.equal(features, model.forward_features(images))
    assert torch.equal(features[:, 1:], intermediates[-1])
    assert torch.equal(
        model(images), model.head(intermediates[-1].mean(1))
    )  # all 16 patches, none of them is treated as the token
    model.reset_classifier(0, "token")
    assert torch.equal(model(images), model.norm(model.cls_token)[0].expand(2, -1))


def test_a_negative_number_of_local_blocks_is_refused() -> None:
    with pytest.raises(TessellaError) as caught:
        small(local_up_to_layer=-1)
    assert caught.value.code == "bad_argument"


def test_every_block_can_be_global() -> None:
    images = noise(2, 3, 32, 32)
    model = small(local_up_to_layer=0)
    assert not any(isinstance(module, GPSA) for module in model.modules())
    features, intermediates = model.forward_intermediates(images, norm=True, output_fmt="NLC")
    assert torch.equal(features[:, 1:], intermediates[-1])
    assert [part.shape for part in intermediates] == [(2, 16, 16)] * 3


@pytest.mark.parametrize("prune_head", [True, False])
def test_pruning_to_local_blocks(prune_head: bool) -> None:
    images = noise(2, 3, 32, 32)
    model = small(global_pool="avg")
    expected = model.forward_intermediates(images, indices=[0], norm=True, output_fmt="NLC", intermediates_only=True)[0]
    model.prune_intermediate_layers([0], prune_head=prune_head)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    if prune_head:  # the class token is not read: a parameter without gradient would stop distributed training
        assert torch.equal(pooled, expected)
        model(images).square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        with pytest.raises(TessellaError) as caught:
            model.reset_classifier(5, "token")
        assert caught.value.code == "bad_argument"
        model.reset_classifier(5, "avg")
        assert torch.equal(model.forward_head(expected, pre_logits=True), expected.mean(1))
    else:
        assert torch.equal(pooled, expected.mean(1))


# --- another image size -----------------------------------------------------------------------------------------------


def test_resampling_to_the_same_size_changes_nothing() -> None:
    state = small().state_dict()
    resampled = small().resample_state_dict(state, (32, 32))
    assert list(resampled) == list(state)
    assert all(torch.equal(resampled[name], value) for name, value in state.items())


def test_resampled_positions_keep_their_location() -> None:
    """A ramp along the columns stays a ramp with the same ends: the embedding is resampled as a row-major image."""
    source, target = small(img_size=(32, 64)), small(img_size=(64, 128))
    state = source.state_dict()
    ramp_4x8 = torch.linspace(0, 1, 8).expand(4, 8)
    state["pos_embed"] = ramp_4x8.reshape(1, 32, 1).repeat(1, 1, 16)
    resampled = target.resample_state_dict(state, (32, 64))
    target.load_state_dict(resampled)
    got_8x16 = resampled["pos_embed"].reshape(8, 16, 16)
    assert torch.allclose(got_8x16, got_8x16[:1, :, :1].expand(8, 16, 16), atol=1e-6)
    inner = got_8x16[0, 4:-4, 0]  # away from the edges, the new positions are between the old ones
    assert torch.allclose(inner.diff(), torch.full((7,), 1 / 14), atol=1e-3)
    assert target(noise(1, 3, 64, 128)).isfinite().all()
    back = source.resample_state_dict(resampled, (64, 128))
    assert torch.allclose(back["pos_embed"], state["pos_embed"], atol=0.05)


@pytest.mark.parametrize(("size", "code"), [((48, 48), "wrong_shape"), ((30, 32), "bad_argument")])
def test_resampling_from_a_size_other_than_the_weights(size: tuple[int, int], code: str) -> None:
    with pytest.raises(TessellaError) as caught:
        small().resample_state_dict(small().state_dict(), size)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["convit_tiny", "convit_small", "convit_base"])
def test_shapes_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = build(name, img_size=(192, 256))
        assert model(torch.empty(2, 3, 192, 256)).shape == (2, 1000)
