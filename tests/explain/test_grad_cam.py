"""Maps from gradients and features: known answers on linear models, layers, branches, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import tessella
from tessella.errors import UsageError
from tessella.explain.faithfulness import blurred
from tessella.explain.grad_cam import (
    SETTINGS,
    WEIGHTINGS,
    CamSetting,
    block_features,
    block_gradients,
    class_score,
    grad_cam,
    on_grids,
    read_block,
    sum_branches,
    weigh,
)
from tessella.models.base import ImageModel
from tessella.models.convit import ConViT
from tessella.models.crossvit import CrossViT


def with_random_head(model: ImageModel) -> ImageModel:
    """Some families start with a head of zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head"):
                parameter.normal_(std=0.1)
    return model.eval()


def convmixer() -> ImageModel:
    torch.manual_seed(0)
    return with_random_head(tessella.create_model("convmixer_256_8_ks3_p4", num_classes=5))


def crossvit(**options: bool) -> CrossViT:
    torch.manual_seed(0)
    model = tessella.create_model("crossvit_ti_dagger_p4_32", num_classes=5, **options)
    assert isinstance(model, CrossViT)
    with_random_head(model)
    return model


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- the score --------------------------------------------------------------------------------------------------------


def test_scores_are_logits_or_differences() -> None:
    logits = torch.tensor([[1.0, 4.0, -2.0], [0.0, 1.0, 2.0]])
    assert class_score(logits, 1).tolist() == [4.0, 1.0]
    assert class_score(logits, 1, 2).tolist() == [6.0, -1.0]


@pytest.mark.parametrize(("target", "versus"), [(3, None), (-1, None), (0, 3), (0, -1), (1, 1)])
def test_classes_the_model_does_not_have_are_refused(target: int, versus: int | None) -> None:
    with pytest.raises(UsageError) as caught:
        class_score(torch.zeros(1, 3), target, versus)
    assert caught.value.code == "bad_argument"


def test_a_model_without_pooling_is_refused(image: Tensor) -> None:
    model = tessella.create_model("mixer_ti_p4_32", global_pool="").eval()
    with pytest.raises(UsageError, match=r"shape \(1, 64, 10\)"):
        grad_cam(model, image, 0)


# --- weighting --------------------------------------------------------------------------------------------------------


def test_weighting_by_position_and_by_channel() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 0.0]]])
    gradients = torch.tensor([[[1.0, 0.0], [0.0, -1.0]], [[4.0, 0.0], [0.0, 0.0]]])
    assert weigh(features, gradients, "local").tolist() == [[5.0, 0.0], [0.0, -4.0]]
    # the mean gradients are 0 and 1
    assert weigh(features, gradients, "pooled").tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("versus", [None, 4])
def test_after_the_last_block_of_a_convmixer_maps_add_up_exactly(versus: int | None, image: Tensor) -> None:
    """There the score is linear in the features, and every position has the same gradient."""
    model = convmixer()
    scores = class_score(model(torch.cat((image, blurred(image)))).detach(), 2, versus)
    bias = float(class_score(model.get_parameter("head.bias").detach()[None], 2, versus))
    pooled, local, difference = (
        grad_cam(model, image, 2, versus, setting=CamSetting(1.0, weighting)) for weighting in WEIGHTINGS
    )
    assert local.layer == "blocks.7"
    assert np.allclose(pooled.values, local.values, atol=1e-6)
    assert local.values.sum() == pytest.approx(float(scores[0]) - bias, abs=1e-5)
    assert difference.values.sum() == pytest.approx(float(scores[0] - scores[1]), abs=1e-5)


@pytest.mark.parametrize("name", ["mixer_ti_p4_32", "convit_ti_p4_32", "crossvit_ti_dagger_p4_32"])
def test_gradients_are_slopes_of_the_score(name: str, image: Tensor) -> None:
    """The score changes along the gradient as much as the gradient says."""
    torch.manual_seed(0)
    model = with_random_head(tessella.create_model(name)).double()
    block, x = 0, image.double()
    with torch.no_grad():
        features = block_features(model, x, block)
        is_list = isinstance(features, list)
        direction = [torch.randn_like(branch) for branch in (features if is_list else [features])]
        for branch in direction if is_list else []:
            branch[:, 0] = 0  # a class token is not on the map

        def score(step: float) -> float:
            moved = [b + step * d for b, d in zip(features if is_list else [features], direction, strict=True)]
            rest = moved if is_list else moved[0]
            for index in range(block + 1, len(model.blocks)):
                rest = model.forward_block(index, rest)
            return float(model.forward_head(model.forward_norm(rest))[0, 3])

        slope = (score(1e-5) - score(-1e-5)) / 2e-5
    gradients = on_grids(model, block_gradients(model, features, block, 3))
    along = sum(
        float((gradient * one).sum())
        for gradient, one in zip(gradients, on_grids(model, direction if is_list else direction[0]), strict=True)
    )
    assert along == pytest.approx(slope, rel=1e-4)


def test_nothing_about_the_model_changes(image: Tensor) -> None:
    model = convmixer().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        grad_cam(model, image, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "depth", "index"),
    [(8, 1.0, 7), (8, 0.75, 5), (12, 0.75, 8), (2, 0.5, 0), (8, 0.125, 0), (12, 0.125, 1), (3, 0.0, -1)],
)
def test_the_depth_is_a_share_of_the_blocks(blocks: int, depth: float, index: int) -> None:
    assert read_block(blocks, depth) == index


def test_after_the_last_block_only_the_class_token_matters(image: Tensor) -> None:
    """So the settings of the models with a class token read earlier layers."""
    torch.manual_seed(0)
    model = with_random_head(tessella.create_model("convit_ti_p4_32"))
    assert isinstance(model, ConViT)
    assert not grad_cam(model, image, 0, setting=CamSetting(1.0, "local")).values.any()
    assert grad_cam(model, image, 0).values.any()
    assert grad_cam(crossvit(), image, 0).values.any()


@pytest.mark.parametrize("family", SETTINGS)
def test_settings_are_valid(family: str) -> None:
    assert 0 <= SETTINGS[family].depth <= 1
    assert SETTINGS[family].weighting in WEIGHTINGS


def test_before_the_first_block_the_patches_themselves_are_weighed(image: Tensor) -> None:
    """Without blocks, a ConvMixer is linear in its embedding."""
    model = convmixer()
    del model.blocks[:]
    found = grad_cam(model, image, 2, setting=CamSetting(0.0, "local"))
    embedding = model.forward_stem(image).detach()[0]
    expected = torch.einsum("dhw,d->hw", embedding, model.get_parameter("head.weight").detach()[2]) / 64
    assert found.layer == "stem"
    assert np.allclose(found.values, expected, atol=1e-6)


def test_images_that_are_not_square() -> None:
    model = convmixer()
    assert grad_cam(model, torch.randn(1, 3, 24, 40), 0).values.shape == (6, 10)


# --- branches ---------------------------------------------------------------------------------------------------------


def test_branches_are_summed_on_the_finer_grid(image: Tensor) -> None:
    model = crossvit()
    found = grad_cam(model, image, 1)
    assert {name: part.shape for name, part in found.parts.items()} == {"branch 0": (8, 8), "branch 1": (4, 4)}
    spread = np.kron(found.parts["branch 1"], np.full((2, 2), 0.25))
    assert np.allclose(found.values, found.parts["branch 0"] + spread, atol=1e-7)


def test_a_coarse_cell_is_spread_over_what_it_covers() -> None:
    model = crossvit()
    model.grids = [(3, 3), (2, 2)]
    coarse = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    # the cell covers 1.5 x 1.5 of the 3 x 3 cells
    expected = 4 * np.outer([1, 0.5, 0], [1, 0.5, 0]) / 1.5**2
    assert np.allclose(sum_branches(model, [torch.zeros(3, 3), coarse]), expected, atol=1e-6)


def test_a_branch_that_reads_the_center_has_no_part_in_the_border() -> None:
    model = crossvit()
    model.img_size, model.branch_sizes, model.crop_scale = (32, 32), [(32, 32), (16, 16)], True
    model.grids = [(8, 8), (2, 2)]
    summed = sum_branches(model, [torch.zeros(8, 8), torch.tensor([[16.0, 0.0], [0.0, 4.0]])])
    expected = np.zeros((8, 8))
    expected[2:4, 2:4], expected[4:6, 4:6] = 4, 1
    assert np.allclose(summed, expected)
