"""Check the arguments of public functions: types against the annotations, numbers against a range.

`@checked` is for public functions, `check_fields` for the `__post_init__` of public dataclasses. An annotation with
names that are imported for type checkers only (under TYPE_CHECKING), or of a kind not listed in `_fits`, is not
checked; the function itself has to check such a value.

No library replaces this module: beartype and typeguard refuse NumPy's numbers, accept a string for a list of strings
and check samples of a list, and pydantic replaces values by converted copies, while numbers of NumPy are accepted here,
every entry is checked and no value is changed.
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
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

from .arguments import unknown_argument
from .errors import UsageError
from .text import any_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = ParamSpec("P")
R = TypeVar("R")
Annotation: TypeAlias = object  # a type, an alias such as `list[int]`, or a string that names one
_UNKNOWN: Annotation = object()  # an annotation that cannot be resolved
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection, list)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that arguments of another type than annotated raise UsageError `bad_argument`.

    An unknown keyword raises the same error, which suggests a similar one. For missing arguments Python's TypeError
    remains.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if not takes_any and (unknown := [name for name in kwargs if name not in signature.parameters]):
            raise unknown_argument(function.__name__, unknown, list(signature.parameters))
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # raises the same error with the function's own name
        kinds = annotated_types(function)
        for name, value in arguments.items():
            if name in kinds:
                check_type(name, value, kinds[name])
        return function(*args, **kwargs)

    return wrapper


def check_fields(record: DataclassInstance) -> None:
    """Raise UsageError `bad_argument` if a field of a dataclass has another type than annotated."""
    kinds = annotated_types(type(record))
    for field in dataclasses.fields(record):
        check_type(field.name, getattr(record, field.name), kinds.get(field.name, object))


def check_type(name: str, value: object, kind: Annotation) -> None:
    """Raise UsageError `bad_argument` if `value` is not of the annotated `kind`; name: its name in the message."""
    if not _fits(value, kind):
        raise UsageError(
            "bad_argument", f"{name} is {show(value)}, expected {_expected(kind)}", hint=_hint(value, kind)
        )
    if isinstance(value, str | os.PathLike) and _takes_path(kind):
        check_path(name, value)


def check_path(name: str, value: str | os.PathLike[str]) -> None:
    """Raise UsageError `bad_argument` for a path that no file system accepts."""
    text = os.fspath(value)
    if "\0" in text:
        raise UsageError("bad_argument", f"{name} is {show(text)}, expected a path without null characters")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError("bad_argument", f"{name} is {show(text)}, which is not a valid file name") from None


def check_number(
    name: str, value: float, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> None:
    """Raise UsageError `bad_argument` for NaN, and for numbers outside `least <= value <= most` and `above < value`."""
    if not (least <= value <= most and above < value):
        bounds = [f"more than {above:g}"] if above > -math.inf else [f"at least {least:g}"] if least > -math.inf else []
        bounds += [f"at most {most:g}"] if most < math.inf else []
        expected = " and ".join(bounds) or "a number"
        raise UsageError("bad_argument", f"{name} is {show(value)}, expected {expected}")


def check_count(name: str, value: int, most: int, least: int = 1) -> None:
    """Raise UsageError `bad_argument` for anything but a whole number from `least` to `most`."""
    if isinstance(value, bool) or not _fits(value, int) or not least <= value <= most:
        raise UsageError("bad_argument", f"{name} is {show(value)}, expected a whole number from {least} to {most:,}")


def check_seconds(name: str, value: float, most: float) -> None:
    """Raise UsageError `bad_argument` for anything but a number of seconds that is over 0 and at most `most`."""
    if isinstance(value, bool) or not _fits(value, float) or not 0 < value <= most:
        raise UsageError(
            "bad_argument", f"{name} is {show(value)}, expected a number of seconds, over 0 and up to {most:,.0f}"
        )


def as_path(name: str, value: str | bytes | os.PathLike[str]) -> Path:
    """Return a path given as a string, bytes or a path object.

    Raises UsageError `bad_argument` for anything else and for an empty path.
    """
    if isinstance(value, bytes):
        value = os.fsdecode(value)
    check_type(name, value, str | os.PathLike)
    if not os.fspath(value):
        raise UsageError(
            "bad_argument", f"{name} is an empty string, expected a path", hint="for the current folder, write ."
        )
    return Path(value)


def as_inputs(value: object) -> list[str]:
    """Return one path or URL, or several, as a list; raises UsageError `bad_argument` for anything else."""
    paths = [value] if isinstance(value, str | bytes | os.PathLike) else value
    inputs = []
    for path in paths if isinstance(paths, collections.abc.Iterable) else [None]:
        if not isinstance(path, str | bytes | os.PathLike):
            raise UsageError("bad_argument", f"the inputs are {show(value)}, expected paths or URLs")
        inputs.append(os.fsdecode(path))
    return inputs


def show(value: object) -> str:
    """Return any value as short text on one line, for a message."""
    if isinstance(value, int) and abs(value) > 10**20:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print very large integers
    if value is None or isinstance(value, str | bytes | int | float):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    return f"of type {type(value).__name__}"


# --- annotations ------------------------------------------------------------------------------------------------------


@functools.cache
def annotated_types(owner: Callable[..., object]) -> dict[str, Annotation]:
    """Return the annotations of a function's parameters or a class's fields that can be checked, as types."""
    bases = reversed(owner.__mro__) if isinstance(owner, type) else (owner,)
    annotations = {name: kind for base in bases for name, kind in inspect.get_annotations(base).items()}
    names = vars(sys.modules[owner.__module__])
    kinds = {name: _resolve(kind, names) for name, kind in annotations.items() if name != "return"}
    return {name: kind for name, kind in kinds.items() if kind is not _UNKNOWN}


def _resolve(kind: Annotation, names: dict[str, object]) -> Annotation:
    """Evaluate an annotation and aliases that are strings themselves; _UNKNOWN if a name is missing."""
    while isinstance(kind, str | typing.ForwardRef):
        text = kind if isinstance(kind, str) else kind.__forward_arg__
        try:
            kind = eval(text, dict(names))
        except (NameError, AttributeError, TypeError, SyntaxError):
            return _UNKNOWN
    return _UNKNOWN if any(isinstance(part, typing.ForwardRef) for part in typing.get_args(kind)) else kind


def _fits(value: object, kind: Annotation) -> bool:
    """Return whether a value is of an annotated type; True for annotations that cannot be checked."""
    origin, parts = _origin(kind), typing.get_args(kind)
    if _is_union(kind):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is collections.abc.Callable or kind is Callable:
        return callable(value)
    if _is_path(kind):
        return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
    if isinstance(origin, type):
        return _fits_container(value, origin, parts)
    if kind is None:
        return value is None
    if kind is bool:
        return isinstance(value, numbers.Integral) or type(value).__name__ == "bool"  # also NumPy's
    if kind is Any or not isinstance(kind, type):  # a type variable, for example
        return True
    return isinstance(value, _NUMBERS.get(kind, kind))


_NUMBERS: dict[type, type] = {float: numbers.Real, int: numbers.Integral}  # include NumPy's numbers


def _fits_container(value: object, origin: type, parts: tuple[Annotation, ...]) -> bool:
    if issubclass(origin, collections.abc.Mapping):
        return isinstance(value, origin) and all(_fits(key, parts[0]) for key in value)
    if origin is tuple and parts[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin in _SEQUENCES:
        if getattr(value, "ndim", None) == 1:
            return all(_fits(item, parts[0]) for item in value.tolist())  # type: ignore[attr-defined]
        if isinstance(value, str | bytes) or hasattr(value, "ndim"):
            return False  # a string is not a list of characters, and an array of rows is not a list of values
    if not isinstance(value, origin):
        return False
    return not isinstance(value, collections.abc.Sequence) or all(_fits(item, parts[0]) for item in value)


def _origin(kind: Annotation) -> Annotation:
    return typing.get_origin(kind)


def _is_union(kind: Annotation) -> bool:
    return _origin(kind) in (typing.Union, types.UnionType)


def _is_path(kind: Annotation) -> bool:
    plain = _origin(kind) or kind
    return isinstance(plain, type) and issubclass(plain, os.PathLike)


def _takes_path(kind: Annotation) -> bool:
    return any(map(_is_path, typing.get_args(kind) if _is_union(kind) else (kind,)))


_WORDS: dict[Annotation, str] = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "True or False",
    None: "None",
    type(None): "None",
}


def _expected(kind: Annotation) -> str:
    """Return the words for an annotated type in a message."""
    origin, parts = _origin(kind), typing.get_args(kind)
    if _is_union(kind):
        words = list(dict.fromkeys(_expected(part) for part in parts))
        return any_of(words)
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
    if _is_path(kind):
        return "a path"
    return _WORDS.get(kind) or f"an instance of {getattr(kind, '__name__', kind)}"


def _hint(value: object, kind: Annotation) -> str:
    """Return a hint for a string that was given instead of a list."""
    if isinstance(value, str) and _origin(kind) in _SEQUENCES and len(value) < 80:
        return f"for one, write [{value!r}]"
    return ""
