"""The model families, and the registry that builds them. Names are loaded on first use.

timm's `models` package also has `create_model` and functions that look up model names, so they can be imported from
here too. They are defined in `weights`, the layer above this one, and no module of this package uses them.
"""

import importlib

from ..extras import check_installed, public_names

_lazy_attribute, _lazy_names, __all__ = public_names(__name__, __file__)

_TIMM = {  # functions of `timm.models`, by the module of `weights` that defines them
    "catalogue": (
        "get_arch_pretrained_cfgs",
        "get_pretrained_cfg",
        "get_pretrained_cfg_value",
        "is_model",
        "is_model_pretrained",
        "list_models",
        "list_modules",
        "list_pretrained",
    ),
    "factory": ("create_model", "load_checkpoint", "load_state_dict", "model_entrypoint"),
}


def __getattr__(name: str) -> object:
    for module, names in _TIMM.items():
        if name in names:
            package = __name__.rpartition(".")[0]
            if module == "factory":
                check_installed("torch", f"{__name__}.{name}")
            return getattr(importlib.import_module(f"{package}.weights.{module}"), name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _lazy_attribute(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_lazy_names(), *(name for names in _TIMM.values() for name in names)})
