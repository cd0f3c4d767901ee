"""Checks of types and ranges: accepted values, refused values, and messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from tessella.checks import check_fields, check_number, checked, show
from tessella.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@checked
def work(
    name: str = "",
    count: int | None = None,
    rate: float = 0.0,
    path: str | Path = "",
    flag: bool = False,
    names: Sequence[str] = (),
    many: Iterable[int] = (),
    facts: Mapping[str, Any] | None = None,
    mode: Literal["a", "b"] = "a",
    callback: Callable[[str], None] = print,
    single: str | Sequence[str] = "",
    sides: int | tuple[int, int] = 0,
    unresolved: Tensor | None = None,
    **others: Any,
) -> str:
    """Documented."""
    return name


@pytest.mark.parametrize(
    "arguments",
    [
        dict(name="x", count=3, rate=1, path=Path("x"), flag=True),
        dict(count=np.int64(3), rate=np.float32(2), flag=np.bool_(True)),
        dict(count=None, rate=math.nan, path="\udce9.png"),  # a name that is not UTF-8 is a path
        dict(names=["a"], many=iter([1]), facts={"a": object()}, callback=len, single=["a", "b"]),
        dict(many=np.array([1, 2])),
        dict(names=("a", "b"), many=range(3), sides=(1, 2), unresolved="anything", more=object()),
    ],
)
def test_values_of_the_annotated_type_are_accepted(arguments: dict[str, Any]) -> None:
    assert work(**arguments) == arguments.get("name", "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (dict(name=3), "name is 3, expected a string"),
        (dict(count="3"), "count is '3', expected an integer or None"),
        (dict(count=1.5), "count is 1.5, expected an integer or None"),
        (dict(rate="fast"), "rate is 'fast', expected a number"),
        (dict(path=b"x"), "path is b'x', expected a string or a path"),
        (dict(path="a\0b"), "path is 'a\\x00b', expected a path without null characters"),
        (dict(path="\ud800"), "path is '\\ud800', which is not a valid file name"),
        (dict(flag="yes"), "flag is 'yes', expected True or False"),
        (dict(names="photos"), "names is 'photos', expected a list, each entry a string (for one, write ['photos'])"),
        (dict(names=["a", 3]), "names is of type list, expected a list, each entry a string"),
        (dict(many=3), "many is 3, expected a list, each entry an integer"),
        (dict(facts={1: 2}), "facts is of type dict, expected a dictionary or None"),
        (dict(facts=[]), "facts is of type list, expected a dictionary or None"),
        (dict(mode=1), "mode is 1, expected one of 'a', 'b'"),
        (dict(callback="print"), "callback is 'print', expected a function"),
        (dict(single=b"x"), "single is b'x', expected a string or a list, each entry a string"),
        (dict(sides=(1, 2, 3)), "sides is of type tuple, expected an integer or a tuple of 2 values"),
        (dict(many=np.zeros((2, 2), int)), "many is of type ndarray, expected a list, each entry an integer"),
        (dict(names=np.zeros(2)), "names is of type ndarray, expected a list, each entry a string"),
        (dict(count=np.zeros(2)), "count is of type ndarray, expected an integer or None"),
    ],
)
def test_values_of_another_type_are_refused(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as error:
        work(**arguments)
    assert str(error.value) == expected
    assert error.value.code == "bad_argument"


def test_missing_arguments_are_a_type_error() -> None:
    @checked
    def needs(value: int) -> None: ...

    with pytest.raises(TypeError, match=r"needs\(\) missing 1 required positional argument: 'value'"):
        needs()  # type: ignore[call-arg]
    assert work.__doc__ == "Documented."


def test_unknown_keywords_are_refused_with_a_suggestion() -> None:
    @checked
    def load(device: str = "", engine: str = "") -> None: ...

    with pytest.raises(UsageError, match="load takes no argument 'devic'") as error:
        load(devic="cpu")  # type: ignore[call-arg]
    assert error.value.hint.startswith("did you mean device?")


def test_methods_are_checked_without_their_self() -> None:
    class Thing:
        @checked
        def method(self, value: int) -> int:
            return value

    assert Thing().method(3) == 3
    with pytest.raises(UsageError):
        Thing().method("3")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Base:
    size: int = 1

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Derived(Base):
    spread: tuple[float, ...] | None = None


def test_fields_of_dataclasses() -> None:
    assert Derived(3, (0.5, 1)).size == 3
    for wrong in (dict(size="3"), dict(spread=["x"]), dict(spread=(1, None))):
        with pytest.raises(UsageError):
            Derived(**wrong)


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (0, dict(least=1), "n is 0, expected at least 1"),
        (3, dict(least=1, most=2), "n is 3, expected at least 1 and at most 2"),
        (0.0, dict(above=0), "n is 0.0, expected more than 0"),
        (math.nan, {}, "n is nan, expected a number"),
        (10**30, dict(most=10), "n is an integer of 100 bits, expected at most 10"),
    ],
)
def test_numbers_have_a_range(value: float, bounds: dict[str, float], expected: str) -> None:
    with pytest.raises(UsageError) as error:
        check_number("n", value, **bounds)
    assert str(error.value) == expected
    check_number("n", 1, least=1, most=1)


def test_values_are_shown_on_one_short_line() -> None:
    assert show(10**6000) == "an integer of 19932 bits"
    assert show("a\nb") == "'a\\nb'"
    assert show("x" * 5000).endswith("... (5,002 characters)")
    assert show(Path("x")) == "'x'"
    assert show([1]) == "of type list"
    assert show(np.zeros(3)) == "of type ndarray"
