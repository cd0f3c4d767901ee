"""Batches of labeled images for training and evaluation, in an order that depends only on a seed and the epoch.

A sample, with its crop and its colors, is a function of (seed, epoch, position): neither the number of worker
processes nor the number of training processes nor a restart in the middle of an epoch changes it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import ImageError
from ..signals import SIGNALS
from .augment import TrainTransform
from .datasets import LabelledImages
from .mix import Erasing, erase
from .mixture import Ints, Mixture
from .resize import resize_exact
from .row_cache import RowCache, RowKey, checksum
from .spec import InputSpec
from .transforms import load_pixels, normalise
from .unlabelled import ImagePool

_ORDER, _SAMPLE = 1, 2  # separate the random numbers of the order from those of the augmentation


class CachedCrop(NamedTuple):
    """A crop with its key in a `RowCache`, and its row or, if there is none, the pixels from which it is computed.

    row: (D,) float16. rendered: (H,W,C) uint8.
    """

    key: RowKey
    row: Tensor | None
    rendered: Tensor | None


class CachedCrops(NamedTuple):
    """The crops of a batch of B images; K of them have a cached row.

    They are packed into a few tensors because a loader process uses one file descriptor per tensor that it sends.
    keys: one per crop. known: (B,) bool, True for crops with a cached row. rows: (K,D) float16. rendered:
    (B-K,H,W,C) uint8 pixels of the other crops.
    """

    keys: list[RowKey]
    known: Tensor
    rows: Tensor
    rendered: Tensor

    @classmethod
    def of(cls, crops: Sequence[CachedCrop]) -> CachedCrops:
        """Combine the crops of a batch."""
        rows = [crop.row for crop in crops if crop.row is not None]
        rendered = [crop.rendered for crop in crops if crop.rendered is not None]
        return cls(
            [crop.key for crop in crops],
            torch.tensor([crop.row is not None for crop in crops], dtype=torch.bool),
            torch.stack(rows) if rows else torch.empty(0, dtype=torch.float16),
            torch.stack(rendered) if rendered else torch.empty(0, dtype=torch.uint8),
        )


class Sample(NamedTuple):
    """One image: pixels or the error that prevents them, its label, and its position in the data set."""

    x: Tensor | None
    label: int
    position: int
    error: ImageError | None
    crop: CachedCrop | None = None


class Batch(NamedTuple):
    """A batch of B images without those that could not be read.

    x: (B,H,W,C) uint8 pixels, or (B,C,H,W) float32 with random erasing. labels: (B,) int64. skipped: (index, error) of
    the images that could not be read. crops: if there is a `RowCache`, what it has about the B images.
    """

    x: Tensor
    labels: Tensor
    skipped: list[tuple[int, ImageError]]
    crops: CachedCrops | None = None


class Draw(NamedTuple):
    """One image of an epoch.

    epoch: the epoch that this one repeats, or this epoch. copy: numbers the repetitions of the same image in this
    epoch. place: position in the epoch that is repeated.
    """

    epoch: int
    image: int  # index in the data set
    copy: int
    place: int = 0


Batches: TypeAlias = list[list[Draw]] | list[list[int]]


@dataclass(frozen=True)
class Schedule:
    """The images of each step of each epoch: the global batch, and the part of it that one process takes.

    An epoch is a permutation cut into complete batches. The remainder, less than a batch, is left out, and differs
    between epochs. With `repeats`, an epoch is the first 1/repeats of a permutation, with each image that many times in
    a row. With a mixture, which describes the same `count` images, every batch has the shares of the mixture instead,
    and an epoch has as many images as without it.

    cycle: number of epochs after which the crops repeat, in another order; 0: never.
    """

    count: int  # number of images
    batch_size: int  # global, over all processes
    seed: int
    repeats: int = 1
    rank: int = 0
    world_size: int = 1
    mixture: Mixture | None = None
    cycle: int = 0

    @property
    def steps(self) -> int:
        """Number of steps per epoch."""
        return max(self.count // self.batch_size, 1)

    @property
    def places(self) -> int:
        """Number of positions in an epoch; the last repetitions of an image may be left out."""
        return -(-self.steps * min(self.batch_size, self.count) // self.repeats) * self.repeats

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """Return this process's part of every batch; the parts of all processes together are the global batch."""
        size, n = min(self.batch_size, self.count), self.repeats
        first = epoch % self.cycle if self.cycle else epoch
        order, rounds = self._order(np.random.default_rng([self.seed, _ORDER, first]))
        groups = np.arange(len(order)) if first == epoch else self._shuffled(order, epoch)
        draws = [
            Draw(first, int(order[group]), int(rounds[group]) * n + copy, group * n + copy)
            for group in groups.tolist()
            for copy in range(n)
        ]
        return [draws[k * size : (k + 1) * size][self.rank :: self.world_size] for k in range(self.steps)]

    def _order(self, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return the images of an epoch without their repetitions, and how often each was drawn before in it."""
        count = self.places // self.repeats
        if self.mixture is None:
            return rng.permutation(self.count)[:count], np.zeros(count, np.int64)
        return self.mixture.order(rng, count, max(min(self.batch_size, self.count) // self.repeats, 1))

    def _shuffled(self, order: Ints, epoch: int) -> Ints:
        """Return a permutation of the positions in `order`; every position keeps the set of the mixture it had."""
        rng = np.random.default_rng([self.seed, _ORDER, epoch])
        if self.mixture is None:
            return rng.permutation(len(order))
        groups, sets = np.empty_like(order), self.mixture.sets_of(order)
        for k in range(len(self.mixture.sizes)):
            places = np.flatnonzero(sets == k)
            groups[places] = rng.permutation(places)
        return groups


class TrainImages(Dataset[Sample]):
    """Augmented images, indexed by `Draw`; an image that cannot be read is returned as its error.

    cached: where rows about the crops are kept, and to which size the crops are reduced.
    """

    def __init__(
        self,
        images: LabelledImages | ImagePool,
        transform: TrainTransform,
        erasing: Erasing,
        seed: int,
        cached: CropCache | None = None,
    ):
        self.images, self.transform, self.erasing, self.seed, self.cached = images, transform, erasing, seed, cached

    def __getitem__(self, draw: Draw) -> Sample:
        rng = np.random.default_rng([self.seed, _SAMPLE, draw.epoch, draw.image, draw.copy])
        label = int(self.images.labels[draw.image])
        try:
            pixels = self.transform.pixels(self.images.read(draw.image), rng)
        except ImageError as error:
            return Sample(None, label, draw.image, error)
        x = torch.from_numpy(np.ascontiguousarray(pixels))
        if self.cached is not None:
            return self.cached.sample(x, label, draw)
        if self.erasing.prob:
            x = erase(normalise(x[None], self.transform.spec)[0], rng, self.erasing)
        return Sample(x, label, draw.image, None)


@dataclass(frozen=True)
class CropCache:
    """Where the rows about crops are kept, and to which size the crops are reduced. places: rows per epoch."""

    rows: RowCache
    places: int
    height: int  # of the reduced crop, in pixels
    width: int

    def sample(self, rendered: Tensor, label: int, draw: Draw) -> Sample:
        """Return the reduced crop of (H,W,C) uint8 pixels, with its row if there is one."""
        x = rendered
        if rendered.shape[:2] != (self.height, self.width):
            whole = slice(0, self.height), slice(0, self.width)
            x = torch.from_numpy(resize_exact(rendered.numpy(), self.height, self.width, *whole, "bilinear"))
        key = RowKey(draw.epoch * self.places + draw.place, checksum(x.numpy()))
        values = self.rows.get(key)
        row = None if values is None else torch.from_numpy(values)
        return Sample(x, label, draw.image, None, CachedCrop(key, row, rendered if row is None else None))


class EvalImages(Dataset[Sample]):
    """Images prepared as for inference, indexed by position; one that cannot be read is returned as its error."""

    def __init__(self, images: LabelledImages, spec: InputSpec):
        self.images, self.spec = images, spec

    def __getitem__(self, index: int) -> Sample:
        label = int(self.images.labels[index])
        try:
            return Sample(torch.from_numpy(load_pixels(self.images.read(index), self.spec)), label, index, None)
        except ImageError as error:
            return Sample(None, label, index, error)


def collate(samples: list[Sample]) -> Batch:
    """Return the batch of the samples that could be read, with the errors of the others."""
    readable = [(sample.x, sample.label) for sample in samples if sample.x is not None]
    skipped = [(sample.position, sample.error) for sample in samples if sample.error is not None]
    x = torch.stack([x for x, _ in readable]) if readable else torch.empty(0)
    crops = [sample.crop for sample in samples if sample.crop is not None]
    labels = torch.tensor([label for _, label in readable], dtype=torch.int64)
    return Batch(x, labels, skipped, CachedCrops.of(crops) if crops else None)


class _BatchSampler:
    """The batches that DataLoader reads; set before each epoch, so that its processes outlive the epochs."""

    def __init__(self) -> None:
        self.batches: Batches = []

    def __iter__(self) -> Iterator[list[Draw] | list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Loader:
    """Read the batches of a data set in worker processes, in order.

    workers: number of processes; 0 reads in this one. pin: copy to pinned memory. persistent: keep the processes.
    """

    def __init__(self, dataset: Dataset[Sample], workers: int, *, pin: bool = False, persistent: bool = True):
        self._sampler = _BatchSampler()
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=persistent and workers > 0,
            worker_init_fn=_start_worker,
        )

    def run(self, batches: Batches) -> Iterator[Batch]:
        """Yield the given batches of draws or of indices, in order."""
        self._sampler.batches = batches
        yield from self._loader


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the processes already use all cores
    # these signals are sent to the whole process group; only the trainer handles them
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def eval_batches(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Return the batches of one process; over all processes, every index occurs exactly once, without padding."""
    indices: NDArray[np.int64] = np.arange(rank, count, world_size)
    return [indices[i : i + batch_size].tolist() for i in range(0, len(indices), batch_size)]
