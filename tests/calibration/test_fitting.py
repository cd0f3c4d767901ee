"""Fitting: what is chosen from which images, and settings that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.calibration.detectors import KINDS, DetectorKind
from tessella.calibration.fitting import MIN_IMAGES, CalibrationSettings, LabeledOutputs, fit, split
from tessella.errors import UsageError
from tessella.evaluation.metrics import metrics

from .made import CONFIDENCE, made_outputs, made_unknown


@given(count=st.integers(0, 300), share=st.floats(0, 1), seed=st.integers(0, 100))
def test_a_split_has_every_image_once(count: int, share: float, seed: int) -> None:
    first, second = split(count, share, np.random.default_rng(seed))
    assert sorted([*first, *second]) == list(range(count))
    assert len(first) == round(share * count)
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()


def test_the_thresholds_are_of_images_that_decided_nothing() -> None:
    """Other labels of the images that decide change no score of the others, as long as the decisions are the same."""
    outputs = made_outputs(400)
    settings = CalibrationSettings(detector="energy", per_class=False)
    fitted = fit(outputs, settings)
    _, second = split(400, 0.5, np.random.default_rng(0))
    assert fitted.fitted == 200
    assert len(fitted.sets.scores) == len(fitted.unknown.scores) == 200
    held = outputs.take(second)
    assert (np.sort(fitted.unknown.detector.scores(held.logits, held.embeddings)) == fitted.unknown.scores).all()
    assert np.bincount(fitted.sets.labels, minlength=5).tolist() == np.bincount(held.labels, minlength=5).tolist()


def test_probabilities_become_honest() -> None:
    fitted, later = fit(made_outputs(2000), CalibrationSettings()), made_outputs(20_000, seed=1)
    names = [str(k) for k in range(5)]
    assert metrics(later.logits, later.labels, names).ece > 0.05
    assert metrics(later.logits / fitted.temperature, later.labels, names).ece < 0.02
    assert fitted.temperature == pytest.approx(CONFIDENCE, rel=0.15)


def test_sets_are_per_class_only_with_enough_images_of_every_class() -> None:
    assert fit(made_outputs(1000), CalibrationSettings()).sets.per_class
    assert not fit(made_outputs(200), CalibrationSettings()).sets.per_class
    assert fit(made_outputs(200), CalibrationSettings(per_class=True)).sets.per_class
    assert not fit(made_outputs(1000), CalibrationSettings(per_class=False)).sets.per_class
    assert not fit(made_outputs(1000), CalibrationSettings(coverage=0.995)).sets.per_class


def test_raps_is_chosen_where_it_makes_sets_smaller() -> None:
    fitted = fit(made_outputs(4000, 10, spread=4.0), CalibrationSettings(per_class=False))
    assert fitted.sets.method == "RAPS"


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_can_be_chosen(kind: DetectorKind) -> None:
    assert fit(made_outputs(100), CalibrationSettings(detector=kind)).unknown.detector.kind == kind


def test_unknown_images_decide_on_the_detector() -> None:
    outputs = made_outputs(400)
    far = made_unknown(100)
    rng = np.random.default_rng(0)
    usual = LabeledOutputs(outputs.logits[:100], far.embeddings, far.labels)  # usual logits, unusual embeddings
    assert fit(outputs, CalibrationSettings(), usual).unknown.detector.kind in ("neighbors", "mahalanobis")
    odd = LabeledOutputs(far.logits, outputs.embeddings[rng.permutation(400)[:100]], far.labels)
    fitted = fit(outputs, CalibrationSettings(), odd)
    assert fitted.unknown.detector.kind in ("energy", "max-logit")
    assert fitted.detectors[0].kind == fitted.unknown.detector.kind
    assert {row.kind for row in fitted.detectors} == set(KINDS)
    assert fitted.detectors[0].auroc > 0.99
    assert [row.auroc for row in fitted.detectors] == sorted((row.auroc for row in fitted.detectors), reverse=True)


def test_without_unknown_images_the_detector_is_always_the_same() -> None:
    fitted = fit(made_outputs(400), CalibrationSettings())
    assert (fitted.unknown.detector.kind, fitted.detectors) == ("combined", ())


def test_the_same_images_give_the_same_calibration_and_another_seed_another_one() -> None:
    outputs = made_outputs(200)
    first, second = fit(outputs, CalibrationSettings()), fit(outputs, CalibrationSettings())
    assert first.temperature == second.temperature
    assert (first.sets.scores == second.sets.scores).all()
    assert fit(outputs, CalibrationSettings(seed=1)).temperature != first.temperature


@pytest.mark.parametrize("classes", [2, 40])
def test_few_images_of_few_or_many_classes_can_be_used(classes: int) -> None:
    fitted = fit(made_outputs(MIN_IMAGES, classes), CalibrationSettings())
    assert np.isfinite(fitted.temperature)
    assert len(fitted.sets.thresholds) == classes


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match=r"39 labeled images .* at least 40 are needed"):
        fit(made_outputs(39), CalibrationSettings())


@pytest.mark.parametrize(
    "values",
    [dict(coverage=0), dict(coverage=1.0), dict(coverage="0.9"), dict(coverage=True), dict(coverage=float("nan")),
     dict(false_alarms=-0.1), dict(false_alarms=1), dict(detector="guess"), dict(per_class="yes"), dict(seed=-1)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        CalibrationSettings(**values)  # type: ignore[arg-type]
    assert caught.value.code == "bad_argument"
