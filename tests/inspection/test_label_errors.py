"""Confident learning: the formulas by hand, folds that keep copies together, and planted label errors."""

from __future__ import annotations

import numpy as np
import pytest

from tessella.inspection.label_errors import assign_folds, find_label_errors, judge_labels
from tessella.results import l2_normalize


def test_the_formulas_on_a_small_example() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6], [0.45, 0.55]], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = judge_labels(probabilities, labels)
    # thresholds: (0.9 + 0.7 + 0.2) / 3 = 0.6 and (0.9 + 0.6 + 0.55) / 3 = 0.683
    assert found.confident.tolist() == [False, False, True, False, False, False]
    assert found.suggested.tolist() == [1, 1, 1, 0, 0, 0]
    assert found.margin == pytest.approx([-0.8, -0.4, 0.6, -0.8, -0.2, -0.1], abs=1e-6)
    # of the three images of class 0, two count as class 0 and one as class 1; the only one that counts of class 1 is
    # of class 1: 3 * 1/3 + 3 * 0 errors
    assert found.estimated == 1
    assert found.accuracy == pytest.approx(5 / 6)


def test_an_image_that_reaches_no_threshold_does_not_count() -> None:
    probabilities = np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9], [0.4, 0.3, 0.3]], np.float32)
    found = judge_labels(probabilities, np.array([0, 1, 2, 2]))
    assert not found.confident.any()
    assert found.estimated == 0


def test_groups_are_never_divided_and_classes_are_spread() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    group = np.arange(200)
    group[1::5] = group[0::5]  # pairs of copies
    fold = assign_folds(labels, group, 5, rng)
    for number in np.unique(group):
        assert len(np.unique(fold[group == number])) == 1
    for label in range(4):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.min() >= 5
        assert counts.sum() == 50


def clusters(count: int, classes: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centers = rng.standard_normal((classes, 24))
    vectors = centers[labels] + spread * rng.standard_normal((count, 24))
    return l2_normalize(vectors.astype(np.float32)).astype(np.float16), labels


def test_planted_label_errors_are_found() -> None:
    vectors, labels = clusters(600, 4, 0.5)
    rng = np.random.default_rng(1)
    changed = np.zeros(600, bool)
    changed[rng.permutation(600)[:30]] = True
    given = np.where(changed, (labels + 1) % 4, labels)
    seen: list[tuple[str, int, int]] = []
    found = find_label_errors(vectors, given, np.arange(600), 4, progress=lambda *event: seen.append(event))
    assert found is not None
    reported = found.confident & (found.margin >= 0.5)
    assert (reported & changed).sum() / changed.sum() > 0.8
    assert (reported & changed).sum() / reported.sum() > 0.9
    assert 20 <= found.estimated <= 45
    assert (found.suggested[reported & changed] == labels[reported & changed]).mean() > 0.95
    assert seen[-1] == ("folds", 5, 5)
    again = find_label_errors(vectors, given, np.arange(600), 4)
    assert again is not None
    np.testing.assert_array_equal(found.margin, again.margin)


def test_a_copy_with_the_same_wrong_label_does_not_hide_the_error() -> None:
    vectors, labels = clusters(200, 3, 0.5)
    given = labels.copy()
    given[:10] = (labels[:10] + 1) % 3
    vectors = np.concatenate([vectors, *[vectors[:10]] * 12])  # twelve copies of each wrong image
    given = np.concatenate([given, *[given[:10]] * 12])
    group = np.concatenate([np.arange(200), *[np.arange(10)] * 12])
    together = find_label_errors(vectors, given, group, 3)
    apart = find_label_errors(vectors, given, np.arange(len(given)), 3)
    assert together is not None
    assert apart is not None
    assert together.margin[:10].mean() > apart.margin[:10].mean() + 0.1


def test_small_classes_are_not_judged() -> None:
    vectors, labels = clusters(100, 2, 0.3)
    labels[:3] = 2
    found = find_label_errors(vectors, labels, np.arange(100), 4)
    assert found is not None
    assert not found.judged[:3].any()
    assert found.judged[3:].all()
    assert (found.margin[:3] == -1).all()
    assert find_label_errors(vectors, np.zeros(100, np.int64), np.arange(100), 2) is None
    assert find_label_errors(vectors[:6], np.array([0, 0, 0, 1, 1, 1]), np.arange(6), 2) is None
