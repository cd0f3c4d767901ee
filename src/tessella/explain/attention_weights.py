"""The attention of ConViT and CrossViT as arrays: by position, by content, of each branch and of each fusion.

Sources: ConViT, d'Ascoli et al. 2021 (arXiv:2103.10697); CrossViT, Chen, Fan and Panda 2021 (arXiv:2103.14899).
Letters for shapes: L blocks, H heads, N patches (row-major over the grid), T tokens (the patches, and a class token
first where there is one), Q queries, B images, C channels, D width, d width of a head; in the shape of an image, H
and W are pixels. Rows of an attention matrix are queries, columns are keys; every row sums to 1. Models are given in
evaluation mode, and images one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..models.base import ImageModel
from ..models.configs.shared import Pair
from ..models.convit import GPSA, ConViT
from ..models.crossvit import BRANCHES, CrossAttention, CrossViT, MultiScaleBlock
from ..models.layers import Attention
from ..results import FloatArray

# --- ConViT -----------------------------------------------------------------------------------------------------------


def convit_gates(model: ImageModel) -> FloatArray:
    """Return the gates of a ConViT, (L,H) float32 for its L blocks with gated positional self-attention (GPSA).

    A gate is the sigmoid of the head's gating parameter: the share of attention by position in equation 7 of
    arXiv:2103.10697; the rest is by content. Raises UsageError `bad_argument` for another family.
    """
    layers = _gated_layers(model)
    gates = [layer.gating_param.detach().float().sigmoid() for layer in layers]
    return _stacked(gates, (_convit(model).config.num_heads,))


@torch.no_grad()
def convit_position_attention(model: ImageModel) -> FloatArray:
    """Return the attention by position of a ConViT, (L,H,N,N) float32 for its L blocks with GPSA.

    It is the same for all images: the softmax over keys of a linear function of the relative position (dx, dy,
    dx^2 + dy^2). Raises UsageError `bad_argument` for another family.
    """
    model = _convit(model)
    maps = [layer.position_attention(model.rel_pos).float() for layer in _gated_layers(model)]
    return _stacked(maps, (model.config.num_heads, model.patch_embed.num_patches, model.patch_embed.num_patches))


@torch.no_grad()
def convit_content_attention(model: ImageModel, x_1CHW: Tensor) -> FloatArray:
    """Return the attention by content of a ConViT for one image, (L,H,N,N) float32 for its L blocks with GPSA.

    x_1CHW: (1,C,H,W) normalized image. Raises UsageError `bad_argument` for another family or several images.
    """
    model = _convit(model)
    layers = _gated_layers(model)
    inputs = recorded_inputs(model, x_1CHW, layers)
    maps = [content_attention(layer, x_1ND)[0] for layer, x_1ND in zip(layers, inputs, strict=True)]
    return _stacked(maps, (model.config.num_heads, model.patch_embed.num_patches, model.patch_embed.num_patches))


@torch.no_grad()
def convit_attention(model: ImageModel, x_1CHW: Tensor) -> list[FloatArray]:
    """Return the whole attention of each block of a ConViT for one image, (H,T,T) float32 per block.

    Blocks with GPSA blend attention by position and by content with their gates and see N patches; the other blocks
    also see the class token, which comes first. x_1CHW: (1,C,H,W) normalized image. Raises UsageError `bad_argument`
    for another family or several images.
    """
    model = _convit(model)
    layers = attention_modules(model)
    inputs = recorded_inputs(model, x_1CHW, layers)
    return [_array(attend(layer, x_1TD, model.rel_pos)[0][0]) for layer, x_1TD in zip(layers, inputs, strict=True)]


def non_locality(attention: FloatArray, grid: Pair) -> FloatArray:
    """Return how far attention reaches, in patches: (...,T,T) attention over a grid of (rows, columns) -> (...).

    This is the measure of arXiv:2103.10697, section 4: the distance between query and key in units of patches, weighted
    by the attention and averaged over the queries. 0 means that every patch attends to itself. The paper averages it
    over the heads of a layer. A class token, which has no position, is left out if there is one: neither its row nor
    its column counts, and the rest of each row is scaled to sum to 1.
    Raises UsageError `bad_argument` for an array that does not fit the grid.
    """
    count = grid[0] * grid[1]
    if (
        attention.ndim < 2
        or attention.shape[-2] != attention.shape[-1]
        or attention.shape[-1] not in (count, 1 + count)
    ):
        raise UsageError(
            "bad_argument",
            f"attention of shape {attention.shape} does not fit a grid of {grid[0]}x{grid[1]} patches",
            hint=f"the last two sides are {count}, or {count + 1} with a class token",
        )
    patches = attention[..., -count:, -count:].astype(np.float64)
    sums = patches.sum(-1)
    # a query that gives everything to the class token looks at no patch, and does not count
    reach = np.divide((patches * patch_distances(grid)).sum(-1), sums, out=np.zeros_like(sums), where=sums > 0)
    return np.asarray(reach.sum(-1) / np.maximum((sums > 0).sum(-1), 1), np.float32)


def patch_distances(grid: Pair) -> FloatArray:
    """Return the distances between the centers of all patches of a (rows, columns) grid in patches, (N,N) float32."""
    y, x = (part.ravel() for part in np.indices(grid))
    return np.hypot(y[:, None] - y, x[:, None] - x).astype(np.float32)


def _convit(model: ImageModel) -> ConViT:
    if not isinstance(model, ConViT):
        raise _wrong_family(model, "ConViT")
    return model


def _gated_layers(model: ImageModel) -> list[GPSA]:
    return [block.attn for block in _convit(model).blocks if isinstance(block.attn, GPSA)]


# --- CrossViT ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageAttention:
    """The attention of one stage of a CrossViT for one image, by branch (0: small patches, 1: large patches).

    branches[b]: self-attention of each block of branch b, (H,1+N,1+N) float32 with the class token first.
    fusions[b]: for each cross-attention of the class token of branch b, its attention to itself and then to the patches
    of the other branch, (H,1+N) float32 with that branch's H and N. Only the first one sees patches, as a
    cross-attention returns nothing but the class token; those of later ones are (H,1).
    """

    branches: tuple[tuple[FloatArray, ...], ...]
    fusions: tuple[tuple[FloatArray, ...], ...]


@torch.no_grad()
def crossvit_attention(model: ImageModel, x_1CHW: Tensor) -> list[StageAttention]:
    """Return the attention of both branches and of each fusion of a CrossViT for one image, by stage.

    x_1CHW: (1,C,H,W) normalized image. Raises UsageError `bad_argument` for another family or several images.
    """
    if not isinstance(model, CrossViT):
        raise _wrong_family(model, "CrossViT")
    layers = attention_modules(model)
    inputs = recorded_inputs(model, x_1CHW, layers)
    maps = {layer: _array(attend(layer, x_1TD)[0][0]) for layer, x_1TD in zip(layers, inputs, strict=True)}

    def maps_in(parts: nn.ModuleList) -> list[tuple[FloatArray, ...]]:
        return [tuple(maps[layer] for layer in attention_modules(parts[b])) for b in BRANCHES]

    stages = [stage for stage in model.blocks if isinstance(stage, MultiScaleBlock)]
    return [
        StageAttention(
            branches=tuple(maps_in(stage.blocks)),
            fusions=tuple(tuple(map_H1T[:, 0] for map_H1T in maps_H1T) for maps_H1T in maps_in(stage.fusion)),
        )
        for stage in stages
    ]


# --- shared -----------------------------------------------------------------------------------------------------------


def attention_modules(module: nn.Module) -> list[nn.Module]:
    """Return the attention modules of a module, in the order in which they are registered."""
    return [inner for inner in module.modules() if isinstance(inner, GPSA | Attention | CrossAttention)]


def attend(module: nn.Module, x_BTD: Tensor, rel_NN3: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the attention (B,H,queries,keys) of an attention module, and the values (B,H,keys,d) that it averages.

    x_BTD: (B,T,D) input of the module. rel_NN3: (N,N,3) relative positions, which GPSA reads.
    """
    if isinstance(module, GPSA):
        assert rel_NN3 is not None
        content_BHNN = content_attention(module, x_BTD)
        gate_H11 = module.gating_param.sigmoid()[:, None, None]
        position_HNN = module.position_attention(rel_NN3).to(content_BHNN.dtype)
        attention_BHNN = (1 - gate_H11) * content_BHNN + gate_H11 * position_HNN
        return attention_BHNN, module.v(x_BTD).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
    if isinstance(module, CrossAttention):
        q_BH1d, k_BHTd, v_BHTd = (
            linear(tokens).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for linear, tokens in ((module.wq, x_BTD[:, :1]), (module.wk, x_BTD), (module.wv, x_BTD))
        )
        return _compare(q_BH1d, k_BHTd), v_BHTd
    assert isinstance(module, Attention)
    q_BHTd, k_BHTd, v_BHTd = module.qkv(x_BTD).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return _compare(q_BHTd, k_BHTd), v_BHTd


def content_attention(module: GPSA, x_BND: Tensor) -> Tensor:
    """Return the attention by content (B,H,N,N) of a module with GPSA, from its input (B,N,D)."""
    q_BHNd, k_BHNd = module.qk(x_BND).unflatten(-1, (2, module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return _compare(q_BHNd, k_BHNd)


def _compare(q_BHQd: Tensor, k_BHTd: Tensor) -> Tensor:
    """Return scaled dot-product attention (B,H,Q,T)."""
    return (q_BHQd @ k_BHTd.transpose(-2, -1) * q_BHQd.shape[-1] ** -0.5).softmax(-1)


@torch.no_grad()
def recorded_inputs(model: ImageModel, x_1CHW: Tensor, modules: Sequence[nn.Module]) -> list[Tensor]:
    """Run a model on a (1,C,H,W) normalized image and return the first argument of each of its `modules`.

    The arguments have the modules' own shapes, such as (1,T,D). Raises UsageError `bad_argument` for several images.
    """
    if x_1CHW.ndim != 4 or x_1CHW.shape[0] != 1:
        raise UsageError("bad_argument", f"got a tensor of shape {tuple(x_1CHW.shape)}, expected one image (1,C,H,W)")
    recorded: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        recorded[module] = arguments[0]

    handles = [module.register_forward_pre_hook(record) for module in modules]
    try:
        model.forward_features(x_1CHW)
    finally:
        for handle in handles:
            handle.remove()
    return [recorded[module] for module in modules]


def _array(values: Tensor) -> FloatArray:
    array: FloatArray = values.float().cpu().numpy()
    return array


def _stacked(maps: Sequence[Tensor], shape: tuple[int, ...]) -> FloatArray:
    """Stack arrays of `shape`, of which there may be none."""
    return _array(torch.stack(list(maps))) if maps else np.zeros((0, *shape), np.float32)


def _wrong_family(model: ImageModel, expected: str) -> UsageError:
    return UsageError("bad_argument", f"the model is of family {type(model).__name__}, expected {expected}")
