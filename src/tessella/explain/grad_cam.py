"""Maps from the features of one block and the gradient of the score with respect to them.

pooled      Grad-CAM, Selvaraju et al. 2017 (arXiv:1610.02391): every channel has one weight, its mean gradient
local       HiResCAM, Draelos and Carin 2020 (arXiv:2011.08891): every position is weighted by its own gradient
difference  as local, but of the features less those of the blurred image: to first order, what the score would lose
            if the position lost its detail

The papers set negative values to zero. Here they are kept, because a map also shows what contradicts a class.

Shape suffixes: B images, C channels, H W pixels, N positions, D width, K classes; b is a branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..models.base import Features, ImageModel
from ..models.crossvit import BRANCHES, CrossViT
from ..results import FloatArray
from .faithfulness import blurred
from .maps import AttributionMap
from .subject import family_of

WEIGHTINGS = ("pooled", "local", "difference")


@dataclass(frozen=True)
class CamSetting:
    """Which block's output is read, and how it is weighted.

    depth: the share of the blocks, from 0 (the embedding of the patches) to 1, after which the features are read, so
    that the setting fits models of another depth; rounded to a whole block. weighting: one of WEIGHTINGS.
    """

    depth: float
    weighting: str


# Chosen by deletion and insertion on the built-in models, among all blocks and weightings: early features less those of
# the blurred image are the best in every family. Nothing is published for resmlp and gmlp that could be measured here,
# so they have the setting of the other mixers.
SETTINGS: Mapping[str, CamSetting] = {
    "convmixer": CamSetting(0.25, "difference"),
    "mixer": CamSetting(0.125, "difference"),
    "gmixer": CamSetting(0.125, "difference"),
    "resmlp": CamSetting(0.125, "difference"),
    "gmlp": CamSetting(0.125, "difference"),
    "convit": CamSetting(0.125, "difference"),
    "crossvit": CamSetting(0.0, "difference"),
}


def class_score(logits_BK: Tensor, target: int, versus: int | None = None) -> Tensor:
    """(B,K) logits -> (B,) scores: the logit of a class, or its difference from the logit of `versus`.

    Raises UsageError `bad_argument` if the model has no such class, for twice the same class, and for a model that does
    not give one row of logits per image.
    """
    if logits_BK.ndim != 2:
        raise UsageError(
            "bad_argument", f"the model's output has the shape {tuple(logits_BK.shape)}, expected logits (B,classes)"
        )
    classes = logits_BK.shape[1]
    for index in (target, versus):
        if index is not None and not 0 <= index < classes:
            raise UsageError("bad_argument", f"there is no class {index}: the model has classes 0 to {classes - 1}")
    if versus == target:
        raise UsageError("bad_argument", f"class {target} is compared with itself", hint="give two classes")
    return logits_BK[:, target] if versus is None else logits_BK[:, target] - logits_BK[:, versus]


def grad_cam(
    model: ImageModel, x_1CHW: Tensor, target: int, versus: int | None = None, *, setting: CamSetting | None = None
) -> AttributionMap:
    """Weight the features after one block by the gradient of a class's score, and sum over the channels.

    x_1CHW: one normalized image (1,C,H,W). versus: explain the difference to the logit of this class. setting: the
    block and the weighting; None takes those of the family in SETTINGS. The map has the grid of the patches; for
    CrossViT it is the sum over both branches on the finer grid, and `parts` has each branch.
    Raises UsageError `bad_argument` for unknown classes and for a model without a classifier.
    """
    setting = setting or SETTINGS[family_of(model)]
    block = read_block(len(model.blocks), setting.depth)
    output = block_features(model, x_1CHW, block)
    gradients = on_grids(model, block_gradients(model, output, block, target, versus))
    features = on_grids(model, output)
    if setting.weighting == "difference":
        background = on_grids(model, block_features(model, blurred(x_1CHW), block))
        features = [values - other for values, other in zip(features, background, strict=True)]
    maps = [weigh(values, slopes, setting.weighting) for values, slopes in zip(features, gradients, strict=True)]
    layer = f"blocks.{block}" if block >= 0 else "stem"
    if not isinstance(model, CrossViT):
        return AttributionMap(to_array(maps[0]), "grad-cam", layer)
    parts = {f"branch {b}": to_array(values) for b, values in enumerate(maps)}
    return AttributionMap(to_array(sum_branches(model, maps)), "grad-cam", layer, parts=parts)


def read_block(blocks: int, depth: float) -> int:
    """Return the index of the block after which a share `depth` of `blocks` blocks has run; -1 if none has."""
    return round(depth * blocks) - 1


def weigh(features_DNN: Tensor, gradients_DNN: Tensor, weighting: str) -> Tensor:
    """(D,rows,columns) features, or their difference to others, and gradients -> (rows,columns), by one of WEIGHTINGS.

    With pooled weights the sum is the same as with local ones if the gradient does not depend on the position.
    """
    if weighting == "pooled":
        gradients_DNN = gradients_DNN.mean((1, 2), keepdim=True)
    return (features_DNN * gradients_DNN).sum(0)


@torch.no_grad()
def block_features(model: ImageModel, x_1CHW: Tensor, block: int) -> Features:
    """(1,C,H,W) image -> the output of a block, of the stem for -1: a tensor, or a list with one per branch."""
    features = model.forward_stem(x_1CHW)
    for index in range(block + 1):
        features = model.forward_block(index, features)
    return features


@torch.enable_grad()
def block_gradients(
    model: ImageModel, features: Features, block: int, target: int, versus: int | None = None
) -> Features:
    """Output of a block for one image, as `block_features` returns it -> the gradient of the score, the same shape.

    Raises UsageError `bad_argument` as `class_score`.
    """
    is_list = isinstance(features, list)
    leaves = [branch.detach().requires_grad_() for branch in (features if is_list else [features])]
    rest = leaves if is_list else leaves[0]
    for index in range(block + 1, len(model.blocks)):
        rest = model.forward_block(index, rest)
    score = class_score(model.forward_head(model.forward_norm(rest)), target, versus).sum()
    gradients = list(torch.autograd.grad(score, leaves))
    return gradients if is_list else gradients[0]


def on_grids(model: ImageModel, features: Features) -> list[Tensor]:
    """Output of a block for one image -> (D,rows,columns) maps of the patches: one, or for CrossViT one per branch."""
    branches = BRANCHES if isinstance(model, CrossViT) else BRANCHES[:1]
    return [model.to_intermediate(features, b, "NCHW")[0] for b in branches]


def sum_branches(model: CrossViT, maps: list[Tensor]) -> Tensor:
    """Sum the maps of both branches, (rows_0,columns_0) and (rows_1,columns_1), on the grid of the finer one.

    A value of the coarser grid is spread over the cells that it covers, so that the sum over the image does not change.
    A branch that reads the center of the image (`crop_scale`) adds nothing outside of it.
    """
    finest = max(range(len(maps)), key=lambda b: maps[b].numel())
    rows, columns = model.grids[finest]
    return torch.stack([_on_image(model, b, values, rows, columns) for b, values in enumerate(maps)]).sum(0)


def _on_image(model: CrossViT, branch: int, values: Tensor, rows: int, columns: int) -> Tensor:
    """Resample a branch's map to a grid over the whole image by the shares of its cells that lie in each new cell."""
    sizes = model.img_size, model.branch_sizes[branch]
    is_cropped = model.crop_scale and all(own <= size for size, own in zip(*sizes, strict=True))
    axes = []
    for size, own, cells, new in zip(*sizes, values.shape, (rows, columns), strict=True):
        start = round((size - own) / 2) / size if is_cropped else 0.0
        end = start + own / size if is_cropped else 1.0
        before = torch.linspace(start, end, cells + 1, dtype=torch.float64, device=values.device)
        after = torch.linspace(0, 1, new + 1, dtype=torch.float64, device=values.device)
        overlap = torch.minimum(before[None, 1:], after[1:, None]) - torch.maximum(before[None, :-1], after[:-1, None])
        axes.append((overlap.clamp(min=0) / before.diff()).to(values.dtype))
    return axes[0] @ values @ axes[1].T


def to_array(values: Tensor) -> FloatArray:
    """Return a tensor as a float32 array of the same shape."""
    return values.detach().float().cpu().numpy()
