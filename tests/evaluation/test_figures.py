"""Figures of a report show the data that is passed to them."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.evaluation import figures as report_figures
from tessella.evaluation.metrics import coverage, judge

from .test_report import measured

pytest.importorskip("matplotlib")


def counts_of(size: int) -> np.ndarray:
    """Return mostly correct counts; the most frequent mistake is class 1 predicted as class 0."""
    counts = np.diag(np.full(size, 40))
    rng = np.random.default_rng(0)
    np.add.at(counts, (rng.integers(0, size, 5 * size), rng.integers(0, size, 5 * size)), 1)
    counts[1, 0] += 30
    return counts


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_a_small_confusion_matrix_has_names_and_counts(drawn: list[Any]) -> None:
    counts = counts_of(10)
    png = report_figures.confusion(counts, [f"class {i}" for i in range(10)])
    assert max(size_of(png)) < 1200
    (figure,) = drawn
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [f"class {i}" for i in range(10)]
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    assert texts[(0, 1)] == str(counts[1, 0])  # columns are predicted classes, rows true ones
    assert len(texts) == (counts > 0).sum()


def test_a_large_confusion_matrix_lists_its_worst_pairs(drawn: list[Any]) -> None:
    png = report_figures.confusion(counts_of(1000), [f"class {i}" for i in range(1000)])
    assert max(size_of(png)) < 2400
    (figure,) = drawn
    panel, bars = figure.axes[:2]
    shown = np.asarray(panel.images[0].get_array())
    assert shown.shape == (250, 250)
    np.testing.assert_allclose(shown.sum(1), 100)  # per cent of each row
    labels = [label.get_text() for label in bars.get_yticklabels()]
    assert labels[0] == "class 1 → class 0"
    assert len(labels) == report_figures.PAIRS
    assert bars.patches[0].get_width() == counts_of(1000)[1, 0]


def test_a_confusion_matrix_only_shows_classes_that_occur(drawn: list[Any]) -> None:
    counts = np.zeros((500, 500), np.int64)
    counts[[3, 3, 400], [3, 400, 400]] = 5, 2, 7
    report_figures.confusion(counts, [f"class {i}" for i in range(500)])
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert names == ["class 3", "class 400"]
    counts = np.diag(np.arange(500) >= 440).astype(np.int64)
    report_figures.confusion(counts, [f"class {i}" for i in range(500)])
    panel = drawn[1].axes[0]
    labels = (panel.get_ylabel(), panel.get_xlabel())
    assert labels == tuple(f"{kind} class (index among the 60 that occur)" for kind in ("true", "predicted"))


@pytest.mark.parametrize("size", [1, 2, 30, 31, 260])
def test_confusion_matrices_of_any_size_can_be_drawn(size: int) -> None:
    counts = np.diag(np.full(size, 3))
    assert report_figures.confusion(counts, [f"c{i}" for i in range(size)]).startswith(b"\x89PNG")


def test_class_names_are_drawn_literally(drawn: list[Any]) -> None:
    names = ["$a_b^$ and $", "你好", "two\nlines", "<b>|", "x" * 100]
    report_figures.confusion(np.eye(5, dtype=np.int64), names)
    shown = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert shown[2] == "two lines"
    assert len(shown[4]) == 28
    assert report_figures.confusion(np.eye(5, dtype=np.int64), names) == report_figures.confusion(
        np.eye(5, dtype=np.int64), names
    )


def test_the_reliability_diagram_shows_filled_bins(drawn: list[Any]) -> None:
    result, _, _ = measured()
    report_figures.calibration(result.bins, result.ece)
    panel, below = drawn[0].axes
    filled = [item for item in result.bins if item.images]
    assert 1 < len(filled) < len(result.bins)
    assert [bar.get_height() for bar in panel.patches] == [item.accuracy for item in filled]
    assert [bar.get_height() for bar in below.patches] == [item.images for item in filled]
    assert f"{100 * result.ece:.2f} %" in panel.get_title()


def test_the_coverage_curve_marks_thresholds(drawn: list[Any]) -> None:
    logits = np.log([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])
    curve = coverage(judge(logits, np.array([0, 1, 0])))
    report_figures.coverage_curve(curve, (0.65, 0.99))
    (panel,) = drawn[0].axes
    line, mark = panel.lines  # no image has a confidence of 0.99 or more
    np.testing.assert_allclose(line.get_xdata(), [100 / 3, 200 / 3, 100])
    np.testing.assert_allclose(line.get_ydata(), [100, 100, 200 / 3])
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (pytest.approx(200 / 3), 100)


def test_figures_of_the_calling_program_are_not_changed() -> None:
    code = (
        "import sys, numpy; from tessella.evaluation import figures\n"
        "figures.confusion(numpy.eye(3, dtype=int), ['a', 'b', 'c'])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
