"""JSON files that contain their own hash, and tables of files with size and hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tessella.storage import damaged_files, json_hash, read_sealed, sealed_bytes

VALUES: dict[str, Any] = dict(rows=3, name="bücher", nested=dict(b=1.5, a=None))


def test_a_sealed_file_gives_back_its_values(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(sealed_bytes(VALUES, "check"))
    assert read_sealed(path, "check") == VALUES
    assert json.loads(path.read_text())["check"] == json_hash(VALUES)


def test_the_hash_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    values = json.loads(sealed_bytes(VALUES, "check"))
    path.write_text(json.dumps(dict(reversed(values.items()))))
    assert read_sealed(path, "check") == VALUES


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"null", b"{" * 100_000, b"\xff", sealed_bytes(VALUES, "other")])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(data)
    assert read_sealed(path, "check") is None


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert read_sealed(path, "check") is None
    path.write_bytes(sealed_bytes(VALUES, "check").replace(b"3", b"4", 1))
    assert read_sealed(path, "check") is None


def test_damaged_files_are_named_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    files: dict[str, list[int | str]] = {}
    for name in ("intact", "sub/changed", "sub/longer", "missing", "folder"):
        (tmp_path / name).write_bytes(name.encode())
        files[name] = [len(name), hashlib.sha256(name.encode()).hexdigest()]
    assert list(damaged_files(tmp_path, files)) == []
    (tmp_path / "sub/changed").write_bytes(b"sub/Changed")
    (tmp_path / "sub/longer").write_bytes(b"sub/longer.")
    (tmp_path / "missing").unlink()
    (tmp_path / "folder").unlink()
    (tmp_path / "folder").mkdir()
    assert list(damaged_files(tmp_path, files)) == ["sub/changed", "sub/longer", "missing", "folder"]
