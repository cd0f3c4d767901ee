"""The shares of several sets of images in every batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tessella.data.loader import Draw, Schedule
from tessella.data.mixture import Mixture
from tessella.errors import UsageError


def schedule_of(mixture: Mixture, batch_size: int = 10, **more: int) -> Schedule:
    return Schedule(sum(mixture.sizes), batch_size, seed=3, mixture=mixture, **more)


def counts(batch: list[Draw], mixture: Mixture) -> list[int]:
    """Return the number of images of each set in a batch."""
    ends = np.cumsum(mixture.sizes)
    return np.bincount(
        np.searchsorted(ends, [draw.image for draw in batch], side="right"), minlength=len(ends)
    ).tolist()


def test_shares_follow_the_numbers_of_images_or_what_is_stated() -> None:
    assert Mixture.of(50, (30, 20)) == Mixture((50, 30, 20), (0.5, 0.3, 0.2))
    assert Mixture.of(50, (30, 20), 0.8).shares == pytest.approx((0.2, 0.48, 0.32))
    assert Mixture.of(50, (30, 20), 0.8, (1.0, 3.0)).shares == pytest.approx((0.2, 0.2, 0.6))
    with pytest.raises(UsageError, match="for 2 sets of unlabeled images") as caught:
        Mixture.of(50, (30, 20), None, (1.0,))
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(
    "mixture", [Mixture.of(50, (30, 20)), Mixture.of(40, (60,), 0.33), Mixture.of(9, (1, 90), 0.5)]
)
def test_every_batch_has_the_shares_up_to_one_image(mixture: Mixture) -> None:
    schedule = schedule_of(mixture)
    expected = 10 * np.array(mixture.shares)
    for epoch in (0, 1):
        for batch in schedule.epoch(epoch):
            assert np.abs(counts(batch, mixture) - expected).max() < 1.5
    total = np.sum([counts(batch, mixture) for batch in schedule.epoch(0)], axis=0)
    np.testing.assert_allclose(total, 10 * schedule.steps * np.array(mixture.shares), atol=1)


def test_at_the_default_shares_an_epoch_has_each_image_once() -> None:
    mixture = Mixture.of(50, (30, 20))
    epochs = [schedule_of(mixture).epoch(epoch) for epoch in (0, 1)]
    for batches in epochs:
        assert sorted(draw.image for batch in batches for draw in batch) == list(range(100))
    assert epochs[0] != epochs[1]
    assert schedule_of(mixture).epoch(1) == epochs[1]  # a function of seed and epoch


def test_a_small_set_is_repeated_with_other_crops() -> None:
    schedule = schedule_of(Mixture.of(4, (96,), 0.5))
    draws = [draw for batch in schedule.epoch(0) for draw in batch]
    assert len(draws) == len(set(draws)) == 100  # an image with the same number of its copy would have the same crop
    few = Counter(draw.image for draw in draws if draw.image < 4)
    assert sorted(few.values()) == [12, 12, 13, 13]
    assert max(Counter(draw.image for draw in draws if draw.image >= 4).values()) == 1


def test_sets_are_in_random_order_within_a_batch() -> None:
    mixture = Mixture.of(500, (500,))
    firsts = [batch[0].image < 500 for batch in schedule_of(mixture).epoch(0)]
    assert 0.3 < np.mean(firsts) < 0.7


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_processes_and_repeats(repeats: int, world_size: int) -> None:
    mixture = Mixture.of(60, (40,), 0.5)
    single = Schedule(100, 12, 3, repeats, mixture=mixture).epoch(2)
    parts = [Schedule(100, 12, 3, repeats, rank, world_size, mixture).epoch(2) for rank in range(world_size)]
    for k, batch in enumerate(single):
        assert sorted(draw for part in parts for draw in part[k]) == sorted(batch)
    draws = [draw for batch in single for draw in batch]
    assert len(set(draws)) == len(draws) == 96
    assert {count % repeats for count in Counter(draw.image for draw in draws).values()} == {0}
