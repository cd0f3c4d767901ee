"""Records from outputs: softmax, unit length, the order of classes, and numbers that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tessella.errors import ImageError
from tessella.results import ClassNames, Output, Prediction, Record, l2_normalize, make_record, softmax

CLASSES = ClassNames(("a", "b", "c"), ("n1", "n2", "n3"))


def output(logits: list[float], embedding: list[float]) -> Output:
    return Output(np.array(logits, np.float32), np.array(embedding, np.float32))


def test_softmax_is_stable_and_sums_to_one() -> None:
    rows = softmax(np.array([[1000, 1000, 0], [-1000, -1001, -1002]], np.float32))
    assert rows.dtype == np.float32
    assert_allclose(rows.sum(1), 1, atol=1e-6)
    assert_allclose(rows[0], [0.5, 0.5, 0], atol=1e-6)


def test_rows_of_zeros_have_no_direction() -> None:
    rows = l2_normalize(np.array([[3, 4], [0, 0]], np.float32))
    assert rows.dtype == np.float32
    assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)


@pytest.mark.parametrize(("top", "indices"), [(1, [1]), (2, [1, 0]), (3, [1, 0, 2]), (9, [1, 0, 2])])
def test_equal_probabilities_are_ordered_by_index(top: int, indices: list[int]) -> None:
    found = CLASSES.top_predictions(np.array([0.2, 0.6, 0.2], np.float32), top)
    assert [prediction.index for prediction in found] == indices
    assert found[0] == Prediction(1, "b", float(np.float32(0.6)), "n2")


@pytest.mark.parametrize("top", [0, 1, 3, 7, 8, 20])
def test_the_best_classes_are_those_of_a_complete_sort(top: int) -> None:
    rng = np.random.default_rng(top)
    names = ClassNames(tuple(map(str, range(8))))
    for _ in range(50):
        probabilities = rng.integers(0, 4, 8).astype(np.float32)  # many equal ones
        probabilities[rng.random(8) < 0.1] = np.nan
        expected = np.argsort(-probabilities, kind="stable")[:top].tolist()
        assert [prediction.index for prediction in names.top_predictions(probabilities, top)] == expected


def test_classes_without_synsets() -> None:
    (found,) = ClassNames(("a", "b")).top_predictions(np.array([0.1, 0.9], np.float32), 1)
    assert (found.label, found.synset) == ("b", "")


def test_a_record_has_the_requested_parts() -> None:
    outcome = output([0, 2, 1], [0, 5])
    record = make_record("k", outcome, CLASSES, top=2, embed=True)
    assert (record.key, record.status, record.message) == ("k", "ok", "")
    assert [prediction.label for prediction in record.top] == ["b", "c"]
    assert record.embedding is not None
    assert record.embedding.tolist() == [0, 1]
    assert make_record("k", outcome, CLASSES, top=0, embed=False) == Record("k", "ok")


def test_an_error_is_a_record_with_code_message_and_hint() -> None:
    error = ImageError("empty", "no bytes", hint="look")
    assert make_record("k", error, CLASSES, top=2, embed=True) == Record("k", "empty", "no bytes (look)")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["logits", "embedding"])
def test_numbers_that_are_not_finite_are_an_error(part: str, bad: float) -> None:
    outcome = output([0, bad if part == "logits" else 0, 1], [bad if part == "embedding" else 1])
    assert not outcome.is_finite
    record = make_record("k", outcome, CLASSES, top=1, embed=True)
    assert (record.status, record.top, record.embedding) == ("non_finite", (), None)
    assert record.message
