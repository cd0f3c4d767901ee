"""Image classification and embeddings with the patch-mixing vision models, under timm's names and with its weights.

Names load on first use: importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import data as data
    from . import models as models
    from . import utils as utils
    from .engine.optimize import optimize as optimize
    from .errors import ImageError as ImageError
    from .errors import TessellaError as TessellaError
    from .errors import UsageError as UsageError
    from .errors import WeightsError as WeightsError
    from .predictor import Prediction as Prediction
    from .predictor import Predictor as Predictor
    from .predictor import Record as Record
    from .predictor import load as load
    from .weights.catalogue import get_arch_pretrained_cfgs as get_arch_pretrained_cfgs
    from .weights.catalogue import get_pretrained_cfg as get_pretrained_cfg
    from .weights.catalogue import get_pretrained_cfg_value as get_pretrained_cfg_value
    from .weights.catalogue import is_model as is_model
    from .weights.catalogue import is_model_pretrained as is_model_pretrained
    from .weights.catalogue import list_models as list_models
    from .weights.catalogue import list_modules as list_modules
    from .weights.catalogue import list_pretrained as list_pretrained
    from .weights.factory import create_model as create_model
    from .weights.factory import load_checkpoint as load_checkpoint
    from .weights.factory import model_entrypoint as model_entrypoint
    from .weights.save import push_to_hub as push_to_hub
    from .weights.save import save_pretrained as save_pretrained

_HOME = {
    "ImageError": ".errors",
    "TessellaError": ".errors",
    "UsageError": ".errors",
    "WeightsError": ".errors",
    "Prediction": ".predictor",
    "Predictor": ".predictor",
    "Record": ".predictor",
    "load": ".predictor",
    "optimize": ".engine.optimize",
    "create_model": ".weights.factory",
    "load_checkpoint": ".weights.factory",
    "model_entrypoint": ".weights.factory",
    "get_arch_pretrained_cfgs": ".weights.catalogue",
    "get_pretrained_cfg": ".weights.catalogue",
    "get_pretrained_cfg_value": ".weights.catalogue",
    "is_model": ".weights.catalogue",
    "is_model_pretrained": ".weights.catalogue",
    "list_models": ".weights.catalogue",
    "list_modules": ".weights.catalogue",
    "list_pretrained": ".weights.catalogue",
    "push_to_hub": ".weights.save",
    "save_pretrained": ".weights.save",
}

_MODULES = ("data", "models", "utils")
__all__ = [*_MODULES, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
