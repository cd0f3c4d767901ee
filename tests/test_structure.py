"""The package keeps to its limits on size, and its public names are documented.

`python -m tests.structure` prints the measures.
"""

from __future__ import annotations

import ast
import textwrap

import pytest

from .docstrings import SHAPE, undocumented, without_errors, without_shapes
from .structure import (
    ROOT,
    any_count,
    code_lines,
    find_cycles,
    fmt_skip_count,
    function_lines,
    functions,
    parameter_count,
    parse,
    read_sources,
    repeated_classes,
)

LIMITS = {
    "lines of a file": 500,
    "lines of a function": 60,
    "parameters of a function": 8,
    "uses of Any": 199,
    "uses of fmt: skip": 9,
}
# Functions that may exceed the limits, by their names inside the module, with the reason.
TIMM = "the signature is timm's"
LONG = {"create_transform": TIMM}
WIDE = {
    "create_model": TIMM,
    "create_transform": TIMM,
    "create_loader": TIMM,
    "create_dataset": TIMM,
    "Mixup.__init__": TIMM,
    "ImageDataset.__init__": TIMM,
    "load": "keyword arguments are the interface that users know",
    "push_to_hub": "the arguments are those of huggingface_hub",
}
KERNELS = "tessella.engine.kernels"  # a kernel or a torch operator takes each tensor, size and stride as an argument

PACKAGE, TESTS = read_sources(ROOT / "src" / "tessella"), read_sources(ROOT / "tests")
FUNCTIONS = {  # "module.function": (name inside the module, syntax tree)
    name: (name.removeprefix(f"{source.module}."), node) for source in PACKAGE for name, node in functions(source)
}


def test_files_are_short() -> None:
    assert {source.module: source.lines for source in PACKAGE if source.lines > LIMITS["lines of a file"]} == {}


def test_functions_are_short() -> None:
    limit = LIMITS["lines of a function"]
    lengths = {full: function_lines(node) for full, (name, node) in FUNCTIONS.items() if name not in LONG}
    assert {full: length for full, length in lengths.items() if length > limit} == {}


def test_signatures_are_narrow() -> None:
    limit = LIMITS["parameters of a function"]
    widths = {
        full: parameter_count(node)
        for full, (name, node) in FUNCTIONS.items()
        if name not in WIDE and not full.startswith(KERNELS)
    }
    assert {full: width for full, width in widths.items() if width > limit} == {}


def test_every_exception_to_the_limits_is_needed() -> None:
    longest: dict[str, int] = {}
    widest: dict[str, int] = {}
    for name, node in FUNCTIONS.values():
        longest[name] = max(longest.get(name, 0), function_lines(node))
        widest[name] = max(widest.get(name, 0), parameter_count(node))
    assert {name for name in LONG if longest.get(name, 0) <= LIMITS["lines of a function"]} == set()
    assert {name for name in WIDE if widest.get(name, 0) <= LIMITS["parameters of a function"]} == set()


def test_any_is_rare() -> None:
    counts = {source.module: count for source in PACKAGE if (count := any_count(source))}
    assert sum(counts.values()) <= LIMITS["uses of Any"], sorted(counts.items(), key=lambda item: -item[1])


def test_the_formatter_is_rarely_switched_off() -> None:
    counts = {source.module: count for source in PACKAGE if (count := fmt_skip_count(source))}
    assert sum(counts.values()) <= LIMITS["uses of fmt: skip"], counts


def test_class_names_are_unique() -> None:
    assert repeated_classes(PACKAGE) == {}


def test_there_are_at_least_as_many_lines_of_tests_as_of_code() -> None:
    assert sum(map(code_lines, TESTS)) >= sum(map(code_lines, PACKAGE))


# --- docstrings -------------------------------------------------------------------------------------------------------


def test_public_names_are_documented() -> None:
    assert undocumented(PACKAGE) == []


def test_docstrings_state_the_shapes_of_arrays() -> None:
    assert [name for source in PACKAGE for name in without_shapes(source)] == []


def test_docstrings_name_the_errors_that_are_raised() -> None:
    (errors,) = (source for source in PACKAGE if source.module == "tessella.errors")
    names = {node.name for node in errors.tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Error")}
    assert "UsageError" in names
    assert {name: unnamed for source in PACKAGE for name, unnamed in without_errors(source, names).items()} == {}


# --- the measures themselves ------------------------------------------------------------------------------------------

EXAMPLE = parse(
    textwrap.dedent(
        """
        class Base:
            '''Documented.'''

            def __init__(self, size: int) -> None:
                raise UsageError("bad_argument", "no")

            def inherited(self) -> None:
                '''Documented here.'''

        class Derived(Base):
            def inherited(self) -> None: ...
            def own(self) -> None: ...
            def _private(self) -> None: ...

        class Generic(Base[int]):
            '''Documented.'''

            def inherited(self) -> None: ...

        class Module(nn.Module):
            '''(B,D) -> (B,D).'''

            def forward(self, x: Tensor) -> Tensor: ...

        def scale(x: Tensor | None, by: float) -> None:
            '''Scale x (by a number).'''

        def flip(x_BHWC: Tensor) -> Tensor:
            '''Flip.'''

        def stack(rows: list[NDArray[np.float32]]) -> dict[str, Tensor]:
            '''Stack rows of shape (D,).'''

        def read(path: str) -> dict[str, Tensor]:
            '''Read a file; raises WeightsError `truncated`.'''
            def inner() -> None:
                raise ImageError("empty", "")
            if path:
                raise WeightsError("truncated", "")
            raise errors.UsageError("bad_argument", "")

        @click.command()
        def command(path: Path) -> None:
            raise UsageError("bad_argument", "")

        @overload
        def many(x: int) -> Any: ...
        def many(
            x: int, /, y: int = 0, *rest: int, z: int = 0, **options: Any
        ) -> Any:  # fmt: skip
            '''Documented.'''
        """
    ),
    "package.module",
)


def test_missing_docstrings_are_found() -> None:
    assert undocumented([EXAMPLE]) == ["package.module.Derived", "package.module.Derived.own"]
    assert undocumented([parse(EXAMPLE.text, "package._private")]) == []


def test_missing_shapes_are_found() -> None:
    assert without_shapes(EXAMPLE) == ["package.module.scale"]


@pytest.mark.parametrize(
    ("text", "is_shape"),
    [
        ("(B,3,H,W) images", True),
        ("labels (N,)", True),
        ("(..., D) tokens", True),
        ("(B,classes) scores", True),
        ("the loss, a scalar", True),
        ("a tensor of any shape", True),
        ("(files, folders)", False),
        ("(B) images", False),
        ("in float32 (as in timm, and elsewhere)", False),
        ("", False),
    ],
)
def test_shapes_are_recognized(text: str, is_shape: bool) -> None:
    assert bool(SHAPE.search(text)) is is_shape


def test_missing_errors_are_found() -> None:
    errors = {"UsageError", "WeightsError", "ImageError"}
    assert without_errors(EXAMPLE, errors) == {
        "package.module.read": {"UsageError"},
        "package.module.Base.__init__": {"UsageError"},
    }


def test_sizes_are_measured() -> None:
    many = {name: node for name, node in functions(EXAMPLE) if name == "package.module.many"}["package.module.many"]
    assert function_lines(many) == 4
    assert parameter_count(many) == 5
    assert any_count(EXAMPLE) == 3
    assert code_lines(parse("'''Doc.'''\n\n# one\nx = [\n    1,  # two\n]\ndef f():\n    'doc'\n    y = 1\n", "m")) == 5
    assert fmt_skip_count(EXAMPLE) == 1
    assert repeated_classes([EXAMPLE, parse("class Base: ...", "package.other")]) == {
        "Base": ["package.module", "package.other"]
    }


def test_cycles_are_found() -> None:
    assert find_cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
