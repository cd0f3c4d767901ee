"""Integrated gradients and occlusion: known answers on linear models, windows, and a missing captum."""

from __future__ import annotations

import sys
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tessella
from tessella.errors import UsageError
from tessella.explain import perturbation
from tessella.explain.faithfulness import blurred
from tessella.explain.maps import cell_means
from tessella.explain.perturbation import (
    GRADIENT_PIXELS,
    batch_size,
    finest_patch,
    integrated_gradients,
    occlusion,
    window_grid,
)
from tessella.models.base import ImageModel


class LinearScores(nn.Module):
    """Two classes whose logits are sums of weighted pixels; patches of 4 px."""

    feature_info = [{"reduction": 8}, {"reduction": 4}]

    def __init__(self, height: int, width: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(2, 3, height, width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x, self.weights)


def linear(height: int = 32, width: int = 32) -> tuple[ImageModel, Tensor, Tensor]:
    """A linear model, an image (1,3,H,W), and what each pixel adds to the logits beyond the background, (2,H,W)."""
    model = LinearScores(height, width)
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    return cast(ImageModel, model), image, (model.weights * (image - blurred(image))).sum(1)


@pytest.mark.parametrize("versus", [None, 0])
def test_integrated_gradients_of_a_linear_model(versus: int | None) -> None:
    model, image, added = linear()
    expected = added[1] if versus is None else added[1] - added[0]
    assert np.allclose(integrated_gradients(model, image, 1, versus).values, expected, atol=1e-4)


def test_integrated_gradients_sum_to_what_the_image_adds() -> None:
    model = tessella.load("mixer_ti_p4_32.cifar10").model.requires_grad_(False)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = integrated_gradients(model, image, 4)
    added = model(image)[0, 4] - model(blurred(image))[0, 4]
    assert found.values.sum() == pytest.approx(float(added), rel=0.02)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
@pytest.mark.parametrize("versus", [None, 0])
def test_occlusion_of_a_linear_model_is_the_sum_over_the_window(height: int, width: int, versus: int | None) -> None:
    model, image, added = linear(height, width)
    expected = (added[1] if versus is None else added[1] - added[0]).numpy()
    found = occlusion(model, image, 1, versus).values
    assert found.shape == (height // 4, width // 4)
    assert np.allclose(found, 16 * cell_means(expected, *found.shape), atol=1e-3)


def test_windows_are_patches_or_several_of_them() -> None:
    assert window_grid(4, 32, 32) == (8, 8)
    assert window_grid(4, 64, 32) == (16, 8)
    assert window_grid(7, 224, 224) == (16, 16)  # 2 x 2 of 32 x 32 patches
    assert window_grid(8, 96, 96) == (12, 12)
    assert window_grid(16, 240, 100) == (15, 6)
    assert window_grid(4, 3, 400) == (1, 15)  # windows of 7 patches


def test_batches_shrink_with_the_images() -> None:
    """The activations of a ConvMixer for 224 px images take hundreds of MB per image."""
    assert batch_size(torch.zeros(1, 3, 32, 32), GRADIENT_PIXELS) == 32
    assert batch_size(torch.zeros(1, 3, 224, 224), GRADIENT_PIXELS) == 2
    assert batch_size(torch.zeros(1, 3, 2000, 2000), GRADIENT_PIXELS) == 1


@pytest.mark.parametrize("method", [integrated_gradients, occlusion])
def test_the_size_of_a_batch_changes_nothing(method: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tessella.load("mixer_ti_p4_32.cifar10").model.requires_grad_(False)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    whole = method(model, image, 4).values  # type: ignore[operator]
    monkeypatch.setattr(perturbation, "BATCH", 5)
    parts = method(model, image, 4).values  # type: ignore[operator]
    assert np.allclose(parts, whole, atol=1e-4 * np.abs(whole).max())


def test_the_finer_branch_of_crossvit_decides() -> None:
    assert finest_patch(tessella.create_model("crossvit_ti_dagger_p4_32")) == 4
    assert finest_patch(tessella.create_model("convmixer_256_8_ks3_p4")) == 4


@pytest.mark.parametrize("method", [integrated_gradients, occlusion])
def test_without_captum_the_error_says_what_to_install(method: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    model, image, _ = linear()
    with pytest.raises(UsageError) as caught:
        method(model, image, 0)  # type: ignore[operator]
    assert caught.value.code == "missing_dependency"
    assert caught.value.hint == "pip install captum"
