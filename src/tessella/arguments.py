"""Errors for unknown and unsupported arguments, with suggestions of similar names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from .errors import UsageError


def suggestion(words: Iterable[str], known: Collection[str], *, most: int = 1, cutoff: float = 0.6) -> str:
    """Return "did you mean ...?" with the known names that are similar to the words, or "" if there are none."""
    similar = [name for word in words for name in difflib.get_close_matches(word, known, n=most, cutoff=cutoff)]
    return f"did you mean {', '.join(dict.fromkeys(similar))}?" if similar else ""


def unknown_argument(function: str, words: Collection[str], known: Collection[str]) -> UsageError:
    """Return the error for unknown arguments, which suggests similar names, or lists all if there are none."""
    return UsageError(
        "bad_argument",
        f"{function} takes no argument {', '.join(map(repr, words))}",
        hint=suggestion(words, known) or f"known: {', '.join(known)}",
    )


def refuse(function: str, arguments: Mapping[str, object], reasons: Mapping[str, str]) -> None:
    """Raise UsageError `bad_argument` for the first argument that is set; `reasons` has a hint for each name."""
    for name, value in arguments.items():
        if value:
            raise UsageError("bad_argument", f"{function} does not support {name}={value!r}", hint=reasons[name])
