"""The exact ledger: how much each position adds to a logit, for models whose head is linear over a mean of positions.

If z_p are the features of the N positions and (w, b) the weights of a class, the logit is w . mean(z) + b, which equals
the sum of (w . z_p + b) / N over the positions. This term is the contribution of position p; nothing is estimated. The
features are those that the head reads, after the last norm. They depend on the pixels around the position, too, so a
ledger is exact about the logit, and not about the pixels of one patch alone.

Letters for shapes: B images, C channels, H, W pixels, N positions (row-major), D width of the features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checks import check_type
from ..errors import UsageError, WeightsError
from ..models.base import Features, ImageModel
from ..models.convit import ConViT
from ..models.convmixer import ConvMixer
from ..models.crossvit import CrossViT
from ..models.layers import PatchEmbed
from ..models.mixer import MlpMixer
from ..results import NON_FINITE
from ..weights.modules import check_forward
from .maps import AttributionMap

Doubles = NDArray[np.float64]
BEST_METHOD = "`explain` with the method 'auto' takes the best one of those that apply to the model"  # a hint
MEANS = ("avg", "fast", "fastavg")  # values of `global_pool` that take the mean over positions


@dataclass(frozen=True)
class ClassLedger:
    """The contributions of all positions to the logits of some classes, for a batch of images.

    values: (B,K,rows,columns) float64; their sum over rows and columns is the logit, and each position has its share of
    the bias. logits: (B,K) float64, as the model itself computes them, in its own precision; in float32, they differ
    from the sums by rounding only: by at most 1.3e-6 on the 10,000 test images of CIFAR-10, by 8e-6 for logits of 23 of
    the photograph model. classes: (K,) indices.
    """

    values: Doubles
    logits: Doubles
    classes: tuple[int, ...]


def pooling_problem(model: ImageModel) -> str | None:
    """Return why the embedding of a model is not the mean of features over one grid of positions; None if it is."""
    if isinstance(model, CrossViT):
        if model.global_pool == "token":
            return "its head uses the class tokens of its two branches instead of a mean over positions"
        return "its head uses the means of two branches, whose positions are on different grids"
    if not isinstance(model, ConvMixer | MlpMixer | ConViT):
        return f"a {type(model).__name__} is none of the models whose head is known"
    if model.global_pool in MEANS:
        return None
    if model.global_pool == "token":
        return "its head uses a class token instead of a mean over positions"
    if model.global_pool == "":
        return "it does not pool its positions, so it has no logit for the whole image"
    return f"its pooling is {model.global_pool!r}, which is not a mean over positions"


def ledger_problem(model: ImageModel) -> str | None:
    """Return why the logits of a model have no exact ledger; None if they have one."""
    head = model.get_classifier()
    if _has_no_classifier(model):
        return "it has no classifier, so there is no logit to explain"
    if problem := pooling_problem(model):
        return problem
    return None if isinstance(head, nn.Linear) else f"its classifier is a {type(head).__name__}, not a linear layer"


def _has_no_classifier(model: ImageModel) -> bool:
    return isinstance(model.get_classifier(), nn.Identity) or (isinstance(model, CrossViT) and not model.num_classes)


def _instead(model: ImageModel) -> str:
    """Return what can be done with a model that has no exact ledger. Which method is the best, `methods` knows."""
    if _has_no_classifier(model):
        return "the links between two images need no classifier: `link_images`"
    return "set global_pool to 'avg'" if model.global_pool == "" else BEST_METHOD


@torch.no_grad()
def class_ledger(model: ImageModel, x_BCHW: Tensor, classes: Sequence[int] | None = None) -> ClassLedger:
    """Divide the logits of (B,C,H,W) normalized images exactly among the positions.

    classes: indices; None for all. The products are summed in float64, whatever the precision of the model, to whose
    device and type the images are converted.
    Raises UsageError: `bad_argument` for a model without an exact ledger (see `ledger_problem`) or in training mode and
    for classes that it does not have, `wrong_input_size`; WeightsError `non_finite` if the features or the logits
    contain NaN or infinity.
    """
    if problem := ledger_problem(model):
        message = f"the logits of this model cannot be divided exactly: {problem}"
        raise UsageError("bad_argument", message, hint=_instead(model))
    features, z_BND, grid = position_features(model, x_BCHW)
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    picked = check_classes(classes, head.out_features)
    weight_KD = head.weight[picked].double()
    bias_K = head.bias[picked].double() if head.bias is not None else weight_KD.new_zeros(len(picked))
    values_BKN = (weight_KD @ z_BND.mT + bias_K[:, None]) / z_BND.shape[1]
    logits_BK = model.forward_head(features).double()[:, picked]
    scale_BK = z_BND.abs().mean(1) @ weight_KD.abs().T + bias_K.abs()
    _check_sums(values_BKN.sum(-1), logits_BK, scale_BK, head.weight.dtype)
    return ClassLedger(values_BKN.unflatten(-1, grid).cpu().numpy(), logits_BK.cpu().numpy(), tuple(picked))


def exact_map(model: ImageModel, x_1CHW: Tensor, target: int, versus: int | None = None) -> AttributionMap:
    """Return the contributions to the logit of `target` for one normalized image (1,C,H,W).

    versus: a class whose logit is subtracted: what supports `target` and not for `versus`. The total of the map is
    the logit, or the difference. Raises as `class_ledger`, and UsageError `bad_argument` for a batch of several images
    or two equal classes.
    """
    if x_1CHW.ndim == 4 and x_1CHW.shape[0] != 1:
        raise UsageError("bad_argument", f"got a batch of {x_1CHW.shape[0]} images, expected one (1,C,H,W)")
    if versus == target:
        raise UsageError("bad_argument", f"class {target} is compared with itself, expected two different classes")
    ledger = class_ledger(model, x_1CHW, [target] if versus is None else [target, versus])
    values_Khw, logits_K = ledger.values[0], ledger.logits[0]
    values_hw, total = values_Khw[0], logits_K[0]
    if versus is not None:
        values_hw, total = values_hw - values_Khw[1], total - logits_K[1]
    layer = f"blocks.{len(model.blocks) - 1}" if isinstance(model, ConvMixer) else "norm"
    return AttributionMap(values_hw.astype(np.float32), "exact", layer, float(total))


@torch.no_grad()
def position_features(model: ImageModel, x_BCHW: Tensor) -> tuple[Features, Tensor, tuple[int, int]]:
    """Return the model's own features, the same as (B,N,D) float64 with a row per position, and the grid.

    x_BCHW: normalized images, which are converted to the model's device and type. The mean over the positions is the
    embedding. The grid is (rows, columns).
    Raises UsageError: `bad_argument` for a model with a `pooling_problem`, in training mode, or with a hook on the
    model itself, whose effect would be missing; `wrong_input_size`. Raises WeightsError `non_finite` for features with
    NaN or infinity.
    """
    if problem := pooling_problem(model):
        raise UsageError("bad_argument", f"the embedding of this model is not a mean over positions: {problem}")
    if model.training:
        raise UsageError("bad_argument", "the model is in training mode, whose outputs vary", hint="model.eval()")
    check_forward(model)
    like = next(model.parameters())
    features = model.forward_features(x_BCHW.to(like.device, like.dtype))
    if isinstance(model, ConvMixer):
        grid, z_BND = (features.shape[2], features.shape[3]), features.flatten(2).mT
    else:
        embed = model.patch_embed if isinstance(model, ConViT) else model.stem
        assert isinstance(embed, PatchEmbed)
        grid = embed.grid
        z_BND = features[:, -grid[0] * grid[1] :]  # without the class token
    if not z_BND.isfinite().all():
        raise WeightsError("non_finite", NON_FINITE)
    return features, z_BND.double(), grid


def check_classes(classes: Sequence[int] | None, count: int) -> list[int]:
    """Return indices of some of `count` classes as a list, all for None. Raises UsageError `bad_argument`."""
    if classes is None:
        return list(range(count))
    check_type("classes", classes, Sequence[int])
    picked = [-1 if isinstance(index, bool) else int(index) for index in classes]
    if not picked:
        raise UsageError("bad_argument", "classes is empty, expected at least one index")
    for index, given in zip(picked, classes, strict=True):
        if not 0 <= index < count:
            raise UsageError("bad_argument", f"there is no class {given!r}: the model has classes 0 to {count - 1}")
    return picked


def _check_sums(sums_BK: Tensor, logits_BK: Tensor, scale_BK: Tensor, dtype: torch.dtype) -> None:
    """Refuse a model whose logits are not these sums, such as one whose head or pooling was changed by hand.

    scale_BK: the sum of the absolute values of all terms, to which rounding is relative.
    """
    if not logits_BK.isfinite().all():
        raise WeightsError("non_finite", NON_FINITE)
    rounding = max(1e-4, 4 * torch.finfo(dtype).eps)  # of half precisions, ten times what trained models have
    if ((sums_BK - logits_BK).abs() > rounding * scale_BK).any():
        raise UsageError(
            "bad_argument",
            "the logits of this model cannot be divided exactly: they are not the linear function of the mean features "
            "that its classifier describes, so its pooling or its classifier was changed",
            hint=BEST_METHOD,
        )
