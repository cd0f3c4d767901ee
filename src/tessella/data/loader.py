"""Batches for training and for evaluation from labelled images: in an order that a seed and an epoch decide alone.

What a sample is, its crop, its colours, is a function of (seed, epoch, position): neither the number of worker
processes nor the number of training processes nor a restart in the middle of an epoch changes it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import ImageError
from .augment import TrainTransform
from .datasets import LabelledImages
from .mix import Erasing, erase
from .spec import InputSpec
from .transforms import load_pixels, normalise

_ORDER, _SAMPLE = 1, 2  # keep the random numbers of the order of images and of their augmentation apart


class Batch(NamedTuple):
    """x: (B,H,W,C) uint8 pixels, or (B,C,H,W) float32 where parts were erased; labels: (B,) int64.

    skipped: (index, error) of the images that could not be read; they are in neither.
    """

    x: Tensor
    labels: Tensor
    skipped: list[tuple[int, ImageError]]


class Draw(NamedTuple):
    """One image of an epoch; copy tells the repetitions of the same image apart."""

    epoch: int
    image: int  # its index
    copy: int


@dataclass(frozen=True)
class Schedule:
    """Which images each step of each epoch has: all of a global batch, and a process's own share of it.

    An epoch is a permutation cut into whole batches; the rest, less than a batch, is another in each epoch. With
    `repeats`, it is the first 1/repeats of a permutation, each image that many times in a row.
    """

    count: int  # images there are
    batch_size: int  # of all processes
    seed: int
    repeats: int = 1
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """In an epoch."""
        return max(self.count // self.batch_size, 1)

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """This process's share of every batch; the shares of all processes are the batch, each image once."""
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.count)
        size = min(self.batch_size, self.count)
        draws = [Draw(epoch, int(order[i // self.repeats]), i % self.repeats) for i in range(self.steps * size)]
        return [draws[k * size : (k + 1) * size][self.rank :: self.world] for k in range(self.steps)]


class TrainImages(Dataset[Any]):
    """Augmented images by `Draw`; an image that cannot be read is its error."""

    def __init__(self, images: LabelledImages, transform: TrainTransform, erasing: Erasing, seed: int):
        self.images, self.transform, self.erasing, self.seed = images, transform, erasing, seed

    def __getitem__(self, draw: Draw) -> tuple[Tensor | None, int, int, ImageError | None]:
        rng = np.random.default_rng([self.seed, _SAMPLE, *draw])
        label = int(self.images.labels[draw.image])
        try:
            pixels = self.transform.pixels(self.images.read(draw.image), rng)
        except ImageError as error:
            return None, label, draw.image, error
        x = torch.from_numpy(np.ascontiguousarray(pixels))
        if self.erasing.prob:
            x = erase(normalise(x[None], self.transform.spec)[0], rng, self.erasing)
        return x, label, draw.image, None


class EvalImages(Dataset[Any]):
    """Images prepared as for inference, by index."""

    def __init__(self, images: LabelledImages, spec: InputSpec):
        self.images, self.spec = images, spec

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, int, ImageError | None]:
        label = int(self.images.labels[index])
        try:
            return torch.from_numpy(load_pixels(self.images.read(index), self.spec)), label, index, None
        except ImageError as error:
            return None, label, index, error


def collate(items: list[tuple[Tensor | None, int, int, ImageError | None]]) -> Batch:
    good = [(x, label) for x, label, _, _ in items if x is not None]
    skipped = [(index, error) for _, _, index, error in items if error is not None]
    x = torch.stack([x for x, _ in good]) if good else torch.empty(0)
    return Batch(x, torch.tensor([label for _, label in good], dtype=torch.int64), skipped)


class _Batches:
    """What DataLoader asks for batches of draws; set before each epoch, so that its processes live through all."""

    def __init__(self) -> None:
        self.now: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


class Loader:
    """Runs a dataset's batches through worker processes, in order."""

    def __init__(self, dataset: Dataset[Any], workers: int, *, pin: bool = False, persistent: bool = True):
        self._batches = _Batches()
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self._batches,  # of draws rather than numbers
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=persistent and workers > 0,
            worker_init_fn=_start,
        )

    def run(self, batches: list[list[Any]]) -> Iterator[Batch]:
        self._batches.now = batches
        yield from self._loader


def _start(_: int) -> None:
    torch.set_num_threads(1)  # the processes are the parallelism
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # sent to a whole group: the trainer decides
        signal.signal(number, signal.SIG_IGN)


def eval_batches(count: int, batch_size: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Every index once, over all processes: nothing is padded or dropped."""
    mine: NDArray[np.int64] = np.arange(rank, count, world)
    return [mine[i : i + batch_size].tolist() for i in range(0, len(mine), batch_size)]
