"""Answers of two models: accuracy by class, kinds of change, agreement, and classes that are matched by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.comparison.answers import (
    accuracy_change,
    agreement_of,
    answers_of,
    changed_answers,
    match_answers,
    total_variation,
)
from tessella.comparison.images import ComparedImages
from tessella.comparison.outputs import ModelOutputs
from tessella.comparison.paired import paired_difference
from tessella.comparison.subjects import MAKING, ComparedModel
from tessella.data.source import Source

LETTERS = tuple("abc")


class Listed:
    """Images with numbers as keys."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return str(index)

    def source(self, index: int) -> Source:
        self.read.append(index)
        return Source(str(index), f"/{index}.png")


def subject(labels: Any, name: str = "m") -> ComparedModel:
    return ComparedModel(name, tuple(labels), (), dict.fromkeys(MAKING, "x"), 4)


def images_of(labels: Any, classes: Any = LETTERS) -> ComparedImages:
    return ComparedImages(Listed(len(labels)), "data", "f", tuple(classes), np.array(labels))


def outputs_of(answers: Any, confidence: Any = None) -> ModelOutputs:
    answers = np.array(answers)
    certain = np.full(len(answers), 0.5, np.float32) if confidence is None else np.array(confidence, np.float32)
    return ModelOutputs(np.where(answers < 0, "empty", "ok"), answers, certain, np.zeros((len(answers), 4), np.float32))


def test_gained_and_lost_images_by_class() -> None:
    images = images_of([0, 0, 0, 1, 1, 2, 2])
    old, new = outputs_of([0, 1, 0, 1, 2, 0, -1]), outputs_of([0, 0, 2, 1, 0, 2, 2])
    classes = match_answers(subject(LETTERS), subject(LETTERS), images)
    assert classes.true is not None
    both = old.ok & new.ok
    old_N, new_N = answers_of(old, classes.old), answers_of(new, classes.new)
    result = accuracy_change(old_N, new_N, images, classes.true, both)
    assert (result.images, result.gained, result.lost) == (6, 2, 1)  # the last image was not read by the old model
    assert (result.old, result.new) == (3 / 6, 4 / 6)
    assert result.change == paired_difference(6, 2, 1)
    rows = {row.label: row[1:] for row in result.by_class}
    assert rows == {"a": (3, 2 / 3, 2 / 3, 1, 1), "b": (2, 0.5, 0.5, 0, 0), "c": (1, 0, 1, 1, 0)}
    agreement = agreement_of(old_N, new_N, both)
    assert agreement.share == 2 / 6


def test_changes_are_sorted_by_kind_and_certainty() -> None:
    items = Listed(6)
    images = replace(images_of([0, 0, 0, 1, 1, 2]), items=items)
    old = (subject(LETTERS, "o"), outputs_of([1, 1, 0, 0, 0, 2], [0.6] * 6))
    new = (subject(LETTERS, "n"), outputs_of([0, 0, 1, 2, 0, 0], [0.7, 0.9, 0.5, 0.8, 0.99, 0.4]))
    classes = match_answers(old[0], new[0], images)
    answers = [(*side, answers_of(side[1], numbers)) for side, numbers in ((old, classes.old), (new, classes.new))]
    both = np.array([True] * 6)
    changes = list(changed_answers(answers[0], answers[1], images, classes, both))
    assert [(change.change, change.row) for change in changes] == [
        ("gained", 1),
        ("gained", 0),
        ("lost", 2),
        ("lost", 5),
        ("changed", 3),  # image 4 has the same wrong answer
    ]
    first = changes[0]
    assert (first.label, first.old, first.new, first.key, first.source) == ("a", "b", "a", "1", "/1.png")
    assert (first.old_probability, first.new_probability) == (0.6, 0.9)
    assert items.read == [0, 1, 2, 3, 5]  # in the order of a listing, of which a run has one shard in memory


def test_classes_are_matched_by_name() -> None:
    images = images_of([0, 1, 2, 0])
    shuffled = subject("cab")
    classes = match_answers(subject(LETTERS), shuffled, images)
    assert classes.same
    assert classes.true is not None
    old, new = outputs_of([0, 1, 2, 0]), outputs_of([1, 2, 0, 1])
    both = old.ok
    old_N, new_N = answers_of(old, classes.old), answers_of(new, classes.new)
    assert agreement_of(old_N, new_N, both).share == 1
    assert accuracy_change(old_N, new_N, images, classes.true, both).new == 1


def test_a_repeated_name_is_a_class_of_its_own() -> None:
    """ImageNet has two classes called crane."""
    twice = subject(("crane", "crane", "owl"))
    classes = match_answers(twice, twice, ComparedImages(Listed(2), "data", "f"))
    assert classes.same
    assert len(set(classes.old.tolist())) == 3


def test_more_classes_than_the_data_has() -> None:
    """Answers are compared if both models know the classes of the data; another class is wrong."""
    images = images_of([0, 1, 1])
    images = ComparedImages(images.items, "data", "f", ("a", "b"), images.labels)
    classes = match_answers(subject("ab"), subject("abz"), images)
    assert not classes.same
    assert classes.comparable
    assert classes.true is not None
    old_N, new_N = answers_of(outputs_of([0, 1, 1]), classes.old), answers_of(outputs_of([0, 2, 1]), classes.new)
    result = accuracy_change(old_N, new_N, images, classes.true, np.ones(3, bool))
    assert (result.lost, result.gained) == (1, 0)


@pytest.mark.parametrize("labelled", [True, False])
def test_other_classes_cannot_be_compared(labelled: bool) -> None:
    images = images_of([0, 1]) if labelled else ComparedImages(Listed(2), "data", "f")
    classes = match_answers(subject("ab", "first"), subject("xyz", "second"), images)
    assert not classes.comparable
    assert classes.why.startswith("labels are not used: " if labelled else "first and second have different classes")
    assert classes.why.endswith("first and second have different classes, so only embeddings are compared")
    without = match_answers(subject("", "first"), subject("abc"), images)
    assert without.why == "first has no classifier, so only embeddings are compared"
    without = match_answers(subject("abc"), replace(subject(""), run=Path("out")), images)
    assert without.why == "the run out has no classes, so only embeddings are compared"
    assert not without.comparable
    assert answers_of(outputs_of([-1, -1]), without.old).tolist() == [-1, -1]


def test_kappa_is_that_of_the_definition() -> None:
    """Cohen's own formula for a table of 2 x 2."""
    old, new = np.array([0] * 45 + [1] * 55), np.array([0] * 30 + [1] * 15 + [0] * 10 + [1] * 45)
    result = agreement_of(old, new, np.ones(100, bool))
    chance = 0.45 * 0.40 + 0.55 * 0.60
    assert result.share == 0.75
    assert result.kappa == pytest.approx((0.75 - chance) / (1 - chance))
    assert agreement_of(old * 0, new * 0, np.ones(100, bool)).kappa is None


def test_total_variation_compares_the_same_classes() -> None:
    old = np.array([[0.5, 0.3, 0.2], [1, 0, 0]], np.float32)
    numbers = np.array([0, 1, 2])
    assert total_variation(old, old[:, [2, 0, 1]], numbers, numbers[[2, 0, 1]]) == pytest.approx(0, abs=1e-7)
    assert total_variation(old, old[:, ::-1], numbers, numbers) == pytest.approx((0.3 + 1) / 2)


def test_total_variation_adds_classes_of_the_same_name() -> None:
    """ImageNet has two classes named crane; in the other model, they are in another order."""
    numbers = np.array([0, 1, 0])
    old = np.array([[0.5, 0.3, 0.2]], np.float32)
    assert total_variation(old, old[:, [2, 1, 0]], numbers, numbers) == pytest.approx(0, abs=1e-7)
    assert total_variation(old, old[:, [0, 2, 1]], numbers, numbers) == pytest.approx(0.1)
