"""tessella verify and replay as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tessella
from tessella.export import export

from ..test_builtin import CIFAR10_MODEL
from .test_cli import run


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export(tessella.load(CIFAR10_MODEL, engine="openvino"), tmp_path / "exported")


def test_an_export_is_verified_and_its_receipt_replayed(exported: Path, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    shown, messages = run("verify", str(exported), "--receipt", str(receipt))
    assert "verdict" in shown
    assert "failed" not in shown
    digest = json.loads(receipt.read_text())["sha256"]
    assert digest in messages
    assert "5 checks passed, none failed" in messages
    shown, messages = run("replay", str(receipt), cwd=tmp_path)
    assert "answers of the receipt" in shown
    assert digest in messages
    (exported / "model.bin").write_bytes(b"x")
    assert "model.bin" in run("replay", str(receipt), status=6)[0]
    shown, messages = run("verify", str(exported), "--receipt", str(receipt), status=4)
    assert "missing or changed" in shown
    assert "1 of 1 check failed" in messages
    receipt.write_bytes(receipt.read_bytes() + b"\n")
    assert "damaged" in run("replay", str(receipt), status=6)[1]


def test_json(exported: Path) -> None:
    values = json.loads(run("verify", str(exported), "--json")[0])
    assert values["passed"] is True
    assert values["kind"] == "export"
    assert {row["verdict"] for row in values["findings"]} == {"passed"}
    assert len(values["files"]["model.bin"][1]) == 64


def test_a_receipt_is_never_written_into_what_it_describes(exported: Path) -> None:
    before = sorted(exported.iterdir())
    _, messages = run("verify", str(exported), "--receipt", str(exported / "receipt.json"), status=2)
    assert "another folder" in messages
    assert sorted(exported.iterdir()) == before


def test_wrong_arguments(tmp_path: Path) -> None:
    assert "there is no 'nope'" in run("verify", "nope", status=3)[1]
    assert "could not be read" in run("replay", str(tmp_path / "nope.json"), status=3)[1]
    assert "cannot write" in run("verify", CIFAR10_MODEL, "--receipt", "receipt.txt", status=2)[1]
