"""Arguments are checked where a caller enters the package: types against the annotations, numbers against a range.

`@checked` is for public functions, `check_fields` for the `__post_init__` of public dataclasses. An annotation whose
names exist for type checkers only (under TYPE_CHECKING), or of a kind not handled here, is not checked: the function
itself has to judge such a value.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from .arguments import unknown_argument
from .errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")
_UNKNOWN: Any = object()  # an annotation that cannot be resolved
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection, list)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments of another type than annotated, with UsageError `bad_argument` before anything else is done.

    A keyword that the function does not have is refused in the same way, with the nearest one that it has; for missing
    arguments Python's TypeError stays.
    """
    signature = inspect.signature(function)
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values())

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if not takes_any and (unknown := [name for name in kwargs if name not in signature.parameters]):
            raise unknown_argument(function.__name__, unknown, list(signature.parameters))
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # raises the same error under the function's own name
        kinds = annotated_types(function)
        for name, value in given.items():
            if name in kinds:
                check_type(name, value, kinds[name])
        return function(*args, **kwargs)

    return wrapper


def check_fields(record: Any) -> None:
    """Refuse a dataclass with a field of another type than annotated: UsageError `bad_argument`."""
    owner: Any = type(record)
    kinds = annotated_types(owner)
    for field in dataclasses.fields(record):
        check_type(field.name, getattr(record, field.name), kinds.get(field.name, Any))


def check_type(name: str, value: object, kind: Any) -> None:
    """Refuse `value` unless it is of the annotated `kind`; name: what the message calls it."""
    if not _fits(value, kind):
        raise UsageError(
            "bad_argument", f"{name} is {show(value)}, expected {_expected(kind)}", hint=_hint(value, kind)
        )
    if isinstance(value, str | os.PathLike) and _takes_path(kind):
        check_path(name, value)


def check_path(name: str, value: str | os.PathLike[str]) -> None:
    """Refuse paths that no file system accepts: UsageError `bad_argument`."""
    text = os.fspath(value)
    if "\0" in text:
        raise UsageError("bad_argument", f"{name} is {show(text)}, expected a path, which has no null character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError("bad_argument", f"{name} is {show(text)}, which is not a valid file name") from None


def check_number(
    name: str, value: float, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> None:
    """Refuse a number outside `least <= value <= most` and `above < value`, and NaN: UsageError `bad_argument`."""
    if not (least <= value <= most and above < value):
        bounds = [f"more than {above:g}"] if above > -math.inf else [f"at least {least:g}"] if least > -math.inf else []
        bounds += [f"at most {most:g}"] if most < math.inf else []
        expected = " and ".join(bounds) or "a number"
        raise UsageError("bad_argument", f"{name} is {show(value)}, expected {expected}")


def check_count(name: str, value: Any, most: int, least: int = 1) -> None:
    """Refuse anything but a whole number from `least` to `most`: UsageError `bad_argument`."""
    if isinstance(value, bool) or not _fits(value, int) or not least <= value <= most:
        raise UsageError("bad_argument", f"{name} is {show(value)}, expected a whole number from {least} to {most:,}")


def check_seconds(name: str, value: Any, most: float) -> None:
    """Refuse anything but a number of seconds over 0 and up to `most`: UsageError `bad_argument`."""
    if isinstance(value, bool) or not _fits(value, float) or not 0 < value <= most:
        raise UsageError("bad_argument", f"{name} is {show(value)}, expected seconds, over 0 and up to {most:,.0f}")


def as_path(name: str, value: Any) -> Path:
    """A path given as text, bytes or a path object; UsageError `bad_argument` for anything else or an empty one."""
    if isinstance(value, bytes):
        value = os.fsdecode(value)
    check_type(name, value, str | os.PathLike)
    if not os.fspath(value):
        raise UsageError("bad_argument", f"{name} is an empty string, expected a path", hint="for this folder, write .")
    return Path(value)


def as_inputs(value: Any) -> list[str]:
    """The inputs of a run: one path or URL, or several. UsageError `bad_argument` for anything else."""
    if isinstance(value, str | bytes | os.PathLike):
        value = [value]
    given: list[Any] = list(value) if isinstance(value, collections.abc.Iterable) else [None]
    if not all(isinstance(one, str | bytes | os.PathLike) for one in given):
        raise UsageError("bad_argument", f"the inputs are {show(value)}, expected paths or URLs")
    return [os.fsdecode(one) for one in given]


def show(value: object) -> str:
    """Format any value for a message: short and on one line."""
    if isinstance(value, int) and abs(value) > 10**20:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print very large ones
    if value is None or isinstance(value, str | bytes | int | float):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    return f"of type {type(value).__name__}"


# --- annotations ------------------------------------------------------------------------------------------------------


@functools.cache
def annotated_types(owner: Any) -> dict[str, Any]:
    """Annotation of each parameter or field that can be checked, as a type."""
    if isinstance(owner, type):
        annotations = {name: text for base in reversed(owner.__mro__) for name, text in _annotations(base).items()}
    else:
        annotations = _annotations(owner)
    names = vars(sys.modules[owner.__module__])
    found = {name: _resolve(text, names) for name, text in annotations.items() if name != "return"}
    return {name: kind for name, kind in found.items() if kind is not _UNKNOWN}


def _annotations(owner: Any) -> dict[str, Any]:
    return dict(inspect.get_annotations(owner))


def _resolve(kind: Any, names: dict[str, Any]) -> Any:
    """Evaluate an annotation, and aliases in it that are strings themselves; _UNKNOWN where a name is missing."""
    while isinstance(kind, str | typing.ForwardRef):
        text = kind if isinstance(kind, str) else kind.__forward_arg__
        try:
            kind = eval(text, dict(names))
        except (NameError, AttributeError, TypeError, SyntaxError):
            return _UNKNOWN
    return _UNKNOWN if any(isinstance(part, typing.ForwardRef) for part in typing.get_args(kind)) else kind


def _fits(value: object, kind: Any) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object or isinstance(kind, TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is None or kind is type(None):
        return value is None
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in parts)
    if origin is collections.abc.Callable or kind is Callable:
        return callable(value)
    if origin is not None:
        return _fits_container(value, origin, parts)
    if kind is float:
        return isinstance(value, numbers.Real)
    if kind is int:
        return isinstance(value, numbers.Integral)
    if kind is bool:
        return isinstance(value, numbers.Integral) or type(value).__name__ == "bool"  # also NumPy's
    if kind is os.PathLike or (isinstance(kind, type) and issubclass(kind, os.PathLike)):
        return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
    return not isinstance(kind, type) or isinstance(value, kind)


def _fits_container(value: object, origin: Any, parts: tuple[Any, ...]) -> bool:
    if not isinstance(origin, type):
        return True
    if origin is os.PathLike:
        return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
    if issubclass(origin, collections.abc.Mapping):
        return isinstance(value, origin) and all(_fits(key, parts[0]) for key in value)
    if origin is tuple and parts[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin in _SEQUENCES:  # a string is not a list of its characters, nor an array of rows one of values
        if getattr(value, "ndim", None) == 1:
            return all(_fits(one, parts[0]) for one in value.tolist())  # type: ignore[attr-defined]
        if isinstance(value, str | bytes) or hasattr(value, "ndim"):
            return False
    if not isinstance(value, origin):
        return False
    return not isinstance(value, collections.abc.Sequence) or all(_fits(one, parts[0]) for one in value)


def _takes_path(kind: Any) -> bool:
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return any(issubclass(part, os.PathLike) for part in parts if isinstance(part, type)) or any(
        typing.get_origin(part) is os.PathLike for part in parts
    )


_WORDS = {int: "an integer", float: "a number", str: "a string", bool: "True or False", type(None): "None"}


def _expected(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        words = list(dict.fromkeys(_expected(part) for part in parts))
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    if kind is None:
        return "None"
    if kind in _WORDS:
        return _WORDS[kind]
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is collections.abc.Callable:
        return "a function"
    if origin is tuple and parts[-1:] != (...,):
        return f"a tuple of {len(parts)} values"
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return "a dictionary"
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        return f"a list, each entry {_expected(parts[0])}" if parts[0] is not Any else "a list"
    if _takes_path(kind):
        return "a path"
    return f"an instance of {getattr(kind, '__name__', kind)}"


def _hint(value: object, kind: Any) -> str:
    """A hint for a single string or path given instead of a list."""
    if isinstance(value, str) and typing.get_origin(kind) in _SEQUENCES and len(value) < 80:
        return f"for one, write [{value!r}]"
    return ""
