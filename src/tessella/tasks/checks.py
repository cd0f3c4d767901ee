"""Arguments from outside, checked in one way by the functions that take them and by the command line."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UsageError


def check_count(name: str, value: Any, most: int, least: int = 1) -> None:
    """UsageError `bad_argument` where `value` is not a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError("bad_argument", f"{name} is {_short(value)}, expected a whole number from {least} to {most:,}")


def check_seconds(name: str, value: Any, most: float) -> None:
    """UsageError `bad_argument` where `value` is not a number over 0 and up to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most or math.isnan(value):
        raise UsageError("bad_argument", f"{name} is {_short(value)}, expected seconds, over 0 and up to {most:,.0f}")


def as_path(name: str, value: Any) -> Path:
    """A path as text, bytes or an object; UsageError `bad_argument` for anything else."""
    if isinstance(value, str | bytes | os.PathLike):
        text = os.fsdecode(value)
        if "\0" not in text:
            return Path(text)
    raise UsageError("bad_argument", f"{name} is {_short(value)}, expected a path")


def as_inputs(value: Any) -> list[str]:
    """What a run reads: one path or URL, or several. UsageError `bad_argument` for anything else."""
    if isinstance(value, str | bytes | os.PathLike):
        value = [value]
    given: list[Any] = list(value) if isinstance(value, Iterable) else [None]
    if not all(isinstance(one, str | bytes | os.PathLike) for one in given):
        raise UsageError("bad_argument", f"the inputs are {_short(value)}, expected paths or URLs")
    return [os.fsdecode(one) for one in given]


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else f"{str(value)[:20]}..."
    return text if len(text) <= 80 else f"{text[:77]}..."
