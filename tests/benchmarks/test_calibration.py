"""`scripts/bench calibration`: parts of data, outputs that are kept, coverage columns, and the detectors' rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessella.calibration.detectors import KINDS
from tessella.data.datasets import open_labelled
from tessella.evaluation.calibration_figures import Judged

from ..calibration.made import made_outputs, made_unknown
from ..evaluation.small_data import NAMES, folder_of, predictor_of
from .test_photographs import load
from .test_train_cifar10 import make_parquet

calibration = load("calibration")


def test_parts_have_every_image_once() -> None:
    parts = [calibration.places_of(f"{i}/3", 10).tolist() for i in (1, 2, 3)]
    assert parts == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert calibration.places_of("1/1", 4).tolist() == [0, 1, 2, 3]


def test_data_are_named_without_their_folder(tmp_path: Path) -> None:
    images = open_labelled(folder_of(tmp_path / "data", NAMES))
    whole, part = (calibration.data_of(images, text) for text in ("1/1", "2/2"))
    assert (whole.origin, whole.images) == ("data", 30)
    assert (part.origin, part.images) == ("data, part 2/2", 15)
    assert whole.fingerprint == images.fingerprint != part.fingerprint


def test_test_images_beside_the_training_images_are_not_used(tmp_path: Path) -> None:
    """As in shared/data. They would be the validation images of the folder."""
    make_parquet(tmp_path / "cifar10-train.parquet")
    make_parquet(tmp_path / "cifar10-test.parquet")
    images = calibration.held_out_images(tmp_path / "cifar10-train.parquet", tmp_path / "copy")
    assert 0 < len(images) < 30
    assert all("cifar10-train" in images.source(i).key for i in range(len(images)))


def test_outputs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, predictor = open_labelled(folder_of(tmp_path / "data", NAMES)), predictor_of()
    runner = calibration.Runner(tmp_path / "kept")
    first = runner.labeled(predictor, images)
    monkeypatch.setattr(calibration, "outputs_of", None)  # would fail if it were called again
    second = runner.labeled(predictor, images)
    for one, other in zip(first, second, strict=True):
        assert (one == other).all()
    assert (first.labels == images.labels).all()


def test_coverage_is_counted_by_division_or_by_class() -> None:
    rng = np.random.default_rng(0)
    labels = [np.arange(400) % 4 for _ in range(20)]
    covered = rng.random((20, 400)) < 0.9
    found = [Judged(row, row, np.ones(400, np.int64), np.zeros(400, bool)) for row in covered]
    marginal = calibration.coverage_columns(found, labels, 0.9, False, range(4))
    assert (marginal["groups"], marginal["exact_mean"]) == (20, pytest.approx(0.9, abs=0.01))
    assert marginal["exact_within_expected"] >= 18
    per_class = calibration.coverage_columns(found, labels, 0.9, True, range(4))
    assert per_class["groups"] == 80
    low = [one._replace(covered=np.zeros(400, bool), exact=np.zeros(400, bool)) for one in found]
    assert calibration.coverage_columns(low, labels, 0.9, True, range(4))["covered_not_below_expected"] == 0


def test_every_division_and_detector_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SPLITS", 3)
    rows = [*calibration.measure_splits("made", "data", made_outputs(400))]
    assert [row["kind"] for row in rows] == ["marginal", "per class"]
    assert all(row["ece_after_mean"] < row["ece_before"] and row["empty"] == 0 for row in rows)
    unknown = made_unknown(50)._replace(labels=np.arange(50))
    detectors = [*calibration.measure_detectors("made", made_outputs(400), unknown)]
    assert [row["detector"] for row in detectors] == list(KINDS)
    related = sum(label in calibration.RELATED for label in range(50))
    assert all((row["unknown"], row["related"]) == (50 - related, related) for row in detectors)
    assert all(row["auroc"] > 0.9 for row in detectors)
