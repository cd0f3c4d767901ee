"""`train` calibrates the model on the validation images, and says so; a killed run ends with the same calibration."""

from __future__ import annotations

from pathlib import Path

import pytest

import tessella
from tessella.calibration.finding import beside
from tessella.calibration.fitting import CalibrationSettings
from tessella.errors import OutputError
from tessella.evaluation.calibrator import calibrate as calibrate_model

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


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("calibrate", [True, False])
def test_the_own_calibration_of_a_finished_run_is_kept(tmp_path: Path, calibrate: bool) -> None:
    data, out, config = make_images(tmp_path / "data", 96), tmp_path / "run", small(epochs=1, calibrate=calibrate)
    run(data, out, config)
    other, options = make_images(tmp_path / "other", 100, seed=1), dict(transform="fast")
    calibrate_model(other / "train", f"local-dir:{out}", load_options=options, out=beside(out))
    before = beside(out).read_bytes()
    assert "the calibration of these weights with 100 images is kept" in remarks_of(run(data, out, config))
    assert beside(out).read_bytes() == before
    assert "The calibration of these weights with 100 images is kept" in (out / "README.md").read_text()


@pytest.mark.usefixtures("without_report")
def test_a_calibration_of_other_weights_or_of_the_validation_images_is_made_again(tmp_path: Path) -> None:
    data, out, config = make_images(tmp_path / "data", 96), tmp_path / "run", small(epochs=1)
    run(data, out, config)
    first = beside(out).read_bytes()
    calibrate_model(data, f"local-dir:{out}", CalibrationSettings(coverage=0.8))
    run(data, tmp_path / "other", small(epochs=1, seed=1))
    for content in (beside(out).read_bytes(), beside(tmp_path / "other").read_bytes(), b"damaged"):
        assert content != first
        beside(out).write_bytes(content)
        assert "calibrated on 48 validation images" in remarks_of(run(data, out, config))
        assert beside(out).read_bytes() == first
