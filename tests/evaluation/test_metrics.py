"""Metrics agree with figures computed by hand and with torchmetrics; undefined figures are None."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import UsageError, WeightsError
from tessella.evaluation.metrics import (
    BINS,
    Answers,
    as_dict,
    confused,
    coverage,
    join,
    judge,
    metrics,
    metrics_of,
    worst_mistakes,
)

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])
LABELS = np.array([0, 1, 1, 0])
CLASSES = ("cat", "dog", "fox")


def by_hand(**options: Any) -> Any:
    return metrics(np.log(PROBABILITIES) + 3, LABELS, CLASSES, **options)  # softmax cancels the 3


def test_figures_match_a_calculation_by_hand() -> None:
    result = by_hand()
    assert result.count == result.total == 4
    assert result.top1 == 0.5
    assert result.top5 is None
    assert result.loss == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.25)) / 4)
    assert result.ece == pytest.approx((0.3 + 0.6 + 0.2 + 0.5) / 4)  # each bin has one image
    assert result.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert result.confusion.dtype == np.int64
    assert result.per_class == [
        dict(label="cat", count=2, precision=0.5, recall=0.5, f1=0.5),
        dict(label="dog", count=2, precision=1.0, recall=0.5, f1=pytest.approx(2 / 3)),
        dict(label="fox", count=0, precision=None, recall=None, f1=None),
    ]
    # averages exclude the class without examples, although it was predicted once
    assert (result.precision, result.recall, result.f1) == (0.75, 0.5, pytest.approx((0.5 + 2 / 3) / 2))


def test_answers_match_a_calculation_by_hand() -> None:
    answers = judge(torch.tensor(np.log(PROBABILITIES)), torch.tensor(LABELS))
    assert answers.predicted.tolist() == [0, 0, 1, 2]
    assert answers.rank.tolist() == [0, 1, 0, 1]  # of the last, class 1 is as likely as the label, and comes after it
    np.testing.assert_allclose(answers.confidence, [0.7, 0.6, 0.8, 0.5])
    assert answers.index.tolist() == [0, 1, 2, 3]


def test_unreadable_images_are_excluded_or_count_as_wrong() -> None:
    result = by_hand(errors={"corrupt_image": 3, "empty": 1})
    assert result.total == 8
    assert result.top1 == 0.5
    assert result.top1_of_all == 0.25
    assert result.top5_of_all is None


@pytest.mark.parametrize(("classes", "top5"), [(7, 5 / 7), (6, 5 / 6), (5, None)])
def test_top5_is_none_for_fewer_than_six_classes(classes: int, top5: float | None) -> None:
    logits = np.tile(np.arange(classes, 0, -1), (classes, 1))  # the class of image i has rank i
    result = metrics(logits, np.arange(classes), list(map(str, range(classes))))
    assert result.top1 == pytest.approx(1 / classes)
    assert result.top5 == (None if top5 is None else pytest.approx(top5))


def test_the_first_of_equal_logits_is_predicted_and_the_others_rank_below() -> None:
    result = metrics(np.zeros((7, 7)), np.arange(7), list("abcdefg"))
    assert result.top1 == pytest.approx(1 / 7)
    assert result.top5 == pytest.approx(5 / 7)
    assert result.confusion[:, 0].tolist() == [1] * 7


def test_bins_hold_the_means_of_their_images() -> None:
    p = np.array([0.9, 0.92, 0.55])
    result = metrics(np.log(np.stack([p, 1 - p], 1)), np.array([0, 1, 0]), ("a", "b"))
    assert len(result.bins) == BINS == 15
    assert sum(group.images for group in result.bins) == 3
    full = result.bins[13]  # 0.867 to 0.933
    assert full == pytest.approx((13 / 15, 14 / 15, 2, 0.91, 0.5))
    assert result.bins[0] == (0.0, 1 / 15, 0, None, None)
    assert result.ece == pytest.approx((2 * (0.91 - 0.5) + (1 - 0.55)) / 3)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    result = metrics(np.array([[100.0, 0.0], [math.log(24), 0.0]]), np.array([0, 1]), ("a", "b"))
    assert result.bins[-1].images == 2  # 1 and 0.96
    assert result.ece == pytest.approx((1 + 0.96) / 2 - 0.5)


def test_one_image_and_one_class() -> None:
    single = metrics(np.array([[1.0, 2.0]]), np.array([1]), ("a", "b"))
    assert (single.count, single.top1, single.recall) == (1, 1.0, 1.0)
    only = metrics(np.array([[5.0], [3.0]]), np.array([0, 0]), ("a",))
    assert (only.top1, only.loss, only.ece, only.f1) == (1.0, 0.0, 0.0, 1.0)
    assert only.confusion.tolist() == [[2]]


def test_large_logits_do_not_give_an_infinite_loss() -> None:
    result = metrics(np.array([[1e6, -1e6]]), np.array([1]), ("a", "b"))
    assert result.loss == 2e6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = np.zeros((3, 4))
    logits[1, 2] = bad
    with pytest.raises(WeightsError, match="1 of 3 images, the first is image 8") as caught:
        judge(logits, np.zeros(3, int), np.array([7, 8, 9]))
    assert caught.value.code == "non_finite"
    assert "float32" in caught.value.hint


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), "labels go from 0 to 3, expected 0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "labels go from -1"),
        (np.zeros((2, 3)), np.array([0]), r"\(2, 3\)"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "float64"),
        (np.zeros(3), np.array([0]), r"\(N,K\)"),
        (np.zeros((2, 0)), np.array([0, 0]), r"\(N,K\)"),
        (np.zeros((0, 3)), np.array([], int), "no images to evaluate"),
    ],
)
def test_invalid_logits_and_labels_are_refused(logits: Any, labels: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        metrics(logits, labels, CLASSES)
    assert caught.value.code == "bad_argument"


def test_joined_answers_equal_those_of_all_images() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 8)), rng.integers(0, 8, 50)
    index = np.arange(100, 150)
    cuts = [slice(0, 0), slice(0, 17), slice(17, 50)]
    parts = [judge(logits[cut], labels[cut], index[cut]) for cut in cuts]
    unsplit = judge(logits, labels, index)
    for name, expected in dataclasses.asdict(unsplit).items():
        np.testing.assert_array_equal(getattr(join(parts), name), expected)
    names = list("abcdefgh")
    assert as_dict(metrics_of(join(parts), names)) == as_dict(metrics(logits, labels, names))


def reference() -> Any:
    """Return the functions of torchmetrics."""
    pytest.importorskip("torchmetrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from its imports
        import torchmetrics.functional.classification as functions
    return functions


def test_metrics_match_torchmetrics() -> None:
    functions = reference()
    rng = np.random.default_rng(1)
    classes, images = 12, 600
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) + 2.5 * np.eye(classes)[labels] * rng.random((images, 1))
    result = metrics(logits, labels, [f"c{i}" for i in range(classes)])
    assert result.per_class[0]["count"]
    x, y = torch.tensor(logits).softmax(1), torch.tensor(labels)
    for name, value in (("precision", result.precision), ("recall", result.recall), ("f1_score", result.f1)):
        of = getattr(functions, f"multiclass_{name}")
        assert value == pytest.approx(of(x, y, classes, average="macro").item(), abs=1e-6)
        each = np.array([dict(row)[name.removesuffix("_score")] for row in result.per_class], float)
        np.testing.assert_allclose(each, of(x, y, classes, average="none").numpy(), atol=1e-6)
    for fraction, top in ((result.top1, 1), (result.top5, 5)):
        other = functions.multiclass_accuracy(x, y, classes, top_k=top, average="micro")
        assert fraction == pytest.approx(other.item(), abs=1e-6)
    assert result.confusion.tolist() == functions.multiclass_confusion_matrix(x, y, classes).tolist()
    assert result.ece == pytest.approx(
        functions.multiclass_calibration_error(x, y, classes, n_bins=15).item(), abs=1e-6
    )
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(torch.tensor(logits), y).item())


def test_coverage_by_hand() -> None:
    confidence = np.array([0.5, 0.9, 0.5, 0.7])
    rank = np.array([0, 0, 1, 2])
    nothing = np.zeros(4, np.int64)
    curve = coverage(Answers(np.arange(4), nothing, nothing, confidence, confidence, rank))
    assert curve.threshold.tolist() == [0.9, 0.7, 0.5]  # both images with 0.5 at once
    assert curve.coverage.tolist() == [0.25, 0.5, 1.0]
    assert curve.accuracy.tolist() == [1.0, 0.5, 0.5]
    assert curve.at(0.95) == (0.0, None)
    assert curve.at(0.7) == (0.5, 0.5)
    assert curve.at(0.0) == (1.0, 0.5)
    empty = coverage(judge(np.empty((0, 2)), np.empty(0, int)))
    assert empty.at(0.0) == (0.0, None)


def test_mistakes_and_confused_pairs_are_sorted_worst_first() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    predicted = np.array([1, 1, 0, 2, 1, 2])
    sure = np.array([1.0, 5.0, 9.0, 3.0, 2.0, 1.0])
    logits = np.zeros((6, 3))
    logits[np.arange(6), predicted] = sure
    answers = judge(logits, labels)
    assert worst_mistakes(answers).tolist() == [1, 3, 4, 0]
    result = metrics_of(answers, CLASSES)
    assert confused(result, 2) == [
        dict(true="cat", predicted="dog", count=2, fraction=pytest.approx(2 / 3)),
        dict(true="dog", predicted="fox", count=1, fraction=1.0),
    ]
    assert len(confused(result)) == 3


def test_json_counts_every_image() -> None:
    row = json.loads(json.dumps(as_dict(by_hand(errors={"empty": 2})), allow_nan=False))
    assert row["images"] == 6
    assert sum(count for _, _, count in row["confusion"]) == row["count"] == 4
    assert [0, 2, 1] in row["confusion"]
    assert row["per_class"][2]["f1"] is None
    assert row["top1_of_all"] == pytest.approx(2 / 6)
