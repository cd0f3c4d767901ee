"""Layers shared by two or more model families; a layer of one family is in the file of that family.

Shape suffixes: B images, C color channels, H W pixels, N patches (row-major over the grid), D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_type
from ..errors import UsageError, WeightsError
from .configs.shared import Pair as Pair
from .configs.shared import check_classes as check_classes
from .configs.shared import check_pool as check_pool
from .configs.shared import linear_rates as linear_rates
from .configs.shared import to_grid as to_grid
from .configs.shared import to_pair as to_pair


class PatchEmbed(nn.Module):
    """Cut an image into square patches and project each to one token: (B,C,H,W) -> (B,N,D)."""

    def __init__(
        self,
        img_size: Pair,
        patch_size: int,
        in_chans: int,
        width: int,
        proj: nn.Module | None = None,
        norm: nn.Module | None = None,
    ):
        """proj: replaces the single convolution; must map the image to a (B,D,H/patch,W/patch) map."""
        super().__init__()
        self.img_size = img_size
        self.grid = to_grid(img_size, patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.proj = proj or nn.Conv2d(in_chans, width, kernel_size=patch_size, stride=patch_size)
        self.norm = norm or nn.Identity()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        check_image_size(image_BCHW, self.img_size)
        return self.norm(self.proj(image_BCHW).flatten(2).transpose(1, 2))


@torch.fx.wrap  # the sizes are compared when the model runs, not when it is traced
def check_image_size(image_BCHW: Tensor, expected: Pair) -> None:
    """Raise UsageError `wrong_input_size` unless images are (B,C,height,width), as none is resized silently."""
    if image_BCHW.ndim != 4:
        raise UsageError("wrong_input_size", f"got a tensor of shape {image_BCHW.shape}, expected a batch (B,C,H,W)")
    height, width = image_BCHW.shape[-2], image_BCHW.shape[-1]
    if height != expected[0] or width != expected[1]:
        raise UsageError(
            "wrong_input_size",
            f"got {height}x{width} px images, this model reads {expected[0]}x{expected[1]} px (height x width)",
            hint=f"resize the images, or build the model with img_size=({height}, {width}) if its patches fit that",
        )


class Mlp(nn.Module):
    """Linear, activation, dropout, Linear, dropout on the last axis: (..., D) -> (..., out)."""

    def __init__(self, width: int, hidden: int, act: type[nn.Module] = nn.GELU, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = act()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, width)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


@torch.fx.wrap
def drop_path(x: Tensor, rate: float) -> Tensor:
    """Set each sample of `x` (B,...) to zero with probability `rate`; divide the others by the keep probability."""
    keep = 1.0 - rate
    shape = [x.shape[0]] + [1] * (x.ndim - 1)  # one draw per sample
    return x * (x.new_empty(shape).bernoulli_(keep) / (keep if keep > 0.0 else 1.0))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training, set samples of a branch to zero with probability `rate`.

    (B,...) -> the same shape. The other samples are divided by the keep probability, so that the expected value is the
    same in training and evaluation.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.rate) if self.training and self.rate > 0.0 else x

    def extra_repr(self) -> str:
        """Return the rate for the `repr` of a model."""
        return f"rate={self.rate:g}"


def pick_blocks(depth: int, indices: int | Sequence[int] | None) -> list[int]:
    """Return the indices of the selected blocks, counted from 0.

    indices: None for all of `depth` blocks, n for the last n, or a list (negative numbers count from the end).
    Raises UsageError `bad_argument` for indices out of range, or if no block is selected.
    """
    if indices is None:
        return list(range(depth))
    check_type("indices", indices, int | Sequence[int] | None)
    selected = range(max(-int(indices), -depth - 1), 0) if isinstance(indices, int | Integral) else indices
    picked = [i + depth if i < 0 else i for i in selected]
    if not picked or min(picked) < 0 or max(picked) >= depth:
        raise UsageError(
            "bad_argument",
            f"indices={indices!r} does not fit {depth} blocks",
            hint=f"use 0 to {depth - 1}, or -1 to -{depth}",
        )
    return picked


def check_output_fmt(output_fmt: str, allowed: Sequence[str]) -> None:
    """Raise UsageError `bad_argument` unless the format is one of `allowed`."""
    if output_fmt not in allowed:
        raise UsageError("bad_argument", f"output_fmt is {output_fmt!r}, expected one of {', '.join(allowed)}")


def tokens_to_map(x_BND: Tensor, grid: Pair) -> Tensor:
    """(B,N,D) tokens -> contiguous (B,D,rows,cols) map."""
    return x_BND.transpose(1, 2).unflatten(2, grid).contiguous()


def resample_tokens(weight: Tensor, dim: int, source: Pair, target: Pair) -> Tensor:
    """Resample axis `dim` of a weight (...,N,...), with one entry per patch of the grid `source`, to the grid `target`.

    Grids are (rows, columns). Interpolation is bicubic, in float32, and antialiased when shrinking; if both grids are
    the same, `weight` itself is returned. Raises WeightsError `wrong_shape` if the axis has another length.
    """
    if weight.ndim <= dim or weight.shape[dim] != source[0] * source[1]:
        raise WeightsError(
            "wrong_shape",
            f"a weight of shape {tuple(weight.shape)} has no axis {dim} over a grid of {source[0]}x{source[1]} patches",
            hint="check that this is the image size the weights were trained with",
        )
    if source == target:
        return weight
    moved = weight.movedim(dim, -1)
    maps = moved.reshape(1, -1, *source).float()
    maps = F.interpolate(maps, size=target, mode="bicubic", align_corners=False, antialias=True)
    return maps.reshape(*moved.shape[:-1], -1).movedim(-1, dim).to(weight.dtype).contiguous()


def new_head(width: int, num_classes: int, like: Tensor, training: bool) -> nn.Module:
    """Return a new classifier (..., width) -> (..., num_classes), the identity for 0 classes.

    like: a tensor of any shape with the device and dtype to use. Raises UsageError `bad_argument`.
    """
    check_classes(num_classes)
    head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
    return head.to(device=like.device, dtype=like.dtype).train(training)


@torch.fx.wrap
def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precisions, else `dtype`: for sums and positions that bfloat16 cannot represent."""
    return torch.float32 if dtype == torch.bfloat16 or dtype == torch.float16 else dtype  # `in` fails in TorchScript


class Attention(nn.Module):
    """Multi-head self-attention over the tokens: (B,N,D) -> (B,N,D)."""

    def __init__(
        self, width: int, num_heads: int, qkv_bias: bool = False, attn_drop: float = 0.0, proj_drop: float = 0.0
    ):
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_BHNd, k_BHNd, v_BHNd = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        y_BHNd = F.scaled_dot_product_attention(
            q_BHNd, k_BHNd, v_BHNd, dropout_p=self.attn_drop if self.training else 0.0
        )
        return self.proj_drop(self.proj(y_BHNd.transpose(1, 2).flatten(2)))


class PreNormBlock(nn.Module):
    """Attention and an MLP, each with a norm before it and a residual connection: (B,N,D) -> (B,N,D)."""

    def __init__(self, attn: nn.Module, width: int, mlp_ratio: float, drop: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND)))
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))


def init_linear(module: nn.Module) -> None:
    """Initialize a linear layer with standard deviation 0.02 and zero bias; other modules do not change."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
