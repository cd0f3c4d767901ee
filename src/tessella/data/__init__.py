"""Bytes to pixels to tensors. Names load on first use: importing this package imports neither torch nor Pillow.

The function `decode` is taken from its module, `tessella.data.decode`, whose name it shares.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compat import ImageDataset as ImageDataset
    from .compat import ImageNetInfo as ImageNetInfo
    from .compat import Mixup as Mixup
    from .compat import create_dataset as create_dataset
    from .compat import create_loader as create_loader
    from .compat import infer_imagenet_subset as infer_imagenet_subset
    from .constants import DEFAULT_CROP_MODE as DEFAULT_CROP_MODE
    from .constants import DEFAULT_CROP_PCT as DEFAULT_CROP_PCT
    from .constants import IMAGENET_DEFAULT_MEAN as IMAGENET_DEFAULT_MEAN
    from .constants import IMAGENET_DEFAULT_STD as IMAGENET_DEFAULT_STD
    from .constants import IMAGENET_DPN_MEAN as IMAGENET_DPN_MEAN
    from .constants import IMAGENET_DPN_STD as IMAGENET_DPN_STD
    from .constants import IMAGENET_INCEPTION_MEAN as IMAGENET_INCEPTION_MEAN
    from .constants import IMAGENET_INCEPTION_STD as IMAGENET_INCEPTION_STD
    from .constants import OPENAI_CLIP_MEAN as OPENAI_CLIP_MEAN
    from .constants import OPENAI_CLIP_STD as OPENAI_CLIP_STD
    from .factory import create_transform as create_transform
    from .labels import Labels as Labels
    from .labels import labels_for as labels_for
    from .labels import labels_for_classes as labels_for_classes
    from .limits import DEFAULT_LIMITS as DEFAULT_LIMITS
    from .limits import Limits as Limits
    from .names import Skipped as Skipped
    from .resize import prepare as prepare
    from .source import Source as Source
    from .sources import iter_sources as iter_sources
    from .spec import InputSpec as InputSpec
    from .spec import resolve_data_config as resolve_data_config
    from .spec import resolve_model_data_config as resolve_model_data_config
    from .transforms import load_pixels as load_pixels
    from .transforms import normalise as normalise

_MODULE_OF = {
    "ImageDataset": "compat",
    "ImageNetInfo": "compat",
    "Mixup": "compat",
    "create_dataset": "compat",
    "create_loader": "compat",
    "infer_imagenet_subset": "compat",
    "DEFAULT_CROP_MODE": "constants",
    "DEFAULT_CROP_PCT": "constants",
    "IMAGENET_DEFAULT_MEAN": "constants",
    "IMAGENET_DEFAULT_STD": "constants",
    "IMAGENET_DPN_MEAN": "constants",
    "IMAGENET_DPN_STD": "constants",
    "IMAGENET_INCEPTION_MEAN": "constants",
    "IMAGENET_INCEPTION_STD": "constants",
    "OPENAI_CLIP_MEAN": "constants",
    "OPENAI_CLIP_STD": "constants",
    "DEFAULT_LIMITS": "limits",
    "Limits": "limits",
    "Labels": "labels",
    "labels_for": "labels",
    "labels_for_classes": "labels",
    "Skipped": "names",
    "Source": "source",
    "iter_sources": "sources",
    "InputSpec": "spec",
    "create_transform": "factory",
    "load_pixels": "transforms",
    "normalise": "transforms",
    "prepare": "resize",
    "resolve_data_config": "spec",
    "resolve_model_data_config": "spec",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
