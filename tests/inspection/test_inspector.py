"""`inspect` from end to end: planted problems are found, nothing is changed, and a killed call continues."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.data.all_splits import open_all_splits
from tessella.errors import OutputError, UsageError
from tessella.inspection import inspector
from tessella.inspection.clean_list import write_clean_list
from tessella.inspection.findings import COLUMNS, Finding
from tessella.inspection.inspector import inspect
from tessella.inspection.outcome import Inspection
from tessella.inspection.page import write_page
from tessella.inspection.settings import InspectionSettings
from tessella.predictor import Predictor
from tessella.text import unescape

from .made import cropped, garment, recompressed, save, scene


def pairs(result: Inspection, kind: str) -> set[tuple[str, str]]:
    return {(finding.key, finding.related) for finding in result.findings if finding.kind == kind}


def test_planted_problems_are_found(data: Path, predictor: Predictor) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    result = inspect(data, predictor, InspectionSettings(min_images=5))
    assert [(f.key, f.reason.split(":")[0]) for f in result.findings if f.kind == "unreadable"] == [
        ("train/cat/0.png", "corrupt_image")
    ]
    assert pairs(result, "exact_duplicate") == {
        ("train/cat/2.png", "train/cat/1.png"),
        ("train/dog/3.png", "train/cat/3.png"),
    }
    assert pairs(result, "exact_leak") == {("train/cat/5.png", "test/cat/0.png")}
    assert pairs(result, "near_duplicate") == {("train/dog/4.png", "train/dog/5.png")}
    assert pairs(result, "near_leak") == {("train/dog/6.png", "test/dog/1.png")}
    assert pairs(result, "conflicting_labels") == {("train/dog/3.png", "train/cat/3.png")}
    small = [f for f in result.findings if f.kind == "small_class"]
    assert [(f.split, f.label, f.score) for f in small] == [("test", "cat", 4), ("test", "dog", 4)]
    (leak,) = (f for f in result.findings if f.kind == "near_leak")
    assert "mirrored" in leak.reason
    assert leak.suggestion == "remove it from train"
    (conflict,) = (f for f in result.findings if f.kind == "conflicting_labels")
    assert "the labels differ: dog and cat" in conflict.reason
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before


def test_of_equal_files_one_stays_whatever_their_names(predictor: Predictor, tmp_path: Path) -> None:
    names = ("IMG_20240101_a", "x1", "x2", "x3", "x4")
    for i in range(6):
        save(scene(i), tmp_path / "data" / "dog" / f"{i}.png")
    for name in names:
        save(scene(20), tmp_path / "data" / "cat" / f"{name}.png")
    result = inspect(tmp_path / "data", predictor, InspectionSettings(min_images=1))
    assert pairs(result, "exact_duplicate") == {(f"cat/{name}.png", "cat/x1.png") for name in names if name != "x1"}
    assert write_clean_list(tmp_path / "clean.csv", result.images, result.findings) == 7


def test_the_files_of_an_inspection(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = inspect(data, predictor, out=out)
    with (out / "findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["key"], row["kind"]) for row in rows] == [(f.key, f.kind) for f in result.findings]
    assert all(float(row["score"]) == f.score for row, f in zip(rows, result.findings, strict=True))
    summary = json.loads((out / "inspection.json").read_text())
    assert summary["images"] == 36
    assert summary["readable"] == 35
    assert summary["splits"] == {"train": 28, "test": 8}
    assert summary["findings"] == result.counts
    assert summary["model"] == predictor.name
    page = (out / "report" / "index.html").read_text()
    assert page.count("data:image/jpeg") >= 10
    assert "Nearly the same picture in two splits" in page


def test_two_inspections_never_write_to_one_folder(
    data: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is held until the report is written, and is free afterwards."""
    codes = []

    def write_and_try(*arguments: Any, **options: Any) -> None:
        with pytest.raises(UsageError, match="another process is writing") as caught:
            inspect(data, predictor, out=tmp_path)
        codes.append(caught.value.code)
        write_page(*arguments, **options)

    monkeypatch.setattr(inspector, "write_page", write_and_try)
    inspect(data, predictor, out=tmp_path)
    assert codes == ["busy"]
    monkeypatch.undo()
    inspect(data, predictor, out=tmp_path)


def test_a_file_in_place_of_the_folder_of_measurements(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "parts").touch()
    with pytest.raises(OutputError) as caught:
        inspect(data, predictor, out=tmp_path)
    assert caught.value.code == "output_failed"


def test_the_folder_inside_the_data_is_no_class(data: Path, predictor: Predictor) -> None:
    first = inspect(data / "train", predictor, out=data / "train" / "inspection")
    again = open_all_splits([data / "train"])
    assert len(again) == len(first.images)
    assert again.images.classes == ("cat", "dog")
    assert again.empty == ()


def test_identical_images(predictor: Predictor, tmp_path: Path) -> None:
    for i in range(12):
        save(scene(1), tmp_path / "ab"[i % 2] / f"{i}.png")
    result = inspect(tmp_path, predictor)
    assert len(pairs(result, "exact_duplicate")) == 11
    assert result.label_errors is None
    assert any("label errors were not examined" in note for note in result.notes)


def test_many_copies_of_an_image_do_not_hide_a_near_copy(predictor: Predictor, tmp_path: Path) -> None:
    for i in range(12):  # an image has 11 exact copies, more than the neighbors that are searched
        save(scene(1), tmp_path / "data" / "a" / f"{i}.png")
        save(recompressed(scene(1)), tmp_path / "data" / "b" / f"{i}.png")
    result = inspect(tmp_path / "data", predictor, InspectionSettings(min_images=0))
    assert len(pairs(result, "exact_duplicate")) == 22
    assert ("a/0.png", "b/0.png") in pairs(result, "near_duplicate")
    assert write_clean_list(tmp_path / "clean.csv", result.images, result.findings) == 1


def test_one_class_of_one_color(predictor: Predictor, tmp_path: Path) -> None:
    for i in range(6):
        save(Image.new("RGB", (40, 40), (10 * i, 0, 0)), tmp_path / "only" / f"{i}.png")
    (tmp_path / "none").mkdir()
    result = inspect(tmp_path, predictor)
    assert result.counts["uniform"] == 6
    assert "near_duplicate" not in result.counts
    assert [f.label for f in result.findings if f.kind == "small_class"] == ["none", "only"]


def test_images_without_labels(predictor: Predictor, tmp_path: Path) -> None:
    for i in range(6):
        save(scene(i), tmp_path / f"{i}.png")
    save(recompressed(scene(2)), tmp_path / "copy.jpg", quality=70)
    result = inspect(tmp_path, predictor, out=tmp_path / "out")
    assert set(result.counts) <= {"near_duplicate", "similar"}
    assert {Path(name).name for pair in pairs(result, "near_duplicate") for name in pair} == {"2.png", "copy.jpg"}
    assert "the images have no labels: label errors and classes were not examined" in result.notes


def test_different_garments_stay_in_the_list(predictor: Predictor, tmp_path: Path) -> None:
    for i in range(6):
        save(garment(i), tmp_path / "data" / "ab"[i % 2] / f"{i}.png")
    save(cropped(garment(3), 0.9), tmp_path / "data" / "b" / "crop.png")
    result = inspect(tmp_path / "data", predictor, InspectionSettings(min_images=0))
    assert {name for pair in pairs(result, "near_duplicate") for name in pair} == {"b/3.png", "b/crop.png"}
    assert write_clean_list(tmp_path / "clean.csv", result.images, result.findings) == 6


def test_the_threshold_of_near_copies_is_explained_unless_it_is_given(predictor: Predictor, tmp_path: Path) -> None:
    for i in range(6):
        save(scene(i), tmp_path / f"{i}.png")
    (choice,) = inspect(tmp_path, predictor, InspectionSettings(unlabeled=True)).choices
    assert choice.startswith(f"near: {InspectionSettings().near}, because ")
    assert inspect(tmp_path, predictor, InspectionSettings(unlabeled=True, near=0.9)).choices == ()


def test_no_readable_image(predictor: Predictor, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(b"nothing")
    with pytest.raises(UsageError) as error:
        inspect(tmp_path, predictor)
    assert error.value.code == "not_found"
    assert "none of 2 images could be read" in error.value.message


HOSTILE = ["<script>alert(1)</script>", "a,b\"c'", "=1+1", " edge ", "ä\u202eb", os.fsdecode(b"\xff\xfe"), "new\nline"]


def test_hostile_names(predictor: Predictor, tmp_path: Path) -> None:
    for i, name in enumerate(HOSTILE):
        for number in range(2):
            save(scene(i), tmp_path / "data" / ("x", "<b>y</b>")[i % 2] / f"{name}{number}.png")
    result = inspect(tmp_path / "data", predictor, out=tmp_path / "out")
    assert len(pairs(result, "exact_duplicate")) == len(HOSTILE)
    with (tmp_path / "out" / "findings.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [unescape(row["key"]) for row in rows] == [finding.key for finding in result.findings]
    page = (tmp_path / "out" / "report" / "index.html").read_bytes().decode()
    assert "<script" not in page
    assert "<b>y" not in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page


def test_label_errors_are_findings_with_a_suggestion(data: Path, predictor: Predictor) -> None:
    result = inspect(data, predictor, InspectionSettings(label_margin=0.0))
    assert result.label_errors is not None
    errors = result.label_errors
    for finding in result.findings:
        if finding.kind == "label_error":
            assert errors.confident[finding.index]
            assert finding.score == pytest.approx(float(errors.margin[finding.index]), abs=1e-3)
            other = {"cat": "dog", "dog": "cat"}[finding.label]
            assert finding.suggestion == f"label it as {other}, or remove it"
    scores = [f.score for f in result.findings if f.kind == "label_error"]
    assert scores == sorted(scores, reverse=True)


def test_the_result_is_the_same_again(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    first = inspect(data, predictor, out=tmp_path / "one")
    second = inspect(data, predictor, out=tmp_path / "one")
    third = inspect(data, predictor, out=tmp_path / "two")
    assert first.findings == second.findings == third.findings
    for name in ("findings.csv", "inspection.json", "report/index.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


STOPPING = """
import sys, time
from tessella.inspection import inspect, measuring

def write_and_wait(out, number, facts, result):
    write(out, number, facts, result)
    if number + 1 == int(sys.argv[3]):
        time.sleep(600)  # until it is killed

measuring.PART_IMAGES = 4
write, measuring._write_part = measuring._write_part, write_and_wait
inspect(sys.argv[1], "convmixer_256_8_ks3_p4.cifar10", out=sys.argv[2])
"""


@pytest.mark.parametrize("parts", [1, 4])
def test_a_killed_inspection_continues_with_the_same_report(parts: int, data: Path, tmp_path: Path) -> None:
    def start(out: Path, stop_after: int = 0) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", STOPPING, str(data), str(out), str(stop_after)])

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0
    killed = start(tmp_path / "killed", parts)
    written = tmp_path / "killed" / "parts"
    while killed.poll() is None and len([*written.glob("part-*.npz")] if written.exists() else []) < parts:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "inspection.json").exists()
    times = {path.name: path.stat().st_mtime_ns for path in written.glob("part-*.npz")}
    assert start(tmp_path / "killed").wait() == 0
    assert all((written / name).stat().st_mtime_ns == before for name, before in times.items())
    for name in ("findings.csv", "inspection.json", "report/index.html"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [dict(near=0), dict(near=1.5), dict(folds=1), dict(label_margin=-0.1), dict(min_images=-1), dict(odd=float("nan"))],
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError) as error:
        InspectionSettings(**settings)  # type: ignore[arg-type]
    assert error.value.code == "bad_argument"


def test_findings_are_in_the_order_of_their_kinds(data: Path, predictor: Predictor) -> None:
    result = inspect(data, predictor)
    kinds = list(dict.fromkeys(finding.kind for finding in result.findings))
    assert kinds == list(result.counts)
    assert all(isinstance(finding, Finding) and np.isfinite(finding.score) for finding in result.findings)


def test_the_summary_of_an_earlier_inspection_does_not_mark_an_incomplete_one(
    data: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(data, predictor, out=tmp_path)
    assert (tmp_path / inspector.SUMMARY).exists()

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspector, "write_page", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inspect(data, predictor, InspectionSettings(min_images=5), out=tmp_path)
    assert not (tmp_path / inspector.SUMMARY).exists()
