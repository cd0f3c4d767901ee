"""The MLP across patches of MLP-Mixer (arXiv:2105.01601) and gMixer, from the left, with its norm and residual sum.

    y = x + W2 act(W1 n + b1) + b2,      n = (x - mean) * rstd * scale + shift,      act: GELU, or value * SiLU(gate)

Channels do not meet in it, so a program keeps all patches of a slab of channels on chip: nothing is transposed and no
hidden unit goes through memory. The statistics come from outside, where a compiler joins them to what made x. That
196 patches are no power of 2 is a matter of masks.

Shape suffixes: B images, N patches, D channels, E hidden units of W2, F of W1 (E, or 2E with a gate: values, then
gates); M >= N and G >= E are padded rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import HALF, kernel_of, wide

MAX_TOKENS = 1024  # beyond, 16 channels of all patches are too many for the registers of a program


@torch.library.custom_op("tessella::token_mlp", mutates_args=())
def token_mlp(
    x_BND: Tensor,
    mean_BN: Tensor,
    rstd_BN: Tensor,
    scale_D: Tensor,
    shift_D: Tensor,
    weight1_FM: Tensor,
    bias1_F: Tensor,
    weight2_NG: Tensor,
    bias2_N: Tensor,
    gated: bool,
) -> Tensor:
    """(B,N,D) -> (B,N,D) of the same type; mean and rstd are float32. Sums and activations are in float32.

    Columns of weight1 from N on and of weight2 from E on are not read. Inputs in float32 run plain on a GPU, as exact
    products of them do not fit in a program's registers.
    """
    run = kernel_of("token_mlp", plain, x_BND, HALF)
    y: Tensor = run(x_BND, mean_BN, rstd_BN, scale_D, shift_D, weight1_FM, bias1_F, weight2_NG, bias2_N, gated)
    return y


@token_mlp.register_fake
def _(
    x_BND: Tensor,
    mean_BN: Tensor,
    rstd_BN: Tensor,
    scale_D: Tensor,
    shift_D: Tensor,
    weight1_FM: Tensor,
    bias1_F: Tensor,
    weight2_NG: Tensor,
    bias2_N: Tensor,
    gated: bool,
) -> Tensor:
    return torch.empty_like(x_BND, memory_format=torch.contiguous_format)


def plain(
    x_BND: Tensor,
    mean_BN: Tensor,
    rstd_BN: Tensor,
    scale_D: Tensor,
    shift_D: Tensor,
    weight1_FM: Tensor,
    bias1_F: Tensor,
    weight2_NG: Tensor,
    bias2_N: Tensor,
    gated: bool,
) -> Tensor:
    """The same function in PyTorch's own steps."""
    dtype, tokens, hidden = wide(x_BND), x_BND.shape[1], len(bias1_F) // (2 if gated else 1)
    x, mean, rstd, scale, shift, weight1, bias1, weight2, bias2 = (
        t.to(dtype)
        for t in (x_BND, mean_BN, rstd_BN, scale_D, shift_D, weight1_FM[:, :tokens], bias1_F, weight2_NG[:, :hidden],
                  bias2_N)
    )  # fmt: skip
    h_BFD = weight1 @ ((x - mean[..., None]) * rstd[..., None] * scale + shift) + bias1[:, None]
    h_BED = h_BFD[:, :hidden] * F.silu(h_BFD[:, hidden:]) if gated else F.gelu(h_BFD)
    return (x + (weight2 @ h_BED + bias2[:, None])).to(x_BND.dtype).contiguous()
