"""Configs of MLP-Mixer, gMixer, ResMLP and gMLP, which are four kinds of one model class.

The papers are arXiv:2105.01601 (MLP-Mixer), arXiv:2105.03404 (ResMLP) and arXiv:2105.08050 (gMLP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UsageError
from .shared import check_classes, check_least, check_pool, check_rates, hidden_units, to_grid, to_pair

KINDS = ("mixer", "gmixer", "resmlp", "gmlp")
POOLS = ("avg", "")


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """The settings of an MLP-Mixer, gMixer, ResMLP or gMLP model; `create_model` accepts every field as a keyword."""

    kind: str  # "mixer", "gmixer", "resmlp" or "gmlp"
    embed_dim: int  # D
    num_blocks: int
    # hidden units / D: one number, or for (g)mixer (across patches, across channels)
    mlp_ratio: float | Sequence[float]
    patch_size: int = 16  # pixels
    img_size: int | Sequence[int] = 224  # pixels, side or (height, width)
    init_values: float = 1e-4  # resmlp: initial value of the branch scales ls1 and ls2
    stem_norm: bool = False  # a norm after the patch embedding
    in_chans: int = 3
    num_classes: int = 1000  # 0 drops the head
    global_pool: str = "avg"  # or "": logits of each patch
    drop_rate: float = 0.0  # before the head
    proj_drop_rate: float = 0.0  # inside the MLPs
    drop_path_rate: float = 0.0  # resmlp: in every block; the others: at the last, growing linearly from 0
    nlhb: bool = False  # initialize the head's bias to -log(num_classes) instead of 0


def _mixer(embed_dim: int, num_blocks: int, patch_size: int) -> MixerConfig:
    return MixerConfig(
        kind="mixer", embed_dim=embed_dim, num_blocks=num_blocks, patch_size=patch_size, mlp_ratio=(0.5, 4.0)
    )


def _resmlp(embed_dim: int, num_blocks: int, patch_size: int, init_values: float) -> MixerConfig:
    return MixerConfig(
        kind="resmlp",
        embed_dim=embed_dim,
        num_blocks=num_blocks,
        patch_size=patch_size,
        mlp_ratio=4.0,
        init_values=init_values,
    )


def _tiny(kind: str, mlp_ratio: tuple[float, float]) -> MixerConfig:
    return MixerConfig(
        kind=kind, embed_dim=128, num_blocks=8, patch_size=4, img_size=32, mlp_ratio=mlp_ratio, num_classes=10
    )


VARIANTS = {  # Table 1 of each paper, under timm's names
    "mixer_s32_224": _mixer(512, 8, 32),
    "mixer_s16_224": _mixer(512, 8, 16),
    "mixer_b32_224": _mixer(768, 12, 32),
    "mixer_b16_224": _mixer(768, 12, 16),
    "mixer_l32_224": _mixer(1024, 24, 32),
    "mixer_l16_224": _mixer(1024, 24, 16),
    "gmixer_12_224": MixerConfig(kind="gmixer", embed_dim=384, num_blocks=12, mlp_ratio=(1.0, 4.0)),
    "gmixer_24_224": MixerConfig(kind="gmixer", embed_dim=384, num_blocks=24, mlp_ratio=(1.0, 4.0)),
    "resmlp_12_224": _resmlp(384, 12, 16, init_values=1e-4),
    "resmlp_24_224": _resmlp(384, 24, 16, init_values=1e-5),
    "resmlp_36_224": _resmlp(384, 36, 16, init_values=1e-6),
    "resmlp_big_24_224": _resmlp(768, 24, 8, init_values=1e-6),
    "gmlp_ti16_224": MixerConfig(kind="gmlp", embed_dim=128, num_blocks=30, mlp_ratio=6.0),
    "gmlp_s16_224": MixerConfig(kind="gmlp", embed_dim=256, num_blocks=30, mlp_ratio=6.0),
    "gmlp_b16_224": MixerConfig(kind="gmlp", embed_dim=512, num_blocks=30, mlp_ratio=6.0),
    # models of this project for 32 px images
    "mixer_ti_p4_32": _tiny("mixer", (0.5, 2.0)),
    "gmixer_ti_p4_32": _tiny("gmixer", (1.0, 2.0)),
}


def validate(cfg: MixerConfig) -> MixerConfig:
    """Return the config as the model keeps it: with img_size as (height, width). Raises UsageError `bad_argument`."""
    if cfg.kind not in KINDS:
        raise UsageError("bad_argument", f"kind is {cfg.kind!r}, expected one of {', '.join(KINDS)}")
    check_least(cfg, 1, "embed_dim", "patch_size", "in_chans")
    check_least(cfg, 0, "num_blocks")
    check_pool(cfg.global_pool, POOLS)
    size = to_pair(cfg.img_size)
    to_grid(size, cfg.patch_size)
    hidden_widths(cfg)
    check_classes(cfg.num_classes)
    check_rates(cfg, "drop_rate", "proj_drop_rate", "drop_path_rate")
    return dataclasses.replace(cfg, img_size=size)


def hidden_widths(cfg: MixerConfig) -> tuple[int, int]:
    """Return the numbers of hidden units of the MLPs across patches and across channels; both ratios refer to D.

    Raises UsageError `bad_argument` for ratios that do not suit the kind of model.
    """
    ratios = (cfg.mlp_ratio,) * 2 if isinstance(cfg.mlp_ratio, int | float) else tuple(cfg.mlp_ratio)
    if len(ratios) != 2 or (cfg.kind in ("resmlp", "gmlp") and ratios[0] != ratios[1]):
        expected = "one number" if cfg.kind in ("resmlp", "gmlp") else "one number or (across patches, across channels)"
        raise UsageError("bad_argument", f"mlp_ratio is {cfg.mlp_ratio!r}, expected {expected} for {cfg.kind}")
    tokens, channels = (hidden_units(cfg.embed_dim, ratio) for ratio in ratios)
    if cfg.kind in ("gmixer", "gmlp") and (tokens % 2 or channels % 2):
        raise UsageError(
            "bad_argument",
            f"mlp_ratio {cfg.mlp_ratio!r} of embed_dim {cfg.embed_dim} gives an odd number of hidden units "
            f"({tokens}, {channels}); {cfg.kind} splits them into two halves",
        )
    return tokens, channels
