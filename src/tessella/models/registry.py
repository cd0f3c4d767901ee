"""The registry: every architecture as a row that can be read, and the one function that builds a row.

Pretrained weights are not known here; `tessella.create_model` adds them. timm has `create_model` and the functions
about names in its `models`, so they can be imported from here too.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from ..arguments import suggestion, unknown_argument
from ..checks import annotated_types, check_type
from ..errors import UsageError
from . import convit, convmixer, crossvit, mixer
from .base import ImageModel
from .convit import ConViT as ConViT
from .convmixer import ConvMixer as ConvMixer
from .crossvit import CrossViT as CrossViT
from .mixer import MlpMixer as MlpMixer

ConVit, CrossVit = ConViT, CrossViT  # as timm spells them

ARCHITECTURES: dict[str, tuple[Callable[[Any], ImageModel], Any]] = {  # what builds it, from which config
    **{name: (convmixer.ConvMixer, cfg) for name, cfg in convmixer.VARIANTS.items()},
    **{name: (convit.ConViT, cfg) for name, cfg in convit.VARIANTS.items()},
    **{name: (mixer.MlpMixer, cfg) for name, cfg in mixer.VARIANTS.items()},
    **{name: (crossvit.CrossViT, cfg) for name, cfg in crossvit.VARIANTS.items()},
}


def build(arch: str, **overrides: Any) -> ImageModel:
    """The architecture `arch` with fresh weights; `overrides` replace fields of its config (None: keep the field).

    Raises UsageError `unknown_model` (close names are shown) or `bad_argument` (the known fields are shown).
    """
    if arch not in ARCHITECTURES:
        near = suggestion([str(arch)], ARCHITECTURES, most=3, cutoff=0.5)
        raise UsageError("unknown_model", f"unknown architecture {arch!r}", hint=f"{near} see `tessella list`".strip())
    family, config = ARCHITECTURES[arch]
    given = {name: value for name, value in overrides.items() if value is not None}
    fields = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(given) - set(fields)):
        raise unknown_argument(arch, unknown, fields)
    if given.get("act_layer") in (nn.GELU, nn.ReLU):  # timm's way to name an activation
        given["act_layer"] = given["act_layer"].__name__.lower()
    owner: Any = type(config)
    kinds = annotated_types(owner)
    for name, value in given.items():
        check_type(name, value, kinds.get(name, Any))
        _check_size(name, value)
    try:
        model = family(dataclasses.replace(config, **given))
    except UsageError:
        raise
    except _WRONG_VALUE as error:  # a wrong type or size fails wherever the constructor first uses it
        raise UsageError(
            "bad_argument",
            f"{arch} cannot be built with {_described(given) or 'its default arguments'}: {error}",
            hint=f"the defaults are {_described({name: getattr(config, name) for name in given})}",
        ) from error
    model.arch = arch
    return model


MAX_DEPTH = 1000  # blocks
MAX_SIZE = 1_000_000  # of any width, side or count
_WRONG_VALUE = (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AttributeError, LookupError)


def _check_size(name: str, value: Any) -> None:
    """Refuse numbers that are not finite or would keep the constructor busy."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, list | tuple):
            _check_size(name, item)
        most = MAX_DEPTH if name in ("depth", "num_blocks") else MAX_SIZE
        if isinstance(item, int | float) and not -most <= item <= most:
            raise UsageError("bad_argument", f"{name} is {_short(value)}, expected a finite number up to {most:,}")


def _described(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


# timm's functions of the same package. They need the catalogue and the weights, which are a layer above this one: the
# modules here never use these names, they are only handed through, on first use.
_HANDED_THROUGH = {
    **dict.fromkeys(
        (
            *("get_arch_pretrained_cfgs", "get_pretrained_cfg", "get_pretrained_cfg_value", "is_model"),
            *("is_model_pretrained", "list_models", "list_modules", "list_pretrained"),
        ),
        "catalogue",
    ),
    **dict.fromkeys(("create_model", "load_checkpoint", "load_state_dict", "model_entrypoint"), "factory"),
}


def __getattr__(name: str) -> Any:
    if name not in _HANDED_THROUGH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = __name__.rpartition(".")[0]
    return getattr(importlib.import_module(f"{package}.weights.{_HANDED_THROUGH[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HANDED_THROUGH})
