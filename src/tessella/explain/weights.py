"""The weights of a model as arrays that can be looked at, after the figures of the papers.

Sources: MLP-Mixer, Tolstikhin et al. 2021 (arXiv:2105.01601), figure 5; ResMLP, Touvron et al. 2021 (arXiv:2105.03404),
figures 2 and 3; gMLP, Liu et al. 2021 (arXiv:2105.08050), figure 3; ConvMixer, Trockman and Kolter 2022
(arXiv:2201.09792), appendix. The attention of ConViT and CrossViT is in `attention_weights`, and public here, too.
Letters for shapes: L blocks, U units (rows of a weight matrix), N patches (row-major over a grid of rows x columns),
D model width, C channels, p pixels of a patch's side, k the side of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UsageError
from ..models.base import ImageModel
from ..models.convit import ConViT
from ..models.convmixer import ConvMixer
from ..models.mixer import MixerBlock, MlpMixer, ResBlock, SpatialGatingBlock
from ..results import FloatArray
from .attention_weights import StageAttention as StageAttention
from .attention_weights import convit_attention as convit_attention
from .attention_weights import convit_content_attention as convit_content_attention
from .attention_weights import convit_gates as convit_gates
from .attention_weights import convit_position_attention as convit_position_attention
from .attention_weights import crossvit_attention as crossvit_attention
from .attention_weights import non_locality as non_locality

SPARSITY_THRESHOLD = 0.05  # of the largest weight, as in arXiv:2105.03404

# --- mixing across patches --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenMixing:
    """The linear layer of one block that reads all patches.

    name: of the parameter. weights: (out,in) float32, where in is the patches. grids: the same weights as
    (out,rows,columns), one picture over the image per output. by_position: whether the outputs are the patches
    themselves (ResMLP, gMLP) or hidden units of an MLP (MLP-Mixer, gMixer). output_grids: (hidden,rows,columns), the
    weights with which each hidden unit is written back to the patches; None if there are no hidden units. gates: how
    many of the outputs, the last ones, gate the others before that (gMixer: half of them).
    """

    name: str
    weights: FloatArray
    grids: FloatArray
    by_position: bool
    output_grids: FloatArray | None = None
    gates: int = 0


def token_mixing(model: ImageModel) -> list[TokenMixing]:
    """Return the token-mixing weights of each block of an MLP-Mixer, gMixer, ResMLP or gMLP.

    Raises UsageError `bad_argument` for another family.
    """
    if not isinstance(model, MlpMixer):
        raise UsageError(
            "bad_argument",
            f"the model is of family {type(model).__name__}, expected one that mixes tokens with linear layers",
            hint="these are MLP-Mixer, gMixer, ResMLP and gMLP",
        )
    rows, columns = model.stem.grid
    mixing = []
    for i, block in enumerate(model.blocks):
        name, layer, back = _mixing_layer(block)
        weights = _array(layer.weight)
        mixing.append(
            TokenMixing(
                name=f"blocks.{i}.{name}.weight",
                weights=weights,
                grids=weights.reshape(-1, rows, columns),
                by_position=back is None,
                output_grids=None if back is None else _array(back.weight.T).reshape(-1, rows, columns),
                gates=0 if back is None else layer.out_features - back.in_features,
            )
        )
    return mixing


def _mixing_layer(block: nn.Module) -> tuple[str, nn.Linear, nn.Linear | None]:
    """Return the layer that reads the patches, its name in the block, and the one that writes to them, if any."""
    if isinstance(block, MixerBlock):
        return "mlp_tokens.fc1", block.mlp_tokens.fc1, block.mlp_tokens.fc2
    if isinstance(block, ResBlock):
        return "linear_tokens", block.linear_tokens, None
    assert isinstance(block, SpatialGatingBlock)
    layer = block.mlp_channels.gate.proj
    assert isinstance(layer, nn.Linear)
    return "mlp_channels.gate.proj", layer, None


def spatial_frequency(grids: FloatArray) -> FloatArray:
    """Return the mean spatial frequency of each of (U,rows,columns) grids in cycles per cell, (U,) float32.

    Grids may have channels, (U,rows,columns,C), whose power is added.

    The mean over the coefficients of the two-dimensional cosine transform (DCT-II), weighted by their power;
    coefficient (u, v) has the frequency hypot(u / (2 rows), v / (2 columns)). Unlike the Fourier transform, the cosine
    transform does not take the step between opposite borders for a high frequency. A constant grid has frequency 0, as
    has a grid of zeros; the highest frequency is just below hypot(0.5, 0.5).
    """
    rows, columns = grids.shape[1:3]
    channels = np.moveaxis(grids.reshape(*grids.shape[:3], -1).astype(np.float64), 3, 1)
    power = ((_cosines(rows) @ channels @ _cosines(columns).T) ** 2).sum(1)
    frequency = np.hypot(np.arange(rows)[:, None] / (2 * rows), np.arange(columns) / (2 * columns))
    total = power.sum((1, 2))
    weighted = (power * frequency).sum((1, 2))
    return np.divide(weighted, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)


def sort_by_frequency(grids: FloatArray) -> NDArray[np.int64]:
    """Return the order of (U,rows,columns) grids from the lowest `spatial_frequency` to the highest, (U,) int64.

    Grids may have channels, (U,rows,columns,C).
    """
    return np.argsort(spatial_frequency(grids), kind="stable")


def pair_opposites(grids: FloatArray) -> NDArray[np.int64]:
    """Pair (U,rows,columns) grids of opposite phase, as figure 5 of arXiv:2105.01601 does: (U // 2,2) int64 indices.

    The pair with the lowest cosine comes first, then that of the remaining grids, and so on; of an odd number, one grid
    is left over. The pairs are returned from the lowest mean `spatial_frequency` to the highest.
    """
    flat = grids.reshape(len(grids), -1).astype(np.float64)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0)
    first, second = np.triu_indices(len(grids), 1)
    order = np.argsort((flat @ flat.T)[first, second], kind="stable")
    free = np.ones(len(grids), bool)
    pairs: list[tuple[int, int]] = []
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if free[a] and free[b]:
            free[a] = free[b] = False
            pairs.append((a, b))
            if len(pairs) == len(grids) // 2:
                break
    if not pairs:
        return np.zeros((0, 2), np.int64)
    paired = np.array(pairs, np.int64)
    return paired[np.argsort(spatial_frequency(grids)[paired].mean(1), kind="stable")]


def sparsity(weights: FloatArray, threshold: float = SPARSITY_THRESHOLD) -> float:
    """Return the share, 0 to 1, of weights of any shape whose size is below `threshold` times that of the largest.

    With the default, 5 %, this is the measure of figure 3 of arXiv:2105.03404. It is 1 if all weights are zero.
    """
    sizes = np.abs(weights)
    largest = sizes.max(initial=0)
    return float((sizes < threshold * largest).mean()) if largest > 0 else 1.0


def _cosines(size: int) -> NDArray[np.float64]:
    """Return the orthonormal (size,size) matrix of the cosine transform DCT-II."""
    waves = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)) * np.sqrt(2 / size)
    waves[0] /= np.sqrt(2)
    return waves


# --- filters and kernels ----------------------------------------------------------------------------------------------


def patch_filters(model: ImageModel, std: Sequence[float] | None = None) -> FloatArray:
    """Return the filters of the patch embedding in units of pixel values, (D,p,p,C) float32.

    The model reads pixels from which the mean was subtracted and which were divided by `std`; the weights are divided
    by it, so that the filter is what is multiplied with pixel values in 0..1. std: one value per channel; None: that of
    the model's `pretrained_cfg`, or 1 without one. Raises UsageError `bad_argument` for CrossViT, which has an
    embedding for each branch, and for a `std` of another length.
    """
    weight = _array(_embedding(model).weight)
    scale = np.asarray(std if std is not None else model.pretrained_cfg.get("std", [1.0] * weight.shape[1]), np.float32)
    if scale.shape != weight.shape[1:2]:
        raise UsageError("bad_argument", f"std has {scale.size} values, the model reads {weight.shape[1]} channels")
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1) / scale)


def depthwise_kernels(model: ImageModel) -> FloatArray:
    """Return the depthwise kernels of all blocks of a ConvMixer, (L,D,k,k) float32.

    The residual connection around the convolution, which adds its input, is not part of the kernels. Raises UsageError
    `bad_argument` for another family.
    """
    if not isinstance(model, ConvMixer):
        raise UsageError("bad_argument", f"the model is of family {type(model).__name__}, expected ConvMixer")
    return np.stack([_array(_depthwise(block).weight)[:, 0] for block in model.blocks])


def _embedding(model: ImageModel) -> nn.Conv2d:
    """Return the convolution that embeds patches."""
    match model:
        case ConvMixer():
            layer: nn.Module = model.stem[0]
        case MlpMixer():
            layer = model.stem.proj
        case ConViT():
            layer = model.patch_embed.proj
        case _:
            raise UsageError("bad_argument", f"{type(model).__name__} has no single patch embedding")
    assert isinstance(layer, nn.Conv2d)
    return layer


def _depthwise(block: nn.Module) -> nn.Conv2d:
    (layer,) = (module for module in block.modules() if isinstance(module, nn.Conv2d) and module.groups > 1)
    return layer


def _array(values: Tensor) -> FloatArray:
    array: FloatArray = values.detach().float().cpu().numpy()
    return array
