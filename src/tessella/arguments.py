"""Arguments by name: what is unknown is refused with the nearest name that is known."""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from .errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def suggestion(words: Iterable[str], known: Collection[str], *, most: int = 1, cutoff: float = 0.6) -> str:
    """ "did you mean ...?" with the known names that are nearest to each word; "" where none is near."""
    near = [name for word in words for name in difflib.get_close_matches(word, known, n=most, cutoff=cutoff)]
    return f"did you mean {', '.join(dict.fromkeys(near))}?" if near else ""


def unknown_argument(function: str, words: Collection[str], known: Collection[str]) -> UsageError:
    """The error for arguments that a function does not have: the nearest names, or all where none is near."""
    return UsageError(
        "bad_argument",
        f"{function} takes no argument {', '.join(map(repr, words))}",
        hint=suggestion(words, known) or f"known: {', '.join(known)}",
    )


def named_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: checks the arguments of a public function by its annotations, before anything else happens.

    Keyword arguments that the function does not have, and values of another type than annotated, raise UsageError
    `bad_argument`. NumPy's numbers count as numbers, any path-like object as a path.
    """
    signature = inspect.signature(function)
    known = [name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]
    open_ended = len(known) < len(signature.parameters)
    name = function.__qualname__.removesuffix(".__init__")

    @functools.cache
    def expected() -> dict[str, Any]:
        names = getattr(function, "__globals__", {})
        return {key: annotated_type(signature.parameters[key].annotation, names) for key in known}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not open_ended and (unknown := [word for word in kwargs if word not in known]):
            raise unknown_argument(name, unknown, known)
        given = signature.bind_partial(*args, **kwargs).arguments if len(args) <= len(known) else {}
        for key, value in given.items():
            if key in known and not fits(value, expected()[key]):
                wanted = signature.parameters[key].annotation
                shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
                raise UsageError("bad_argument", f"{name}: {key} is {shown[:80]}, expected {wanted}")
        return function(*args, **kwargs)

    return checked


def annotated_type(annotation: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation in text stands for; Any where it needs what is imported for type checkers only."""
    if annotation is inspect.Parameter.empty or not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, names)
    except NameError:
        return Any


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of an annotated type; any integer is also a number and a truth value."""
    if wanted is Any or wanted is None:
        return wanted is Any or value is None
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Sequence, Iterable):
        # arrays are sequences in all but name
        items = isinstance(value, origin) or (hasattr(value, "__len__") and hasattr(value, "__getitem__"))
        items = items and not isinstance(value, str | bytes | Mapping)
        return items and (origin is Iterable or all(fits(item, arguments[0]) for item in value))
    if origin is not None:
        return callable(value) if origin is Callable else isinstance(value, origin)
    wider = {float: numbers.Real, int: numbers.Integral, bool: numbers.Integral, Path: os.PathLike}.get(wanted, wanted)
    return isinstance(value, wider) if isinstance(wider, type) else True


def refuse(function: str, given: dict[str, Any], reasons: dict[str, str]) -> None:
    """Raise UsageError `bad_argument` for the first argument of `given` that is set; `reasons` says what to use."""
    for name, value in given.items():
        if value:
            raise UsageError("bad_argument", f"{function} does not support {name}={value!r}", hint=reasons[name])
