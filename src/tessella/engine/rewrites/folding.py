"""Fold scales and shifts into linear layers. Weights are computed in float64 and rounded once.

Shape suffixes: as in the model files.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...models.layers import PreNormBlock


def frozen(value: Tensor, like: Tensor) -> nn.Parameter:
    """Return `value`, of any shape, as a contiguous parameter without gradient, with the dtype and device of `like`."""
    return nn.Parameter(value.detach().to(like).contiguous(), requires_grad=False)


def new_linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """Return a linear layer from float64 weights (D_out,D_in) and (D_out,), with the dtype and device of `like`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = frozen(weight, like)
    if bias is not None:
        linear.bias = frozen(bias, like)
    return linear


def fold_scale(linear: nn.Linear, scale: Tensor, shift: Tensor) -> nn.Linear:
    """Return y = linear(scale * x + shift) as one linear layer; both have one entry per input: (D,)."""
    weight = linear.weight.double()
    bias = weight @ shift.double()
    if linear.bias is not None:
        bias = bias + linear.bias.double()
    return new_linear(weight * scale.double(), bias, linear.weight)


def layer_norm_affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of a LayerNorm, float64 (D,): 1 and 0 if they were folded."""
    if norm.elementwise_affine:
        return norm.weight.double(), norm.bias.double()
    (width,) = norm.normalized_shape
    return torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)


def fold_norm(owner: nn.Module, norm_name: str, reader: nn.Module, linears: Iterable[str]) -> None:
    """Fold the scale and shift of a LayerNorm of `owner` into the linear layers of `reader`, which alone read it."""
    norm: nn.LayerNorm = getattr(owner, norm_name)
    for name in linears:
        setattr(reader, name, fold_scale(getattr(reader, name), norm.weight, norm.bias))
    setattr(owner, norm_name, nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False))


def fold_pre_norms(block: PreNormBlock, projections: Iterable[str]) -> None:
    """Fold both norms of a transformer block.

    projections: names of the linear layers of its attention that read the first norm.
    """
    fold_norm(block, "norm1", block.attn, projections)
    fold_norm(block, "norm2", block.mlp, ("fc1",))
