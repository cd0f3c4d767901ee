"""The built-in models ship calibrated, and their calibrations keep their promises on images that nothing has seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import tessella
from tessella.calibration import CalibrationSettings
from tessella.calibration.detectors import auroc
from tessella.calibration.finding import beside
from tessella.calibration.fitting import LabeledOutputs, fit, split
from tessella.data.datasets import open_labelled
from tessella.data.sources import iter_sources
from tessella.evaluation.calibration_figures import calibrated_logits, judge_sets
from tessella.evaluation.calibrator import outputs_of
from tessella.evaluation.metrics import calibration_error, judge
from tessella.predictor import Predictor
from tessella.weights.catalogue import BUILTIN_FOLDER, CATALOGUE, default_model

BUILTIN = {name: BUILTIN_FOLDER / row.file for name, row in CATALOGUE.items() if row.file}
FLAMINGO = "n02007558"
IMAGES, SPLITS = 1500, 100


@pytest.mark.parametrize("name", BUILTIN)
def test_every_built_in_model_is_calibrated(name: str) -> None:
    predictor = tessella.load(name)
    assert predictor.calibration is not None
    assert "beside the weights" in predictor.plan.choice("calibration").reason
    assert predictor.calibration.labels == predictor.labels
    assert not predictor.calibration.data.origin.startswith("/")  # no folder of the machine on which it was made


def test_the_calibrations_take_little_space() -> None:
    assert sum(beside(path).stat().st_size for path in BUILTIN.values()) < 2e6


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tessella.load(default_model("classify"))


@pytest.fixture(scope="module")
def outputs(predictor: Predictor, shared_data: Path) -> LabeledOutputs:
    """Outputs for test images that the shipped calibration was not made from."""
    images = open_labelled(shared_data / "cifar10-test.parquet")
    places = np.arange(1, 2 * IMAGES, 2)
    assert images.classes == predictor.labels
    return outputs_of(predictor, (images.source(i) for i in places.tolist()), images.labels[places])[0]


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> dict[str, object]:
    """Photographs by WordNet id."""
    sources = iter_sources([shared_data / "photos.tar"])
    return {
        source.key.rpartition("/")[2].rpartition("::")[2].partition(".")[0].partition("_")[0]: source
        for source in sources
    }


def test_the_flamingo_is_unknown(predictor: Predictor, photographs: dict[str, object]) -> None:
    (record,) = predictor.records([photographs[FLAMINGO]])
    assert record.assessment is not None
    assert record.assessment.unknown


def test_other_things_are_called_unknown_far_more_often(
    predictor: Predictor, outputs: LabeledOutputs, photographs: dict[str, object]
) -> None:
    calibration = predictor.calibration
    assert calibration is not None
    chosen = [source for name, source in photographs.items() if name >= "n026"][:400:2]  # artifacts, food and places
    others, _ = outputs_of(predictor, chosen, np.zeros(len(chosen), np.int64))  # type: ignore[arg-type]
    known = calibration.unknown.detector.scores(outputs.logits, outputs.embeddings)
    unknown = calibration.unknown.detector.scores(others.logits, others.embeddings)
    false_alarms = calibration.unknown.is_unknown(known).mean()
    assert false_alarms < 0.05 + 4 * math.sqrt(0.05 * 0.95 * 2 / IMAGES)
    assert calibration.unknown.is_unknown(unknown).mean() > 3 * false_alarms
    assert auroc(known, unknown) > 0.7


def test_probabilities_are_honest(predictor: Predictor, outputs: LabeledOutputs) -> None:
    calibration = predictor.calibration
    assert calibration is not None
    before = calibration_error(judge(outputs.logits, outputs.labels))
    after = calibration_error(judge(calibrated_logits(calibration, outputs.logits), outputs.labels))
    noise = 0.02  # of 1,500 images, also for perfect probabilities; docs/results.md has figures for all images
    assert after < 0.015 + noise
    assert after < before


def test_the_shipped_sets_cover_what_they_promise(predictor: Predictor, outputs: LabeledOutputs) -> None:
    calibration = predictor.calibration
    assert calibration is not None
    judged = judge_sets(outputs, calibration.temperature, calibration.sets, calibration.unknown)
    assert judged.covered.mean() > 0.9 - 4 * math.sqrt(0.9 * 0.1 * 2 / IMAGES)
    assert judged.sizes.min() >= 1
    assert judged.sizes.mean() < 4


@pytest.mark.parametrize("per_class", [False, True])
def test_coverage_over_random_splits_of_real_images(outputs: LabeledOutputs, per_class: bool) -> None:
    """Within binomial bounds for both parts, for all images and for every class."""
    exact, classes = [], []
    settings = CalibrationSettings(per_class=per_class, detector="energy")
    for seed in range(SPLITS):
        first, second = split(IMAGES, 0.5, np.random.default_rng(seed))
        fitted, later = fit(outputs.take(first), settings), outputs.take(second)
        judged = judge_sets(later, fitted.temperature, fitted.sets, fitted.unknown)
        assert judged.covered.mean() >= judged.exact.mean()
        exact.append(judged.exact.mean())
        classes.append([judged.exact[later.labels == k].mean() for k in range(10)])
    held = IMAGES // 4  # half of each first part gives the thresholds
    sigma = math.sqrt(0.9 * 0.1 * (1 / (IMAGES // 2) + 1 / held))
    if not per_class:
        assert np.mean(exact) == pytest.approx(0.9, abs=0.012)
        assert np.abs(np.array(exact) - 0.9).max() < 4.5 * sigma
    else:  # a threshold of few images covers more than promised on average: ceil((n + 1) * 0.9) / (n + 1)
        mean = np.mean(classes, axis=0)
        assert mean.min() > 0.9 - 0.03
        assert np.min(classes) > 0.9 - 5 * sigma * math.sqrt(10)
