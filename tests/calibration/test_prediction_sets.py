"""Prediction sets: their definition, their coverage over random splits, and that one image is treated as many are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.calibration.arrays import Floats
from tessella.calibration.fitting import LabeledOutputs, make_sets, split
from tessella.calibration.prediction_sets import PredictionSets, set_scores, true_scores
from tessella.calibration.temperature import scaled_probabilities
from tessella.results import softmax

from .made import CONFIDENCE, made_outputs

SPLITS = 100


def expected_score(probabilities: np.ndarray, label: int, penalty: float, free_ranks: int) -> float:
    """Return the score of a class by its definition."""
    ranked = sorted(range(len(probabilities)), key=lambda k: (-probabilities[k], k))
    rank = ranked.index(label) + 1
    return float(sum(map(float, probabilities[ranked[:rank]]))) + penalty * max(rank - free_ranks, 0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(1, 12),
    penalty=st.sampled_from([0.0, 0.001, 0.1, 1.0]),
    free_ranks=st.integers(1, 5),
    rounded=st.booleans(),
)
def test_scores_are_those_of_the_papers(
    seed: int, classes: int, penalty: float, free_ranks: int, rounded: bool
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (4, classes)).astype(np.float32)
    probabilities = softmax(np.round(logits) if rounded else logits).astype(np.float64)  # rounded: with ties
    ranks, scores = set_scores(probabilities, penalty, free_ranks)
    for row in range(4):
        expected = [expected_score(probabilities[row], k, penalty, free_ranks) for k in range(classes)]
        assert scores[row] == pytest.approx(expected, abs=1e-9)
        assert sorted(ranks[row]) == list(range(classes))
        assert ranks[row, probabilities[row].argmax()] == 0
    labels = rng.integers(0, classes, 4)
    assert (true_scores(probabilities, labels, penalty, free_ranks) == scores[np.arange(4), labels]).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(5, 80),
    classes=st.integers(2, 12),
    penalty=st.sampled_from([0.0, 0.01, 1.0]),
    per_class=st.booleans(),
    coverage=st.floats(0.05, 0.99),
)
def test_the_set_of_one_image_is_that_of_the_same_image_among_many(
    seed: int, count: int, classes: int, penalty: float, per_class: bool, coverage: float
) -> None:
    outputs = made_outputs(count, classes, seed)
    sets = make_sets(outputs, 1.5, coverage, per_class, penalty, 2)
    probabilities = scaled_probabilities(made_outputs(20, classes, seed + 1).logits, 1.5)
    contained = sets.contains(probabilities)
    assert contained[np.arange(20), probabilities.argmax(1)].all()  # never empty
    for row in range(20):
        members = sets.members(probabilities[row])
        assert set(members.tolist()) == set(np.flatnonzero(contained[row]).tolist())
        assert (np.diff(probabilities[row, members]) <= 0).all()


def covered_by(sets: PredictionSets, probabilities: Floats, labels: np.ndarray) -> np.ndarray:
    """Return whether the score of the true class is within its threshold, without the most probable class for free."""
    scores = true_scores(probabilities, labels, sets.penalty, sets.free_ranks)
    return np.asarray(scores <= sets.thresholds[labels])


@pytest.mark.parametrize("penalty", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_coverage_over_random_splits_is_what_was_promised(coverage: float, penalty: float) -> None:
    """The thresholds alone cover exactly the promised share, the sets that are shown at least it."""
    everything = made_outputs(2000, 10, spread=1.5)
    exact, shown = [], []
    for seed in range(SPLITS):
        first, second = split(len(everything.labels), 0.5, np.random.default_rng(seed))
        later = everything.take(second)
        sets = make_sets(everything.take(first), CONFIDENCE, coverage, False, penalty, 1)
        probabilities = scaled_probabilities(later.logits, CONFIDENCE)
        exact.append(covered_by(sets, probabilities, later.labels).mean())
        contained = sets.contains(probabilities)
        shown.append(contained[np.arange(len(later.labels)), later.labels].mean())
        assert contained.any(axis=1).all()
    # one split: binomial for the later images, and as many calibration images for the threshold
    sigma = math.sqrt(coverage * (1 - coverage) * (1 / 1000 + 1 / 1000))
    assert np.abs(np.array(exact) - coverage).max() < 4.5 * sigma
    assert np.mean(exact) == pytest.approx(coverage, abs=0.005)
    assert (np.array(shown) >= np.array(exact)).all()


def test_coverage_per_class_holds_for_a_class_that_marginal_sets_neglect() -> None:
    everything = made_outputs(6000, 8, seed=5)
    rng = np.random.default_rng(0)
    logits = everything.logits.copy()
    hard = everything.labels == 2
    logits[hard] = rng.normal(0, 2, (int(hard.sum()), 8)).astype(np.float32)  # the model knows little about it
    logits[hard, 2] += 1
    everything = LabeledOutputs(logits, everything.embeddings, everything.labels)
    measured: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(SPLITS):
        first, second = split(len(everything.labels), 0.5, np.random.default_rng(seed))
        later = everything.take(second)
        probabilities = scaled_probabilities(later.logits, CONFIDENCE)
        for per_class, found in measured.items():
            sets = make_sets(everything.take(first), CONFIDENCE, 0.9, per_class, 0.0, 1)
            covered = covered_by(sets, probabilities, later.labels)
            found.append(float(covered[later.labels == 2].mean()))
            if per_class:
                counts = np.bincount(later.labels, minlength=8)
                for k in range(8):
                    sigma = math.sqrt(0.9 * 0.1 * 2 / counts[k])
                    assert abs(covered[later.labels == k].mean() - 0.9) < 4.5 * sigma
    assert np.mean(measured[False]) < 0.87
    assert np.mean(measured[True]) == pytest.approx(0.9, abs=0.01)


def test_a_class_without_enough_images_is_in_every_set() -> None:
    outputs = made_outputs(300, 5)
    kept = outputs.take((outputs.labels != 4) | (np.arange(300) == np.flatnonzero(outputs.labels == 4)[0]))
    sets = make_sets(kept, 1.0, 0.9, True, 0.0, 1)
    assert sets.thresholds[4] == math.inf
    assert math.isfinite(sets.thresholds[0])
    assert sets.contains(scaled_probabilities(outputs.logits, 1.0))[:, 4].all()


def test_a_penalty_makes_the_sets_of_many_classes_smaller() -> None:
    outputs, later = made_outputs(3000, 100, spread=1.0), made_outputs(1000, 100, seed=1, spread=1.0)
    probabilities = scaled_probabilities(later.logits, CONFIDENCE)
    sizes = [
        make_sets(outputs, CONFIDENCE, 0.9, False, penalty, 5).contains(probabilities).sum(1).max()
        for penalty in (0.0, 0.1)
    ]
    assert sizes[1] < sizes[0]
    assert make_sets(outputs, CONFIDENCE, 0.9, False, 0.1, 5).method == "RAPS"
    assert make_sets(outputs, CONFIDENCE, 0.9, False, 0.0, 5).method == "APS"


def test_the_same_image_always_gets_the_same_set() -> None:
    sets = make_sets(made_outputs(200), 1.0, 0.9, False, 0.0, 1)
    probabilities = scaled_probabilities(made_outputs(50, seed=3).logits, 1.0)
    assert (sets.contains(probabilities) == sets.contains(probabilities)).all()
