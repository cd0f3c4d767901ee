"""What runs without POSIX: classify, embed and search do, and what needs it says so before any work."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

import tessella
from tessella.bulk import RunSettings, run
from tessella.machine import require_fork
from tessella.search.index import build_index
from tessella.weights.catalogue import default_model

from .posix_free import command_without_posix, run_without_posix
from .posix_free.removed import MODULES
from .structure import ROOT, Source, parse

EXAMPLES = ROOT / "examples"
CAT = EXAMPLES / "cat.jpg"
TABLE = ROOT / "docs" / "reference" / "platforms.md"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an index, made on this system; a copy of it can be searched on any other."""
    out = tmp_path_factory.mktemp("indexed") / "run"
    run([EXAMPLES], out, tessella.load(), RunSettings(processes=1))
    build_index(out)
    return out


def test_the_processes_lack_what_they_should(tmp_path: Path) -> None:
    code = (
        "import os, signal, socket\n"
        "print(hasattr(os, 'fork'), hasattr(os, 'sysconf'), hasattr(signal, 'SIGKILL'), hasattr(socket, 'recv_fds'))\n"
        "try: import fcntl\nexcept ImportError: print('no fcntl')"
    )
    done = run_without_posix(code, tmp_path)
    assert done.stdout.split("\n")[:2] == ["False False False False", "no fcntl"], done.stderr


def test_images_are_classified_embedded_and_searched_without_posix(indexed: Path, tmp_path: Path) -> None:
    done = command_without_posix("classify", CAT, "--top", "1", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = tessella.load(default_model("classify")).classify(str(CAT), top=1)[0]
    assert json.loads(done.stdout)["top"][0]["label"] == expected.label
    done = command_without_posix("embed", CAT, "--out", "vectors.npz", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "vectors.npz").is_file()
    query = shutil.copy(CAT, tmp_path / "query.jpg")  # a search does not find the query itself
    done = command_without_posix("search", indexed, query, "--top", "1", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["key"].endswith("cat.jpg")
    assert found["score"] > 0.999


@pytest.mark.parametrize(
    "arguments",
    [("run", EXAMPLES, "--out", "made"), ("gallery", "INDEXED", "--out", "made.html"), ("serve", "--port", "0")],
    ids=["run", "gallery", "serve"],
)
def test_what_needs_posix_is_refused_before_any_work(
    arguments: tuple[object, ...], indexed: Path, tmp_path: Path
) -> None:
    done = command_without_posix(*(indexed if one == "INDEXED" else one for one in arguments), folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"`tessella {arguments[0]}` decodes images in forked processes" in done.stderr
    assert "WSL 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_this_system_can_fork() -> None:
    require_fork("this test")


def module_level_imports(source: Source) -> set[str]:
    """Return the modules that a file imports outside of functions, also those in `if` and `try`."""

    def walk(nodes: list[ast.stmt]) -> set[str]:
        found: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                parts = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
                parts += [handler.body for handler in getattr(node, "handlers", [])]
                found |= {name for part in parts for name in walk(part)}
        return found

    return walk(source.tree.body)


def test_no_module_imports_what_only_posix_has_at_module_level() -> None:
    texts = {path: path.read_text() for path in (ROOT / "src" / "tessella").rglob("*.py")}
    naming = [parse(text, path.stem, path) for path, text in texts.items() if any(name in text for name in MODULES)]
    assert any(source.module == "storage" for source in naming)  # it locks files, where that is possible
    assert {source.path: bad for source in naming if (bad := module_level_imports(source) & set(MODULES))} == {}


def test_module_level_imports_are_found() -> None:
    text = "try:\n    import fcntl\nexcept ImportError:\n    import pwd\ndef f():\n    import grp\n"
    assert module_level_imports(parse(text, "module")) == {"fcntl", "pwd"}


def test_the_table_names_every_command() -> None:
    from tessella.cli.program import COMMANDS

    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(COMMANDS)
