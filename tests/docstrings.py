"""Find public functions and classes whose docstrings lack a summary, the shapes of arrays, or the errors raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .structure import Function, Source

ARRAYS = {"Tensor", "NDArray", "ndarray", "Pixels", "Ints", "Floats"}  # names of array types in annotations
CONTAINERS = {"list", "tuple", "Sequence", "Iterable", "Iterator"}  # whose items have shapes; state dicts do not
DIMENSION = r"(?:\.\.\.|[\w*/+-]+)"
# (B,3,H,W), (N,), (..., D): with a number, a capital letter or dots, unlike words in brackets (files, folders)
SHAPE = re.compile(
    rf"\((?=[^()]*(?:[A-Z0-9]|\.\.\.))(?:{DIMENSION}(?:, ?{DIMENSION})+,?|{DIMENSION},)\)"
    r"|\b(?:scalars?|any shape|(?:the )?same shape)\b"
)
SHAPE_SUFFIX = re.compile(r"_[A-Z][A-Z0-9]*$")  # x_BND


@dataclass(frozen=True)
class PublicFunction:
    """A function, or a method of a class."""

    name: str  # dotted
    node: Function
    owner: ast.ClassDef | None = None

    @property
    def is_constructor(self) -> bool:
        return self.owner is not None and self.node.name in ("__init__", "__post_init__")

    @property
    def docstring(self) -> str:
        """The docstring, with that of the class for a constructor and for the `forward` of a module."""
        own = ast.get_docstring(self.node) or ""
        if self.owner is not None and (self.is_constructor or self.node.name == "forward"):
            own += ast.get_docstring(self.owner) or ""
        return own


def public_classes(source: Source) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the public classes of a public module, with their dotted names."""
    if any(part.startswith("_") for part in source.module.split(".")):
        return
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield f"{source.module}.{node.name}", node


def public_functions(source: Source) -> Iterator[PublicFunction]:
    """Yield the public functions, methods and constructors of a public module.

    Overloads are described by their implementation, setters by their property, and commands by their help texts.
    """
    if any(part.startswith("_") for part in source.module.split(".")):
        return
    functions = [PublicFunction(f"{source.module}.{node.name}", node) for node in _functions_in(source.tree)]
    for name, owner in public_classes(source):
        functions += [PublicFunction(f"{name}.{node.name}", node, owner) for node in _functions_in(owner)]
    for function in functions:
        is_public = function.is_constructor or not function.node.name.startswith("_")
        if is_public and not _decorators(function.node) & {"overload", "setter", "command", "group"}:
            yield function


def _functions_in(scope: ast.Module | ast.ClassDef) -> list[Function]:
    return [node for node in scope.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def undocumented(sources: list[Source]) -> list[str]:
    """Return the public classes and functions without a docstring.

    A method inherits the docstring of the same method of a base class in the package, and the `forward` of a module
    that of its class, which states what the module computes. Constructors are described by their class.
    """
    nodes = (node for source in sources for node in ast.walk(source.tree))
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    missing = [name for source in sources for name, node in public_classes(source) if not ast.get_docstring(node)]
    for source in sources:
        for function in public_functions(source):
            inherits = function.owner and _inherits_docstring(function.owner, function.node.name, classes)
            if not (function.is_constructor or function.docstring or inherits):
                missing.append(function.name)
    return missing


def _inherits_docstring(owner: ast.ClassDef, method: str, classes: dict[str, ast.ClassDef]) -> bool:
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in owner.bases]  # Base[T]: Base
    parents = [classes[base.id] for base in bases if isinstance(base, ast.Name) and base.id in classes]
    for parent in parents:
        same = [node for node in _functions_in(parent) if node.name == method]
        if any(map(ast.get_docstring, same)) or _inherits_docstring(parent, method, classes):
            return True
    return False


def without_shapes(source: Source) -> list[str]:
    """Return the public functions with arrays whose shapes are neither in the docstring nor in all parameter names."""
    missing = []
    for function in public_functions(source):
        arguments = function.node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        arrays = [parameter.arg for parameter in parameters if _has_array(parameter.annotation)]
        in_names = arrays and all(map(SHAPE_SUFFIX.search, arrays))
        if (arrays or _has_array(function.node.returns)) and not (in_names or SHAPE.search(function.docstring)):
            missing.append(function.name)
    return missing


def _has_array(annotation: ast.expr | None) -> bool:
    """Return whether an annotation is an array type, a union with one, or a sequence of them."""
    match annotation:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in ARRAYS
        case ast.BinOp():
            return _has_array(annotation.left) or _has_array(annotation.right)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in ARRAYS or (name in CONTAINERS and _has_array(annotation.slice))
        case ast.Tuple():
            return any(map(_has_array, annotation.elts))
    return False


def without_errors(source: Source, errors: set[str]) -> dict[str, set[str]]:
    """Return the public functions whose docstrings do not name all of `errors` that their bodies raise."""
    missing = {}
    for function in public_functions(source):
        raised = {name for name in _raised(function.node) if name in errors}
        if unnamed := {name for name in raised if not re.search(rf"\b{name}\b", function.docstring)}:
            missing[function.name] = unnamed
    return missing


def _raised(function: Function) -> Iterator[str]:
    """Yield the names of the exceptions in the `raise` statements of a function, without those of nested functions."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield ast.unparse(node.exc.func).rpartition(".")[2]
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            nodes.extend(ast.iter_child_nodes(node))


def _decorators(node: Function) -> set[str]:
    """Return the last names of the decorators: {"command"} for `@click.command(...)`."""
    calls = [decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list]
    return {ast.unparse(call).rpartition(".")[2] for call in calls}
