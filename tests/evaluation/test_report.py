"""The folder of a report contains every file that the page refers to, and shows the data that is passed to it."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.data.datasets import LabelledImages, open_labelled
from tessella.errors import TessellaError
from tessella.evaluation.metrics import Answers, Metrics, judge, metrics_of
from tessella.evaluation.report import FailedImage, ReportHeader, write_report
from tessella.plots import figures

pytest.importorskip("matplotlib")


NAMES = ("cat", "dog|<b>", "$fox$")
HEADER = ReportHeader(title="t", command="c")


def measured(count: int = 60) -> tuple[Metrics, Answers, list[FailedImage]]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), count // 3)
    logits = rng.normal(size=(count, 3)) + 1.5 * np.eye(3)[labels]
    answers = judge(logits, labels)
    return (
        metrics_of(answers, NAMES, errors={"empty": 2}),
        answers,
        [FailedImage(f"x{i}.png", "empty", "no") for i in "ab"],
    )


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    """Write 60 images of 3 classes, each in another color; one of them is damaged."""
    for i in range(60):
        path = tmp_path / "data" / "abc"[i // 20] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 300 if i % 2 else 8
        Image.new("RGB", (side, side // 2), (4 * i, 0, 0)).save(path)
    return open_labelled(tmp_path / "data")


def write(folder: Path, images: LabelledImages | None = None, **more: Any) -> Path:
    result, answers, failed = measured()
    header = ReportHeader(
        title=more.pop("title", "A model on data"),
        command="tessella evaluate 'my data' -m x",
        conditions={"engine": "eager", "data": "a|b"},
        notes=more.pop("notes", ()),
    )
    return write_report(folder, result, header, answers=answers, images=images, failed=failed, **more)


def test_the_report_has_every_file_that_it_refers_to(tmp_path: Path, images: LabelledImages) -> None:
    history = [dict(epoch=0, loss=2.0), dict(epoch=1, loss=math.nan)]
    page = write(tmp_path / "new" / "report", images, history=history, notes=["Trained for a day."])
    text = page.read_text()
    named = re.findall(r"\]\((.*?)\)", text)
    assert set(named) == {"confusion.png", "calibration.png", "coverage.png", "mistakes.png", "curves.png"}
    files = {path.name for path in page.parent.iterdir()}
    assert files == {*named, "report.md", "report.json"}
    for name in named:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")
    result, _, _ = measured()
    assert "```sh\ntessella evaluate 'my data' -m x\n```" in text
    assert f"| top-1 | {100 * result.top1:.2f} % |" in text
    assert "2 of 62 images could not be read (2 empty)" in text
    assert f"top-1 is {100 * result.top1_of_all:.2f} %" in text
    assert "| x\\*.png |" not in text
    assert "| xa.png | empty | no |" in text
    assert "Trained for a day." in text
    facts = json.loads((page.parent / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert facts["history"][1]["loss"] is None
    assert facts["metrics"]["images"] == 62
    assert facts["unread"][1] == dict(key="xb.png", code="empty", message="no")


def test_names_do_not_break_the_page(tmp_path: Path) -> None:
    text = write(tmp_path).read_text()
    assert "dog\\|&lt;b&gt;" in text
    assert "<b>" not in text
    assert "| a\\|b |" in text


def test_every_table_has_its_columns(tmp_path: Path, images: LabelledImages) -> None:
    lines = write(tmp_path / "report", images).read_text().splitlines()
    for line, below in itertools.pairwise(lines):
        if line.startswith("|") and below.startswith("|"):
            bars = [len(re.findall(r"(?<!\\)\|", item)) for item in (line, below)]
            assert bars[0] == bars[1]


def test_the_contact_sheet_shows_the_worst_that_can_be_read(
    tmp_path: Path, images: LabelledImages, drawn: list[Any]
) -> None:
    _, answers, _ = measured()
    wrong = np.flatnonzero(~answers.correct)
    worst = wrong[np.argsort(-answers.confidence[wrong])]
    assert len(worst) > 3
    Path(tmp_path / "data" / images.key(int(worst[1]))).write_bytes(b"damaged")
    Path(tmp_path / "data" / images.key(int(worst[2]))).unlink()
    page = write(tmp_path / "report", images)
    facts = json.loads((page.parent / "report.json").read_text())
    expected = [images.key(int(row)) for row in worst if row not in worst[1:3]][:20]
    assert [item["key"] for item in facts["mistakes"]] == expected
    sheet = next(figure for figure in drawn if len(figure.axes) >= 5)
    first, text = sheet.axes[0], sheet.texts[0].get_text()
    assert text.startswith(f"true: {figures.plain(NAMES[answers.label[worst[0]]])}\npredicted: ")
    assert f"{100 * answers.confidence[worst[0]]:.1f} %" in text
    pixels = first.images[0].get_array()
    assert pixels.max() == 4 * worst[0]  # the image itself
    assert max(pixels.shape) <= figures.THUMBNAIL


def test_without_mistakes_there_is_no_contact_sheet(tmp_path: Path, images: LabelledImages) -> None:
    answers = judge(10 * np.eye(3)[images.labels], images.labels)
    page = write_report(tmp_path / "report", metrics_of(answers, NAMES), HEADER, answers=answers, images=images)
    assert "mistakes" not in page.read_text()
    assert not (page.parent / "mistakes.png").exists()
    assert "All 60 images were read." in page.read_text()


def test_only_the_worst_of_many_classes_are_listed(tmp_path: Path) -> None:
    answers = judge(10 * np.eye(80)[np.arange(80)], np.where(np.arange(80) == 70, 3, np.arange(80)))
    names = [f"class{i}" for i in range(80)]
    page = write_report(tmp_path, metrics_of(answers, names), HEADER)
    classes = page.read_text().split("## Classes")[1].split("## Calibration")[0]
    assert "The 50 classes with the lowest F1" in classes
    assert "class3 " in classes
    assert "class70" not in classes  # it has no example
    assert len(re.findall(r"^\| class\d", classes, re.M)) == 50


def test_the_same_report_has_the_same_bytes(tmp_path: Path, images: LabelledImages) -> None:
    first, second = write(tmp_path / "1", images), write(tmp_path / "2", images)
    names = sorted(path.name for path in first.parent.iterdir())
    assert len(names) == 6
    for name in names:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


def test_figures_are_drawn_after_the_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr("tessella.storage.write_atomic", lambda path, data: written.append(path.name))
    write(tmp_path)
    assert written[:2] == ["report.json", "report.md"]  # the report is written before any figure is drawn
    assert written[-1] == "report.md"
    assert len(written) == 6  # the page is written again with the names of the figures
    assert not list(tmp_path.iterdir())  # nothing is written without write_bytes


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TessellaError, match="file") as caught:
        write(tmp_path / "file")
    assert caught.value.code == "output_failed"


def test_a_former_figure_that_cannot_be_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "confusion.png").mkdir()  # a folder cannot be removed like a file
    monkeypatch.setattr("tessella.evaluation.report.draw_or_warn", lambda *_: None)
    with pytest.raises(TessellaError, match=r"confusion\.png' could not be removed") as caught:
        write(tmp_path)
    assert caught.value.code == "output_failed"


def test_a_report_without_matplotlib_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = importlib.import_module

    def without(name: str, *more: Any, **rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *more, **rest)

    monkeypatch.setattr("importlib.import_module", without)
    text = write(tmp_path).read_text()
    assert "## Confusion" in text
    assert "(confusion.png)" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.json"}
    (message,) = caplog.messages
    assert "pip install matplotlib" in message


def test_a_figure_that_cannot_be_drawn_is_omitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> bytes:
        raise RuntimeError("no font")

    (tmp_path / "calibration.png").write_bytes(b"of an earlier report")
    monkeypatch.setattr("tessella.evaluation.report.calibration", fail)
    text = write(tmp_path).read_text()
    assert "confusion.png" in text
    assert "calibration.png" not in text
    assert not (tmp_path / "calibration.png").exists()
    assert caplog.messages == ["calibration.png of the report was not drawn: RuntimeError: no font"]


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    text = write(tmp_path, title="caf\udce9").read_text()
    assert text.startswith(r"# caf\xe9")
    assert json.loads((tmp_path / "report.json").read_bytes())["title"] == "caf\udce9"
