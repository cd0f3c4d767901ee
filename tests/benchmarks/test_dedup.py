"""`scripts/bench dedup`: the made copies, the thresholds and the false joins."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .test_photographs import MODEL, ROOT, load

dedup = load("dedup")


def test_copies_are_what_their_names_say() -> None:
    ramp = np.zeros((60, 80, 3), np.uint8)
    ramp[:] = np.arange(80)[None, :, None] * 3

    def pixels_of(kind: str) -> np.ndarray:
        file = dedup.make_copy(ramp, dedup.KINDS[kind], np.random.default_rng(0))
        return np.array(Image.open(io.BytesIO(file))).astype(int)

    assert pixels_of("crop 70 %").shape == (42, 56, 3)
    assert pixels_of("crop 80 %, 1/2 size, JPEG 50").shape == (24, 32, 3)
    assert pixels_of("1/4 size").shape == (15, 20, 3)
    assert np.abs(pixels_of("flip") - ramp[:, ::-1]).max() < 10
    assert np.abs(pixels_of("JPEG 75") - ramp).max() < 30
    sizes = [len(dedup.make_copy(ramp, dedup.KINDS[f"JPEG {q}"], np.random.default_rng(0))) for q in (75, 50, 30)]
    assert sizes == sorted(sizes, reverse=True)


def test_thresholds_and_false_joins() -> None:
    cosines = np.array([0.999, 0.98, 0.97, 0.951, 0.5], np.float32)
    assert dedup.threshold_for(cosines, 0.8) == 0.95
    assert dedup.threshold_for(cosines, 0.6) == 0.97
    angles = np.radians([0, 10, 20, 90, 200])
    pairs = dedup.Pairs.of(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32))
    assert pairs.count == 5
    assert {*map(tuple, np.stack([pairs.first[:2], pairs.second[:2]], 1).tolist())} == {(0, 1), (1, 2)}
    assert pairs.joined(0.98) == (2, 3)  # three pictures in one cluster
    assert pairs.joined(0.3) == (4, 4)  # and the one at 90 degrees, which is near the one at 20
    assert dedup.lowest_without(pairs) == 0.99
    assert pairs.joined(dedup.lowest_without(pairs)) == (0, 0)


def test_the_table_of_a_few_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"{ROOT}/examples --others {ROOT}/clothing --part hat/06 --models {MODEL} --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["dedup.py", *arguments.split()])
    dedup.main()
    (path,) = tmp_path.glob("dedup_*.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == len(dedup.THRESHOLDS) * (len(dedup.KINDS) + 2)
    recall = {(row["of"], float(row["threshold"])): float(row["recall"]) for row in rows if row["recall"]}
    assert recall["JPEG 75", 0.7] == 1
    assert all(recall[kind, 0.7] >= recall[kind, 0.95] >= recall[kind, 0.995] for kind in dedup.KINDS)
    false = {float(row["threshold"]): int(row["false_pairs"]) for row in rows if row["of"] == "different clothing"}
    assert false[0.7] >= false[0.9] >= false[0.99]
    out = capsys.readouterr().out
    assert f"\n{MODEL}\n" in out
    assert "the most similar of clothing:" in out
