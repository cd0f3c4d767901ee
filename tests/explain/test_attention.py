"""Gradient-weighted attention: known answers on constructed weights, and the bookkeeping of tokens and branches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tessella
from tessella.errors import UsageError
from tessella.explain.attention import (
    AttentionStep,
    attention_map,
    branch_logits,
    branch_shares,
    convit_steps,
    crossvit_steps,
    recorded_attention,
    trace_back,
    weighted_attention,
)
from tessella.explain.attention_weights import attend, attention_modules
from tessella.models.base import ImageModel
from tessella.models.convit import GPSA, ConViT
from tessella.models.crossvit import CrossAttention, CrossViT
from tessella.models.layers import Attention

GRID = 4  # patches per side of the small models


def randomized(model: ImageModel, seed: int = 0) -> ImageModel:
    """Weights large enough for attention that is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def convit(depth: int = 3, local: int = 2, pool: str = "token", heads: int = 4) -> ConViT:
    model = tessella.create_model(
        "convit_ti_p4_32",
        img_size=16,
        num_classes=5,
        depth=depth,
        local_up_to_layer=local,
        global_pool=pool,
        num_heads=heads,
    )
    randomized(model)
    assert isinstance(model, ConViT)
    return model


def crossvit(pool: str = "token", fusions: int = 1) -> CrossViT:
    model = tessella.create_model(
        "crossvit_ti_dagger_p4_32",
        img_size=16,
        num_classes=5,
        depth=((2, 1, fusions), (1, 1, fusions)),
        global_pool=pool,
    )
    randomized(model)
    assert isinstance(model, CrossViT)
    return model


MODELS = [convit(), convit(pool="avg"), convit(local=0), crossvit(), crossvit(pool="avg"), crossvit(fusions=2)]


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# --- recording --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_model_computes_the_same_while_its_attention_is_recorded(model: ImageModel, image: Tensor) -> None:
    images = torch.cat((image, image.flip(-1)))
    expected = model(images)
    with recorded_attention(model) as recorded:
        logits = model(images)
    assert torch.allclose(logits, expected, atol=1e-4 * float(expected.detach().std()))
    assert recorded
    assert set(recorded) == set(attention_modules(model))
    assert torch.equal(model(images), expected)  # the hooks are gone
    for attention in recorded.values():
        assert attention.shape[0] == 2
        assert (attention >= 0).all()
        assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)


def test_hooks_are_removed_if_the_model_fails(image: Tensor) -> None:
    model = convit()
    with pytest.raises(UsageError), recorded_attention(model):
        model(image[..., :8])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("model", MODELS)
def test_steps_have_the_tokens_that_each_module_reads(model: ImageModel, image: Tensor) -> None:
    with recorded_attention(model) as recorded:
        model(image)
    steps = convit_steps(model) if isinstance(model, ConViT) else crossvit_steps(model)  # type: ignore[arg-type]
    assert [step.module for step in steps] == list(recorded)  # in the order of the forward pass
    for step in steps:
        assert recorded[step.module].shape[-2:] == (len(step.queries), len(step.keys))


def test_the_class_token_of_convit_joins_after_the_local_blocks() -> None:
    steps = convit_steps(convit(depth=3, local=2))
    assert [step.keys.tolist()[0] for step in steps] == [1, 1, 0]
    assert [len(step.keys) for step in steps] == [16, 16, 17]


def test_fusions_of_crossvit_attend_to_the_other_branch() -> None:
    """17 tokens of branch 0 come before 5 tokens of branch 1."""
    steps = [step for step in crossvit_steps(crossvit()) if isinstance(step.module, CrossAttention)]
    zero, one = list(range(17)), list(range(17, 22))
    found = [(step.queries.tolist(), step.keys.tolist()) for step in steps]
    assert found == 2 * [([0], [0, *one[1:]]), ([17], [17, *zero[1:]])]


# --- attention --------------------------------------------------------------------------------------------------------


def test_attention_follows_queries_and_keys() -> None:
    """With one head, the logits of the attention are q k / sqrt(d)."""
    module = Attention(2, 1)
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    with torch.no_grad():
        module.qkv.weight.copy_(torch.cat((torch.eye(2), torch.eye(2), 3 * torch.eye(2))))
    attention, values = attend(module, x)
    logits = np.array([[1.0, 0.0], [0.0, 4.0]]) / np.sqrt(2)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(attention[0, 0].detach(), expected, atol=1e-6)
    assert values[0, 0].tolist() == [[3.0, 0.0], [0.0, 6.0]]


def test_a_closed_gate_leaves_the_position_and_an_open_one_the_content() -> None:
    model = convit()
    module = model.blocks[0].get_submodule("attn")
    assert isinstance(module, GPSA)
    x = torch.randn(1, 16, model.num_features)
    with torch.no_grad():
        # towards the neighbor on the right: the squared distance to (1, 0) is dx^2 + dy^2 - 2 dx + 1
        module.pos_proj.weight.copy_(torch.tensor([[40.0, 0.0, -20.0]]).expand(4, 3))
        module.gating_param.copy_(torch.tensor([50.0, 50.0, -50.0, -50.0]))
    attention, _ = attend(module, x, model.rel_pos)
    by_position = torch.zeros(16, 16)
    for patch in range(16):
        by_position[patch, patch + 1 if patch % GRID < GRID - 1 else patch] = 1
    # in the last column, the patch itself and no neighbor on the right is the nearest to that place
    assert torch.allclose(attention[0, :2], by_position.expand(2, 16, 16), atol=1e-6)
    q, k = module.qk(x).unflatten(-1, (2, 4, -1)).permute(2, 0, 3, 1, 4)
    content = (q @ k.transpose(-2, -1) * module.scale).softmax(-1)
    assert torch.allclose(attention[0, 2:], content[0, 2:], atol=1e-6)


# --- relevance --------------------------------------------------------------------------------------------------------


def test_relevance_is_the_product_over_the_layers() -> None:
    """Against the matrix of the paper, R <- R + A R, whose rows are the tokens that attend."""
    generator = torch.Generator().manual_seed(0)
    everything, some = torch.arange(4), torch.tensor([1, 2, 3])
    steps = [
        AttentionStep(nn.Identity(), some, some),
        AttentionStep(nn.Identity(), torch.tensor([0]), torch.tensor([0, 2])),
        AttentionStep(nn.Identity(), everything, everything),
    ]
    weights = [torch.rand(len(step.queries), len(step.keys), generator=generator) for step in steps]
    relevance = torch.eye(4)
    for step, one in zip(steps, weights, strict=True):
        whole = torch.zeros(4, 4)
        whole[step.queries[:, None], step.keys] = one
        relevance = relevance + whole @ relevance
    start = torch.tensor([0.7, 0.0, 0.3, 0.0])
    assert torch.allclose(trace_back(start, steps, weights), start @ relevance, atol=1e-6)


def test_weights_are_the_positive_part_of_attention_times_gradient() -> None:
    module = nn.Identity()
    attention = torch.tensor([[[[0.5, 0.5]], [[0.1, 0.9]]]], requires_grad=True)  # two heads
    score = (attention * torch.tensor([[[[2.0, -3.0]], [[10.0, 1.0]]]])).sum()
    step = AttentionStep(module, torch.tensor([0]), torch.tensor([0, 1]))
    (weights,) = weighted_attention(score, [step], {module: attention})
    # head 0: 0.5 * 2, and a negative one; head 1: 0.1 * 10 and 0.9 * 1
    assert torch.allclose(weights, torch.tensor([[1.0, 0.45]]))


def linear_convit(value: Tensor) -> ConViT:
    """One global block without MLP and norms, whose class token attends to all tokens alike.

    The score of class 1 is linear in what the class token gets from each patch, its embedding times `value` (D,).
    """
    model = convit(depth=1, local=0, heads=1)
    width = model.num_features
    block = model.blocks[0]
    attention = block.get_submodule("attn")
    assert isinstance(attention, Attention)
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.weight[2 * width :] = torch.eye(width)
        attention.proj.weight.copy_(torch.eye(width))
        attention.proj.bias.zero_()
        for parameter in block.get_submodule("mlp").parameters():
            parameter.zero_()
        model.head.get_parameter("weight")[1] = value
    block.register_module("norm1", nn.Identity())
    model.norm = nn.Identity()
    return model


def test_one_layer_gives_attention_times_what_each_patch_adds(image: Tensor) -> None:
    value = torch.randn(12, generator=torch.Generator().manual_seed(3))
    model = linear_convit(value)
    embeddings = model.forward_stem(image)[0, 1:].detach()
    expected = (embeddings @ value / 17).clamp(min=0).reshape(GRID, GRID)
    assert 0 < (expected > 0).sum() < expected.numel()
    assert np.allclose(attention_map(model, image, 1).values, expected, atol=1e-6)


def test_local_blocks_pass_relevance_on_to_the_patch_they_attend_to(image: Tensor) -> None:
    """The class token attends to one patch, and local attention takes what that patch has from its right neighbor."""
    model = convit(depth=2, local=1)
    local, last = (block.get_submodule("attn") for block in model.blocks)
    assert isinstance(local, GPSA)
    with torch.no_grad():
        local.pos_proj.weight.copy_(torch.tensor([[40.0, 0.0, -20.0]]).expand(4, 3))
        local.gating_param.fill_(50.0)
    steps = convit_steps(model)
    with recorded_attention(model) as recorded:
        score = model(image)[0, 2]
    weights = weighted_attention(score, steps, recorded)
    moved = [(int(i), int(j)) for i, j in (weights[0] > 1e-9).nonzero()]
    assert moved
    assert all(j == i + 1 or (j == i and i % GRID == GRID - 1) for i, j in moved)
    # the relevance of a patch: from the class token directly, and through the patch on its left
    direct = weights[1][0, 1:]
    expected = (direct + direct @ weights[0]).reshape(GRID, GRID)
    assert np.allclose(attention_map(model, image, 2).values, expected.detach(), atol=1e-7)
    assert recorded[last].shape[-1] == 17


def test_values_are_not_negative_and_depend_on_the_class(image: Tensor) -> None:
    model = convit()
    maps = [attention_map(model, image, target).values for target in range(5)]
    assert all((values >= 0).all() and values.any() for values in maps)
    assert not np.allclose(maps[0], maps[1])
    difference = attention_map(model, image, 0, 1).values
    assert not np.allclose(difference, maps[0])


def test_mean_pooling_starts_from_all_patches(image: Tensor) -> None:
    """In a last block without attention of the patches, each patch only keeps its own relevance, 1 / N."""
    model = convit(depth=1, local=1, pool="avg")
    attention = model.blocks[0].get_submodule("attn")
    with torch.no_grad():
        attention.get_parameter("proj.weight").zero_()  # so no gradient reaches the attention
    assert np.allclose(attention_map(model, image, 0).values, 1 / 16)


# --- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_heads_of_both_branches_add_up_to_the_logits(pool: str, image: Tensor) -> None:
    model = crossvit(pool)
    parts = branch_logits(model, model.forward_features(image))
    assert torch.allclose(parts[0] + parts[1], model(image), atol=1e-5)


def test_shares_are_those_of_centered_logits() -> None:
    first, second = torch.tensor([[4.0, 1.0, 1.0]]), torch.tensor([[101.0, 101.0, 98.0]])
    # above the mean: 2 and 1; a constant, as in the second branch, changes no probability
    assert branch_shares([first, second], 0) == pytest.approx([2 / 3, 1 / 3])
    assert branch_shares([first, second], 1) == pytest.approx([-1 / 2, 1 / 2])
    assert branch_shares([first, second], 0, 2) == pytest.approx([3 / 6, 3 / 6])
    assert branch_shares([torch.ones(1, 3)] * 2, 0) == [0.5, 0.5]


def test_a_head_of_zeros_has_no_part(image: Tensor) -> None:
    """Without the second head, the map is that of the first one alone; its fusion still reads the other branch."""
    model = crossvit()
    with torch.no_grad():
        model.head[1].get_parameter("weight").zero_()
        model.head[1].get_parameter("bias").zero_()
    found = attention_map(model, image, 0)
    sign = branch_shares(branch_logits(model, model.forward_features(image)), 0)[0]
    assert sign in (-1.0, 1.0)
    assert sum(part.sum() for part in found.parts.values()) == pytest.approx(sign, abs=1e-5)
    assert found.parts["branch 1"].any()
    with torch.no_grad():  # a fusion whose output is zero passes nothing on
        for module in attention_modules(model):
            if isinstance(module, CrossAttention):
                module.proj.weight.zero_()
    alone = attention_map(model, image, 0)
    assert not alone.parts["branch 1"].any()
    assert alone.parts["branch 0"].any()


def test_parts_are_on_their_own_grids_and_add_up(image: Tensor) -> None:
    found = attention_map(crossvit(), image, 3)
    assert {name: part.shape for name, part in found.parts.items()} == {"branch 0": (4, 4), "branch 1": (2, 2)}
    spread = np.kron(found.parts["branch 1"], np.full((2, 2), 0.25))
    assert np.allclose(found.values, found.parts["branch 0"] + spread, atol=1e-6)


@pytest.mark.parametrize("versus", [None, 1])
def test_the_shares_of_the_branches_are_stated(versus: int | None, image: Tensor) -> None:
    model = crossvit()
    expected = branch_shares(branch_logits(model, model.forward_features(image)), 3, versus)
    shares = attention_map(model, image, 3, versus).shares
    assert list(shares) == ["branch 0", "branch 1"]
    assert list(shares.values()) == pytest.approx(expected, abs=1e-6)
    assert sum(map(abs, shares.values())) == pytest.approx(1)
    assert attention_map(convit(), image, 3, versus).shares == {}


def test_other_models_are_refused(image: Tensor) -> None:
    model = tessella.create_model("mixer_ti_p4_32", img_size=16).eval()
    with pytest.raises(UsageError, match="MlpMixer has no attention") as caught:
        attention_map(model, image, 0)
    assert "'auto'" in caught.value.hint
