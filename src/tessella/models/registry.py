"""The registry: a table of all architectures, and the function that builds one with fresh weights.

`tessella.create_model` adds pretrained weights, which are unknown here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from ..arguments import suggestion, unknown_argument
from ..checks import annotated_types, check_type
from ..errors import UsageError
from . import convit, convmixer, crossvit, mixer
from .base import ImageModel

ARCHITECTURES: dict[str, tuple[Callable[[Any], ImageModel], Any]] = {  # the class of the model, and its config
    **{name: (convmixer.ConvMixer, cfg) for name, cfg in convmixer.VARIANTS.items()},
    **{name: (convit.ConViT, cfg) for name, cfg in convit.VARIANTS.items()},
    **{name: (mixer.MlpMixer, cfg) for name, cfg in mixer.VARIANTS.items()},
    **{name: (crossvit.CrossViT, cfg) for name, cfg in crossvit.VARIANTS.items()},
}


def build(arch: str, **overrides: Any) -> ImageModel:
    """Build the architecture `arch` with fresh weights.

    overrides: new values for fields of its config; None keeps the field.
    Raises UsageError: `unknown_model` with similar names, `bad_argument` with the known fields.
    """
    if arch not in ARCHITECTURES:
        similar = suggestion([str(arch)], ARCHITECTURES, most=3, cutoff=0.5)
        hint = f"{similar} see `tessella list`".strip()
        raise UsageError("unknown_model", f"unknown architecture {arch!r}", hint=hint)
    family, config = ARCHITECTURES[arch]
    changes = {name: value for name, value in overrides.items() if value is not None}
    fields = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(changes) - set(fields)):
        raise unknown_argument(arch, unknown, fields)
    if changes.get("act_layer") in (nn.GELU, nn.ReLU):  # timm takes the class of an activation
        changes["act_layer"] = changes["act_layer"].__name__.lower()
    owner: object = type(config)
    kinds = annotated_types(owner)
    for name, value in changes.items():
        check_type(name, value, kinds.get(name, Any))
        _check_size(name, value)
    try:
        model = family(dataclasses.replace(config, **changes))
    except UsageError:
        raise
    except _CONSTRUCTOR_ERRORS as error:  # an unsuitable value fails wherever the constructor first uses it
        raise UsageError(
            "bad_argument",
            f"{arch} cannot be built with {_describe(changes) or 'its default arguments'}: {error}",
            hint=f"the defaults are {_describe({name: getattr(config, name) for name in changes})}",
        ) from error
    model.arch = arch
    return model


MAX_DEPTH = 1000  # blocks
MAX_SIZE = 1_000_000  # of any width, side or count
_CONSTRUCTOR_ERRORS = (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AttributeError, LookupError)


def _check_size(name: str, value: object) -> None:
    """Refuse numbers that are not finite or are too large to build a model from."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, list | tuple):
            _check_size(name, item)
        most = MAX_DEPTH if name in ("depth", "num_blocks") else MAX_SIZE
        if isinstance(item, int | float) and not -most <= item <= most:
            raise UsageError("bad_argument", f"{name} is {_short(value)}, expected a finite number up to {most:,}")


def _describe(arguments: dict[str, object]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
