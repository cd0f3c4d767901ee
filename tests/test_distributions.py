"""The check of the wheel and the source distribution finds what is wrong; scripts/release runs it on real ones."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from . import distributions
from .distributions import files_of, sdist_files, sdist_problems, size_problems, wheel_files, wheel_problems
from .structure import ROOT

SOURCE = {
    "README.md",
    "tests/test_one.py",
    "src/tessella/__init__.py",
    "src/tessella/__init__.pyi",
    "src/tessella/py.typed",
    "src/tessella/bulk/__init__.pyi",
    "src/tessella/weights/builtin/one.safetensors",
    "src/tessella/data/photographs/cat.jpg",
    "src/tessella/data/tables/labels.tsv",
    "src/tessella/serve/page/index.html",
    "src/tessella/serve/page/app.js",
    "src/tessella/serve/page/style.css",
}
INFO = "tessella-1.0.dist-info"
WHEEL = {name.removeprefix("src/") for name in SOURCE if name.startswith("src/")} | {
    f"{INFO}/METADATA",
    f"{INFO}/entry_points.txt",
    f"{INFO}/licenses/LICENSE",
}


def write_distributions(folder: Path, wheel: set[str], sdist: set[str]) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "tessella-1.0-py3-none-any.whl", "w") as archive:
        for name in wheel:
            archive.writestr(name, "")
    with tarfile.open(folder / "tessella-1.0.tar.gz", "w:gz") as tar:
        for name in sdist:
            tar.addfile(tarfile.TarInfo(f"tessella-1.0/{name}"), io.BytesIO())


def check(folder: Path, tree: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.distributions", str(folder), str(tree)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in SOURCE:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    (tmp_path / "tree" / "tests" / "__pycache__").mkdir()
    (tmp_path / "tree" / "tests" / "__pycache__" / "test_one.pyc").touch()
    return tmp_path / "tree"


def test_complete_distributions_pass(tree: Path, tmp_path: Path) -> None:
    write_distributions(tmp_path / "dist", WHEEL, SOURCE | {"PKG-INFO"})
    done = check(tmp_path / "dist", tree)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"tessella-1.0-py3-none-any.whl: {len(WHEEL)} files, 0.0 MB",
        f"tessella-1.0.tar.gz: {len(SOURCE) + 1} files, 0.0 MB",
    ]


def test_a_missing_and_an_additional_file_fail(tree: Path, tmp_path: Path) -> None:
    wheel = WHEEL - {"tessella/py.typed"} | {"tests/test_one.py"}
    write_distributions(tmp_path / "dist", wheel, SOURCE - {"tests/test_one.py"} | {"PKG-INFO"})
    done = check(tmp_path / "dist", tree)
    assert done.returncode == 1
    assert [line.strip() for line in done.stderr.splitlines()] == [
        "tessella/py.typed is missing",
        "tests/test_one.py does not belong there",
        "no file matches tessella/py.typed",
        "tests/test_one.py is missing",
    ]


@pytest.mark.parametrize("name", sorted(WHEEL - {"tessella/__init__.py", f"{INFO}/METADATA"}))
def test_every_kind_of_file_of_a_wheel_is_required(name: str) -> None:
    source = {one for one in SOURCE if one.removeprefix("src/") != name}  # it is missing in the tree, too
    assert wheel_problems(WHEEL - {name}, source)
    assert wheel_problems(WHEEL, SOURCE) == []


def test_files_are_read_from_archives_and_folders(tree: Path, tmp_path: Path) -> None:
    write_distributions(tmp_path / "dist", WHEEL, SOURCE)
    assert wheel_files(tmp_path / "dist" / "tessella-1.0-py3-none-any.whl") == WHEEL
    assert sdist_files(tmp_path / "dist" / "tessella-1.0.tar.gz") == SOURCE
    assert files_of(tree) == SOURCE
    assert sdist_problems(SOURCE, SOURCE) == ["PKG-INFO is missing"]


def test_a_large_distribution_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tessella-1.0-py3-none-any.whl"
    path.write_bytes(bytes(2_000_000))
    assert size_problems(path) == []
    monkeypatch.setitem(distributions.MAX_BYTES, ".whl", 1_000_000)
    assert size_problems(path) == ["2.0 MB are more than 1 MB"]


def test_an_old_distribution_beside_the_new_one_is_refused(tree: Path, tmp_path: Path) -> None:
    write_distributions(tmp_path / "dist", WHEEL, SOURCE | {"PKG-INFO"})
    (tmp_path / "dist" / "tessella-0.9-py3-none-any.whl").touch()
    done = check(tmp_path / "dist", tree)
    assert done.returncode == 1
    assert "has 2 files *.whl, expected one" in done.stderr


@pytest.mark.parametrize("extras", ["torch,nope", "torch nope", "torch, nope"])
def test_the_release_refuses_an_unknown_extra_among_several(extras: str) -> None:
    command = ["bash", str(ROOT / "scripts" / "release"), "--extras", *extras.split(" ")]
    environment = os.environ | dict(RELEASE_PYTHON="false")  # builds nothing if the extra is accepted
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("pyproject.toml has no extra 'nope', only torch, onnx, ")
