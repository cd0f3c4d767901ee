"""Configs of ConViT (d'Ascoli et al. 2021, arXiv:2103.10697)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .shared import check_classes, check_least, check_pool, check_rates, hidden_units, to_grid, to_pair

POOLS = ("token", "avg", "")


@dataclass(frozen=True, kw_only=True)
class ConViTConfig:
    """The settings of a ConViT model; `create_model` accepts every field as a keyword argument."""

    embed_dim: int  # d, the width of ONE head: the model's is embed_dim * num_heads
    num_heads: int
    depth: int = 12  # blocks
    # Blocks with positional attention; the class token is added after them. If no block follows, it contains nothing
    # about the patches: use global_pool="avg" then.
    local_up_to_layer: int = 10
    locality_strength: float = 1.0  # how sharply a newly initialized positional head attends to its neighbor
    use_pos_embed: bool = True
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    patch_size: int = 16  # pixels
    img_size: int | Sequence[int] = 224  # pixels, or (height, width)
    in_chans: int = 3
    num_classes: int = 1000  # 0 drops the head
    global_pool: str = "token"  # or "avg" of the patches, or "": all tokens
    drop_rate: float = 0.0  # before the head
    pos_drop_rate: float = 0.0  # after the position embedding
    proj_drop_rate: float = 0.0  # after the attention's projection and inside the MLP
    attn_drop_rate: float = 0.0  # on attention weights
    drop_path_rate: float = 0.0  # at the last block, growing linearly from 0


VARIANTS = {  # Table 2 of the paper, under timm's names
    "convit_tiny": ConViTConfig(embed_dim=48, num_heads=4),
    "convit_small": ConViTConfig(embed_dim=48, num_heads=9),
    "convit_base": ConViTConfig(embed_dim=48, num_heads=16),
    # a model of this project for 32 px images: its nine heads are initialized as a 3 x 3 convolution
    "convit_ti_p4_32": ConViTConfig(
        embed_dim=12, num_heads=9, depth=7, local_up_to_layer=6, mlp_ratio=2, patch_size=4, img_size=32, num_classes=10
    ),
}


def validate(cfg: ConViTConfig) -> ConViTConfig:
    """Return the config as the model keeps it, here unchanged. Raises UsageError `bad_argument`."""
    check_least(cfg, 1, "embed_dim", "num_heads", "patch_size", "in_chans")
    check_least(cfg, 0, "depth", "local_up_to_layer")
    hidden_units(cfg.embed_dim * cfg.num_heads, cfg.mlp_ratio)
    check_pool(cfg.global_pool, POOLS)
    to_grid(to_pair(cfg.img_size), cfg.patch_size)
    check_classes(cfg.num_classes)
    check_rates(cfg, "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
    return cfg


def local_blocks(cfg: ConViTConfig) -> int:
    """Return the number of blocks with positional attention."""
    return min(cfg.local_up_to_layer, cfg.depth)
