"""Imports point one way: a module may import what stands before its own layer, never after."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "tessella"
LAYERS = [
    {"errors", "text"},
    {"regular"},
    {"extras", "atomic", "arguments"},
    {"checks", "locks"},
    {"models", "data", "utils"},
    {"fingerprint"},
    {"weights"},
    {"engine"},
    {"predictor"},
    {"tasks"},
    {"serve", "export", "explain", "card"},
    {"console", "preflight"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ENTRY = {"__init__"}  # the package itself: public names, loaded on first use


def imports(path: Path) -> Iterator[str]:
    """Parts of the package that a file imports, wherever in the file."""
    package = ["tessella", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [stem if stem != "tessella" else f"tessella.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("tessella."))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_layer() -> None:
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")}
    assert parts - ENTRY <= set(RANK)


def test_imports_point_one_way() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = part_of(path)
        if part in ENTRY:
            continue
        for target in imports(path):
            if target.startswith("__"):  # __version__
                continue
            if target != part and RANK[target] >= RANK[part]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {target}")
    assert not wrong


def test_only_decode_touches_image_libraries() -> None:
    users = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("PIL", "simplejpeg"))
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] in ("PIL", "simplejpeg") for a in node.names))
    ]
    assert set(users) == {"data/decode.py", "data/augment.py"}
    # augmentation draws with Pillow on pixels that are decoded: it opens nothing
    augment = (PACKAGE / "data" / "augment.py").read_text()
    assert not re.search(r"\bImage\.(open|frombytes|frombuffer)\b", augment)
