"""`scripts/bench inspect`: changed labels, planted copies, and the audit of pairs, on a few pictures."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from ..inspection.made import cropped, recompressed, save, scene
from .test_photographs import MODEL, load

inspection = load("inspection")


def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> list[dict[str, str]]:
    """Return the rows that the benchmark writes."""
    out = tmp_path / "results"
    out.mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "argv", ["inspection.py", *arguments, "--model", MODEL, "--out", str(out)])
    inspection.main()
    (path,) = out.glob("*.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(40):
        save(scene(i, 64), tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png")
    return tmp_path / "pictures"


def test_labels_are_changed_to_other_classes() -> None:
    labels = np.arange(1000) % 7
    given, changed = inspection.flip_labels(labels, 7, 0.05, np.random.default_rng(0))
    assert changed.sum() == 50
    assert ((given != labels) == changed).all()
    assert set(given[changed].tolist()) == set(range(7))


def test_labels(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measure(monkeypatch, tmp_path, "labels", str(pictures), "--seeds", "2", "--fraction", "0.1")
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert all(row["changed"] == "4" for row in rows)
    for row in rows:
        assert 0 <= float(row["precision"]) <= 1
        if row["cut"] == "first 2.0 x changed":
            assert row["found"] == "8"
            assert float(row["precision"]) == pytest.approx(float(row["recall"]) / 2)


def test_copies(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measure(monkeypatch, tmp_path, "copies", str(pictures), "--each", "2")
    recall = {row["kind"]: float(row["recall"]) for row in rows if row["near"] == "0.4"}
    assert recall["JPEG 75"] == 1
    assert recall["1/2 size"] == 1
    assert {row["other_pairs"] for row in rows if row["near"] == "0.8"} == {"0"}


def test_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        save(scene(i, 32), tmp_path / "data" / "train" / "a" / f"{i}.png")
        other = {3: recompressed(scene(5, 32), 80), 4: cropped(scene(6, 32), 0.9)}.get(i, scene(100 + i, 32))
        save(other, tmp_path / "data" / "test" / "a" / f"{i}.png")
    known = tmp_path / "known.csv"
    known.write_text("TestID,TrainID,Judgment\n3,5,1\n4,6,1\n0,0,2\n")
    sample = tmp_path / "sample"
    rows = measure(
        monkeypatch, tmp_path, "audit", str(tmp_path / "data"), "--known", str(known), "--sample", str(sample)
    )
    (row,) = (row for row in rows if row["near"] == "0.5")
    assert (row["tests"], row["recall_pairs_1"], row["recall_pairs_2"]) == ("12", "1.0", "0.0")
    with (sample / "sample.csv").open(newline="") as file:
        listed = [(line["index_test"], line["index_train"], line["judgment"]) for line in csv.DictReader(file)]
    assert ("3", "5", "") in listed
    assert [*sample.glob("band-*.png")]
