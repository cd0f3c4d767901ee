"""Tests of the shared layers against other computations of the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tessella.errors import UsageError, WeightsError
from tessella.models.layers import (
    Attention,
    DropPath,
    Mlp,
    PatchEmbed,
    PreNormBlock,
    at_least_float32,
    check_image_size,
    linear_rates,
    new_head,
    pick_blocks,
    resample_tokens,
    to_grid,
    to_pair,
    tokens_to_map,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_to_pair() -> None:
    assert to_pair(224) == (224, 224)
    assert to_pair([224, 320]) == (224, 320)


@pytest.mark.parametrize("size", [0, -1, (224,), (1, 2, 3), (224, 0), (224.0, 224), []])
def test_to_pair_refuses(size: Any) -> None:
    with pytest.raises(UsageError) as caught:
        to_pair(size, "img_size")
    assert caught.value.code == "bad_argument"
    assert repr(size) in caught.value.message


def test_to_grid() -> None:
    assert to_grid((64, 96), 16) == (4, 6)
    for size in ((65, 96), (64, 97)):
        with pytest.raises(UsageError) as caught:
            to_grid(size, 16, "source")
        assert f"source {size[0]}x{size[1]}" in caught.value.message


def test_patch_embed_is_a_linear_layer_on_each_patch() -> None:
    embed: Any = PatchEmbed((8, 12), 4, 3, 5, norm=nn.LayerNorm(5))
    x = noise(2, 3, 8, 12)
    patches = torch.stack([x[:, :, r : r + 4, c : c + 4].flatten(1) for r in (0, 4) for c in (0, 4, 8)], dim=1)
    expected = embed.norm(patches @ embed.proj.weight.flatten(1).T + embed.proj.bias)
    assert embed.grid == (2, 3)
    assert embed.num_patches == 6
    assert torch.allclose(embed(x), expected, atol=1e-6)


def test_the_image_size_error_states_both_sizes() -> None:
    check_image_size(noise(1, 3, 8, 12), (8, 12))
    with pytest.raises(UsageError) as caught:
        check_image_size(noise(1, 3, 12, 8), (8, 12))
    assert caught.value.code == "wrong_input_size"
    assert "12x8" in caught.value.message
    assert "8x12" in caught.value.message
    assert "img_size=(12, 8)" in caught.value.hint


def test_mlp() -> None:
    mlp = Mlp(3, 7, act=nn.ReLU)
    x = noise(2, 5, 3)
    hidden = (x @ mlp.fc1.weight.T + mlp.fc1.bias).clamp(min=0)
    assert torch.allclose(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias, atol=1e-6)


def test_attention_is_the_formula() -> None:
    attention = Attention(12, 3, qkv_bias=True)
    x = noise(2, 5, 12)
    q, k, v = (attention.qkv.weight @ x.mT + attention.qkv.bias[:, None]).mT.chunk(3, dim=-1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        heads.append((q[..., part] @ k[..., part].mT / 2).softmax(-1) @ v[..., part])  # 2 is the root of the head width
    expected = torch.cat(heads, -1) @ attention.proj.weight.T + attention.proj.bias
    assert torch.allclose(attention(x), expected, atol=1e-6)


def test_pre_norm_block() -> None:
    block = PreNormBlock(Attention(8, 2), 8, mlp_ratio=2.0)
    assert block.mlp.fc1.out_features == 16
    x = noise(2, 3, 8)
    middle = x + block.attn(block.norm1(x))
    assert torch.equal(block(x), middle + block.mlp(block.norm2(middle)))


def test_drop_path_keeps_whole_samples_and_their_expectation() -> None:
    drop = DropPath(0.25).train()
    torch.manual_seed(0)
    out = drop(torch.ones(4000, 2, 3))
    values = out.flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))
    assert set(values[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(out.mean().item() - 1) < 0.03  # four standard deviations of 4000 draws
    x = noise(4, 3)
    assert drop.eval()(x) is x
    assert DropPath(0.0).train()(x) is x
    assert "0.25" in repr(drop)
    assert torch.equal(DropPath(1.0).train()(x), torch.zeros(4, 3))


def test_linear_rates() -> None:
    assert linear_rates(0.5, 3) == [0.0, 0.25, 0.5]
    assert linear_rates(0.5, 1) == [0.0]


def test_pick_blocks() -> None:
    assert pick_blocks(4, None) == [0, 1, 2, 3]
    assert pick_blocks(4, 2) == [2, 3]
    assert pick_blocks(4, [0, -1]) == [0, 3]
    assert pick_blocks(4, np.int64(2)) == [2, 3]  # type: ignore[arg-type]
    assert pick_blocks(4, np.array([0, -1])) == [0, 3]  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", [0, 5, -1, [4], [-5], []])
def test_pick_blocks_refuses(indices: Any) -> None:
    with pytest.raises(UsageError) as caught:
        pick_blocks(4, indices)
    assert repr(indices) in caught.value.message
    assert "4 blocks" in caught.value.message


def test_tokens_to_map_is_row_major() -> None:
    tokens = torch.arange(6.0).reshape(1, 6, 1)
    assert tokens_to_map(tokens, (2, 3)).tolist() == [[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]]


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(("source", "target"), [((10, 12), (14, 20)), ((14, 20), (10, 12)), ((10, 14), (14, 10))])
def test_resampling_preserves_a_smooth_signal(dim: int, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Resample linear functions of the position: enlarging is exact away from the border.

    Shrinking averages, and its discrete kernel is off by up to a tenth of a patch's step.
    """
    tolerance = 1e-4 if source < target and source[1] < target[1] else 0.02

    def planes(grid: tuple[int, int]) -> torch.Tensor:
        y, x = ((torch.arange(n) + 0.5) / n for n in grid)
        slopes = noise(2, 3, 5).unsqueeze(-1).unsqueeze(-1)
        return (slopes[0] * y[:, None] + slopes[1] * x + 1).flatten(2)  # (3, 5, rows * cols)

    out = resample_tokens(planes(source).movedim(-1, dim), dim, source, target)
    assert out.is_contiguous()
    got, expected = (value.unflatten(-1, target) for value in (out.movedim(dim, -1), planes(target)))
    assert torch.allclose(got[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], atol=tolerance)


def test_resampling_keeps_a_constant_to_the_border() -> None:
    for target in ((3, 4), (9, 7)):
        assert torch.allclose(resample_tokens(torch.full((30,), 7.0), 0, (5, 6), target), torch.tensor(7.0))


def test_resampling_to_the_same_grid_changes_nothing() -> None:
    weight = noise(3, 24)
    assert resample_tokens(weight, 1, (4, 6), (4, 6)) is weight


def test_resampling_distinguishes_rows_and_columns() -> None:
    ramp = torch.arange(4.0).repeat_interleave(3)  # rises along the rows of a 4x3 grid
    out = resample_tokens(ramp, 0, (4, 3), (8, 3)).reshape(8, 3)
    assert torch.allclose(out, out[:, :1].expand(8, 3), atol=1e-6)
    assert (out[1:, 0] > out[:-1, 0]).all()


def test_resampling_keeps_the_type() -> None:
    out = resample_tokens(noise(24, 2).bfloat16(), 0, (4, 6), (2, 3))
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous()


@pytest.mark.parametrize(("shape", "dim"), [((25, 2), 0), ((24,), 1), ((), 0)])
def test_resampling_refuses_another_length(shape: tuple[int, ...], dim: int) -> None:
    with pytest.raises(WeightsError) as caught:
        resample_tokens(torch.zeros(shape), dim, (4, 6), (2, 3))
    assert caught.value.code == "wrong_shape"
    assert str(shape) in caught.value.message
    assert "4x6" in caught.value.message


def test_new_head_has_the_device_and_dtype_of_its_model() -> None:
    head = new_head(4, 3, like=torch.zeros(1, dtype=torch.bfloat16, device="meta"), training=False)
    assert isinstance(head, nn.Linear)
    assert (head.weight.dtype, head.weight.device.type) == (torch.bfloat16, "meta")
    assert not head.training
    assert isinstance(new_head(4, 0, like=torch.zeros(1), training=True), nn.Identity)


def test_at_least_float32() -> None:
    kept = {dtype: at_least_float32(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    assert list(kept.values()) == [torch.float32, torch.float32, torch.float32, torch.float64]
