"""Maps from the features of one block and the gradient of the score with respect to them.

pooled   Grad-CAM, Selvaraju et al. 2017 (arXiv:1610.02391): every channel has one weight, its mean gradient
local    HiResCAM, Draelos and Carin 2020 (arXiv:2011.08891): every position is weighted by its own gradient

Unlike in the papers, negative values are kept, because a map of this package also says what speaks against a class.

Shape suffixes: B images, C channels, H W pixels, N positions, D width, K classes; b is a branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..models.base import ImageModel
from ..models.crossvit import CrossViT
from ..results import FloatArray
from .maps import AttributionMap
from .subject import family_of

WEIGHTINGS = ("pooled", "local")


@dataclass(frozen=True)
class CamSetting:
    """Which block's output is read, and how it is weighted.

    depth: the share of the blocks, above 0 and at most 1, after which the features are read, so that the setting fits
    models of another depth; rounded to a whole block. weighting: one of WEIGHTINGS.
    """

    depth: float
    weighting: str


SETTINGS: Mapping[str, CamSetting] = {
    "convmixer": CamSetting(0.75, "local"),
    "mixer": CamSetting(0.75, "local"),
    "gmixer": CamSetting(0.75, "local"),
    "resmlp": CamSetting(0.75, "local"),
    "gmlp": CamSetting(0.75, "local"),
    "convit": CamSetting(0.75, "local"),
    "crossvit": CamSetting(0.5, "local"),
}


def class_score(logits_BK: Tensor, target: int, versus: int | None = None) -> Tensor:
    """(B,K) logits -> (B,) scores: the logit of a class, or how far it is above that of the class `versus`.

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
    model: ImageModel, x_1CHW: Tensor, target: int, *, versus: int | None = None, setting: CamSetting | None = None
) -> AttributionMap:
    """Weight the features after one block by the gradient of a class's score, and sum over the channels.

    x_1CHW: one normalized image (1,C,H,W). versus: explain the difference to the logit of this class. setting: the
    block and the weighting; None takes those of the family in SETTINGS. The map has the grid of the patches; for
    CrossViT it is the sum over both branches on the finer grid, and `parts` has each branch.
    Raises UsageError `bad_argument` for unknown classes and for a model without a classifier.
    """
    setting = setting or SETTINGS[family_of(model)]
    block = read_block(len(model.blocks), setting.depth)
    pairs = block_gradients(model, x_1CHW, block, target, versus)
    maps = [weigh(features, gradients, setting.weighting) for features, gradients in pairs]
    layer = f"blocks.{block}"
    if not isinstance(model, CrossViT):
        return AttributionMap(to_array(maps[0]), "grad-cam", layer)
    parts = {f"branch {b}": to_array(values) for b, values in enumerate(maps)}
    return AttributionMap(to_array(sum_branches(model, maps)), "grad-cam", layer, parts=parts)


def read_block(blocks: int, depth: float) -> int:
    """Return the index of the block after which a share `depth` of `blocks` blocks has run; at least the first."""
    return min(max(round(depth * blocks), 1), blocks) - 1


def weigh(features_DNN: Tensor, gradients_DNN: Tensor, weighting: str) -> Tensor:
    """(D,rows,columns) features and gradients -> (rows,columns), by one of WEIGHTINGS.

    With pooled weights the sum is the same as with local ones if the gradient does not depend on the position.
    """
    if weighting == "pooled":
        gradients_DNN = gradients_DNN.mean((1, 2), keepdim=True)
    return (features_DNN * gradients_DNN).sum(0)


def block_gradients(
    model: ImageModel, x_1CHW: Tensor, block: int, target: int, versus: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """(1,C,H,W) image -> per branch, the (D,rows,columns) features after a block and the gradient of the score.

    Models other than CrossViT have one branch. Raises UsageError `bad_argument` as `class_score`.
    """
    with torch.no_grad():
        features = model.forward_stem(x_1CHW)
        for index in range(block + 1):
            features = model.forward_block(index, features)
    leaves = [branch.detach().requires_grad_() for branch in (features if isinstance(features, list) else [features])]
    with torch.enable_grad():
        rest = list(leaves) if isinstance(features, list) else leaves[0]
        for index in range(block + 1, len(model.blocks)):
            rest = model.forward_block(index, rest)
        score = class_score(model.forward_head(model.forward_norm(rest)), target, versus).sum()
        gradients = torch.autograd.grad(score, leaves)
    whole: list[tuple[Tensor, ...]] = [tuple(leaf.detach() for leaf in leaves), gradients]
    values, slopes = (list(one) if isinstance(features, list) else one[0] for one in whole)
    return [
        (model.to_intermediate(values, b, "NCHW")[0], model.to_intermediate(slopes, b, "NCHW")[0])
        for b in range(len(leaves))
    ]


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
