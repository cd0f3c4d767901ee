"""The registry: a table of all architectures, and the function that builds one with random weights.

`tessella.create_model` adds pretrained weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn

from ..arguments import suggestion, unknown_argument
from ..checks import annotated_types, check_type
from ..errors import UsageError
from . import convit, convmixer, crossvit, mixer
from .base import Config, ImageModel

ARCHITECTURES: dict[str, tuple[Callable[[Config], ImageModel], Config]] = {  # the class of the model, and its config
    **{name: (convmixer.ConvMixer, cfg) for name, cfg in convmixer.VARIANTS.items()},
    **{name: (convit.ConViT, cfg) for name, cfg in convit.VARIANTS.items()},
    **{name: (mixer.MlpMixer, cfg) for name, cfg in mixer.VARIANTS.items()},
    **{name: (crossvit.CrossViT, cfg) for name, cfg in crossvit.VARIANTS.items()},
}


def build(arch: str, **overrides: object) -> ImageModel:
    """Build the architecture `arch` with random weights.

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
    activation = changes.get("act_layer")
    if activation is nn.GELU or activation is nn.ReLU:  # timm accepts the class of an activation
        changes["act_layer"] = activation.__name__.lower()
    owner: object = type(config)
    kinds = annotated_types(owner)
    for name, value in changes.items():
        check_type(name, value, kinds.get(name, object))
        _check_size(name, value)
    try:
        model = family(dataclasses.replace(config, **changes))
    except UsageError:
        raise
    except _CONSTRUCTOR_ERRORS as error:  # an unsuitable value fails where the constructor first uses it
        raise UsageError(
            "bad_argument",
            f"{arch} cannot be built with {_describe(changes) or 'its default arguments'}: {error}",
            hint=f"the defaults are {_describe({name: getattr(config, name) for name in changes})}",
        ) from error
    model.arch = arch
    return model


MAX_DEPTH = 1000  # blocks
MAX_SIZE = 1_000_000  # for any width, side or count
_CONSTRUCTOR_ERRORS = (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AttributeError, LookupError)


def _check_size(name: str, value: object) -> None:
    """Raise UsageError `bad_argument` for numbers that are not finite, or too large to build a model."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, list | tuple):
            _check_size(name, item)
        limit = MAX_DEPTH if name in ("depth", "num_blocks") else MAX_SIZE
        if isinstance(item, int | float) and not -limit <= item <= limit:
            raise UsageError("bad_argument", f"{name} is {_short(value)}, expected a finite number up to {limit:,}")


def _describe(arguments: dict[str, object]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return "a number with thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
