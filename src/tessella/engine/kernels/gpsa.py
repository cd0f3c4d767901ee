"""Gated positional self-attention with constant attention by position, for ConViT (arXiv:2103.10697).

    y_h = (c_h * softmax(q_h k_h^T * d^-1/2) + P_h) @ v_h

c_h is 1 - gate; P_h is already multiplied by the gate. As a row of scores fits in registers, neither the scores nor a
second product with the values are written to memory.

Shape suffixes: B images, N tokens, H heads, d channels of a head, D = H d; M >= N is the length of a padded row of P.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import HALF, kernel_of, wide

MAX_TOKENS = 1024  # with more, 16 rows of scores do not fit in the registers of a program


@torch.library.custom_op("tessella::gpsa", mutates_args=())
def gpsa(qkv_BNX: Tensor, content_gate_H: Tensor, position_HNM: Tensor) -> Tensor:
    """Run the kernel: (B,N,3D) queries, keys and values of all heads -> (B,N,D), the input of the projection.

    content_gate_H: the factor of the content attention, 1 - gate. position_HNM: attention by position times the gate;
    columns after the first N are padding and not read. Sums are in float32. On a GPU, float32 inputs are computed by
    `plain`, as their exact products do not fit in a program's registers.
    """
    y_BND: Tensor = kernel_of("gpsa", plain, qkv_BNX, HALF)(qkv_BNX, content_gate_H, position_HNM)
    return y_BND


@gpsa.register_fake
def _(qkv_BNX: Tensor, content_gate_H: Tensor, position_HNM: Tensor) -> Tensor:
    batch, tokens, three = qkv_BNX.shape
    return qkv_BNX.new_empty(batch, tokens, three // 3)


def plain(qkv_BNX: Tensor, content_gate_H: Tensor, position_HNM: Tensor) -> Tensor:
    """As `gpsa`, with operators of PyTorch."""
    dtype = wide(qkv_BNX)
    tokens, heads = qkv_BNX.shape[1], len(content_gate_H)
    q_BHNd, k_BHNd, v_BHNd = qkv_BNX.to(dtype).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores_BHNN = q_BHNd @ k_BHNd.transpose(-1, -2) * q_BHNd.shape[-1] ** -0.5
    weights_BHNN = content_gate_H.to(dtype)[:, None, None] * scores_BHNN.softmax(-1) + position_HNM[..., :tokens].to(
        dtype
    )
    y_BND: Tensor = (weights_BHNN @ v_BHNd).transpose(1, 2).flatten(2)
    return y_BND.to(qkv_BNX.dtype).contiguous()
