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
    model = family(dataclasses.replace(config, **given))
    model.arch = arch
    return model
