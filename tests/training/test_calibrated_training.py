"""`train` calibrates the model on the validation images, and says so; a killed run ends with the same calibration."""

from __future__ import annotations

from pathlib import Path

import pytest

import tessella
from tessella.calibration.finding import beside
from tessella.errors import OutputError

from .small_runs import make_images, remarks_of, run, small


def test_a_trained_model_is_calibrated(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", 96)
    events = run(data, tmp_path / "run", small(epochs=1))
    predictor = tessella.load(f"local-dir:{tmp_path / 'run'}")  # with another engine than training used
    assert predictor.calibration is not None
    assert predictor.calibration.data.images == 48
    sentence = "calibrated on 48 validation images, which also chose the epoch: calibration error"
    assert sentence in remarks_of(events)
    assert sentence[1:] in (tmp_path / "run" / "README.md").read_text()
    assert sentence in (tmp_path / "run" / "report" / "report.md").read_text()
    again = run(data, tmp_path / "again", small(epochs=1))
    assert remarks_of(again) == remarks_of(events)
    other = tessella.load(f"local-dir:{tmp_path / 'again'}").calibration
    assert other is not None
    assert other.temperature == predictor.calibration.temperature
    assert (other.sets.scores == predictor.calibration.sets.scores).all()


def test_few_images_are_a_reason_not_to_calibrate(tmp_path: Path) -> None:
    events = run(make_images(tmp_path / "data"), tmp_path / "run", small(epochs=1))
    assert "not calibrated: there are 24 validation images, and at least 40 are needed" in remarks_of(events)
    assert not beside(tmp_path / "run").exists()
    assert tessella.load(f"local-dir:{tmp_path / 'run'}").calibration is None


def test_the_config_can_leave_it_out(tmp_path: Path) -> None:
    events = run(make_images(tmp_path / "data", 96), tmp_path / "run", small(epochs=1, calibrate=False))
    assert "not calibrated, because calibrate is false in the config" in remarks_of(events)
    assert not beside(tmp_path / "run").exists()


def test_a_former_calibration_that_cannot_be_removed_is_reported(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    beside(tmp_path / "run").mkdir()  # a folder cannot be removed like a file
    with pytest.raises(OutputError, match="could not be removed") as caught:
        run(make_images(tmp_path / "data"), tmp_path / "run", small(epochs=1))
    assert caught.value.code == "output_failed"
