"""The registry: every architecture as a row that can be read, and the one function that builds a row.

Pretrained weights are not known here; `tessella.create_model` adds them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from . import convit, convmixer, crossvit, mixer
from .base import ImageModel

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
        close = difflib.get_close_matches(arch, ARCHITECTURES, n=3, cutoff=0.5)
        raise UsageError(
            "unknown_model",
            f"unknown architecture {arch!r}",
            hint=f"did you mean {', '.join(close)}?" if close else "see `tessella list`",
        )
    family, config = ARCHITECTURES[arch]
    given = {name: value for name, value in overrides.items() if value is not None}
    fields = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(given) - set(fields)):
        raise UsageError(
            "bad_argument",
            f"{arch} takes no argument {', '.join(map(repr, unknown))}",
            hint=f"known: {', '.join(fields)}",
        )
    for name, value in given.items():
        _check_value(name, value)
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


def _check_value(name: str, value: Any) -> None:
    """Refuse numbers that would keep the constructor busy for hours, or that compare with nothing."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, list | tuple):
            _check_value(name, item)
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
