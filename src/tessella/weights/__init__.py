"""Where weights come from: the catalogue of published checkpoints, the Hub, folders, files; and how they are saved.

Names are loaded on first use: the catalogue is read without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalogue import CATALOGUE as CATALOGUE
    from .catalogue import Checkpoint as Checkpoint
    from .catalogue import get_arch_pretrained_cfgs as get_arch_pretrained_cfgs
    from .catalogue import get_pretrained_cfg as get_pretrained_cfg
    from .catalogue import get_pretrained_cfg_value as get_pretrained_cfg_value
    from .catalogue import is_model as is_model
    from .catalogue import is_model_pretrained as is_model_pretrained
    from .catalogue import list_models as list_models
    from .catalogue import list_modules as list_modules
    from .catalogue import list_pretrained as list_pretrained
    from .catalogue import published_accuracy as published_accuracy
    from .catalogue import resolve as resolve
    from .factory import create_model as create_model
    from .factory import load_checkpoint as load_checkpoint
    from .factory import load_state_dict as load_state_dict
    from .factory import model_entrypoint as model_entrypoint
    from .files import read_state_dict as read_state_dict
    from .load import load_weights as load_weights
    from .save import push_to_hub as push_to_hub
    from .save import save_pretrained as save_pretrained

_HOME = {
    "CATALOGUE": "catalogue",
    "Checkpoint": "catalogue",
    "get_arch_pretrained_cfgs": "catalogue",
    "get_pretrained_cfg": "catalogue",
    "get_pretrained_cfg_value": "catalogue",
    "is_model": "catalogue",
    "is_model_pretrained": "catalogue",
    "list_models": "catalogue",
    "list_modules": "catalogue",
    "list_pretrained": "catalogue",
    "published_accuracy": "catalogue",
    "resolve": "catalogue",
    "create_model": "factory",
    "load_checkpoint": "factory",
    "load_state_dict": "factory",
    "model_entrypoint": "factory",
    "read_state_dict": "files",
    "load_weights": "load",
    "push_to_hub": "save",
    "save_pretrained": "save",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
