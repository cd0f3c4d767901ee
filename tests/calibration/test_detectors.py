"""Detectors give the numbers of their papers, and their thresholds keep the stated rate of false alarms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from tessella.calibration.calibration import UnknownDetection
from tessella.calibration.detectors import (
    KINDS,
    MAX_STORED,
    NEIGHBOR,
    SHRINKAGE,
    DetectorKind,
    MahalanobisDetector,
    NeighborDetector,
    auroc,
    false_positive_rate,
    fit_detector,
    read_detector,
)

from .made import WIDTH, made_outputs, made_unknown

FITTED, LATER = made_outputs(500), made_outputs(300, seed=1)


def scores_of(kind: DetectorKind, outputs: object = LATER) -> np.ndarray:
    detector = fit_detector(kind, *FITTED)
    return detector.scores(outputs.logits, outputs.embeddings)  # type: ignore[attr-defined]


def test_the_energy_is_minus_the_logarithm_of_the_sum_of_exponentials() -> None:
    assert scores_of("energy") == pytest.approx(-logsumexp(LATER.logits.astype(np.float64), axis=1), abs=1e-9)


def test_huge_logits_do_not_overflow() -> None:
    detector = fit_detector("energy", *FITTED)
    logits = np.array([[3e4, -3e4, 0.0]], np.float32)
    assert detector.scores(logits, FITTED.embeddings[:1]) == pytest.approx([-3e4])


def test_the_maximum_logit_is_negated() -> None:
    assert scores_of("max-logit") == pytest.approx(-LATER.logits.max(axis=1))


def test_the_distance_is_that_to_the_third_nearest_embedding() -> None:
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (LATER.embeddings, FITTED.embeddings)]
    distances = np.sort(1 - units[0] @ units[1].T, axis=1)[:, NEIGHBOR - 1]
    assert scores_of("neighbors") == pytest.approx(distances, abs=2e-3)  # embeddings are stored in half precision


def test_with_few_embeddings_the_last_neighbor_counts() -> None:
    detector = NeighborDetector.fit(FITTED.embeddings[:3])
    assert detector.scores(LATER.logits[:1], FITTED.embeddings[:1]) == pytest.approx(
        [1 - (detector.stored @ detector.stored[0]).min()], abs=1e-3
    )


def test_the_number_of_stored_embeddings_is_bounded() -> None:
    many = np.random.default_rng(0).normal(size=(3 * MAX_STORED, 4)).astype(np.float32)
    stored = NeighborDetector.fit(many).stored
    assert stored.shape == (MAX_STORED, 4)
    assert np.linalg.norm(stored, axis=1) == pytest.approx(np.ones(MAX_STORED), abs=2e-3)


def test_the_mahalanobis_distance_is_that_to_the_nearest_class_mean() -> None:
    fitted, later = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (FITTED.embeddings, LATER.embeddings))
    means = np.stack([fitted[FITTED.labels == k].mean(0) for k in range(5)]).astype(np.float64)
    centered = fitted - means[FITTED.labels]
    covariance = centered.T @ centered / len(centered)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    offsets = later[:, None].astype(np.float64) - means
    squares = np.einsum("nkd,de,nke->nk", offsets, np.linalg.inv(shrunk), offsets)
    assert scores_of("mahalanobis") == pytest.approx(squares.min(1), rel=1e-4)


def test_the_combination_is_the_sum_in_units_of_the_standard_deviation() -> None:
    detector = fit_detector("combined", *FITTED)
    scales = detector.arrays["scales"]
    parts = [scores_of("energy") / scales[0], scores_of("mahalanobis") / scales[1]]
    assert scores_of("combined") == pytest.approx(parts[0] + parts[1], rel=1e-5)
    assert [part.std() for part in parts] == pytest.approx([1, 1], rel=0.3)


@pytest.mark.parametrize("count", [10, 40, 200])
def test_both_parts_of_the_combination_count_with_fewer_images_than_dimensions(count: int) -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(0, 1, (5, 256))
    fitted, later = (
        outputs._replace(embeddings=(means[outputs.labels] + rng.normal(0, 1, (len(outputs.labels), 256))).astype("f4"))
        for outputs in (made_outputs(count), made_outputs(300, seed=1))
    )
    scales = fit_detector("combined", *fitted).arrays["scales"]
    energy = fit_detector("energy", *fitted).scores(later.logits, later.embeddings).std() / scales[0]
    distance = fit_detector("mahalanobis", *fitted).scores(later.logits, later.embeddings).std() / scales[1]
    assert 0.1 < energy / distance < 10


def test_a_covariance_of_a_single_point_can_be_inverted() -> None:
    detector = MahalanobisDetector.fit(np.ones((5, 3), np.float32), np.zeros(5, np.int64))
    assert np.isfinite(detector.scores(LATER.logits[:1], np.zeros((1, 3), np.float32))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_detector_gives_the_same_numbers(kind: DetectorKind) -> None:
    detector = fit_detector(kind, *FITTED)
    again = read_detector(kind, detector.arrays)
    assert (again.scores(LATER.logits, LATER.embeddings) == detector.scores(LATER.logits, LATER.embeddings)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_no_class_are_more_unlike(kind: DetectorKind) -> None:
    assert auroc(scores_of(kind), scores_of(kind, made_unknown(100))) > 0.99


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_auroc_agrees_with_scikit_learn(known: list[int], unknown: list[int]) -> None:
    truth, values = [0] * len(known) + [1] * len(unknown), [*known, *unknown]
    expected = roc_auc_score(truth, values)
    assert auroc(np.array(known, np.float64), np.array(unknown, np.float64)) == pytest.approx(expected)


def test_the_false_positive_rate_keeps_the_recall() -> None:
    known, unknown = np.arange(100.0), np.array([10.0, 94.0, 95.0, 200.0])
    assert false_positive_rate(known, unknown) == 0.5  # 95 of 100 known ones are at most 94
    assert false_positive_rate(known, unknown, recall=1.0) == 0.75


def test_p_values_are_uniform_and_false_alarms_as_rare_as_stated() -> None:
    rng, values, rates = np.random.default_rng(0), [], []
    detector = fit_detector("energy", *FITTED)
    for _ in range(200):
        scores = rng.standard_normal(1000)
        detection = UnknownDetection(detector, np.sort(scores[:500]), 0.05)
        familiarity = detection.familiarity(scores[500:])
        assert (detection.is_unknown(scores[500:]) == (familiarity <= 0.05 + 1e-12)).all()
        values.append(familiarity[0])
        rates.append(detection.is_unknown(scores[500:]).mean())
    assert kstest(values, "uniform").pvalue > 0.01
    assert np.mean(rates) == pytest.approx(0.05, abs=0.005)
    assert np.max(rates) < 0.05 + 4.5 * math.sqrt(0.05 * 0.95 * 2 / 500)


def test_with_too_few_images_nothing_is_unknown() -> None:
    detection = UnknownDetection(fit_detector("energy", *FITTED), np.arange(10.0), 0.05)
    assert detection.threshold == math.inf
    assert not detection.is_unknown(np.array([1e30])).any()
