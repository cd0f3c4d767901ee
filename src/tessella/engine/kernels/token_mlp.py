"""The MLP across patches of MLP-Mixer (arXiv:2105.01601) and gMixer, with its norm and residual connection.

    y = x + W2 act(W1 n + b1) + b2,      n = (x - mean) * rstd * scale + shift,      act: GELU, or value * SiLU(gate)

Channels are independent of each other, so a program keeps all patches of a slab of channels on chip: nothing is
transposed, and no hidden unit is written to memory. The statistics are arguments, so that a compiler can fuse them with
the computation of x. Masks handle numbers of patches that are not a power of 2.

Shape suffixes: B images, N patches, D channels, E hidden units of W2, F of W1 (E, or 2E with a gate: values, then
gates); M >= N and G >= E are lengths of padded rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import HALF, kernel_of, wide

MAX_TOKENS = 1024  # with more, 16 channels do not fit in the registers of a program


class TokenMlpWeights(NamedTuple):
    """The weights of the norm and of both layers; the padding of the rows of weight1 and weight2 is not read."""

    scale: Tensor  # (D,), of the norm
    shift: Tensor  # (D,)
    weight1: Tensor  # (F,M)
    bias1: Tensor  # (F,)
    weight2: Tensor  # (N,G)
    bias2: Tensor  # (N,)


@torch.library.custom_op("tessella::token_mlp", mutates_args=())
def token_mlp(x_BND: Tensor, mean_BN: Tensor, rstd_BN: Tensor, weights: Sequence[Tensor], gated: bool) -> Tensor:
    """Run the kernel: (B,N,D) -> (B,N,D) of the same dtype.

    mean_BN, rstd_BN: float32 statistics of the norm. weights: the fields of TokenMlpWeights in order. Sums
    and activations are in float32. On a GPU, float32 inputs are computed by `plain`, as their exact products do not fit
    in a program's registers.
    """
    run = kernel_of("token_mlp", plain, x_BND, HALF)
    y_BND: Tensor = run(x_BND, mean_BN, rstd_BN, TokenMlpWeights(*weights), gated)
    return y_BND


@token_mlp.register_fake
def _(x_BND: Tensor, mean_BN: Tensor, rstd_BN: Tensor, weights: Sequence[Tensor], gated: bool) -> Tensor:
    return torch.empty_like(x_BND, memory_format=torch.contiguous_format)


def plain(x_BND: Tensor, mean_BN: Tensor, rstd_BN: Tensor, weights: TokenMlpWeights, gated: bool) -> Tensor:
    """As `token_mlp`, with operators of PyTorch."""
    dtype, tokens, hidden = wide(x_BND), x_BND.shape[1], len(weights.bias1) // (2 if gated else 1)
    read = weights._replace(weight1=weights.weight1[:, :tokens], weight2=weights.weight2[:, :hidden])
    x, mean, rstd = (t.to(dtype) for t in (x_BND, mean_BN, rstd_BN))
    scale, shift, weight1, bias1, weight2, bias2 = (t.to(dtype) for t in read)
    h_BFD = weight1 @ ((x - mean[..., None]) * rstd[..., None] * scale + shift) + bias1[:, None]
    h_BED = h_BFD[:, :hidden] * F.silu(h_BFD[:, hidden:]) if gated else F.gelu(h_BFD)
    return (x + (weight2 @ h_BED + bias2[:, None])).to(x_BND.dtype).contiguous()
