"""Results as CSV, JSON, Markdown, a figure and a folder of reports."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.errors import UsageError
from tessella.evaluation import results
from tessella.evaluation.evaluator import Evaluation, Trust
from tessella.evaluation.leakage import open_data
from tessella.evaluation.report import FailedImage
from tessella.plots import figures

from .small_data import run


def test_csv_json_and_markdown_agree(folder: Path, saved: str) -> None:
    (folder / "ant" / "1.png").write_bytes(b"")
    rows = [*run(folder, [saved]), Evaluation(model="m", status="no_weights", note="none, | at all", engine="auto")]
    (good, bad) = csv.DictReader(io.StringIO(results.csv_bytes(rows).decode()))
    assert tuple(good) == results.COLUMNS == tuple(results.as_dict(rows[0]))
    result = rows[0].metrics
    assert result
    assert float(good["top1"]) == result.top1
    assert (good["images"], good["measured"], good["unread"]) == ("30", "29", "1")
    assert good["top5"] == ""
    assert "engine: eager" in good["conditions"]
    assert (bad["status"], bad["top1"], bad["note"]) == ("no_weights", "", "none, | at all")
    assert json.loads(json.dumps(results.as_dict(rows[0]), allow_nan=False))["macro_f1"] == result.f1
    text = results.markdown(rows)
    assert f"| {100 * result.top1:.2f} |" in text
    assert "29 of 30" in text
    assert [line for line in text.splitlines() if "no_weights" in line or "at all" in line] == [
        "| m | auto |  | no_weights |  |  |  |  |  |  |  |  |",
        "- m: none, \\| at all",
    ]
    assert "1 of 30 images could not be read" in text


def test_published_accuracy_is_shown_next_to_the_measured() -> None:
    rows = [fake_row("a.x", 0.8, 100.0), fake_row("b.x", 0.7, 50.0)]
    assert results.cells(rows[0])[6] == "80.16 / 95.07"
    assert results.as_dict(rows[0])["published_top1"] == 0.80158
    assert "Published: top-1 / top-5 on imagenet" in results.markdown(rows)


@pytest.mark.parametrize(
    ("coverage", "unknown", "expected"),
    [
        (0.85, 0.10, None),
        (0.84, 0.11, "the coverage is lower and more images are called unknown than chance explains"),
        (0.84, 0.10, "the coverage is lower than chance explains"),
        (None, 0.11, "more images are called unknown than chance explains"),
    ],
)
def test_a_broken_promise_of_a_calibration_is_explained(
    coverage: float | None, unknown: float, expected: str | None
) -> None:
    trust = Trust(coverage, 0.9, 1.5, unknown, least_coverage=0.85, false_alarms=0.05, most_unknown=0.1)
    text = " ".join(results.remarks([dataclasses.replace(fake_row("a.x", 0.8, 100.0), trust=trust)]))
    assert "called unknown (promised at most 5 %)" in text
    assert ("unlike those of the calibration" in text) == (expected is not None)
    assert expected is None or expected in text
    same = dataclasses.replace(trust, same_images=True)
    text = " ".join(results.remarks([dataclasses.replace(fake_row("a.x", 0.8, 100.0), trust=same)]))
    assert "the calibration was made from these images" in text
    assert "unlike those of the calibration" not in text


def test_few_unreadable_images_are_listed() -> None:
    failed = tuple(FailedImage(f"{i}.png", "empty", "it has no bytes") for i in range(results.LISTED + 2))
    lines = list(results.remarks([dataclasses.replace(fake_row("a.x", 0.8, 100.0), failed=failed)]))
    assert f"{results.LISTED - 1}.png: empty: it has no bytes" in lines
    assert f"{results.LISTED}.png: empty: it has no bytes" not in lines
    assert "and 2 more, which the report lists (--out FOLDER)" in lines  # it may not have been written


def fake_row(name: str, top1: float, rate: float) -> Evaluation:
    from tessella.evaluation.metrics import metrics
    from tessella.weights.catalogue import Accuracy

    right = np.arange(10) < 10 * top1
    result = metrics(np.eye(2)[right.astype(int)], np.ones(10, int), ("a", "b"))
    conditions = dict.fromkeys(("transform", "decode policy", "device", "threads", "hardware", "data"), "x")
    return Evaluation(model=name, metrics=result, dataset="imagenet", published=Accuracy(80.158, 95.07, 224),
                      engine="eager", precision="float32", seconds=10 / rate, conditions=conditions)  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_plot_has_a_point_per_model(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    kept: list[Any] = []
    original = figures.render

    def keep(figure: Any, suffix: str) -> bytes:
        kept.append(figure)
        return original(figure, suffix)

    monkeypatch.setattr(results, "render", keep)
    data = results.draw([fake_row("a.x", 0.8, 100.0), fake_row("b.x", 0.7, 50.0), Evaluation(model="failed")], suffix)
    assert data.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in data
    panel = kept[0].axes[0]
    assert [text.get_text() for text in panel.texts] == ["a", "b"]
    measured = next(points for points in panel.collections if len(points.get_offsets()) == 2)
    np.testing.assert_allclose(measured.get_offsets(), [[100, 80], [50, 70]])
    with pytest.raises(UsageError, match="nothing to draw"):
        results.draw([Evaluation(model="failed")])


def test_the_folder_has_a_table_and_a_report_per_model(tmp_path: Path, folder: Path, saved: str) -> None:
    pytest.importorskip("matplotlib")
    images = open_data(folder)
    rows = run(images, [saved], engine=["eager", "rewritten"])
    page = results.write_results(tmp_path / "out", rows, command="tessella evaluate data", images=images)
    text = page.read_text()
    reports = sorted(path.relative_to(page.parent).as_posix() for path in page.parent.glob("*/report.md"))
    assert len(reports) == 2
    assert all(f"]({name})" in text for name in reports)
    assert "tessella evaluate data" in text
    assert {path.name for path in page.parent.iterdir() if path.is_file()} == {
        "evaluation.md", "evaluation.csv", "evaluation.json", "evaluation.png",
    }  # fmt: skip
    assert (page.parent / reports[0]).with_name("mistakes.png").exists()
    assert [row["engine"] for row in json.loads((page.parent / "evaluation.json").read_text())["rows"]] == [
        "eager", "rewritten",
    ]  # fmt: skip
    page = results.write_results(tmp_path / "single", rows[:1], command="tessella evaluate data", images=images)
    assert "](report.md)" in page.read_text()
    assert "fingerprint" in (page.parent / "report.md").read_text()
