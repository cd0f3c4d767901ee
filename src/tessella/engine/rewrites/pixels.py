"""Patch embeddings that read uint8 pixels: the normalization (u / 255 - mean) / std is folded into their weights.

Shape suffixes: as in the model files, and S for the values of a patch (pixels times channels).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ...data.spec import InputSpec
from .folding import frozen, new_linear


def on_pixels(projection: nn.Module, spec: InputSpec) -> nn.Module:
    """Return the projection of a patch embedding (one or several convolutions) for pixels from 0 to 255."""
    if isinstance(projection, nn.Conv2d):
        return PixelPatches(projection, spec)
    assert isinstance(projection, nn.Sequential)
    first = projection[0]
    assert isinstance(first, nn.Conv2d)
    return NormalizedPixels(projection, first, spec)


class PixelPatches(nn.Module):
    """A patch embedding on raw pixels: (B,C,H,W) uint8 or float, 0 to 255 -> (B,D,h,w), stored channels-last.

    The normalization is affine, so it can be folded into the convolution; this is exact because there is no padding.
    Integers up to 255 are exact in every precision. As patches do not overlap, this is one matrix product.
    """

    def __init__(self, conv: nn.Conv2d, spec: InputSpec):
        super().__init__()
        (self.patch, _) = conv.kernel_size
        weight, scale, mean = conv.weight.double(), _per_channel(spec.std, conv), _per_channel(spec.mean, conv)
        bias = 0.0 if conv.bias is None else conv.bias.double()
        bias = bias - (weight * (mean / scale)).sum((1, 2, 3))
        weight_DS = (weight / (255 * scale)).permute(0, 2, 3, 1).flatten(1)
        self.linear = new_linear(weight_DS, bias, conv.weight)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        p = self.patch
        rows, cols = pixels_BCHW.shape[-2] // p, pixels_BCHW.shape[-1] // p
        cropped_BHWC = pixels_BCHW[..., : rows * p, : cols * p].permute(0, 2, 3, 1)
        patches = cropped_BHWC.unflatten(2, (cols, p)).unflatten(1, (rows, p)).transpose(2, 3)  # (B,h,w,p,p,C)
        return self.linear(patches.flatten(3).to(self.linear.weight.dtype)).permute(0, 3, 1, 2)


class NormalizedPixels(nn.Module):
    """Normalize pixels (B,C,H,W) and run `inner`, whose convolutions are padded: their padding is `mean`, not black."""

    def __init__(self, inner: nn.Module, conv: nn.Conv2d, spec: InputSpec):
        super().__init__()
        scale, mean = _per_channel(spec.std, conv), _per_channel(spec.mean, conv)
        self.scale, self.shift = frozen(1 / (255 * scale), conv.weight), frozen(-mean / scale, conv.weight)
        self.inner = inner

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patches: Tensor = self.inner(torch.addcmul(self.shift, pixels_BCHW.to(self.scale.dtype), self.scale))
        return patches


def _per_channel(values: Collection[float], conv: nn.Conv2d) -> Tensor:
    """Return values as (C,1,1) float64 on the device of the convolution."""
    return torch.tensor(list(values), dtype=torch.float64, device=conv.weight.device)[:, None, None]
