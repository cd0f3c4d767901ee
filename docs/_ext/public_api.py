"""The directive `public-api`: every public name of a package, from the list in its `__init__.pyi`.

A name that an earlier package of `PACKAGES` exports, too, is described there, and only linked.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from docstrings import comment_at, to_rst
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tessella import errors

SUBPACKAGES = (
    *("bulk", "search", "training", "evaluation", "calibration", "inspection", "comparison", "explain", "client"),
    *("serve", "cards", "verification", "performance", "engine", "data", "models", "weights", "plots"),
)
PACKAGES = ("tessella", *(f"tessella.{name}" for name in SUBPACKAGES))
LONGEST_VALUE = 60  # characters of the value of a constant that is shown


class PublicName(NamedTuple):
    """A name that a package exports. module, original: where it is defined, and its name there."""

    name: str
    module: str
    original: str
    value: object


@functools.cache
def public_names(package: str) -> tuple[PublicName, ...]:
    """Return the public names of a package that are not modules, in the order of its stub."""
    file = Path(importlib.import_module(package).__file__ or "")
    found = []
    for node in ast.parse(file.with_suffix(".pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            module = ".".join([package, *([node.module] if node.module else [])])
            for alias in node.names:
                name = alias.asname or alias.name
                value = getattr(importlib.import_module(package), name)
                if not isinstance(value, ModuleType):
                    found.append(PublicName(name, module, alias.name, value))
    return tuple(found)


def home_of(name: PublicName) -> str:
    """Return the package that describes a name: the first one that exports the same object under this name."""
    if isinstance(name.value, type) and issubclass(name.value, errors.TessellaError):
        return "tessella.errors"
    return homes()[name.name, id(name.value)]


@functools.cache
def homes() -> dict[tuple[str, int], str]:
    """Return the packages that describe public names, by the name and the identity of the object."""
    return {(name.name, id(name.value)): package for package in reversed(PACKAGES) for name in public_names(package)}


class PublicApi(SphinxDirective):
    """Describe the public names of a package: functions, classes, constants."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = self.arguments[0]
        text = [f".. py:module:: {package}", "   :no-index-entry:", ""]
        names = public_names(package)
        own = [name for name in names if home_of(name) == package]
        functions = [name for name in own if inspect.isroutine(name.value)]
        classes = [name for name in own if isinstance(name.value, type)]
        constants = [name for name in own if name not in functions and name not in classes]
        text += section("Functions", [function(package, name) for name in functions])
        text += section("Classes", [class_(package, name) for name in classes])
        text += section("Constants", [constant(package, name) for name in constants])
        text += also(package, [name for name in names if home_of(name) != package])
        for name in names:
            self.env.note_dependency(str(inspect.getsourcefile(importlib.import_module(name.module))))
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *text, "```"]), allow_section_headings=False)


def section(title: str, blocks: list[list[str]]) -> list[str]:
    """Return reStructuredText with a heading that is not in the table of contents."""
    return [f".. rubric:: {title}", "", *(line for block in blocks for line in block)] if blocks else []


def function(package: str, name: PublicName) -> list[str]:
    """Return the directive for a function."""
    return [f".. autofunction:: {package}.{name.name}", ""]


def class_(package: str, name: PublicName) -> list[str]:
    """Return the directive for a class and its documented members."""
    return [f".. autoclass:: {package}.{name.name}", "   :members:", ""]


def constant(package: str, name: PublicName) -> list[str]:
    """Return the directive for a constant, with its value if that is short, and the comment beside it."""
    module = importlib.import_module(name.module)
    out = [f".. py:data:: {name.name}", f"   :module: {package}", f"   :type: {type(name.value).__name__}"]
    if len(repr(name.value)) <= LONGEST_VALUE:
        out.append(f"   :value: {name.value!r}")
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        if name.original in assigned_names(node):
            comment = comment_at(source.splitlines(), node.lineno, node.end_lineno or node.lineno)
            return [*out, "", f"   {to_rst(comment[:1].upper() + comment[1:])}", ""]
    return [*out, ""]


def assigned_names(node: ast.stmt) -> set[str]:
    """Return the names that a statement assigns a value to."""
    targets: list[ast.expr] = list(node.targets) if isinstance(node, ast.Assign) else []
    targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def also(package: str, names: list[PublicName]) -> list[str]:
    """Return a paragraph with links to names that are described with another package."""
    if not names:
        return []
    links = (
        f":py:obj:`{name.name} <{home_of(name)}.{name.name}>`"
        for name in sorted(names, key=lambda name: name.name.lower())
    )
    return [f"``{package}`` also exports {', '.join(links)}.", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("public-api", PublicApi)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
