"""What every engine is: a batch in, float32 logits and embedding of one pass out. Imports without PyTorch."""

from __future__ import annotations

import abc
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..data.transforms import normalise
from .artefacts import weights_file_hash
from .plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.base import ImageModel

FloatArray = NDArray[np.float32]
Outputs: TypeAlias = "tuple[Tensor, Tensor]"  # logits (B,classes), embedding (B,width), float32
Item = TypeVar("Item")


class Engine(abc.ABC):
    """A model that is ready to run as its plan says.

    model: the one it was opened with, in evaluation mode, never changed by it; None for an exported file. spec: how
    pixels are normalised; an engine without one reads (B,C,H,W) normalised floats, one with it (B,H,W,C) uint8.
    size: (height, width) it is for.
    """

    def __init__(self, model: ImageModel | None, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        self.model, self.plan, self.size, self.spec = model, plan, size, spec

    graph: Path | None = None  # the file of a converted model

    @property
    def graph_hash(self) -> str:
        """Of a converted model's files; "" for others."""
        return weights_file_hash(self.graph.parent) if self.graph else ""

    @abc.abstractmethod
    def run(self, x: Tensor) -> Outputs:
        """One pass over a batch of any number of images, where `x` is; inputs as the class says."""

    @abc.abstractmethod
    def __call__(self, images_BHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        """(B,H,W,C) uint8 -> logits (B,classes) and embedding (B,width)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one input image."""
        if self.spec:
            return (*self.size, self.spec.channels)
        assert self.model
        return (self.model.config.in_chans, *self.size)

    def example(self, batch: int) -> Tensor:
        """A batch of nothing, of the shape and type that `run` takes."""
        import torch

        return torch.zeros(batch, *self.shape, dtype=torch.uint8 if self.spec else torch.float32)

    def in_turn(self, batches: Iterable[Item], *, divide: bool = True) -> Iterator[Any]:
        """`self(batch)` for array batches, `self.run(batch)` for tensors: in order, `plan.streams` of them at a time.

        Whole images a core instead of parts of each: no waiting of cores for each other. The next batches are drawn
        while the model works; at most one more than are being worked on is held. divide: a batch that is the only one
        may be worked on in parts, which changes the last bits of some models.
        """
        source = iter(batches)
        drawn = list(itertools.islice(source, 2))
        if len(drawn) == 1 and divide:
            yield self._alone(drawn[0])
            return
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self.plan.streams, "tessella-model", self._enter) as pool:
            try:
                for batch in itertools.chain(drawn, source):
                    waiting.append(pool.submit(self._work, batch))
                    if len(waiting) > self.plan.streams:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _work(self, batch: Any) -> Any:
        if not len(batch):  # a batch in which no image could be read
            return (np.empty((0, 1), np.float32),) * 2
        return self(batch) if isinstance(batch, np.ndarray) else self.run(batch)

    def _alone(self, batch: Any) -> Any:
        """One batch and no other at the same time: every stream takes a part of it."""
        streams = min(self.plan.streams, len(batch))
        if streams < 2:
            return self._work(batch)
        cuts = [len(batch) * i // streams for i in range(streams + 1)]
        with ThreadPoolExecutor(streams, "tessella-model", self._enter) as pool:
            parts = list(pool.map(self._work, (batch[a:b] for a, b in itertools.pairwise(cuts))))
        if isinstance(batch, np.ndarray):
            return tuple(np.concatenate(found) for found in zip(*parts, strict=True))
        import torch

        return tuple(torch.cat(found) for found in zip(*parts, strict=True))

    def _enter(self) -> None:  # noqa: B027 - nothing to do is the usual case
        """What a thread of `in_turn` does first."""

    def features(self, images_BHWC: Pixels, indices: int | Sequence[int]) -> list[FloatArray]:
        """Maps of the picked blocks for (B,H,W,C) uint8 images, each (B,channels,rows,columns)."""
        import torch

        with torch.inference_mode():
            images = torch.from_numpy(images_BHWC).to(self.plan.device)
            return [one.float().cpu().numpy() for one in self.intermediates(images, indices)]

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> Any:
        """As `ImageModel.forward_intermediates`, by the model itself unless an engine has a faster one."""
        assert self.spec, "this engine reads normalised batches"
        assert self.model
        x = normalise(images_BHWC, self.spec)
        return self.model.forward_intermediates(x, indices=indices, intermediates_only=True, stop_early=True)


class GraphEngine(Engine):
    """A converted model in a file, which another runtime runs without PyTorch."""

    @abc.abstractmethod
    def __call__(self, x: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """One pass over a batch of any number of images, uint8 or normalised as the class says."""

    def run(self, x: Tensor) -> Outputs:
        import torch

        logits, embedding = self(x.numpy())
        return torch.from_numpy(logits), torch.from_numpy(embedding)
