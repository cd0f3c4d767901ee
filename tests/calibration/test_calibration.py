"""What a calibration says about one image is what it says about the same image among many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.calibration.detectors import KINDS, DetectorKind
from tessella.errors import ImageError, UsageError
from tessella.results import Output, make_record

from .made import WIDTH, made_calibration, made_outputs, names_of


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(KINDS), per_class=st.booleans(), classes=st.integers(2, 8))
def test_one_image_is_assessed_as_many_are(seed: int, kind: DetectorKind, per_class: bool, classes: int) -> None:
    calibration = made_calibration(120, classes, detector=kind, per_class=per_class)
    outputs, names = made_outputs(10, classes, seed), names_of(classes)
    together = calibration.assess(outputs.logits, outputs.embeddings)
    for row, (logits, embedding) in enumerate(zip(outputs.logits, outputs.embeddings, strict=True)):
        probabilities = calibration.probabilities(logits[None])[0]
        record = make_record("a", Output(logits, embedding), names, top=classes, embed=False, calibration=calibration)
        alone = record.assessment
        assert alone is not None
        shown = {one.index: one.probability for one in record.top}
        assert [shown[k] for k in range(classes)] == pytest.approx(probabilities.tolist(), rel=1e-6)
        assert {one.index for one in alone.prediction_set} == set(np.flatnonzero(together.sets[row]).tolist())
        assert [one.probability for one in alone.prediction_set] == sorted(
            (shown[one.index] for one in alone.prediction_set), reverse=True
        )
        assert alone.unknown == together.unknown[row]
        assert alone.familiarity == pytest.approx(together.familiarity[row], abs=0.02)  # sums in another order
        assert 0 < alone.familiarity <= 1


def test_a_record_has_calibrated_probabilities_and_an_assessment() -> None:
    calibration, outputs = made_calibration(), made_outputs(1, seed=4)
    output = Output(outputs.logits[0], outputs.embeddings[0])
    plain = make_record("a", output, names_of(5), top=5, embed=False)
    record = make_record("a", output, names_of(5), top=5, embed=False, calibration=calibration)
    assert plain.assessment is None
    assert [one.index for one in record.top] == [one.index for one in plain.top]
    expected = calibration.probabilities(outputs.logits)[0]
    assert [one.probability for one in record.top] == pytest.approx([expected[one.index] for one in record.top])
    assert record.assessment is not None
    assert record.assessment.prediction_set == record.top[: len(record.assessment.prediction_set)]


def test_errors_and_embeddings_have_no_assessment() -> None:
    calibration, outputs = made_calibration(), made_outputs(1)
    bad = Output(np.full(5, np.nan, np.float32), outputs.embeddings[0])
    output = Output(outputs.logits[0], outputs.embeddings[0])
    records = [
        make_record("a", ImageError("unreadable", "no"), names_of(5), top=5, embed=True, calibration=calibration),
        make_record("b", bad, names_of(5), top=5, embed=True, calibration=calibration),
        make_record("c", output, names_of(5), top=0, embed=True, calibration=calibration),
    ]
    assert [record.status for record in records] == ["unreadable", "non_finite", "ok"]
    assert all(record.assessment is None and record.top == () for record in records)


def test_another_model_is_refused_and_both_are_named() -> None:
    calibration = made_calibration()
    calibration.check_model("0123456789abcdef", "made", 5, WIDTH)
    with pytest.raises(
        UsageError, match=r"made, exact, tessella, float32 \(fingerprint 0123456789abcdef\), not for other"
    ) as caught:
        calibration.check_model("a" * 16, "other", 5, WIDTH)
    assert caught.value.code == "other_calibration"


@pytest.mark.parametrize(
    ("kind", "num_classes", "width"),
    [(kind, 5, WIDTH + 1) for kind in ("neighbors", "mahalanobis", "combined")] + [(kind, 4, WIDTH) for kind in KINDS],
)
def test_a_calibration_that_fits_the_fingerprint_but_not_the_outputs_is_refused(
    kind: DetectorKind, num_classes: int, width: int
) -> None:
    calibration = made_calibration(detector=kind)
    with pytest.raises(UsageError, match=f"made has {num_classes} and {width}") as caught:
        calibration.check_model(calibration.fingerprint, "made", num_classes, width)
    assert caught.value.code == "other_calibration"


@pytest.mark.parametrize("kind", ["energy", "max-logit"])
def test_detectors_without_embeddings_fit_any_width(kind: DetectorKind) -> None:
    calibration = made_calibration(detector=kind)
    calibration.check_model(calibration.fingerprint, "made", 5, WIDTH + 1)
