"""Imports go from lower to upper layers only, and never in a circle."""

from __future__ import annotations

import ast
import re

from .structure import ROOT, find_cycles, import_graph, imported_modules, read_sources

PACKAGE = ROOT / "src" / "tessella"
LAYERS = [
    {"_version", "errors", "text"},
    {"arguments", "extras", "machine", "signals"},
    {"checks", "allocator"},
    {"storage", "results"},
    {"records"},
    {"models", "data", "utils"},
    {"fingerprint"},
    {"weights"},
    {"engine"},
    {"plots", "inputs", "calibration"},
    {"pipeline"},
    {"loading"},
    {"predictor"},
    {"info", "export"},
    {"doctor"},
    {"bulk"},
    {"search"},
    {"performance"},
    {"evaluation"},
    {"comparison"},
    {"cards"},
    {"publish"},
    {"inspection"},
    {"training"},
    {"verification"},
    {"explain"},
    {"serve", "client"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SOURCES = read_sources(PACKAGE)
ENTRY = "tessella"  # the package itself: public names, loaded on first use


def part_of(module: str) -> str:
    return module.split(".")[1]


def test_every_part_has_a_layer() -> None:
    assert {part_of(source.module) for source in SOURCES if source.module != ENTRY} <= set(RANK)


def test_imports_point_one_way() -> None:
    modules = {source.module for source in SOURCES} - {ENTRY}
    wrong = []
    for source in SOURCES:
        if source.module == ENTRY:
            continue
        part = part_of(source.module)
        for target in imported_modules(source, modules):
            if part_of(target) != part and RANK[part_of(target)] >= RANK[part]:
                wrong.append(f"{source.module} imports {target}")
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    """Lazy imports and those for type checkers are included."""
    assert find_cycles(import_graph(SOURCES)) == []


def test_only_decode_touches_image_libraries() -> None:
    users = [
        source.path.relative_to(PACKAGE).as_posix()
        for source in SOURCES
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("PIL", "simplejpeg"))
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] in ("PIL", "simplejpeg") for a in node.names))
    ]
    # resizing and augmentation work on decoded pixels with Pillow: they open nothing
    working_on_pixels = {"data/resize.py", "data/augment.py", "data/operations.py"}
    assert set(users) == {"data/decode.py", "data/turbo.py"} | working_on_pixels
    for name in working_on_pixels:
        assert not re.search(r"\bImage\.(open|frombytes|frombuffer)\b", (PACKAGE / name).read_text())
