"""`scripts/bench explain`: the controls, the figures of a method, and the table of a small run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tessella.errors import ImageError
from tessella.explain.faithfulness import Curve, Faithfulness, Score, ScoreSettings
from tessella.explain.subject import PreparedImage

from .test_photographs import ROOT, load

explain = load("explain")
MODEL = "crossvit_ti_dagger_p4_32.cifar10"


def scores(value: float, better: bool, lost: float = 2.0) -> Faithfulness:
    """Return scores whose figures all have this value; random maps have 0, and the blurred image loses `lost`."""
    score = Score(value, -1.0, 1.0, 0.0, better)
    points = np.array([lost, 0], np.float32)
    curve = Curve(np.array([0, 1], np.float32), points, points, points, points)
    return Faithfulness(score, score, score, curve, curve, better, "", (8, 8), 1.0)


def prepared(seed: int) -> PreparedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return PreparedImage(str(seed), pixels, torch.zeros(1, 3, 4, 4))


def test_the_center_is_highest_in_the_middle() -> None:
    values = explain.control("center", prepared(0), (5, 7), 0).values
    assert values.shape == (5, 7)
    assert values.argmax() == 2 * 7 + 3
    assert values[0, 0] == values[4, 6] == values.min()


def test_random_controls_depend_on_the_image_and_the_seed() -> None:
    first, again, other, seed = (
        explain.control("random", prepared(image), (6, 6), seed).values
        for image, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, seed)


def test_figures_are_means_over_images() -> None:
    row = explain.summarize([scores(0.5, True), scores(0.1, False), scores(0.0, False, 4.0)])
    assert row["faithful"] == row["insertion_better"] == pytest.approx(1 / 3, abs=1e-4)
    assert row["correlation"] == pytest.approx(0.2)
    assert (row["random_low"], row["random_high"]) == (-1, 1)
    assert row["insertion_gain"] == pytest.approx(0.6 / 8)  # both are summed before they are divided
    assert row["deletion_gain"] == pytest.approx(-0.6 / 8)  # a higher score while cells are deleted is worse


def test_the_best_method_is_first_and_controls_are_last() -> None:
    shares = dict(deletion_better=0.5, insertion_better=0.5)
    rows = [
        dict(method="center", faithful=0.9, correlation_better=1.0, **shares),
        dict(method="b", faithful=0.5, correlation_better=0.5, **shares),
        dict(method="a", faithful=0.5, correlation_better=0.9, **shares),
        dict(method="c", faithful=0.6, correlation_better=0.1, **shares),
    ]
    assert [row["method"] for row in sorted(rows, key=explain.order)] == ["c", "a", "b", "center"]


def test_the_table_of_a_small_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--cifar", str(ROOT / "examples"), "--images", "2", "--methods", "grad-cam", "--out", str(tmp_path)]
    arguments += ["--removal", "mean"]
    other = "convmixer_384_8_ks5_p8.photographs"
    monkeypatch.setattr(sys, "argv", ["explain", "--models", MODEL, other, *arguments])
    explain.main()
    (path,) = tmp_path.glob("explain_*.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    names = [row["method"] for row in rows]
    assert set(names) >= {"grad-cam", "random", "center"}
    assert set(names[-2:]) == {"random", "center"}
    assert {row["model"] for row in rows} == {MODEL}
    assert {(row["images"], row["cells"], row["random_maps"], row["removal"]) for row in rows} == {
        ("2", "8 x 8", "39", "mean")
    }
    grad_cam = rows[names.index("grad-cam")]
    assert float(grad_cam["map_ms"]) > 0
    assert float(grad_cam["score_ms"]) > 0
    assert rows[names.index("random")]["map_ms"] == ""
    output = capsys.readouterr()
    assert f"{other}: no images" in output.err
    table = output.out[output.out.index("| model |") :].strip().splitlines()
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


def test_an_image_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(ImageError):
        explain.measure_model(MODEL, explain.draw_sources(tmp_path, 1, 0), ["grad-cam"], ScoreSettings(), 0)


def test_images_are_drawn_at_random_in_order(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    drawn = [int(Path(source.key).stem) for source in explain.draw_sources(tmp_path, 5, 0)]
    assert len(drawn) == 5
    assert drawn == sorted(drawn)
    assert drawn != [0, 1, 2, 3, 4]
    assert len(explain.draw_sources(tmp_path, 20, 0)) == 9
