"""Modules that call the kernels, and the function that puts them into a rewritten model.

Shape suffixes: as in the files of the kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError
from ..rewrites import Rewritten
from ..rewrites.convit import ConstantGPSA
from ..rewrites.convmixer import Clamp, ConvMixerFinal, FoldedBlock, ScaledGelu
from ..rewrites.folding import frozen
from ..rewrites.mixer import LeftMixerBlock
from . import gpsa, token_mlp
from .backend import wide
from .depthwise import depthwise

LAYOUTS = ("channels_last", "channels_first")
ALIGNMENT = 16  # elements; rows that start at multiples of 16 are read 16 bytes at a time in every dtype


def use_kernels(rewritten: Rewritten, layout: str = "channels_last") -> tuple[str, ...]:
    """Replace the modules of `rewritten` that have a kernel, in place, and return their names.

    The outputs, features and intermediates stay the same up to rounding. layout: one of LAYOUTS, the memory layout of
    ConvMixer's maps; the other families have one layout. Modules that no kernel supports do not change.
    Raises UsageError `bad_argument` for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise UsageError("bad_argument", f"layout is {layout!r}, expected {' or '.join(LAYOUTS)}")
    channels_last = layout == "channels_last"
    swapped: dict[str, nn.Module] = {}
    for name, module in rewritten.named_modules():
        if isinstance(module, FoldedBlock) and is_depthwise(module.spatial):
            swapped[name] = KernelConvBlock(module, channels_last)
        elif isinstance(module, ConstantGPSA) and not module.separable and len(module.position[0]) <= gpsa.MAX_TOKENS:
            swapped[name] = KernelGPSA(module)
        elif isinstance(module, LeftMixerBlock) and is_token_mlp(module):
            swapped[name] = KernelMixerBlock(module)
    for name, module in swapped.items():
        rewritten.set_submodule(name, module)
    if isinstance(rewritten, ConvMixerFinal) and isinstance(last := rewritten.net.blocks[-1], KernelConvBlock):
        rewritten.mix[0] = last[1]  # ConvMixerFinal has its own reference to the convolution across channels
    return tuple(swapped)


def is_depthwise(spatial: nn.Sequential) -> bool:
    """Return whether `depthwise` computes this convolution and activation."""
    conv, act = spatial
    return (
        isinstance(conv, nn.Conv2d)
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.kernel_size[0] % 2 == 1
        and conv.padding == "same"
        and conv.stride == conv.dilation == (1, 1)
        and (isinstance(act, Clamp) or (isinstance(act, ScaledGelu) and act.shift is None))
    )


def is_token_mlp(block: LeftMixerBlock) -> bool:
    """Return whether `token_mlp` computes the token mixing of this block."""
    act = block.act
    is_known = isinstance(act, nn.SiLU) if block.gated else isinstance(act, nn.GELU) and act.approximate == "none"
    return is_known and isinstance(block.norm1, nn.LayerNorm) and block.fc2.weight.shape[0] <= token_mlp.MAX_TOKENS


def padded(weight: Tensor) -> nn.Parameter:
    """Pad rows with zeros to a multiple of ALIGNMENT: (..., n) -> (..., m). The padding is not read."""
    return frozen(F.pad(weight, (0, -weight.shape[-1] % ALIGNMENT)), weight)


class DepthwiseResidual(nn.Module):
    """x + spatial(x), computed by the kernel: (B,D,h,w) -> (B,D,h,w)."""

    def __init__(self, spatial: nn.Sequential, channels_last: bool):
        super().__init__()
        conv, act = spatial
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        self.channels_last = channels_last
        self.weight_KKD, self.bias = frozen(conv.weight[:, 0].permute(1, 2, 0), conv.weight), conv.bias
        bounds = (act.low, act.high) if isinstance(act, Clamp) else (None, None)
        self.low, self.high = (None if bound is None else frozen(bound.flatten(), bound) for bound in bounds)
        self.scale = frozen(act.scale.flatten(), act.scale) if isinstance(act, ScaledGelu) else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = depthwise(x, self.weight_KKD, self.bias, self.low, self.high, self.scale, self.channels_last)
        return y


class Pointwise(nn.Module):
    """A 1 x 1 convolution as a matrix product, in either memory layout: (B,D,h,w) -> (B,out,h,w)."""

    def __init__(self, conv: nn.Conv2d, channels_last: bool):
        super().__init__()
        self.weight, self.bias, self.channels_last = (
            frozen(conv.weight.flatten(1), conv.weight),
            conv.bias,
            channels_last,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)
        assert self.bias is not None
        return (self.weight @ x.flatten(2) + self.bias[:, None]).unflatten(2, x.shape[2:])


class KernelConvBlock(nn.Sequential):
    """A ConvMixer block: the kernel, then the convolution across channels and its activation."""

    def __init__(self, block: FoldedBlock, channels_last: bool):
        conv, act = block.channel
        assert isinstance(conv, nn.Conv2d)
        super().__init__(DepthwiseResidual(block.spatial, channels_last), Pointwise(conv, channels_last), act)


class KernelGPSA(nn.Module):
    """A ConstantGPSA layer whose attention is computed by the kernel: (B,N,D) -> (B,N,D)."""

    def __init__(self, attn: ConstantGPSA):
        super().__init__()
        self.qkv, self.proj = attn.qkv, attn.proj
        self.content_gate_H, self.position_HNM = (
            frozen(attn.content_gate.flatten(), attn.position),
            padded(attn.position),
        )

    def forward(self, x_BND: Tensor, rel_NN3: Tensor | None = None) -> Tensor:
        y_BND: Tensor = self.proj(gpsa.gpsa(self.qkv(x_BND), self.content_gate_H, self.position_HNM))
        return y_BND


class KernelMixerBlock(nn.Module):
    """A Mixer or gMixer block whose token mixing is computed by the kernel: (B,N,D) -> (B,N,D)."""

    def __init__(self, block: LeftMixerBlock):
        super().__init__()
        norm, like = block.norm1, block.fc1.weight
        assert isinstance(norm, nn.LayerNorm)
        self.eps, self.gated = norm.eps, block.gated
        ones = like.new_ones(norm.normalized_shape)
        affine = (norm.weight, norm.bias) if norm.elementwise_affine else (ones, torch.zeros_like(ones))
        self.scale, self.shift = (frozen(value, like) for value in affine)
        self.weight1_FM, self.bias1 = padded(like), frozen(block.fc1.bias.flatten(), like)
        self.weight2_NG, self.bias2 = padded(block.fc2.weight), frozen(block.fc2.bias.flatten(), like)
        self.norm2, self.mlp_channels = block.norm2, block.mlp_channels

    def forward(self, x_BND: Tensor) -> Tensor:
        # in plain PyTorch, so that a compiler can fuse the statistics with the computation of x
        var_BN, mean_BN = torch.var_mean(x_BND.to(wide(x_BND)), dim=-1, correction=0)
        weights = token_mlp.TokenMlpWeights(
            self.scale, self.shift, self.weight1_FM, self.bias1, self.weight2_NG, self.bias2
        )
        x_BND = token_mlp.token_mlp(x_BND, mean_BN, (var_BN + self.eps).rsqrt(), weights, self.gated)
        mixed_BND: Tensor = self.mlp_channels(self.norm2(x_BND))
        return x_BND + mixed_BND
