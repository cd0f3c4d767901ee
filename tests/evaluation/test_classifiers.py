"""Nearest neighbors and linear classifiers find known solutions; their parameters are chosen on held-out data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessella.evaluation import classifiers
from tessella.evaluation.classifiers import (
    DRAWS,
    STRENGTHS,
    Scale,
    choose_neighbors,
    choose_strength,
    few_shot,
    fit,
    minimize,
    neighbors,
    vote,
)
from tessella.results import l2_normalize, softmax


def clouds(count: int, spread: float, seed: int = 0, classes: int = 3, width: int = 6) -> tuple[Any, Any]:
    """Return (N,D) points around a centre for each class, and their labels."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    points = centres[labels] + spread * rng.normal(size=(count, width))
    return points.astype(np.float32), labels


def test_held_out_images() -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 2, 1, 0]
    many = classifiers.hold_out(np.repeat([0, 1], 40_000), np.random.default_rng(0))
    assert many.sum() == classifiers.MAX_HELD_OUT
    assert many[:40_000].sum() == many[40_000:].sum()


def test_defaults_are_used_with_one_image_per_class() -> None:
    x, _ = clouds(3, 0)
    labels = np.arange(3)
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    assert not held.any()
    assert choose_neighbors(x, labels, held, 3) == 1
    assert choose_strength(x, labels, held, 3) == pytest.approx(0.4 * 6)


def test_the_number_of_neighbours_is_chosen() -> None:
    x, labels = clouds(900, 0.05)
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    assert choose_neighbors(x, labels, held, 3) == 1  # all are correct: the smallest k
    wrong = np.random.default_rng(1).random(900) < 0.35
    labels = np.where(wrong, (labels + 1) % 3, labels)
    assert choose_neighbors(x, labels, held, 3) >= 10  # a third of the labels is wrong: many neighbors are needed
    few = np.flatnonzero(np.arange(900) < 8)
    assert choose_neighbors(x[few], labels[few], np.arange(8) < 2, 3) <= 6


def test_the_penalty_is_chosen() -> None:
    x, labels = clouds(600, 4.0, width=40)
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    chosen = choose_strength(x, labels, held, 3)
    assert 1e-2 < chosen < 1e4
    chance = np.random.default_rng(5).integers(0, 3, 600)
    assert choose_strength(x, chance, held, 3) > 10 * chosen


def test_the_penalty_is_chosen_on_a_subset_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clouds(2000, 1.5)
    order = np.argsort(labels)  # as in folders
    x, labels = x[order], labels[order]
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    chosen = choose_strength(x, labels, held, 3)
    sizes = []

    def counted(z_ND: Any, labels_N: Any, *rest: Any) -> Any:
        sizes.append((len(z_ND), len(set(labels_N))))
        return minimize(z_ND, labels_N, *rest)

    monkeypatch.setattr(classifiers, "minimize", counted)
    monkeypatch.setattr(classifiers, "MAX_FITTED", 500)
    assert 0.1 <= choose_strength(x, labels, held, 3) / chosen <= 10
    assert {(400, 3)} == set(sizes)
    sizes.clear()
    chance = np.random.default_rng(5).integers(0, 3, 2000)
    choose_strength(x, chance, held, 3)
    assert 1 < len(sizes) < len(STRENGTHS)  # stops before the weakest, as soon as the loss rises


def test_neighbours_are_the_nearest_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, _), (bank, labels) = clouds(50, 1, 1), clouds(70, 1, 2)
    cosines = l2_normalize(x) @ l2_normalize(bank).T
    order = np.argsort(-cosines, 1)[:, :5]
    unsplit = neighbors(x, bank, labels, 5)
    assert np.allclose(unsplit[0], np.take_along_axis(cosines, order, 1), atol=1e-6)
    assert np.array_equal(unsplit[1], labels[order])
    assert neighbors(x, bank, labels, 500)[0].shape == (50, 70)


def test_votes_weigh_by_cosine() -> None:
    cosines, labels = np.array([[0.9, 0.8, 0.79]], np.float32), np.array([[2, 0, 0]])
    shares = softmax(vote(cosines, labels, 4))[0]
    votes = np.exp(np.array([[0.8, 0.79], [0.9, -np.inf]]) / 0.07).sum(1)
    assert shares[[0, 2]] == pytest.approx(votes / votes.sum(), rel=3e-3)
    assert shares.argmax() == 2  # nearer than both others together
    assert 0 < shares[1] == shares[3] < 1e-3  # without votes, the loss is still finite


@pytest.mark.parametrize("strength", [100.0, 1.0])
def test_the_minimum_is_found(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clouds(300, 1.5)
    z = Scale.of(x)(x)
    solution = minimize(z, labels, 3, strength)
    weight, bias = solution[:, :-1], solution[:, -1]
    powers = np.exp(z @ weight.T + bias)
    excess = powers / powers.sum(1, keepdims=True) - np.eye(3)[labels]
    # the gradient is zero at the minimum
    assert np.abs(excess.T @ z + strength * weight).max() / 300 < 1e-5
    assert np.abs(excess.sum(0)).max() / 300 < 1e-5
    monkeypatch.setattr(classifiers, "CHUNK", 64)
    in_parts = minimize(z, labels, 3, strength, start=solution + 1)
    assert np.allclose(in_parts[:, :-1], weight, atol=2e-3)


def test_the_scale_folds_into_the_head() -> None:
    x, labels = clouds(200, 0.5)
    x *= np.array([1e-3, 1, 1e3, 1, 1, 1], np.float32)
    x[:, 3] = 7 + 1e-6 * np.random.default_rng(0).normal(size=200)  # the noise of float32 around a constant
    scale = Scale.of(x)
    z = scale(x)
    assert np.abs(z[:, [0, 1, 2, 4, 5]].mean(0)).max() < 1e-5
    assert np.abs(z[:, [0, 1, 2, 4, 5]].std(0) - 1).max() < 1e-5
    assert not z[:, 3].any()
    head = fit(x, labels, 3, 1.0)
    assert not head.weight[:, 3].any()
    expected = classifiers.logits_of(z, minimize(z, labels, 3, 1.0))
    assert np.abs(head(x) - expected).max() < 1e-3 * np.abs(expected).max()
    together = Scale.of(x, by_component=False)
    assert len(set(together.factor[together.factor > 0])) == 1


def test_few_shot_figures() -> None:
    (x, labels), (seen, seen_labels) = clouds(400, 1.2), clouds(400, 1.2, seed=1)
    names = ("x", "y", "z")
    rng = np.random.default_rng(0)
    figures, notes = few_shot(x, labels, seen, seen_labels, (1, 10, 100), names, rng)
    assert not notes
    assert [(item.shots, item.draws) for item in figures] == [(1, DRAWS), (10, DRAWS), (100, DRAWS)]
    assert 1 / 3 < figures[0].top1 < figures[1].top1 < figures[2].top1
    assert figures[0].spread > figures[2].spread > 0
    assert figures[2].top1 > (fit(x, labels, 3, 1.0)(seen).argmax(1) == seen_labels).mean() - 0.03
    few = np.concatenate([np.flatnonzero(labels == 0)[:3], np.flatnonzero(labels > 0)])
    figures, notes = few_shot(x[few], labels[few], seen, seen_labels, (3, 4, 5), names, rng)
    assert [item.shots for item in figures] == [3]
    assert notes == [f"no few-shot result for {n} examples per class: 'x' has 3" for n in (4, 5)]
    assert few_shot(x, labels, seen, seen_labels, (1000,), names, rng)[0] == []
    same, other = (
        few_shot(x, labels, seen, seen_labels, (1,), names, np.random.default_rng(seed))[0] for seed in (7, 8)
    )
    assert same == few_shot(x, labels, seen, seen_labels, (1,), names, np.random.default_rng(7))[0] != other
