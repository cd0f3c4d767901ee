"""Argument names: unknown ones are refused with the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from .errors import UsageError


def suggestion(words: Iterable[str], known: Collection[str], *, most: int = 1, cutoff: float = 0.6) -> str:
    """ "did you mean ...?" with the known names that are nearest to each word; "" if none is near."""
    near = [name for word in words for name in difflib.get_close_matches(word, known, n=most, cutoff=cutoff)]
    return f"did you mean {', '.join(dict.fromkeys(near))}?" if near else ""


def unknown_argument(function: str, words: Collection[str], known: Collection[str]) -> UsageError:
    """The error for unknown arguments: suggests the nearest names, or lists all if none is near."""
    return UsageError(
        "bad_argument",
        f"{function} takes no argument {', '.join(map(repr, words))}",
        hint=suggestion(words, known) or f"known: {', '.join(known)}",
    )


def refuse(function: str, given: dict[str, Any], reasons: dict[str, str]) -> None:
    """Raise UsageError `bad_argument` for the first argument of `given` that is set; `reasons` says what to use."""
    for name, value in given.items():
        if value:
            raise UsageError("bad_argument", f"{function} does not support {name}={value!r}", hint=reasons[name])
