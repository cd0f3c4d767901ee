"""The order and the pixels of batches depend on the seed, and not on the processes that read them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tessella.data.augment import Augmentation, TrainTransform
from tessella.data.datasets import open_labelled
from tessella.data.loader import Batch, EvalImages, Loader, Schedule, TrainImages, eval_batches
from tessella.data.mix import Erasing
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels

from ..training.small_runs import make_images

SPEC = InputSpec(height=16, width=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_split_every_batch(world_size: int, repeats: int) -> None:
    single = Schedule(100, 12, seed=5, repeats=repeats)
    schedules = [Schedule(100, 12, 5, repeats, rank, world_size) for rank in range(world_size)]
    for epoch in (0, 7):
        batches = single.epoch(epoch)
        assert len(batches) == single.steps == 8
        for k, batch in enumerate(batches):
            parts = [schedule.epoch(epoch)[k] for schedule in schedules]
            assert {len(part) for part in parts} == {12 // world_size}
            assert sorted(draw for part in parts for draw in part) == sorted(batch)
        draws = [draw for batch in batches for draw in batch]
        assert len(set(draws)) == len(draws) == 96
        assert set(Counter(draw.image for draw in draws).values()) == {repeats}
        assert {draw.epoch for draw in draws} == {epoch}
    assert single.epoch(0) != single.epoch(1)
    assert single.epoch(0) != Schedule(100, 12, 6, repeats).epoch(0)


def test_every_image_occurs_over_the_epochs() -> None:
    schedule = Schedule(10, 4, seed=0)
    seen = Counter(draw.image for epoch in range(50) for batch in schedule.epoch(epoch) for draw in batch)
    assert set(seen) == set(range(10))
    assert max(seen.values()) < 50  # no image occurs in every epoch


def batches(folder: Path, workers: int, erase: float, epochs: tuple[int, ...] = (0, 1)) -> list[Batch]:
    images = open_labelled(folder, "train")
    transform = TrainTransform(SPEC, Augmentation(auto_augment="rand-m9-mstd0.5-inc1"))
    loader = Loader(TrainImages(images, transform, Erasing(prob=erase, mode="pixel"), seed=1), workers)
    schedule = Schedule(len(images), 16, seed=1)
    return [batch for epoch in epochs for batch in loader.run(schedule.epoch(epoch))]


@pytest.mark.parametrize("erase", [0.0, 0.5])
def test_workers_do_not_change_the_batches(folder: Path, erase: float) -> None:
    none, two = batches(folder, 0, erase), batches(folder, 2, erase)
    assert len(none) == len(two) == 6
    for a, b in zip(none, two, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.labels, b.labels)
        assert a.x.dtype == (torch.float32 if erase else torch.uint8)
    later = batches(folder, 0, erase, epochs=(1,))  # a run resumed at the second epoch
    assert all(torch.equal(a.x, b.x) for a, b in zip(none[3:], later, strict=True))
    assert not torch.equal(none[0].x, none[3].x)


def test_repetitions_of_an_image_are_augmented_differently(folder: Path) -> None:
    images = open_labelled(folder, "train")
    dataset = TrainImages(images, TrainTransform(SPEC, Augmentation()), Erasing(), seed=0)
    (batch,) = Loader(dataset, 0).run(Schedule(len(images), 4, 0, repeats=2).epoch(0)[:1])
    assert not torch.equal(batch.x[0], batch.x[1])


def test_unreadable_images_are_reported_and_the_others_kept(folder: Path, tmp_path: Path) -> None:
    broken = make_images(tmp_path / "data")
    (broken / "val" / "dark" / "1.png").write_bytes(b"nothing")
    images = open_labelled(broken, "val")
    loaded = list(Loader(EvalImages(images, SPEC), 2, persistent=False).run(eval_batches(len(images), 10)))
    assert [len(batch.labels) + len(batch.skipped) for batch in loaded] == [10, 10, 4]
    (index, error), *rest = [skip for batch in loaded for skip in batch.skipped]
    assert not rest
    assert images.key(index).endswith("dark/1.png")
    assert error.code == "unsupported_format"
    good = [i for i in range(len(images)) if i != index]
    assert torch.cat([batch.labels for batch in loaded]).tolist() == [int(images.labels[i]) for i in good]
    expected = np.stack([load_pixels(images.read(i), SPEC) for i in good])
    assert np.array_equal(torch.cat([batch.x for batch in loaded]).numpy(), expected)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_reads_each_image_once(world_size: int) -> None:
    schedules = [eval_batches(7, 2, rank, world_size) for rank in range(world_size)]
    assert sorted(i for schedule in schedules for batch in schedule for i in batch) == list(range(7))
