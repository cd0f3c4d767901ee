"""Configs of CrossViT (Chen, Fan and Panda 2021, arXiv:2103.14899)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UsageError
from .shared import (
    MAX_BLOCKS,
    Pair,
    check_classes,
    check_least,
    check_pool,
    check_rates,
    hidden_units,
    to_grid,
    to_pair,
)

POOLS = ("token", "avg")
BRANCHES = (0, 1)
SEARCH_RANGE = 2048  # how many pixels above an unsuitable size a suitable one is searched for


@dataclass(frozen=True, kw_only=True)
class CrossViTConfig:
    """The settings of a CrossViT model; `create_model` accepts every field as a keyword argument.

    Pairs have one value per branch.
    """

    embed_dim: Sequence[int]  # D
    depth: Sequence[Sequence[int]]  # per stage: blocks of branch 0, of branch 1, cross-attentions (0: one)
    num_heads: Sequence[int]
    mlp_ratio: Sequence[float]  # timm's third value, which is for the fusion, is ignored: the fusion has no MLP
    multi_conv: bool = False  # the dagger models: three convolutions embed a patch
    patch_size: Sequence[int] = (12, 16)  # pixels of the branch's image
    img_size: int | Sequence[int] = 240  # pixels, or (height, width), of the image the model reads
    img_scale: Sequence[float] = (1.0, 224 / 240)  # side of the branch's image / side of the model's
    crop_scale: bool = False  # give a branch the center of the image instead of a resized copy
    qkv_bias: bool = True
    in_chans: int = 3
    num_classes: int = 1000  # 0 drops the heads
    global_pool: str = "token"  # or "avg" of the patches
    drop_rate: float = 0.0  # before the heads
    pos_drop_rate: float = 0.0  # after the position embeddings
    proj_drop_rate: float = 0.0  # after attention projections and inside the MLPs
    attn_drop_rate: float = 0.0  # on attention weights
    drop_path_rate: float = 0.0  # at the last block, growing linearly from 0


def _variant(
    width: int, blocks: int, heads: int, mlp_ratio: float, multi_conv: bool = False, sides: Pair = (240, 224)
) -> CrossViTConfig:
    """Return a config of Table 1; sides: pixels per side of the images of both branches."""
    return CrossViTConfig(
        embed_dim=(width, 2 * width),
        depth=((1, blocks, 0),) * 3,
        num_heads=(heads, heads),
        mlp_ratio=(mlp_ratio, mlp_ratio, 1),
        multi_conv=multi_conv,
        img_size=sides[0],
        img_scale=(1.0, sides[1] / sides[0]),
    )


VARIANTS = {  # Table 1 of the paper, under timm's names
    "crossvit_tiny_240": _variant(96, 4, 3, 4),
    "crossvit_small_240": _variant(192, 4, 6, 4),
    "crossvit_base_240": _variant(384, 4, 12, 4),
    "crossvit_9_240": _variant(128, 3, 4, 3),
    "crossvit_15_240": _variant(192, 5, 6, 3),
    "crossvit_18_240": _variant(224, 6, 7, 3),
    "crossvit_9_dagger_240": _variant(128, 3, 4, 3, multi_conv=True),
    "crossvit_15_dagger_240": _variant(192, 5, 6, 3, multi_conv=True),
    "crossvit_15_dagger_408": _variant(192, 5, 6, 3, multi_conv=True, sides=(408, 384)),
    "crossvit_18_dagger_240": _variant(224, 6, 7, 3, multi_conv=True),
    "crossvit_18_dagger_408": _variant(224, 6, 7, 3, multi_conv=True, sides=(408, 384)),
    "crossvit_ti_dagger_p4_32": CrossViTConfig(  # of this project for 32 px images; most blocks are in the finer branch
        embed_dim=(96, 64),
        depth=((3, 1, 1), (2, 1, 1)),
        num_heads=(3, 2),
        mlp_ratio=(2, 2, 1),
        multi_conv=True,
        patch_size=(4, 8),
        img_size=32,
        img_scale=(1.0, 1.0),
        num_classes=10,
    ),
}


def scaled_side(side: int, scale: float) -> int:
    """Return the length of one side of a branch's image in pixels, rounded down."""
    return int(side * scale + 1e-6)  # so that 49 * (1 / 49), which is less than 1 in floating point, gives 1


def branch_sizes(img_size: Pair, cfg: CrossViTConfig, name: str = "img_size") -> list[Pair]:
    """Return (height, width) in pixels of each branch's image.

    name: the argument in the message of the error. Raises UsageError `bad_argument`, with the nearest suitable sizes,
    if the patches of a branch do not divide them.
    """

    def fits(side: int) -> bool:
        scaled = [scaled_side(side, scale) for scale in cfg.img_scale]
        return all(size > 0 and size % patch == 0 for size, patch in zip(scaled, cfg.patch_size, strict=True))

    sizes = [(scaled_side(img_size[0], scale), scaled_side(img_size[1], scale)) for scale in cfg.img_scale]
    if all(fits(side) for side in img_size):
        return sizes

    def nearest(side: int) -> str:
        below = next((candidate for candidate in range(side, 0, -1) if fits(candidate)), None)
        above = next((candidate for candidate in range(side, side + SEARCH_RANGE) if fits(candidate)), None)
        suitable = sorted({candidate for candidate in (below, above) if candidate})
        return " or ".join(map(str, suitable)) or f"none below {side + SEARCH_RANGE}"

    described = " and ".join(
        f"{height}x{width} px in {patch} px patches"
        for (height, width), patch in zip(sizes, cfg.patch_size, strict=True)
    )
    raise UsageError(
        "bad_argument",
        f"{name} {img_size[0]}x{img_size[1]} px gives the branches {described}, which the patches do not divide",
        hint=f"nearest suitable sizes: height {nearest(img_size[0])}, width {nearest(img_size[1])}",
    )


STEMS = {  # (kernel, stride, padding) of the three convolutions that reduce an image by the patch size
    4: ((3, 2, 1), (3, 2, 1), (3, 1, 1)),  # 4 and 8 are of this project: 7x7 with stride 4 is too coarse for 32 px
    8: ((3, 2, 1), (3, 2, 1), (3, 2, 1)),
    12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)),
    16: ((7, 4, 3), (3, 2, 1), (3, 2, 1)),
}


def validate(cfg: CrossViTConfig) -> CrossViTConfig:
    """Return the config as the model keeps it, here unchanged. Raises UsageError `bad_argument`."""
    for name in ("embed_dim", "num_heads", "patch_size", "img_scale"):
        if len(getattr(cfg, name)) != len(BRANCHES):
            raise UsageError(
                "bad_argument", f"{name} is {getattr(cfg, name)!r}, expected one value for each of 2 branches"
            )
    check_least(cfg, 1, "embed_dim", "num_heads", "patch_size", "in_chans")
    if len(cfg.mlp_ratio) < len(BRANCHES):
        raise UsageError("bad_argument", f"mlp_ratio is {cfg.mlp_ratio!r}, expected one value for each of 2 branches")
    for dim, heads, ratio in zip(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio, strict=False):
        if dim % heads:
            raise UsageError("bad_argument", f"embed_dim {dim} is not divisible by num_heads {heads}")
        hidden_units(dim, ratio)
    for depth in cfg.depth:
        if len(depth) != 3 or max(depth[:2]) < 1 or min(depth) < 0:
            raise UsageError("bad_argument", f"a stage's depth is {depth!r}, expected (blocks, blocks, fusions)")
    if (blocks := sum(map(sum, cfg.depth))) > MAX_BLOCKS:
        raise UsageError("bad_argument", f"depth has {blocks} blocks in total, expected at most {MAX_BLOCKS:,}")
    check_pool(cfg.global_pool, POOLS)
    for size, patch in zip(branch_sizes(to_pair(cfg.img_size), cfg), cfg.patch_size, strict=True):
        to_grid(size, patch)
    if cfg.multi_conv:
        for patch, dim in zip(cfg.patch_size, cfg.embed_dim, strict=True):
            stem_widths(patch, cfg.in_chans, dim)
    check_classes(cfg.num_classes)
    check_rates(cfg, "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
    return cfg


def stem_widths(patch_size: int, in_chans: int, width: int) -> tuple[int, int, int, int]:
    """Return the channels before, between and after the three convolutions of a dagger model's patch embedding.

    Raises UsageError `bad_argument` for a patch size that is not a key of STEMS, and for a width below 4.
    """
    if patch_size not in STEMS:
        sizes = ", ".join(map(str, STEMS))
        raise UsageError("bad_argument", f"multi_conv supports patch_size {sizes}, not {patch_size}")
    if width < 4:
        raise UsageError("bad_argument", f"multi_conv needs an embed_dim of 4 or more, not {width}")
    return in_chans, width // 4, width // 2, width
