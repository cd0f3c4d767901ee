"""Depthwise convolutions whose weight gradient is faster in bfloat16 on CPUs.

oneDNN has a fast kernel for the weight gradient of 3 x 3 depthwise convolutions in bfloat16; for larger ones, this
gradient takes most of the time of a training step. The gradient of a larger kernel consists of those of 3 x 3 windows:
the window at (i, j) is the kernel of a convolution that reads the image shifted by (i, j). Each window is computed by
the fast kernel. The forward pass and the gradient of the input stay those of PyTorch.

Shape suffixes: B images, D channels, h w height and width, k kernel size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WINDOW = 3  # side of the kernels for which oneDNN is fast


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with an odd kernel, stride 1 and an output of the size of its input."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if dtype != torch.bfloat16 or not torch.is_grad_enabled():
            return super()._conv_forward(input, weight, bias)
        values = (None if value is None else value.to(dtype) for value in (input, weight, bias))
        out: Tensor = _Depthwise.apply(*values)
        return out


class _Depthwise(torch.autograd.Function):
    """The convolution of images (B,D,h,w) with a weight (D,1,k,k) and a bias (D,) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x, weight, bias, padding="same", groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = _backward(grad, x, weight, weight.shape[2] // 2, (True, False))[0] if needs_x else None
        grad_weight = weight_gradient(grad, x, weight) if needs_weight else None
        # asked for the gradient of the bias, oneDNN computes that of the weight, too
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None


def weight_gradient(grad_BDhw: Tensor, x_BDhw: Tensor, weight_D1kk: Tensor) -> Tensor:
    """Return the gradient (D,1,k,k) of a weight; grad_BDhw: of the output; x_BDhw: the input."""
    side, (height, width) = weight_D1kk.shape[2], x_BDhw.shape[2:]
    around = side // 2
    padded = F.pad(x_BDhw, (around, around, around, around))
    grad_BDhw = grad_BDhw.contiguous(memory_format=torch.channels_last)
    result = torch.empty_like(weight_D1kk)
    window = weight_D1kk[:, :, :_WINDOW, :_WINDOW].contiguous()
    starts = [*range(0, side - _WINDOW, _WINDOW), side - _WINDOW]
    for i in starts:
        for j in starts:
            shifted = padded[:, :, i : i + height + _WINDOW - 1, j : j + width + _WINDOW - 1]
            shifted = shifted.contiguous(memory_format=torch.channels_last)
            part = _backward(grad_BDhw, shifted, window, 0, (False, True))[1]
            result[:, :, i : i + _WINDOW, j : j + _WINDOW] = part
    return result


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias of a depthwise convolution. wanted: of input and of weight."""
    channels = len(weight)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], [1, 1], [padding] * 2, [1, 1], False, [0, 0], channels, [*wanted, False]
    )
    return gradients


def use_fast_gradients(model: nn.Module) -> int:
    """Convert the depthwise convolutions of a model with odd kernels of 5 or more; return how many were converted.

    Parameters, state dict, and results without gradients stay as they are. Without AVX-512, where windows take longer
    than the whole kernel, nothing is converted.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return 0
    count = 0
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_suitable(module):
            module.__class__ = DepthwiseConv2d
            count += 1
    return count


def _is_suitable(conv: nn.Conv2d) -> bool:
    side = conv.kernel_size[0]
    return (
        conv.kernel_size == (side, side)
        and side % 2 == 1
        and side > _WINDOW
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding in ("same", (side // 2, side // 2))
        and conv.padding_mode == "zeros"
    )
