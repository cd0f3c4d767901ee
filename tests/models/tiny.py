"""A small model of every family and kind with the golden weights, for tests that do not depend on the size."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tessella.models import ARCHITECTURES, build
from tessella.models.base import ImageModel

from ..golden_rule import fill_golden

NUM_CLASSES = 5
_convmixer = dict(dim=16, depth=2, kernel_size=3, patch_size=4)
_convit = dict(embed_dim=8, num_heads=4, depth=2, local_up_to_layer=1, patch_size=8, img_size=32)
_mixer = dict(embed_dim=16, num_blocks=2, patch_size=8, img_size=32)
_crossvit = dict(embed_dim=(16, 32), num_heads=(2, 2), depth=((1, 1, 0), (1, 1, 0)), img_size=120)

TINY: dict[str, tuple[str, dict[str, Any]]] = {  # name of the case: architecture, arguments that make it small
    "convmixer": ("convmixer_1024_20_ks9_p14", _convmixer),
    "convmixer_relu": ("convmixer_768_32", _convmixer),
    "convit": ("convit_tiny", _convit),
    "mixer": ("mixer_s16_224", _mixer),
    "gmixer": ("gmixer_12_224", _mixer),
    "resmlp": ("resmlp_12_224", _mixer),
    "gmlp": ("gmlp_ti16_224", _mixer),
    "crossvit": ("crossvit_9_240", _crossvit),
    "crossvit_dagger": ("crossvit_9_dagger_240", _crossvit),
}


def tiny(case: str, **overrides: Any) -> Any:
    """Return the small model `case` in evaluation mode, with the golden weights.

    An `ImageModel`; typed Any, since tests reach into parts that only its family has.
    """
    arch, small = TINY[case]
    model = build(arch, **{"num_classes": NUM_CLASSES, **small, **overrides})
    fill_golden(model)
    return model


def size_of(model: ImageModel) -> tuple[int, int]:
    """Return the (height, width) in pixels that the model reads; for ConvMixer, a suitable size."""
    size = getattr(model.config, "img_size", (32, 32))
    return (size, size) if isinstance(size, int) else tuple(size)


def images(model: ImageModel, batch: int = 2, seed: int = 0) -> Tensor:
    """Return (batch,C,H,W) normal noise of the model's size."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.config.in_chans, *size_of(model), generator=noise)


def fields_of(case: str) -> list[str]:
    """Return the arguments of the model of `case`."""
    return [field.name for field in dataclasses.fields(ARCHITECTURES[TINY[case][0]][1])]
