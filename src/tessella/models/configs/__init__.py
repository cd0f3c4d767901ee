"""Configs of all model families, without PyTorch: which settings an architecture has, and which values are allowed.

The models and what describes them without PyTorch (layouts of weights, graphs of engines) read the same configs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

from ...arguments import suggestion, unknown_argument
from ...checks import annotated_types, check_type
from ...errors import UsageError
from . import convit, convmixer, crossvit, mixer
from .convit import ConViTConfig
from .convmixer import ConvMixerConfig
from .crossvit import CrossViTConfig
from .mixer import MixerConfig
from .shared import MAX_BLOCKS, Pair, to_pair

FamilyConfig: TypeAlias = ConvMixerConfig | ConViTConfig | MixerConfig | CrossViTConfig
CONFIGS: dict[str, FamilyConfig] = {**convmixer.VARIANTS, **convit.VARIANTS, **mixer.VARIANTS, **crossvit.VARIANTS}
MAX_SIZE = 1_000_000  # for any width, side or count
# what an unsuitable value raises where it is first used
CONSTRUCTOR_ERRORS = (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AttributeError, LookupError)


def configure(arch: str, **overrides: object) -> FamilyConfig:
    """Return the config of the architecture `arch` as its model keeps it.

    overrides: new values for its fields; None keeps the field.
    Raises UsageError: `unknown_model` with similar names, `bad_argument` with the known fields.
    """
    if arch not in CONFIGS:
        similar = suggestion([str(arch)], CONFIGS, most=3, cutoff=0.5)
        hint = f"{similar} see `tessella list`".strip()
        raise UsageError("unknown_model", f"unknown architecture {arch!r}", hint=hint)
    config = CONFIGS[arch]
    changes = {name: value for name, value in overrides.items() if value is not None}
    fields = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(changes) - set(fields)):
        raise unknown_argument(arch, unknown, fields)
    if name := _activation_name(changes.get("act_layer")):
        changes["act_layer"] = name
    family: Callable[..., FamilyConfig] = type(config)
    kinds = annotated_types(family)
    for name, value in changes.items():
        check_type(name, value, kinds.get(name, object))
        changes[name] = _plain(value)
        _check_size(name, changes[name])
    values = {name: getattr(config, name) for name in fields}
    try:
        return validate(family(**{**values, **changes}))
    except UsageError:
        raise
    except CONSTRUCTOR_ERRORS as error:
        raise not_buildable(arch, changes, error) from error


def validate(config: FamilyConfig) -> FamilyConfig:
    """Return the config as the model of its family keeps it. Raises UsageError `bad_argument` for unsuitable values."""
    if isinstance(config, ConvMixerConfig):
        return convmixer.validate(config)
    if isinstance(config, ConViTConfig):
        return convit.validate(config)
    if isinstance(config, MixerConfig):
        return mixer.validate(config)
    return crossvit.validate(config)


def not_buildable(arch: str, changes: Mapping[str, object], error: Exception) -> UsageError:
    """Return the error for arguments with which the architecture cannot be built. changes: None keeps a default."""
    changes = {name: value for name, value in changes.items() if value is not None}
    config = CONFIGS[arch]
    return UsageError(
        "bad_argument",
        f"{arch} cannot be built with {_describe(changes) or 'its default arguments'}: {error}",
        hint=f"the defaults are {_describe({name: getattr(config, name) for name in changes})}",
    )


def image_size(config: FamilyConfig) -> Pair | None:
    """Return the (height, width) in pixels that the model requires; None if it accepts any size."""
    size = getattr(config, "img_size", None)
    return None if size is None else to_pair(size)


def embedding_width(config: FamilyConfig) -> int:
    """Return the width of the embedding that the head reads."""
    if isinstance(config, ConvMixerConfig):
        return convmixer.embedding_width(config)
    if isinstance(config, ConViTConfig):
        return config.embed_dim * config.num_heads
    return config.embed_dim if isinstance(config, MixerConfig) else sum(config.embed_dim)


def _plain(value: object) -> object:
    """Return the numbers and arrays of NumPy as Python's, which config files and fingerprints contain."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def _activation_name(value: object) -> str:
    """Return the name of an activation that is given as a PyTorch class, as in timm; "" for anything else."""
    if isinstance(value, type) and value.__module__ == "torch.nn.modules.activation":
        name = value.__name__.lower()
        return name if name in convmixer.ACTIVATIONS else ""
    return ""


def _check_size(name: str, value: object) -> None:
    """Raise UsageError `bad_argument` for numbers that are not finite, or too large to build a model."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, list | tuple):
            _check_size(name, item)
        limit = MAX_BLOCKS if name in ("depth", "num_blocks") else MAX_SIZE
        if isinstance(item, int | float) and not -limit <= item <= limit:
            raise UsageError("bad_argument", f"{name} is {_short(value)}, expected a finite number up to {limit:,}")


def _describe(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return "a number with thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
