"""ConvMixer, after Trockman and Kolter 2022 (arXiv:2201.09792).

Shape suffixes: B images, C color channels, H W pixels, D model width, h w the grid of patches.
Module names are the published checkpoints' keys, so weights load without a rename table.
Note: the published 768/32 weights use ReLU, the other two GELU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .base import FeatureEntry, ImageModel, LayerGroups
from .configs.convmixer import POOLS as POOLS
from .configs.convmixer import VARIANTS as VARIANTS
from .configs.convmixer import ConvMixerConfig as ConvMixerConfig
from .configs.convmixer import validate
from .configs.shared import linear_rates
from .layers import DropPath

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Residual(nn.Module):
    """Add `fn(x)` to `x`, a tensor of any shape; the attribute name `fn` is part of the checkpoint's keys."""

    def __init__(self, fn: nn.Module, drop_path: float = 0.0):
        super().__init__()
        self.fn = fn
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.fn(x))


def mixer_block(cfg: ConvMixerConfig, drop_path: float) -> nn.Sequential:
    """Return a block: a depthwise convolution with a residual connection, then a pointwise convolution."""
    act = ACTIVATIONS[cfg.act_layer]
    spatial = nn.Sequential(
        nn.Conv2d(cfg.dim, cfg.dim, cfg.kernel_size, groups=cfg.dim, padding="same"), act(), nn.BatchNorm2d(cfg.dim)
    )
    return nn.Sequential(Residual(spatial, drop_path), nn.Conv2d(cfg.dim, cfg.dim, 1), act(), nn.BatchNorm2d(cfg.dim))


class ConvMixer(ImageModel):
    """ConvMixer for images of at least one patch; `forward_intermediates` returns maps only.

    Raises UsageError `bad_argument` for an unsuitable config.
    """

    output_formats = ("NCHW",)
    if TYPE_CHECKING:
        config: ConvMixerConfig
        blocks: nn.Sequential

    def __init__(self, cfg: ConvMixerConfig):
        super().__init__()
        self.config = cfg = validate(cfg)
        self.num_classes = cfg.num_classes
        self.num_features = cfg.dim
        self.patch_size = cfg.patch_size
        self.global_pool = cfg.global_pool
        self.stem = nn.Sequential(
            nn.Conv2d(cfg.in_chans, cfg.dim, cfg.patch_size, stride=cfg.patch_size),
            ACTIVATIONS[cfg.act_layer](),
            nn.BatchNorm2d(cfg.dim),
        )
        rates = linear_rates(cfg.drop_path_rate, cfg.depth)
        self.blocks = nn.Sequential(*[mixer_block(cfg, rate) for rate in rates])
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = nn.Linear(self.head_hidden_size, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self.feature_info = [
            FeatureEntry(num_chs=cfg.dim, reduction=cfg.patch_size, module=f"blocks.{i}") for i in range(cfg.depth)
        ]
        self.default_out_indices = self.default_indices(cfg.depth)

    @property
    def head_hidden_size(self) -> int:  # type: ignore[override]
        """Width of the embedding that the head reads: twice num_features for the concatenating pools."""
        return self.num_features * (2 if "cat" in self.global_pool else 1)

    def forward_stem(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images -> (B,D,h,w); raises UsageError `wrong_input_size` if smaller than a patch."""
        check_smallest(x, self.patch_size)
        return self.stem(x)

    def forward_norm(self, x: Tensor) -> Tensor:
        """Return the (B,D,h,w) map `x` unchanged, as every block ends with a norm."""
        return x

    def to_intermediate(self, x: Tensor, branch: int, output_fmt: str) -> Tensor:
        """Return `x`, which already is a (B,D,h,w) map."""
        return x

    def remove_norm(self) -> None:
        """Do nothing, because there is no final norm."""

    def forward_features(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images of at least one patch -> (B,D,h,w) with h = H // patch_size."""
        x = self.forward_stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            for block in self.blocks:
                x = self.run_block(block, x)
            return x
        return self.blocks(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B,D,h,w) -> (B,num_classes) logits; with pre_logits, the pooled (B,head_hidden_size) embedding."""
        x = self.head_drop(pool_map(x, self.global_pool))
        if pre_logits:
            return x
        # the head reads the last axis, which is a spatial one without pooling
        return self.head(x) if self.global_pool != "" else self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def pools(self) -> tuple[str, ...]:
        return POOLS

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        return LayerGroups(stem=r"^stem", blocks=r"^blocks\.(\d+)")


@torch.fx.wrap  # the sizes are compared when the model runs, not when it is traced
def check_smallest(x_BCHW: Tensor, patch_size: int) -> None:
    """Raise UsageError `wrong_input_size` unless images are (B,C,H,W) and at least as large as one patch."""
    if x_BCHW.ndim != 4:
        raise UsageError("wrong_input_size", f"got a tensor of shape {x_BCHW.shape}, expected a batch (B,C,H,W)")
    height, width = x_BCHW.shape[-2], x_BCHW.shape[-1]
    if min(height, width) < patch_size:
        raise UsageError("wrong_input_size", f"got {height}x{width} px images, smaller than one {patch_size} px patch")


def pool_map(x_BDhw: Tensor, kind: str) -> Tensor:
    """(B,D,h,w) -> (B,D), or (B,2D) for catavgmax; "" returns the map. The fast kinds give the same numbers."""
    if kind == "":
        return x_BDhw
    kind = kind.replace("fast", "")
    if kind == "max":
        return x_BDhw.amax((2, 3))
    # not mean(): the pooling operator sums in the order of the reference
    avg_BD = F.adaptive_avg_pool2d(x_BDhw, 1).flatten(1)
    if kind == "" or kind == "avg":  # `in` fails in TorchScript
        return avg_BD
    max_BD = x_BDhw.amax((2, 3))
    return (avg_BD + max_BD) / 2 if kind == "avgmax" else torch.cat((avg_BD, max_BD), 1)
