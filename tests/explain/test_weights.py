"""The arrays of weights and attention, against known answers on models whose weights are constructed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import tessella
from tessella.errors import UsageError
from tessella.explain.attention_weights import patch_distances, recorded_inputs
from tessella.explain.weights import (
    convit_attention,
    convit_content_attention,
    convit_gates,
    convit_position_attention,
    crossvit_attention,
    depthwise_kernels,
    non_locality,
    pair_opposites,
    patch_filters,
    sort_by_frequency,
    sparsity,
    spatial_frequency,
    token_mixing,
)
from tessella.models.base import ImageModel
from tessella.models.convit import GPSA, ConViT, ConViTConfig
from tessella.models.convmixer import ConvMixer, ConvMixerConfig
from tessella.models.crossvit import CrossAttention, CrossViT, CrossViTConfig, MultiScaleBlock
from tessella.models.layers import Attention
from tessella.models.mixer import MixerConfig, MlpMixer

GRID = (5, 6)  # not square, so that rows and columns cannot be exchanged without notice


def new_convit(heads: int = 9, blocks: int = 3, local: int = 2, strength: float = 1.0) -> ConViT:
    torch.manual_seed(0)
    return ConViT(
        ConViTConfig(
            embed_dim=4,
            num_heads=heads,
            depth=blocks,
            local_up_to_layer=local,
            locality_strength=strength,
            patch_size=4,
            img_size=(4 * GRID[0], 4 * GRID[1]),
            num_classes=3,
        )
    ).eval()


def image(height: int = 4 * GRID[0], width: int = 4 * GRID[1]) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def gated_layers(model: ConViT) -> list[GPSA]:
    return [module for module in model.modules() if isinstance(module, GPSA)]


# --- ConViT -----------------------------------------------------------------------------------------------------------


def test_gates_are_the_sigmoid_of_the_parameters() -> None:
    model = new_convit(heads=4)
    parameters = [[-math.log(3), 0, math.log(3), 40], [1, 1, 1, 1]]
    for layer, values in zip(gated_layers(model), parameters, strict=True):
        layer.gating_param.data = torch.tensor(values, dtype=torch.float32)
    assert np.allclose(convit_gates(model), [[0.25, 0.5, 0.75, 1], [1 / (1 + math.exp(-1))] * 4], atol=1e-7)


def test_a_model_without_gates_has_arrays_of_length_zero() -> None:
    model = new_convit(heads=4, local=0)
    assert convit_gates(model).shape == (0, 4)
    assert convit_position_attention(model).shape == (0, 4, 30, 30)
    assert convit_content_attention(model, image()).shape == (0, 4, 30, 30)
    assert [attention.shape for attention in convit_attention(model, image())] == [(4, 31, 31)] * 3


def test_a_sharp_convolutional_start_attends_to_one_neighbor_per_head() -> None:
    attention = convit_position_attention(new_convit(strength=60)).reshape(2, 9, *GRID, *GRID)
    for head in range(9):
        # equation 5 of the paper: the first coordinate of a head's center is along x
        dx, dy = head // 3 - 1, head % 3 - 1
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                # beyond the border, the nearest patch is the one inside
                target = min(max(row + dy, 0), GRID[0] - 1), min(max(column + dx, 0), GRID[1] - 1)
                assert attention[:, head, row, column, target[0], target[1]] == pytest.approx([1, 1], abs=1e-6)


def test_non_locality_of_a_sharp_convolutional_start() -> None:
    rows, columns = GRID
    found = non_locality(convit_position_attention(new_convit(strength=60)), GRID)
    along_x, along_y = (columns - 1) / columns, (rows - 1) / rows  # distance 1, except at one border
    both = along_x * along_y * math.sqrt(2) + along_x * (1 - along_y) + along_y * (1 - along_x)
    expected = [both, along_x, both, along_y, 0, along_y, both, along_x, both]
    assert found.shape == (2, 9)
    assert np.allclose(found, [expected, expected], atol=1e-5)


def test_position_attention_is_a_gaussian_for_any_strength() -> None:
    attention = convit_position_attention(new_convit(strength=0.3))[0].reshape(9, *GRID, *GRID)
    y, x = np.indices(GRID)
    row, column, head = 2, 3, 5  # the center of head 5 is at dx 0, dy 1
    expected = np.exp(-0.3 * ((y - row - 1) ** 2 + (x - column) ** 2))
    assert np.allclose(attention[head, row, column], expected / expected.sum(), atol=1e-6)


def test_uniform_attention_by_content() -> None:
    model = new_convit()
    for layer in gated_layers(model):
        layer.qk.weight.data.zero_()
    attention = convit_content_attention(model, image())
    assert attention.shape == (2, 9, 30, 30)
    assert np.allclose(attention, 1 / 30)
    distances = [
        math.dist((a // GRID[1], a % GRID[1]), (b // GRID[1], b % GRID[1])) for a in range(30) for b in range(30)
    ]
    assert np.allclose(non_locality(attention, GRID), np.mean(distances), atol=1e-5)


@pytest.mark.parametrize("local", [0, 2, 3])
def test_the_attention_of_convit_gives_the_outputs_of_its_layers(local: int) -> None:
    model = new_convit(local=local)
    with torch.no_grad():
        for gated in gated_layers(model):
            gated.gating_param.uniform_(-1, 1)
            gated.qk.weight.normal_()
    layers = [module for module in model.blocks.modules() if isinstance(module, GPSA | Attention)]
    inputs = recorded_inputs(model, image(), layers)
    for layer, x_1TD, attention_HTT in zip(layers, inputs, convit_attention(model, image()), strict=True):
        values = layer.v(x_1TD) if isinstance(layer, GPSA) else layer.qkv(x_1TD).chunk(3, dim=-1)[2]
        v_HTd = values[0].unflatten(-1, (layer.num_heads, -1)).transpose(0, 1)
        mixed = (torch.from_numpy(attention_HTT) @ v_HTd).transpose(0, 1).flatten(1)
        expected = layer(x_1TD, model.rel_pos) if isinstance(layer, GPSA) else layer(x_1TD)
        assert torch.allclose(layer.proj(mixed), expected[0], atol=1e-5)


def test_the_blend_lies_between_position_and_content() -> None:
    model = new_convit()
    for layer in gated_layers(model):
        layer.gating_param.data.fill_(math.log(3))  # three quarters by position
    blend = np.stack(convit_attention(model, image())[:2])
    position, content = convit_position_attention(model), convit_content_attention(model, image())
    assert np.allclose(blend, 0.75 * position + 0.25 * content, atol=1e-6)


# --- non-locality -----------------------------------------------------------------------------------------------------


def test_distances_are_in_patches() -> None:
    distances = patch_distances((2, 3))
    assert distances[0].tolist() == pytest.approx([0, 1, 2, 1, math.sqrt(2), math.sqrt(5)])
    assert np.array_equal(distances, distances.T)


def test_attention_of_every_patch_to_itself_is_local() -> None:
    assert non_locality(np.eye(30, dtype=np.float32), GRID) == 0


def test_attention_to_one_patch() -> None:
    attention = np.zeros((30, 30), np.float32)
    attention[:, 0] = 1
    expected = np.mean([math.hypot(row, column) for row in range(5) for column in range(6)])
    assert non_locality(attention, GRID) == pytest.approx(expected)


def test_the_class_token_does_not_count() -> None:
    patches = np.random.default_rng(0).dirichlet(np.ones(30), size=(2, 30)).astype(np.float32)
    tokens = np.zeros((2, 31, 31), np.float32)
    tokens[:, 0, 0] = 1
    tokens[:, 1:, 1:] = 0.4 * patches
    tokens[:, 1:, 0] = 0.6
    assert np.allclose(non_locality(tokens, GRID), non_locality(patches, GRID), atol=1e-6)


def test_a_query_that_reads_the_class_token_only_does_not_count() -> None:
    tokens = np.zeros((5, 5), np.float32)
    tokens[:, 0] = 1
    assert non_locality(tokens, (2, 2)) == 0
    tokens[1] = [0, 0, 1, 0, 0]  # the first patch attends to its neighbor
    assert non_locality(tokens, (2, 2)) == 1


@pytest.mark.parametrize("shape", [(30,), (30, 31), (29, 29), (2, 32, 32)])
def test_attention_that_does_not_fit_the_grid(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="5x6"):
        non_locality(np.zeros(shape, np.float32), GRID)


# --- CrossViT ---------------------------------------------------------------------------------------------------------

GRIDS = ((4, 6), (2, 3))


def new_crossvit(fusions: int = 0) -> CrossViT:
    torch.manual_seed(0)
    return CrossViT(
        CrossViTConfig(
            embed_dim=(8, 12),
            depth=((1, 2, fusions), (2, 1, fusions)),
            num_heads=(2, 3),
            mlp_ratio=(1, 1, 1),
            patch_size=(4, 8),
            img_size=(16, 24),
            img_scale=(1.0, 1.0),
            num_classes=3,
        )
    ).eval()


def test_attention_of_crossvit_has_the_tokens_of_each_branch() -> None:
    stages = crossvit_attention(new_crossvit(), image(16, 24))
    assert [[[a.shape for a in branch] for branch in stage.branches] for stage in stages] == [
        [[(2, 25, 25)], [(3, 7, 7)] * 2],
        [[(2, 25, 25)] * 2, [(3, 7, 7)]],
    ]
    # the class token of branch 0 reads the 6 large patches, that of branch 1 the 24 small ones
    assert [[[a.shape for a in fusion] for fusion in stage.fusions] for stage in stages] == [
        [[(3, 7)], [(2, 25)]],
        [[(3, 7)], [(2, 25)]],
    ]
    arrays = [a for stage in stages for part in (*stage.branches, *stage.fusions) for a in part]
    assert all(np.allclose(a.sum(-1), 1, atol=1e-5) for a in arrays)


def test_later_fusions_see_the_class_token_only() -> None:
    (stage, _) = crossvit_attention(new_crossvit(fusions=2), image(16, 24))
    assert [a.shape for a in stage.fusions[0]] == [(3, 7), (3, 1)]
    assert [a.shape for a in stage.fusions[1]] == [(2, 25), (2, 1)]


@pytest.mark.parametrize("branch", [0, 1])
def test_a_fusion_whose_keys_prefer_one_patch(branch: int) -> None:
    """Keys are made equal to the norm's output for one patch, which is then far more similar to the query."""
    model, x = new_crossvit(), image(16, 24)
    other = 1 - branch
    layer = model.get_submodule(f"blocks.0.fusion.{branch}.attn")
    assert isinstance(layer, CrossAttention)
    (tokens_1TD,) = recorded_inputs(model, x, [layer])
    wanted = 3  # a patch of the other branch
    width = tokens_1TD.shape[-1]
    with torch.no_grad():
        # a key's entries all are the similarity to the wanted patch; the query is constant and positive
        direction = tokens_1TD[0, 1 + wanted] / tokens_1TD[0, 1 + wanted].norm()
        layer.wk.weight.copy_(direction.expand(width, width))
        layer.wk.bias.zero_()
        layer.wq.weight.zero_()
        layer.wq.bias.fill_(100.0)
    (attention,) = crossvit_attention(model, x)[0].fusions[branch]
    assert attention.shape == (model.config.num_heads[other], 1 + math.prod(GRIDS[other]))
    assert np.allclose(attention[:, 1 + wanted], 1, atol=1e-4)


def test_a_fusion_with_constant_keys_is_uniform() -> None:
    model = new_crossvit()
    model.get_parameter("blocks.1.fusion.0.attn.wk.weight").data.zero_()
    assert np.allclose(crossvit_attention(model, image(16, 24))[1].fusions[0][0], 1 / 7)


def test_the_attention_of_a_fusion_gives_the_output_of_its_layer() -> None:
    model, x = new_crossvit(), image(16, 24)
    for stage, maps in zip(model.blocks, crossvit_attention(model, x), strict=True):
        assert isinstance(stage, MultiScaleBlock)
        for fusion, (attention_HT,) in zip(stage.fusion, maps.fusions, strict=True):
            layer = fusion.attn
            assert isinstance(layer, CrossAttention)
            (x_1TD,) = recorded_inputs(model, x, [layer])
            v_HTd = layer.wv(x_1TD)[0].unflatten(-1, (layer.num_heads, -1)).transpose(0, 1)
            mixed = (torch.from_numpy(attention_HT)[:, None] @ v_HTd).transpose(0, 1).flatten(1)
            assert torch.allclose(layer.proj(mixed), layer(x_1TD)[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (3, 16, 24)])
def test_attention_is_of_one_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="one image"):
        crossvit_attention(new_crossvit(), torch.zeros(shape))


def test_no_hook_remains() -> None:
    model = new_crossvit()
    crossvit_attention(model, image(16, 24))
    with pytest.raises(UsageError, match="px"):  # nor after a failure
        crossvit_attention(model, image(8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())


# --- mixing across patches --------------------------------------------------------------------------------------------

MIXING = {  # kind: (weight that reads patches, number of its outputs)
    "mixer": ("blocks.{}.mlp_tokens.fc1.weight", 8),
    "gmixer": ("blocks.{}.mlp_tokens.fc1.weight", 8),
    "resmlp": ("blocks.{}.linear_tokens.weight", 30),
    "gmlp": ("blocks.{}.mlp_channels.gate.proj.weight", 30),
}


def new_mixer(kind: str) -> MlpMixer:
    torch.manual_seed(0)
    size = (4 * GRID[0], 4 * GRID[1])
    ratio = (0.5, 2.0) if kind in ("mixer", "gmixer") else 2.0
    config = MixerConfig(kind=kind, embed_dim=16, num_blocks=2, patch_size=4, img_size=size, mlp_ratio=ratio)
    return MlpMixer(config).eval()


@pytest.mark.parametrize("kind", MIXING)
def test_token_mixing_returns_the_weights_over_the_grid(kind: str) -> None:
    model = new_mixer(kind)
    template, outputs = MIXING[kind]
    for i, mixing in enumerate(token_mixing(model)):
        assert mixing.name == template.format(i)
        parameter = model.get_parameter(mixing.name).detach().numpy()
        assert mixing.weights.shape == (outputs, 30)
        assert np.array_equal(mixing.weights, parameter)
        # patch 15 is in row 2, column 3 of a grid of 5 x 6
        assert np.array_equal(mixing.grids[:, 2, 3], parameter[:, 15])
        assert mixing.by_position is (outputs == 30)
        assert mixing.gates == (4 if kind == "gmixer" else 0)


@pytest.mark.parametrize("kind", ["resmlp", "gmlp"])
def test_a_shift_reads_the_neighbor(kind: str) -> None:
    model = new_mixer(kind)
    name = MIXING[kind][0].format(1)
    model.get_parameter(name).data = torch.eye(30).roll(1, dims=1)  # output i reads patch i + 1
    grids = token_mixing(model)[1].grids.reshape(*GRID, *GRID)
    assert grids[2, 3, 2, 4] == 1  # from the right
    assert grids[2, 5, 3, 0] == 1  # from the start of the next row
    assert np.count_nonzero(grids) == 30


def test_output_grids_are_where_hidden_units_write() -> None:
    model = new_mixer("mixer")
    weight = model.get_parameter("blocks.0.mlp_tokens.fc2.weight").data.zero_()
    weight[15, 7] = 2.5  # hidden unit 7 writes to patch 15
    output_grids = token_mixing(model)[0].output_grids
    assert output_grids is not None
    assert output_grids.shape == (8, *GRID)
    assert output_grids[7, 2, 3] == 2.5
    assert np.count_nonzero(output_grids) == 1


def cosine(u: int, v: int, rows: int = GRID[0], columns: int = GRID[1]) -> np.ndarray:
    y, x = np.indices((rows, columns))
    return np.cos(np.pi * u * (y + 0.5) / rows) * np.cos(np.pi * v * (x + 0.5) / columns)


def test_a_cosine_basis_is_sorted_by_frequency() -> None:
    waves = [(u, v) for u in range(GRID[0]) for v in range(GRID[1])]
    frequencies = [math.hypot(u / (2 * GRID[0]), v / (2 * GRID[1])) for u, v in waves]
    model = new_mixer("resmlp")
    order = np.random.default_rng(0).permutation(30)
    basis = np.stack([cosine(*waves[i]) for i in order]).astype(np.float32)
    model.get_parameter("blocks.0.linear_tokens.weight").data = torch.from_numpy(basis.reshape(30, 30))
    grids = token_mixing(model)[0].grids
    assert np.allclose(spatial_frequency(grids), np.array(frequencies)[order], atol=1e-5)
    recovered = np.array(frequencies)[order[sort_by_frequency(grids)]]
    assert (np.diff(recovered) > -1e-6).all()  # some frequencies are equal: those of (5, 0) and (0, 6)


def test_frequency_ignores_sign_and_scale() -> None:
    grids = np.random.default_rng(0).normal(size=(3, *GRID)).astype(np.float32)
    assert np.allclose(spatial_frequency(-7 * grids), spatial_frequency(grids), atol=1e-6)


def test_frequency_of_a_mixture_is_weighted_by_power() -> None:
    slow, fast = cosine(1, 0), cosine(0, 5)
    # the power of the fast wave is 9 times that of the slow one
    mixture = slow / np.linalg.norm(slow) + 3 * fast / np.linalg.norm(fast)
    assert spatial_frequency(mixture[None].astype(np.float32))[0] == pytest.approx((0.1 + 9 * 5 / 12) / 10, abs=1e-6)


def test_zeros_and_constants_have_frequency_zero() -> None:
    grids = np.stack([np.zeros(GRID), np.ones(GRID)]).astype(np.float32)
    assert spatial_frequency(grids) == pytest.approx([0, 0], abs=1e-12)


def test_opposite_grids_are_paired_and_sorted() -> None:
    waves = [cosine(0, 1), cosine(3, 0), cosine(2, 2), cosine(1, 0)]
    grids = np.stack([*waves, *(-wave for wave in waves)]).astype(np.float32)
    pairs = pair_opposites(grids)
    assert [set(pair) for pair in pairs.tolist()] == [{0, 4}, {3, 7}, {2, 6}, {1, 5}]


def test_of_an_odd_number_one_grid_is_left_over() -> None:
    wave = cosine(0, 1)
    pairs = pair_opposites(np.stack([wave, cosine(2, 0), -wave]).astype(np.float32))
    assert pairs.tolist() == [[0, 2]]
    assert pair_opposites(wave[None].astype(np.float32)).shape == (0, 2)


def test_sparsity_of_a_matrix_with_known_zeros() -> None:
    weights = np.zeros((10, 10), np.float32)
    weights[0, :4] = [2, -2, 0.101, -0.099]  # the threshold is 5 % of 2
    assert sparsity(weights) == pytest.approx(0.97)
    assert sparsity(weights, threshold=0.04) == pytest.approx(0.96)
    assert sparsity(np.zeros((3, 3), np.float32)) == 1
    assert sparsity(np.ones((3, 3), np.float32)) == 0


# --- filters and kernels ----------------------------------------------------------------------------------------------


def new_convmixer() -> ConvMixer:
    return ConvMixer(ConvMixerConfig(dim=6, depth=2, kernel_size=5, patch_size=4, num_classes=3)).eval()


def test_depthwise_kernels_are_those_of_the_blocks() -> None:
    model = new_convmixer()
    delta = torch.zeros(6, 1, 5, 5)
    delta[:, :, 2, 3] = torch.arange(6.0)[:, None]
    model.get_parameter("blocks.1.0.fn.0.weight").data = delta
    kernels = depthwise_kernels(model)
    assert kernels.shape == (2, 6, 5, 5)
    assert kernels[1, :, 2, 3].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.count_nonzero(kernels[1]) == 5
    assert np.array_equal(kernels[0], model.get_parameter("blocks.0.0.fn.0.weight").detach().numpy()[:, 0])


def test_a_delta_kernel_copies_the_neighbor() -> None:
    model = new_convmixer()
    layer = model.get_submodule("blocks.0.0.fn.0")
    with torch.no_grad():
        layer.get_parameter("weight").zero_()[:, :, 2, 3] = 1
        layer.get_parameter("bias").zero_()
    x = torch.randn(1, 6, 7, 8)
    dy, dx = (int(offset[0]) - 2 for offset in np.nonzero(depthwise_kernels(model)[0, 0]))
    assert (dy, dx) == (0, 1)
    assert torch.allclose(layer(x)[..., :-1], x[..., 1:])  # column 3 of a kernel of 5 reads the right neighbor


@pytest.mark.parametrize("std", [None, (0.5, 0.25, 0.125)])
def test_patch_filters_are_known_pictures(std: tuple[float, ...] | None) -> None:
    """A filter applied to pixels gives what the embedding gives for the normalized image, but for the bias."""
    model = new_convmixer()
    model.pretrained_cfg = {"std": (0.5, 0.25, 0.125)} if std is None else {}
    pictures = np.random.default_rng(0).uniform(-1, 1, (6, 4, 4, 3)).astype(np.float32)
    scale = np.array([0.5, 0.25, 0.125], np.float32)
    model.stem[0].weight.data = torch.from_numpy((pictures * scale).transpose(0, 3, 1, 2).copy())
    assert np.allclose(patch_filters(model, std), pictures)
    pixels = np.random.default_rng(1).uniform(0, 1, (4, 4, 3)).astype(np.float32)
    mean = np.array([0.4, 0.5, 0.6], np.float32)
    normalized = torch.from_numpy(((pixels - mean) / scale).transpose(2, 0, 1).copy())[None]
    zero = torch.from_numpy((-mean / scale)[:, None, None] * np.ones((3, 4, 4), np.float32))[None]
    difference = (model.stem[0](normalized) - model.stem[0](zero)).detach().numpy().ravel()
    assert np.allclose((patch_filters(model, std) * pixels).sum((1, 2, 3)), difference, atol=1e-5)


def test_patch_filters_of_the_other_families() -> None:
    mixer, convit = new_mixer("resmlp"), new_convit()
    for model, layer in ((mixer, mixer.stem.proj), (convit, convit.patch_embed.proj)):
        expected = layer.get_parameter("weight").detach().permute(0, 2, 3, 1).numpy()
        assert np.allclose(patch_filters(model, (1, 1, 1)), expected)


def test_std_of_another_length() -> None:
    with pytest.raises(UsageError, match="3 channels"):
        patch_filters(new_convmixer(), (0.5,))


def test_built_in_models_use_their_own_std() -> None:
    model = tessella.load("convmixer_256_8_ks3_p4.cifar10").model
    filters = patch_filters(model)
    weight = model.get_parameter("stem.0.weight").detach().permute(0, 2, 3, 1).numpy()
    assert np.allclose(filters * np.array(model.pretrained_cfg["std"]), weight, atol=1e-6)


# --- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "model"),
    [
        (convit_gates, new_convmixer()),
        (convit_position_attention, new_crossvit()),
        (lambda model: convit_content_attention(model, image()), new_mixer("gmlp")),
        (lambda model: convit_attention(model, image()), new_mixer("gmlp")),
        (lambda model: crossvit_attention(model, image()), new_convit()),
        (token_mixing, new_convit()),
        (depthwise_kernels, new_mixer("mixer")),
        (patch_filters, new_crossvit()),
    ],
)
def test_models_of_another_family_are_refused(function: Callable[[ImageModel], object], model: ImageModel) -> None:
    with pytest.raises(UsageError) as caught:
        function(model)
    assert caught.value.code == "bad_argument"
    assert type(model).__name__ in caught.value.message
