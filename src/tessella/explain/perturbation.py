"""Integrated gradients and occlusion, computed by captum.

Both compare the image with one that lacks something. As in `faithfulness`, that is a heavily blurred copy of the image:
a uniform color would add edges that the image does not have, and black or white may be a cue of its own.

Shape suffixes: B images, C channels, H W pixels.
"""

from __future__ import annotations

import math
import warnings
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ..extras import require
from ..models.base import ImageModel
from .faithfulness import blurred
from .grad_cam import class_score, to_array
from .maps import AttributionMap, cell_means, upsample

STEPS = 32  # of the path of integrated gradients
BATCH = 32  # images that are computed at once, at most
GRADIENT_PIXELS, PIXELS = 1 << 17, 1 << 20  # of a batch with and without gradients, which keep all activations
WINDOWS = 16  # of occlusion, at most so many per side


def integrated_gradients(model: ImageModel, x_1CHW: Tensor, target: int, versus: int | None = None) -> AttributionMap:
    """Return integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) along the path from the blurred image.

    x_1CHW: one normalized image (1,C,H,W). versus: explain the difference to this class's logit. The map has one value
    per pixel, the sum over its channels; all values sum to about the score of the image less that of the blurred one.
    Raises UsageError `bad_argument` for unknown classes, `missing_dependency` without captum.
    """
    captum = _import_captum("the method of integrated gradients")

    def score(x_BCHW: Tensor) -> Tensor:
        return class_score(model(x_BCHW), target, versus)

    with torch.enable_grad():
        values_1CHW: Tensor = captum.IntegratedGradients(score).attribute(
            x_1CHW, baselines=blurred(x_1CHW), n_steps=STEPS, internal_batch_size=batch_size(x_1CHW, GRADIENT_PIXELS)
        )
    return AttributionMap(to_array(values_1CHW[0].sum(0)), "integrated-gradients", "input")


@torch.no_grad()
def occlusion(model: ImageModel, x_1CHW: Tensor, target: int, versus: int | None = None) -> AttributionMap:
    """Return how much the score of a class falls when one window of the image is blurred (arXiv:1311.2901).

    x_1CHW: one normalized image (1,C,H,W). versus: explain the difference to this class's logit. The map has one value
    per window; windows do not overlap, and have the size that `window_grid` gives.
    Raises UsageError `bad_argument` for unknown classes, `missing_dependency` without captum.
    """
    captum = _import_captum("the method of occlusion")

    def score(x_BCHW: Tensor) -> Tensor:
        return class_score(model(x_BCHW), target, versus)

    height, width = x_1CHW.shape[2:]
    rows, columns = window_grid(finest_patch(model), height, width)
    numbers = upsample(np.arange(rows * columns, dtype=np.float32).reshape(rows, columns), height, width, smooth=False)
    values_1CHW: Tensor = captum.FeatureAblation(score).attribute(
        x_1CHW,
        baselines=blurred(x_1CHW),
        feature_mask=torch.from_numpy(numbers).to(x_1CHW.device, torch.int64)[None, None],
        perturbations_per_eval=batch_size(x_1CHW, PIXELS),
    )
    # captum gives every pixel and channel of a window the same value
    return AttributionMap(cell_means(to_array(values_1CHW[0, 0]), rows, columns), "occlusion", "input")


def batch_size(x_1CHW: Tensor, pixels: int) -> int:
    """Return how many images of the size of (1,C,H,W) are computed at once, so that they have about `pixels` pixels."""
    return min(max(pixels // (x_1CHW.shape[2] * x_1CHW.shape[3]), 1), BATCH)


def finest_patch(model: ImageModel) -> int:
    """Return the side of the model's smallest patches in pixels of the image."""
    return min(entry["reduction"] for entry in model.feature_info)


def window_grid(patch: int, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of windows: one per patch, or per square of patches if more than WINDOWS fit."""
    rows, columns = (_windows_along(max(1, size // patch)) for size in (height, width))
    return rows, columns


def _windows_along(patches: int) -> int:
    return math.ceil(patches / math.ceil(patches / WINDOWS))


def _import_captum(purpose: str) -> ModuleType:
    """Return `captum.attr`; raises UsageError `missing_dependency` as `require` does.

    Its progress bars, which are not used here, warn in a notebook without ipywidgets.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        return require("captum.attr", purpose)
