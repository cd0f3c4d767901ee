"""Rewrites of ConvMixer: batch norms are folded into convolutions, activations and the end of the forward pass.

Shape suffixes: as in models/convmixer.py.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.spec import InputSpec
from ...models.convmixer import ConvMixer, Residual, check_smallest, pool_map
from .base import Family, Rewritten
from .folding import frozen
from .pixels import on_pixels

AVERAGE = ("avg", "fast", "fastavg")  # pools that commute with a scale and a shift


def batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the scale and shift, float64 (D,), that a batch norm applies to each channel at inference."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def scaled_conv(conv: nn.Conv2d, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> nn.Conv2d:
    """Return the convolution y = scale * conv(x) + shift; scale and shift are float64 (D,)."""
    assert conv.bias is not None
    new = copy.deepcopy(conv)
    scale = torch.as_tensor(scale, dtype=torch.float64, device=conv.weight.device)
    new.weight = frozen(conv.weight.double() * scale.reshape(-1, 1, 1, 1), conv.weight)
    new.bias = frozen(conv.bias.double() * scale + shift, conv.weight)
    return new


class Clamp(nn.Module):
    """Clamp to two bounds per channel: (B,D,h,w) -> the same shape."""

    def __init__(self, low: Tensor, high: Tensor, like: Tensor):
        super().__init__()
        self.low, self.high = (frozen(bound[:, None, None], like) for bound in (low, high))

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.low), self.high)


class ScaledGelu(nn.Module):
    """Compute scale * gelu(x) + shift per channel: (B,D,h,w) -> the same shape."""

    def __init__(self, scale: Tensor, shift: Tensor | None, like: Tensor):
        super().__init__()
        self.scale = frozen(scale[:, None, None], like)
        self.shift = None if shift is None else frozen(shift[:, None, None], like)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) * self.scale if self.shift is None else torch.addcmul(self.shift, F.gelu(x), self.scale)


class MemoryLayout(nn.Module):
    """Convert a map (B,D,h,w) to the memory format of the layout, which convolutions then preserve."""

    def __init__(self, layout: str):
        super().__init__()
        self.format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.format)


class FoldedBlock(nn.Module):
    """A ConvMixer block without batch norms: (B,D,h,w) -> (B,D,h,w).

    x + spatial(x), then `channel`; each is a convolution and an activation.
    """

    def __init__(self, spatial: nn.Sequential, channel: nn.Sequential):
        super().__init__()
        self.spatial, self.channel = spatial, channel

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.channel(x + self.spatial(x))
        return mixed


def conv_with_clamp(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Sequential:
    """Fold a convolution, ReLU and batch norm into a convolution and a clamp.

    a * relu(z) + c = clamp(a * z + c), with c as the lower bound, or as the upper bound if a < 0.
    """
    scale, shift = batch_norm_affine(norm)
    low, high = torch.where(scale >= 0, shift, -torch.inf), torch.where(scale >= 0, torch.inf, shift)
    return nn.Sequential(scaled_conv(conv, scale, shift), Clamp(low, high, conv.weight))


def fold_batch_norms(net: ConvMixer, layout: str) -> None:
    """Fold batch norms into the convolutions before them (ReLU), or into one multiply-add or multiply (GELU).

    Folding into the preceding convolution does not affect the zero padding of the next one.
    """
    relu = net.config.act_layer == "relu"
    conv, _, norm = cast("tuple[nn.Conv2d, nn.Module, nn.BatchNorm2d]", tuple(net.stem))
    if relu:
        net.stem = conv_with_clamp(conv, norm)
    else:
        net.stem = nn.Sequential(conv, ScaledGelu(*batch_norm_affine(norm), conv.weight))
    for i, block in enumerate(net.blocks):
        parts = cast("tuple[Residual, nn.Conv2d, nn.Module, nn.BatchNorm2d]", tuple(cast("nn.Sequential", block)))
        residual, pointwise, _, norm2 = parts
        within = tuple(cast("nn.Sequential", residual.fn))
        spatial, _, norm1 = cast("tuple[nn.Conv2d, nn.Module, nn.BatchNorm2d]", within)
        if relu:
            net.blocks[i] = FoldedBlock(conv_with_clamp(spatial, norm1), conv_with_clamp(pointwise, norm2))
            continue
        scale, shift = batch_norm_affine(norm1)  # the shift passes through the residual sum into the pointwise bias
        shifted = scaled_conv(pointwise, shift=pointwise.weight.double().flatten(1) @ shift)
        net.blocks[i] = FoldedBlock(
            nn.Sequential(spatial, ScaledGelu(scale, None, spatial.weight)),
            nn.Sequential(shifted, ScaledGelu(*batch_norm_affine(norm2), pointwise.weight)),
        )


class ConvMixerFinal(Rewritten):
    """Apply the last batch norm to the pooled vector, as it commutes with an average (GELU variants).

    (B,C,H,W) images -> logits (B,classes) and embedding (B,D).
    """

    rewrite = "norm_after_pool"
    if TYPE_CHECKING:
        net: ConvMixer

    def __init__(self, net: ConvMixer, applied: tuple[str, ...]):
        super().__init__(net, applied)
        last = net.blocks[-1]
        if isinstance(last, FoldedBlock):
            affine = last.channel[1]
            assert isinstance(affine, ScaledGelu)
            self.mix, self.affine = nn.Sequential(last.channel[0], nn.GELU()), affine
        else:
            assert isinstance(last, nn.Sequential)
            conv, act, norm = cast("tuple[nn.Conv2d, nn.Module, nn.BatchNorm2d]", tuple(last)[1:])
            self.mix, self.affine = nn.Sequential(conv, act), ScaledGelu(*batch_norm_affine(norm), conv.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        check_smallest(x, net.patch_size)
        x = net.stem(x)
        *blocks, last = net.blocks
        for block in blocks:
            x = block(x)
        # a block that is not folded, or was replaced by kernels, is a Sequential that begins with the residual sum
        x = x + last.spatial(x) if isinstance(last, FoldedBlock) else cast("nn.Sequential", last)[0](x)
        pooled_BD = pool_map(self.mix(x), net.global_pool)
        assert self.affine.shift is not None
        embedding = torch.addcmul(self.affine.shift.flatten(), pooled_BD, self.affine.scale.flatten())
        return net.head(embedding), embedding


class ConvMixerFamily(Family[ConvMixer]):
    """The rewrites of ConvMixer.

    Layouts: memory formats of the maps. On CPUs, convolutions of 9 x 9 and more are 1.2 to 1.5 times slower in
    channels-last, smaller ones are faster. "norms_apart" keeps the batch norms of the ReLU variant, for runtimes that
    fuse a ReLU with its convolution: they need one pass for the norm, but two for the clamp that would replace it.
    """

    model_type = ConvMixer
    final = ConvMixerFinal
    skipped_by = {"norms_apart": "fold_batch_norms"}
    engine_layouts = {"onnxruntime": "norms_apart"}
    steps = {"fold_batch_norms": fold_batch_norms}

    def names(self, model: ConvMixer) -> tuple[str, ...]:
        commutes = model.global_pool in AVERAGE and model.config.act_layer == "gelu"
        return ("fold_batch_norms", *((self.final.rewrite,) if commutes else ()))

    def layouts(self, model: ConvMixer) -> tuple[str, ...]:
        formats = ("channels_last", "channels_first")
        formats = formats[::-1] if model.config.kernel_size >= 9 else formats
        return (*formats, "norms_apart") if model.config.act_layer == "relu" else formats

    def fold_pixels(self, net: ConvMixer, spec: InputSpec) -> None:
        net.stem[0] = on_pixels(net.stem[0], spec)

    def finish(self, net: ConvMixer, layout: str) -> None:
        net.stem.append(MemoryLayout(layout))
