"""Calibrating a model on labeled images: which images are used, what is measured, and where the result is stored."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tessella
from tessella.calibration import CalibrationSettings, read_calibration
from tessella.calibration.finding import beside, cached_path
from tessella.calibration.fitting import fit
from tessella.calibration.temperature import scaled_probabilities
from tessella.data.datasets import open_labelled, open_split
from tessella.errors import ImageError, OutputError, UsageError
from tessella.evaluation import calibrate
from tessella.evaluation.calibration_figures import Expected, expected_share, judge_sets, measure_figures
from tessella.evaluation.calibrator import measure_calibration, outputs_of
from tessella.evaluation.evaluator import measure
from tessella.evaluation.leakage import write_image_record
from tessella.weights.save import save_pretrained

from ..calibration.made import CONFIDENCE, made_outputs, names_of
from .small_data import NAMES, folder_of, model_of, predictor_of

QUICK = CalibrationSettings(detector="energy")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each of five classes."""
    return folder_of(tmp_path_factory.mktemp("many") / "data", NAMES, each=10)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(model_of(), tmp_path_factory.mktemp("saved") / "model")


# --- figures ----------------------------------------------------------------------------------------------------------


def figures_of(count: int, classes: int = 5, **options: object):  # type: ignore[no-untyped-def]
    outputs, settings = made_outputs(count, classes), CalibrationSettings(detector="energy", **options)  # type: ignore[arg-type]
    return measure_figures(outputs, fit(outputs, settings), settings, names_of(classes).labels)


def test_the_figures_are_what_a_calibration_does_for_new_images() -> None:
    outputs, later = made_outputs(3000), made_outputs(20_000, seed=7)
    settings = CalibrationSettings(detector="energy")
    fitted = fit(outputs, settings)
    figures = measure_figures(outputs, fitted, settings, names_of(5).labels)
    judged = judge_sets(later, fitted.temperature, fitted.sets, fitted.unknown)
    assert figures.coverage == pytest.approx(judged.covered.mean(), abs=0.02)
    assert figures.exact_coverage == pytest.approx(0.9, abs=0.01)
    assert figures.set_size == pytest.approx(judged.sizes.mean(), abs=0.15)
    assert figures.single == pytest.approx((judged.sizes == 1).mean(), abs=0.04)
    assert figures.false_alarms == pytest.approx(0.05, abs=0.01)
    assert figures.ece_after < 0.03 < figures.ece_before
    assert figures.loss_after < figures.loss_before
    probabilities = scaled_probabilities(later.logits, CONFIDENCE)
    assert figures.top1 == pytest.approx((probabilities.argmax(1) == later.labels).mean(), abs=0.03)
    assert figures.expected.low < figures.exact_coverage < figures.expected.high


def test_the_worst_class_is_the_one_with_the_lowest_coverage() -> None:
    outputs, settings = made_outputs(3000), CalibrationSettings(detector="energy", per_class=False)
    logits = outputs.logits.copy()
    hard = outputs.labels == 3
    logits[hard] = np.random.default_rng(0).normal(0, 1, (int(hard.sum()), 5)).astype(np.float32)
    outputs = outputs._replace(logits=logits)
    figures = measure_figures(outputs, fit(outputs, settings), settings, names_of(5).labels)
    assert figures.worst is not None
    assert (figures.worst.label, figures.worst.images) == ("class 3", int(hard.sum()))
    assert figures.worst.coverage < figures.worst.expected.low
    balanced = dataclasses.replace(settings, per_class=True)
    figures = measure_figures(outputs, fit(outputs, balanced), balanced, names_of(5).labels)
    assert figures.worst is not None
    assert figures.worst.coverage >= figures.worst.expected.low


def test_classes_with_few_images_cannot_be_the_worst() -> None:
    assert figures_of(60, 30).worst is None


@pytest.mark.parametrize(("count", "options"), [(44, {}), (210, dict(coverage=0.99, false_alarms=0.4))])
def test_thresholds_are_finite_in_the_parts_if_they_are_for_all_images(count: int, options: dict[str, Any]) -> None:
    """With five parts, too few images would be left for a threshold, and no image would be outside of it."""
    figures = figures_of(count, **options)
    assert figures.folds > 5
    assert figures.set_size < 5
    assert figures.false_alarms > 0


@pytest.mark.parametrize(("share", "images", "calibration"), [(0.9, 1000, 500), (0.95, 200, 100), (0.5, 50, 30)])
def test_the_expected_range_is_that_of_simulated_quantiles(share: float, images: int, calibration: int) -> None:
    rng, draws = np.random.default_rng(0), 4000
    rank = int(np.ceil((calibration + 1) * share - 1e-9))
    quantiles = np.sort(rng.random((draws, calibration)), axis=1)[:, rank - 1]
    shares = rng.binomial(images, quantiles) / images
    expected = expected_share(share, images, calibration)
    assert expected.low == pytest.approx(np.quantile(shares, 0.025), abs=0.012)
    assert expected.high == pytest.approx(np.quantile(shares, 0.975), abs=0.012)


def test_with_too_few_calibration_images_all_later_ones_are_covered() -> None:
    assert expected_share(0.9, 100, 5) == Expected(1.0, 1.0)


# --- images -----------------------------------------------------------------------------------------------------------


def test_a_folder_gets_the_calibration_and_load_uses_it(many: Path, saved_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    calls: list[tuple[str, int, int]] = []
    report = calibrate(many, f"local-dir:{folder}", QUICK, progress=lambda *call: calls.append(call))
    assert report.path == beside(folder)
    assert report.figures.images == 50
    assert calls[-1] == (f"local-dir:{folder}", 50, 50)
    predictor = tessella.load(f"local-dir:{folder}")
    assert predictor.calibration is not None
    assert predictor.calibration.temperature == report.calibration.temperature
    assert predictor.calibration.data == report.calibration.data
    assert predictor.calibration.data.fingerprint == open_labelled(many).fingerprint
    assert predictor.calibration.figures["images"] == 50


def test_the_same_images_give_the_same_bytes(many: Path, saved_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        calibrate(many, f"local-dir:{saved_model}", out=tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert not beside(saved_model).exists()


def test_other_settings_are_calibrated_in_the_cache(many: Path, saved_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    report = calibrate(many, f"local-dir:{folder}", QUICK, load_options=dict(policy="timm"))
    assert report.path == cached_path(report.calibration.fingerprint)
    assert not beside(folder).exists()
    assert tessella.load(f"local-dir:{folder}").calibration is None
    assert tessella.load(f"local-dir:{folder}", policy="timm").calibration is not None


def test_a_new_calibration_replaces_the_one_in_the_cache(many: Path, saved_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    predictor = tessella.load(f"local-dir:{folder}")
    first = calibrate(many, predictor, QUICK)
    assert first.path == cached_path(predictor.fingerprint)
    calibrate(many, f"local-dir:{folder}", dataclasses.replace(QUICK, coverage=0.8))
    again = tessella.load(f"local-dir:{folder}").calibration
    assert again is not None
    assert again.coverage == 0.8
    assert not cached_path(predictor.fingerprint).exists()


def test_a_calibrated_model_is_calibrated_from_its_plain_outputs(many: Path) -> None:
    predictor = predictor_of()
    once = calibrate(many, predictor, QUICK).calibration
    twice = calibrate(many, predictor.with_calibration(once), QUICK).calibration
    assert twice.temperature == once.temperature


def test_classes_are_matched_by_name(many: Path) -> None:
    reordered = predictor_of(tuple(reversed(NAMES)))
    images = open_labelled(many)
    outputs, _ = outputs_of(reordered, (images.source(i) for i in range(50)), images.labels)
    report = measure_calibration(reordered, images, QUICK)
    assert report.calibration.labels == tuple(reversed(NAMES))
    expected = fit(outputs._replace(labels=4 - outputs.labels), QUICK)
    assert report.calibration.temperature == expected.temperature
    assert (report.calibration.sets.labels == expected.sets.labels).all()


def test_images_that_the_model_was_trained_on_are_left_out(many: Path, saved_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    train, held_out = open_split(many, val_fraction=0.05)
    write_image_record(folder, held_out, train)
    report = calibrate(many, f"local-dir:{folder}", QUICK)
    assert report.figures.images == len(train)
    assert report.calibration.data.origin == f"the {len(train)} images of {many} that {folder} was not trained on"
    write_image_record(folder, train, held_out)
    with pytest.raises(UsageError, match="labeled images are too few for a calibration, at least 40"):
        calibrate(many, f"local-dir:{folder}", QUICK)
    write_image_record(folder, open_labelled(many), held_out)
    with pytest.raises(UsageError, match=f"was trained on all 50 images of {many}"):
        calibrate(many, f"local-dir:{folder}", QUICK, split="all")


def test_images_that_a_loaded_model_was_trained_on_are_left_out(many: Path, saved_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    train, held_out = open_split(many, val_fraction=0.05)
    write_image_record(folder, held_out, train)
    predictor = tessella.load(f"local-dir:{folder}")
    report = calibrate(many, predictor, QUICK)
    assert report.figures.images == len(train)
    assert report.path == cached_path(predictor.fingerprint)


def test_the_home_folder_of_an_unknown_user_is_refused(many: Path) -> None:
    with pytest.raises(UsageError) as caught:
        calibrate(many, "local-dir:~no-such-user/model", QUICK)
    assert caught.value.code == "bad_argument"


def test_an_earlier_calibration_that_cannot_be_removed_is_an_error(
    many: Path, saved_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    own = cached_path(tessella.load(f"local-dir:{folder}").fingerprint)
    own.mkdir(parents=True)
    with pytest.raises(OutputError, match="would be used instead of the new calibration") as caught:
        calibrate(many, f"local-dir:{folder}", QUICK)
    assert caught.value.code == "output_failed"


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    many: Path, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with monkeypatch.context() as patched:
        patched.setattr("tessella.evaluation.calibrator.load", lambda *_, **__: pytest.fail("a model was loaded"))
        for out in (tmp_path, tmp_path / "file" / "made.safetensors"):
            with pytest.raises(OutputError, match="could not be written") as caught:
                calibrate(many, f"local-dir:{saved_model}", QUICK, out=out)
            assert caught.value.code == "output_failed"
        with pytest.raises(UsageError, match="out is an empty string"):
            calibrate(many, f"local-dir:{saved_model}", QUICK, out="")
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    beside(folder).mkdir()
    with pytest.raises(OutputError, match="could not be written"):  # without `out`, the model says where
        calibrate(many, f"local-dir:{folder}", QUICK, progress=lambda *_: pytest.fail("work was done"))


def test_a_run_without_a_record_is_a_remark(many: Path, saved_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    (folder / "train.json").write_text("{}")
    report = calibrate(many, f"local-dir:{folder}", QUICK)
    assert "has no record of the images that it was trained on" in report.remarks[0]


def test_unreadable_images_are_counted(many: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(many, tmp_path / "data"))
    (data / "bee" / "broken.png").write_bytes(b"no image")
    report = measure_calibration(predictor_of(), open_labelled(data), QUICK)
    assert report.errors == {"unsupported_format": 1}
    assert report.calibration.data.images == 50


def test_images_of_which_none_can_be_read_are_an_error(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        measure_calibration(predictor_of(), open_labelled(tmp_path / "data"), QUICK)
    assert caught.value.code == "unreadable"


def test_other_classes_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "other", ("ant", "zebra"))
    with pytest.raises(UsageError, match="does not have 1 of the 2 classes"):
        calibrate(data, predictor_of())


def test_unknown_images_are_compared_with_the_known_ones(many: Path, tmp_path: Path) -> None:
    (tmp_path / "unknown").mkdir()
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / "unknown" / f"{number}.png")
    (tmp_path / "unknown" / "broken.png").write_bytes(b"no image")
    report = calibrate(many, predictor_of(), unknown=tmp_path / "unknown", out=tmp_path / "made.safetensors")
    assert report.unknown_images == 12
    assert report.errors == {"unsupported_format": 1}
    assert report.calibration.unknown.detector.kind == report.figures.detectors[0].kind
    assert read_calibration(tmp_path / "made.safetensors").figures == report.figures.as_dict()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"none of the unknown images could be read \(1 not_found\)") as caught:
        calibrate(many, predictor_of(), unknown=tmp_path / "empty")
    assert str(tmp_path / "empty") in caught.value.hint


def test_an_evaluation_notices_images_that_are_unlike_those_of_the_calibration(many: Path, tmp_path: Path) -> None:
    predictor = predictor_of()
    report = measure_calibration(predictor, open_labelled(many), CalibrationSettings(detector="mahalanobis"))
    calibrated = predictor.with_calibration(report.calibration)
    for name in NAMES:
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / name / f"{number}.png")
    same, other = (measure(calibrated, open_labelled(data)).trust for data in (many, tmp_path))
    assert same is not None
    assert other is not None
    assert (same.same_images, other.same_images) == (True, False)
    assert same.broken == ()
    assert "unknown" in other.broken
    assert other.unknown > other.most_unknown > other.false_alarms == 0.05
    assert 0 < other.least_coverage < other.promised


def test_few_images_are_a_remark(many: Path) -> None:
    report = measure_calibration(predictor_of(), open_labelled(many), dataclasses.replace(QUICK, false_alarms=0.001))
    assert any("no image will be called unknown" in remark for remark in report.remarks)
    report = measure_calibration(predictor_of(), open_labelled(many), dataclasses.replace(QUICK, per_class=True))
    assert any("classes are in every prediction set" in remark for remark in report.remarks)
