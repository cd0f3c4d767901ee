"""Integrated gradients and occlusion, computed by captum.

Both compare the image with one from which something is missing. What replaces it is the image's mean color: it is the
uniform color with the smallest distance to the image, while black or white may be a cue of its own.

Shape suffixes: B images, C channels, H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..extras import require
from ..models.base import ImageModel
from .grad_cam import class_score, to_array
from .maps import AttributionMap, cell_means

STEPS = 32  # of the path of integrated gradients
BATCH = 32  # images that are computed at once
WINDOWS = 16  # at most so many positions per side of the window of occlusion


def integrated_gradients(
    model: ImageModel, x_1CHW: Tensor, target: int, *, versus: int | None = None
) -> AttributionMap:
    """Return integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) along the path from the mean color.

    x_1CHW: one normalized image (1,C,H,W). versus: explain the difference to this class's logit. The map has one value
    per pixel, the sum over its channels; the values sum to about the score of the image less that of the mean color.
    Raises UsageError `bad_argument` for unknown classes, `missing_dependency` without captum.
    """
    captum = require("captum.attr", "integrated gradients")

    def score(x_BCHW: Tensor) -> Tensor:
        return class_score(model(x_BCHW), target, versus)

    values_1CHW: Tensor = captum.IntegratedGradients(score).attribute(
        x_1CHW, baselines=mean_color(x_1CHW), n_steps=STEPS, internal_batch_size=BATCH
    )
    return AttributionMap(to_array(values_1CHW[0].sum(0)), "integrated-gradients", "input")


@torch.no_grad()
def occlusion(model: ImageModel, x_1CHW: Tensor, target: int, *, versus: int | None = None) -> AttributionMap:
    """Return how much the score of a class falls when a window is replaced by the mean color (arXiv:1311.2901).

    x_1CHW: one normalized image (1,C,H,W). versus: explain the difference to this class's logit. The map has one value
    per step of the window, which moves by one patch, or by several if there are more than WINDOWS per side.
    Raises UsageError `bad_argument` for unknown classes, `missing_dependency` without captum.
    """
    captum = require("captum.attr", "occlusion")

    def score(x_BCHW: Tensor) -> Tensor:
        return class_score(model(x_BCHW), target, versus)

    channels, height, width = x_1CHW.shape[1:]
    stride = window_stride(finest_patch(model), max(height, width))
    window = min(stride, height), min(stride, width)
    values_1CHW: Tensor = captum.Occlusion(score).attribute(
        x_1CHW,
        sliding_window_shapes=(channels, *window),
        strides=(channels, *window),
        baselines=mean_color(x_1CHW),
        perturbations_per_eval=BATCH,
    )
    cells = math.ceil(height / window[0]), math.ceil(width / window[1])
    return AttributionMap(cell_means(to_array(values_1CHW[0, 0]), *cells), "occlusion", "input")


def mean_color(x_1CHW: Tensor) -> Tensor:
    """Return an image (1,C,H,W) of the same size in the mean color of an image (1,C,H,W)."""
    return x_1CHW.mean((2, 3), keepdim=True).expand_as(x_1CHW).contiguous()


def finest_patch(model: ImageModel) -> int:
    """Return the side of the model's smallest patches in pixels of the image."""
    return min(entry["reduction"] for entry in model.feature_info)


def window_stride(patch: int, side: int) -> int:
    """Return the smallest multiple of `patch` pixels with at most WINDOWS positions along `side` pixels."""
    return patch * math.ceil(side / (patch * WINDOWS))
