"""CrossViT: suitable image sizes, the input of each branch, and the results of two branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tessella.errors import TessellaError, UsageError
from tessella.models import build
from tessella.models.crossvit import CrossViT, CrossViTConfig, branch_sizes, conv_stem, fit_image, scaled_side
from tessella.models.layers import DropPath

from ..golden_rule import fill_golden, golden_input

SMALL: dict[str, Any] = dict(
    embed_dim=(8, 16),
    num_heads=(2, 4),
    depth=((1, 1, 0), (1, 1, 0)),
    mlp_ratio=(2, 2, 1),
    img_size=120,
    num_classes=5,
)


def small(**overrides: Any) -> CrossViT:
    """Two stages of one block per branch on 10x10 and 7x7 patches, with the golden weights."""
    model = CrossViT(CrossViTConfig(**{**SMALL, **overrides}))
    fill_golden(model)
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["crossvit_tiny_240", "crossvit_9_dagger_240"])
def test_float64_forward_is_the_reference(golden_dir: Path, name: str) -> None:
    """In float64, as the golden values were computed: only their rounding to float32 remains."""
    model = build(name)
    fill_golden(model)
    got = model.double()(golden_input(240, 240).double())
    with safe_open(golden_dir / "models.safetensors", "pt") as file:
        reference = file.get_tensor(f"{name}/logits")
    assert (got - reference).abs().max() / reference.std() < 1e-6


# --- image sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        (224, "120 or 240"),
        (256, "240 or 360"),
        (272, "240 or 360"),
        (384, "360 or 480"),
        (8, "120"),
    ],
)
def test_the_error_for_an_unsuitable_size_states_suitable_ones(asked: int, nearest: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError) as caught:
        build("crossvit_9_240", img_size=asked)
    assert caught.value.code == "bad_argument"
    branch = int(asked * 224 / 240)
    assert f"{asked}x{asked} px in 12 px patches and {branch}x{branch} px in 16 px patches" in caught.value.message
    assert f"height {nearest}, width {nearest}" in caught.value.hint


def test_each_side_is_checked_by_itself() -> None:
    with pytest.raises(UsageError) as caught:
        small(img_size=(240, 256))
    assert "240x256 px" in caught.value.message
    assert "height 240, width 240 or 360" in caught.value.hint


@pytest.mark.parametrize("multi_conv", [False, True])
@pytest.mark.parametrize(
    ("img_scale", "working"),
    [
        ((1.0, 224 / 240), {120, 240}),
        ((1.0, 384 / 408), {120, 204}),  # 120: 112.9 px, rounded down
        ((1.0, 1.0), {48, 96, 144, 192, 240}),
        ((0.75, 0.5), {32 * n + odd for n in range(1, 8) for odd in (0, 1)}),  # 33: 24.75 and 16.5 px
    ],
)
def test_every_size_that_is_accepted_works(multi_conv: bool, img_scale: tuple[float, float], working: set[int]) -> None:
    accepted = set()
    for side in range(1, 250):
        size = (side, min(working))
        try:
            model = CrossViT(
                CrossViTConfig(**{**SMALL, "img_size": size, "img_scale": img_scale, "multi_conv": multi_conv})
            )
        except UsageError:
            continue
        accepted.add(side)
        assert model(torch.zeros(1, 3, *size)).shape == (1, 5)
    assert accepted == working


@pytest.mark.parametrize("patch_size", [4, 8, 12, 16])
def test_a_conv_stem_reduces_by_the_patch_size(patch_size: int) -> None:
    embed = conv_stem(patch_size, in_chans=3, width=16)
    for patches in (1, 2, 5):
        assert embed(torch.zeros(1, 3, patches * patch_size, patch_size)).shape == (1, 16, patches, 1)


def test_another_scale_makes_a_size_suitable() -> None:
    model = small(img_size=384, img_scale=(1.0, 352 / 384))
    assert [part.shape[1] for part in model.forward_features(noise(1, 3, 384, 384))] == [1 + 32**2, 1 + 22**2]


def test_scaled_side_rounds_down_but_not_for_a_rounding_error() -> None:
    assert int(49 * (1 / 49)) == 0
    assert [scaled_side(49, 1 / 49), scaled_side(256, 224 / 240), scaled_side(240, 224 / 240)] == [1, 238, 224]
    assert scaled_side(408, 384 / 408) == 384


def test_an_input_of_another_size_is_refused_not_resized() -> None:
    model = small()
    for given in ((112, 112), (120, 240), (240, 240)):
        with pytest.raises(UsageError) as caught:
            model(noise(1, 3, *given))
        assert caught.value.code == "wrong_input_size"
        assert f"{given[0]}x{given[1]}" in caught.value.message
        assert "120x120" in caught.value.message


def test_oblong_images() -> None:
    model = small(img_size=(120, 240))
    features, maps = model.forward_intermediates(noise(2, 3, 120, 240))
    assert [part.shape for part in features] == [(2, 1 + 10 * 20, 8), (2, 1 + 7 * 14, 16)]
    assert [part.shape[1:] for part in maps] == [(8, 10, 20)] * 2 + [(16, 7, 14)] * 2
    features_tall = small(img_size=(240, 120)).forward_features(noise(2, 3, 240, 120))
    assert [part.shape for part in features_tall] == [part.shape for part in features]


# --- what a branch sees -----------------------------------------------------------------------------------------------


def inputs_of_branches(model: CrossViT, images: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    for embed in model.patch_embed:
        embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    return seen


def test_the_second_branch_reads_the_resized_image() -> None:
    """On a linear ramp, away from the border, each pixel has the value of its position within a tenth of a pixel."""
    plane = torch.linspace(-1, 1, 120).expand(1, 3, 120, 120) + torch.linspace(0, 4, 120)[:, None]
    first, second = inputs_of_branches(small(), plane)
    assert torch.equal(first, plane)
    assert second.shape == (1, 3, 112, 112)
    centres = (torch.arange(112) + 0.5) * 120 / 112 - 0.5  # where the new pixels lie among the old
    expected = (centres / 119 * 2 - 1) + (centres / 119 * 4)[:, None]
    assert torch.allclose(second[..., 3:-3, 3:-3], expected[3:-3, 3:-3], atol=0.1 * 6 / 119)


def test_crop_scale_crops_the_centre() -> None:
    images = noise(2, 3, 120, 120)
    first, second = inputs_of_branches(small(crop_scale=True), images)
    assert torch.equal(first, images)
    assert torch.equal(second, images[:, :, 4:116, 4:116])


def test_crop_scale_resizes_images_too_small_to_crop() -> None:
    image = noise(1, 3, 8, 12)
    assert torch.equal(fit_image(image, (8, 12), (4, 16), crop=True), fit_image(image, (8, 12), (4, 16), crop=False))
    assert torch.equal(fit_image(image, (8, 12), (6, 8), crop=True), image[:, :, 1:7, 2:10])


# --- fusion -----------------------------------------------------------------------------------------------------------


def test_one_fusion_in_a_row_is_the_plain_one() -> None:
    images = noise(2, 3, 120, 120)
    plain, row = small(), small(depth=((1, 1, 1), (1, 1, 1)))
    renamed = {}
    for name, value in plain.state_dict().items():
        head, fusion, tail = name.partition("fusion.")
        renamed[f"{head}fusion.{tail[0]}.0{tail[1:]}" if fusion else name] = value
    row.load_state_dict(renamed)
    assert torch.equal(row(images), plain(images))


def test_fusions_follow_each_other_on_the_class_token() -> None:
    model = small(depth=((1, 1, 2), (2, 1, 2)), drop_path_rate=0.5)
    assert model(noise(2, 3, 120, 120)).shape == (2, 5)
    fusion = model.blocks[0].fusion
    assert isinstance(fusion, nn.ModuleList)
    tokens = noise(2, 50, 16)
    assert isinstance(fusion[0], nn.Sequential)
    assert torch.equal(fusion[0](tokens), fusion[0][1](fusion[0][0](tokens)))
    assert fusion[0](tokens).shape == (2, 1, 16)


def test_both_branches_read_each_other_before_the_exchange() -> None:
    """Written out for one stage: the class token of each branch attends to the other's patches and returns."""
    model = small(depth=((1, 1, 0),))
    stage: Any = model.blocks[0]
    xs = [noise(2, 101, 8), noise(2, 50, 16)]
    own = [stage.blocks[b](xs[b]) for b in (0, 1)]
    for b, out in enumerate(stage(xs)):
        guest = stage.projs[b](own[b][:, 0])[:, None]
        met = torch.cat((guest, own[1 - b][:, 1:]), dim=1)
        attn = stage.fusion[b].attn
        normed = stage.fusion[b].norm1(met)
        heads = attn.num_heads
        q, k, v = (
            layer(part).unflatten(-1, (heads, -1))
            for layer, part in ((attn.wq, normed[:, 0]), (attn.wk, normed), (attn.wv, normed))
        )
        scores = torch.einsum("bhd,bnhd->bhn", q, k) / q.shape[-1] ** 0.5
        answer = torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), v).flatten(1)
        back = stage.revert_projs[b](guest[:, 0] + attn.proj(answer))
        assert torch.allclose(out[:, 0], back, atol=1e-5)
        assert torch.equal(out[:, 1:], own[b][:, 1:])


def test_drop_path_grows_over_the_stages() -> None:
    """Blocks of equal number share a rate in both branches; the fusion has its stage's last."""
    with torch.device("meta"):
        model = build("crossvit_9_240", drop_path_rate=0.8)

    def rates(module: nn.Module) -> list[float]:
        return [round(part.rate, 6) for part in module.modules() if isinstance(part, DropPath)]

    stages: Any = model.blocks
    for s, stage in enumerate(stages):
        expected = [round(0.1 * i, 6) for i in range(3 * s, 3 * s + 3)]
        assert rates(stage.blocks[0]) == expected[:1]
        assert rates(stage.blocks[1]) == expected
        assert rates(stage.fusion) == expected[-1:] * 2


# --- two branches, one answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_logits_are_the_mean_of_two_heads(pool: str) -> None:
    model = small(global_pool=pool)
    features = model.forward_features(noise(2, 3, 120, 120))
    embedding = model.forward_head(features, pre_logits=True)
    parts = embedding.split((8, 16), dim=1)
    heads = model.get_classifier()
    assert isinstance(heads, nn.ModuleList)
    expected = (heads[0](parts[0]) + heads[1](parts[1])) / 2
    assert torch.allclose(model.forward_head(features), expected, atol=1e-6)


def test_intermediates_are_ordered_by_branch() -> None:
    model = small()
    images = noise(2, 3, 120, 120)
    after_0: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda _module, _args, output: after_0.extend(output))
    outputs: Any = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(outputs[0], after_0[0][:, 1:])
    assert torch.equal(outputs[2], after_0[1][:, 1:])
    kept = model.prune_intermediate_layers([0, 2])
    assert kept == [0, 1]  # where the two are in the model of one stage
    pruned: Any = model.forward_intermediates(images, indices=kept, output_fmt="NLC", intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(pruned, (outputs[0], outputs[2]), strict=True)] == [True, True]
    assert model.default_out_indices == (0, 1)


def test_published_reductions() -> None:
    with torch.device("meta"):
        infos = build("crossvit_9_240").feature_info, build("crossvit_15_dagger_408").feature_info
    assert [[info["reduction"] for info in part] for part in infos] == [[12, 12, 12, 17, 17, 17]] * 2


# --- another image size -----------------------------------------------------------------------------------------------


def test_resampling_to_the_same_size_changes_nothing() -> None:
    state = small().state_dict()
    resampled = small().resample_state_dict(state, (120, 120))
    assert list(resampled) == list(state)
    assert all(torch.equal(resampled[name], value) for name, value in state.items())


def test_resampled_positions_keep_their_place() -> None:
    source, target = small(), small(img_size=(240, 360))
    state = source.state_dict()
    for b, side in enumerate((10, 7)):
        down_its_rows = torch.linspace(0, 1, side)[:, None].expand(side, side)
        state[f"pos_embed_{b}"][0, 1:] = down_its_rows.reshape(-1, 1)
    resampled = target.resample_state_dict(state, (120, 120))
    target.load_state_dict(resampled)
    for b, (rows, cols) in enumerate(((20, 30), (14, 21))):
        name = f"pos_embed_{b}"
        assert torch.equal(resampled[name][:, :1], state[name][:, :1])  # the class token's is no place
        grid = resampled[name][0, 1:].reshape(rows, cols, -1)
        assert torch.allclose(grid, grid[:, :1, :1].expand_as(grid), atol=1e-6)
        assert (grid[:, 0, 0].diff() > -0.01).all()
        assert grid[-1, 0, 0] > 0.97
    assert target(noise(1, 3, 240, 360)).isfinite().all()


@pytest.mark.parametrize(("size", "code"), [((240, 240), "wrong_shape"), ((128, 128), "bad_argument")])
def test_resampling_from_a_size_other_than_the_weights(size: tuple[int, int], code: str) -> None:
    with pytest.raises(TessellaError) as caught:
        small().resample_state_dict(small().state_dict(), size)
    assert caught.value.code == code


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(embed_dim=(8, 16, 32)), "embed_dim"),
        (dict(patch_size=(12,)), "patch_size"),
        (dict(num_heads=(3, 4)), "num_heads 3"),
        (dict(depth=((1, 1),)), "depth"),
        (dict(depth=((0, 0, 0),)), "depth"),
        (dict(multi_conv=True, patch_size=(6, 16)), "not 6"),
    ],
)
def test_impossible_arguments_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        small(**wrong)
    assert caught.value.code == "bad_argument"
    assert said in caught.value.message


def test_branch_sizes_of_the_published_models() -> None:
    with torch.device("meta"):
        for name, expected in (("crossvit_18_240", [240, 224]), ("crossvit_18_dagger_408", [408, 384])):
            model = build(name)
            assert branch_sizes((expected[0], expected[0]), model.config) == [(side, side) for side in expected]
            assert model.grids == [(expected[0] // 12,) * 2, (expected[1] // 16,) * 2]
