"""Configs of ConvMixer (Trockman and Kolter 2022, arXiv:2201.09792)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError
from .shared import check_classes, check_least, check_pool, check_rates

ACTIVATIONS = ("gelu", "relu")
POOLS = ("avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax", "")


@dataclass(frozen=True, kw_only=True)
class ConvMixerConfig:
    """The settings of a ConvMixer model; `create_model` accepts every field as a keyword argument."""

    dim: int  # D
    depth: int  # blocks
    kernel_size: int = 9  # patches, side of the depthwise kernel
    patch_size: int = 7  # pixels
    act_layer: str = "gelu"  # or "relu"
    in_chans: int = 3
    num_classes: int = 1000  # 0 drops the head
    global_pool: str = "avg"  # one of POOLS; "" keeps the map
    drop_rate: float = 0.0  # before the head
    drop_path_rate: float = 0.0  # at the last block, growing linearly from 0; the paper uses none


VARIANTS = {  # Table 1 of the paper under timm's names, then models of this project for 32 px and for photographs
    "convmixer_1536_20": ConvMixerConfig(dim=1536, depth=20),
    "convmixer_768_32": ConvMixerConfig(dim=768, depth=32, kernel_size=7, act_layer="relu"),
    "convmixer_1024_20_ks9_p14": ConvMixerConfig(dim=1024, depth=20, patch_size=14),
    "convmixer_256_8_ks3_p4": ConvMixerConfig(
        dim=256, depth=8, kernel_size=3, patch_size=4, act_layer="relu", num_classes=10
    ),
    "convmixer_256_8_ks5_p2": ConvMixerConfig(
        dim=256, depth=8, kernel_size=5, patch_size=2, act_layer="relu", num_classes=10
    ),
    "convmixer_384_8_ks5_p8": ConvMixerConfig(dim=384, depth=8, kernel_size=5, patch_size=8, act_layer="relu"),
}


def validate(cfg: ConvMixerConfig) -> ConvMixerConfig:
    """Return the config as the model keeps it, here unchanged. Raises UsageError `bad_argument`."""
    check_least(cfg, 1, "dim", "kernel_size", "patch_size", "in_chans")
    check_least(cfg, 0, "depth")
    if cfg.act_layer not in ACTIVATIONS:
        raise UsageError("bad_argument", f"act_layer is {cfg.act_layer!r}, expected 'gelu' or 'relu'")
    check_pool(cfg.global_pool, POOLS)
    check_classes(cfg.num_classes)
    check_rates(cfg, "drop_rate", "drop_path_rate")
    return cfg


def embedding_width(cfg: ConvMixerConfig) -> int:
    """Return the width of the embedding that the head reads: 2D for the concatenating pools, else D."""
    return cfg.dim * (2 if "cat" in cfg.global_pool else 1)
