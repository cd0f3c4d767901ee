"""Depthwise convolution, activation and residual connection in one pass, for ConvMixer (arXiv:2201.09792).

    y = x + clamp(conv(x) + bias, low, high)      or      y = x + scale * gelu(conv(x) + bias)

k x k with odd k, stride 1, zero padding ("same"). Compilers cannot fuse other operations with the convolution of a
library; this kernel reads and writes the activations of a block once.

Shape suffixes: B images, D channels, h w the grid, K the side of the kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import SINGLE, kernel_of, wide


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the memory format of (B,D,h,w) maps: channels-last or contiguous."""
    return torch.channels_last if channels_last else torch.contiguous_format


@torch.library.custom_op("tessella::depthwise", mutates_args=())
def depthwise(
    x_BDhw: Tensor,
    weight_KKD: Tensor,
    bias_D: Tensor,
    low_D: Tensor | None,
    high_D: Tensor | None,
    scale_D: Tensor | None,
    channels_last: bool,
) -> Tensor:
    """Run the kernel: (B,D,h,w) -> the same shape and dtype, in channels-last or contiguous memory.

    weight_KKD: K x K weights per channel. Either low_D and high_D, which may be infinite, or scale_D must be given.
    Sums are in float32.
    """
    run = kernel_of("depthwise", plain, x_BDhw, SINGLE)
    y: Tensor = run(x_BDhw, weight_KKD, bias_D, low_D, high_D, scale_D, channels_last)
    return y


@depthwise.register_fake
def _(
    x_BDhw: Tensor,
    weight_KKD: Tensor,
    bias_D: Tensor,
    low_D: Tensor | None,
    high_D: Tensor | None,
    scale_D: Tensor | None,
    channels_last: bool,
) -> Tensor:
    return torch.empty_like(x_BDhw, memory_format=memory_format(channels_last))


def plain(
    x_BDhw: Tensor,
    weight_KKD: Tensor,
    bias_D: Tensor,
    low_D: Tensor | None,
    high_D: Tensor | None,
    scale_D: Tensor | None,
    channels_last: bool,
) -> Tensor:
    """As `depthwise`, with operators of PyTorch: (B,D,h,w) -> the same shape."""
    dtype = wide(x_BDhw)
    x, weight, bias = (t.to(dtype) for t in (x_BDhw, weight_KKD.permute(2, 0, 1)[:, None], bias_D))
    z = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(bias))
    if scale_D is not None:
        z = F.gelu(z) * scale_D.to(dtype)[:, None, None]
    else:
        assert low_D is not None
        assert high_D is not None
        z = torch.minimum(torch.maximum(z, low_D.to(dtype)[:, None, None]), high_D.to(dtype)[:, None, None])
    # a copy even if nothing changes: an operator never returns its input
    y = torch.empty_like(x_BDhw, memory_format=memory_format(channels_last))
    return y.copy_(x + z)
