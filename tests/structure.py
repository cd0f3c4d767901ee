"""Measure the structure of the package; `python -m tests.structure` prints the figures quoted in docs/log.md."""

from __future__ import annotations

import ast
import functools
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """A Python file: its path, dotted module name, text and syntax tree."""

    path: Path
    module: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@functools.cache  # several test files read the package
def read_sources(folder: Path) -> list[Source]:
    """Return all Python files in `folder`; dotted names start with the name of the folder."""
    sources = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources.append(parse(path.read_text(), module, path))
    return sources


def parse(text: str, module: str, path: Path = Path()) -> Source:
    return Source(path, module, text, ast.parse(text))


def imported_modules(source: Source, modules: set[str]) -> Iterator[str]:
    """Yield the modules of the package that a file imports, including imports in functions and under TYPE_CHECKING.

    `from package import name` is an import of `package.name` if that is a module, and of `package` otherwise.
    """
    package = source.module.split(".") if source.is_package else source.module.split(".")[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{stem}.{alias.name}"
                if full in modules or stem in modules:
                    yield full if full in modules else stem


def import_graph(sources: list[Source]) -> dict[str, set[str]]:
    """Return the modules that each module imports, without itself.

    The `__init__` of a package that re-exports names of its own modules is a table of contents: its imports of these
    modules are not edges, and an import through it is an import of the package.
    """
    modules = {source.module for source in sources}
    packages = {source.module for source in sources if source.is_package}
    graph = {}
    for source in sources:
        targets = set(imported_modules(source, modules)) - {source.module}
        if source.module in packages:
            targets = {name for name in targets if not name.startswith(f"{source.module}.")}
        graph[source.module] = targets
    return graph


def find_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components with more than one module (Tarjan, 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                cycles.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return cycles


def functions(source: Source) -> Iterator[tuple[str, Function]]:
    """Yield every function and method of a file with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{child.name}", child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(source.tree, f"{source.module}.")


def function_lines(function: Function) -> int:
    """Return the number of lines from `def` to the end, decorators excluded."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def code_lines(source: Source) -> int:
    """Return the number of lines with code: without blank lines, comments and docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
    lines = {line for token in tokens if token.type not in skipped for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def parameter_count(function: Function) -> int:
    """Return the number of named parameters without self and cls; *args and **kwargs count as one each."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(set(names) - {"self", "cls"}) + bool(arguments.vararg) + bool(arguments.kwarg)


def any_count(source: Source) -> int:
    """Return the number of uses of `Any`, imports excluded."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(source.tree))


def fmt_skip_count(source: Source) -> int:
    """Return the number of comments that switch the formatter off."""
    return len(re.findall(r"# fmt: (?:skip|off)", source.text))


def repeated_classes(sources: list[Source]) -> dict[str, list[str]]:
    """Return the class names that are defined more than once, each with its modules."""
    homes: dict[str, list[str]] = {}
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(source.module)
    return {name: modules for name, modules in homes.items() if len(modules) > 1}


def print_report(root: Path) -> None:
    package, tests = read_sources(root / "src" / "tessella"), read_sources(root / "tests")
    lines, test_lines = (sum(source.lines for source in group) for group in (package, tests))
    longest = max(package, key=lambda source: source.lines)
    named = [item for source in package for item in functions(source)]
    lengths = sorted(((function_lines(node), name) for name, node in named), reverse=True)
    widths = sorted(((parameter_count(node), name) for name, node in named), reverse=True)
    cycles = find_cycles(import_graph(package))
    print(f"files {len(package)}, lines {lines}, longest file {longest.module} {longest.lines}")
    print("files over 500 lines:", [f"{source.module} {source.lines}" for source in package if source.lines > 500])
    print("functions over 60 lines:", [f"{name} {length}" for length, name in lengths if length > 60])
    print("signatures over 8 parameters:", [f"{name} {width}" for width, name in widths if width > 8])
    print(f"cycles {len(cycles)}:", *cycles, sep="\n  ")
    print(f"Any {sum(map(any_count, package))}, fmt: skip {sum(map(fmt_skip_count, package))}")
    print(f"repeated classes {repeated_classes(package)}")
    code, test_code = (sum(map(code_lines, group)) for group in (package, tests))
    print(f"lines of tests {test_lines}; lines with code {code}, of tests {test_code}, ratio {test_code / code:.2f}")


if __name__ == "__main__":
    print_report(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
