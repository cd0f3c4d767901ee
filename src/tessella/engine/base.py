"""The engine interface: a batch in, float32 logits and embeddings out. PyTorch is not imported."""

from __future__ import annotations

import abc
import itertools
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, overload

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
    from ..weights.network import Network

FloatArray = NDArray[np.float32]
ArrayOutputs: TypeAlias = tuple[FloatArray, FloatArray]  # logits (B,classes), embedding (B,width)
TensorOutputs: TypeAlias = "tuple[Tensor, Tensor]"  # the same as tensors
Batch: TypeAlias = "Pixels | Tensor"


class Engine(abc.ABC):
    """A model that is ready to run according to its plan.

    network: the original model, which the engine does not change; None for an exported file. spec: how pixels are
    normalized; an engine with a spec reads (B,H,W,C) uint8 images, one without it (B,C,H,W) normalized floats. size:
    (height, width) of the images in pixels.
    """

    agreement = ""  # of a lossy precision with float32, in words; set by the gate

    def __init__(self, network: Network | None, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        self.network, self.plan, self.size, self.spec = network, plan, size, spec

    @property
    def graph_hash(self) -> str:
        """SHA-256 of everything besides the network that determines a graph; "" for engines without one."""
        return ""

    @property
    def model(self) -> ImageModel:
        """The PyTorch model in evaluation mode. Raises UsageError `missing_dependency` without PyTorch."""
        assert self.network is not None, "an exported file has no model"
        return self.network.to_module()

    @abc.abstractmethod
    def run(self, x: Tensor) -> TensorOutputs:
        """Run one forward pass on the device of `x`: (B,H,W,C) uint8 or (B,C,H,W) normalized images, see the class.

        Returns logits (B,classes) and embedding (B,width).
        """

    @abc.abstractmethod
    def __call__(self, images_BHWC: Pixels) -> ArrayOutputs:
        """(B,H,W,C) uint8 -> logits (B,classes) and embedding (B,width)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input image: (H,W,C) for uint8 images, (C,H,W) for normalized ones."""
        if self.spec:
            return (*self.size, self.spec.channels)
        assert self.network
        return (self.network.config.in_chans, *self.size)

    @overload
    def imap(self, batches: Iterable[Tensor], *, split_batch: bool = True) -> Iterator[TensorOutputs]: ...
    @overload
    def imap(self, batches: Iterable[Pixels], *, split_batch: bool = True) -> Iterator[ArrayOutputs]: ...
    def imap(
        self, batches: Iterable[Batch], *, split_batch: bool = True
    ) -> Iterator[TensorOutputs] | Iterator[ArrayOutputs]:
        """Yield the outputs of every batch in order; `plan.streams` batches are computed concurrently.

        batches: arrays (B,H,W,C) give arrays, tensors as in `run` give tensors. With several streams, each CPU core
        computes complete images, so cores do not wait for each other. Batches are drawn from the iterable while the
        model runs; at most `plan.streams` + 1 are in memory. split_batch: divide a single batch among the streams,
        which changes the last bits of some models' outputs.
        """
        return self._imap(batches, split_batch)  # type: ignore[return-value]  # one kind of batch per call

    def _imap(self, batches: Iterable[Batch], split_batch: bool) -> Iterator[TensorOutputs | ArrayOutputs]:
        source = iter(batches)
        first = list(itertools.islice(source, 2))
        if len(first) == 1 and split_batch:
            yield self._run_split(first[0])
            return
        pending: deque[Future[TensorOutputs | ArrayOutputs]] = deque()
        with ThreadPoolExecutor(self.plan.streams, "tessella-model", self._init_worker) as pool:
            try:
                for batch in itertools.chain(first, source):
                    pending.append(pool.submit(self._run_batch, batch))
                    if len(pending) > self.plan.streams:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _run_batch(self, batch: Batch) -> TensorOutputs | ArrayOutputs:
        return self(batch) if isinstance(batch, np.ndarray) else self.run(batch)

    @overload
    def empty_outputs(self, batch: Tensor) -> TensorOutputs: ...
    @overload
    def empty_outputs(self, batch: Pixels | FloatArray) -> ArrayOutputs: ...
    def empty_outputs(self, batch: Tensor | Pixels | FloatArray) -> TensorOutputs | ArrayOutputs:
        """Return the outputs for a batch without images: logits (0,classes) and embedding (0,width).

        One image is run for their types and widths, which an exported graph does not state otherwise.
        """
        if isinstance(batch, np.ndarray):
            rows, embeddings = self(np.zeros((1, *self.shape), batch.dtype))
            return rows[:0], embeddings[:0]
        logits, embedding = self.run(batch.new_zeros((1, *self.shape)))
        return logits[:0], embedding[:0]

    def _run_split(self, batch: Batch) -> TensorOutputs | ArrayOutputs:
        """Run a single batch in parts, one per stream."""
        streams = min(self.plan.streams, len(batch))
        if streams < 2:
            return self._run_batch(batch)
        bounds = [len(batch) * i // streams for i in range(streams + 1)]
        with ThreadPoolExecutor(streams, "tessella-model", self._init_worker) as pool:
            parts = list(pool.map(self._run_batch, (batch[start:stop] for start, stop in itertools.pairwise(bounds))))
        logits, embeddings = zip(*parts, strict=True)
        if isinstance(batch, np.ndarray):
            return np.concatenate(logits), np.concatenate(embeddings)
        import torch

        return torch.cat(logits), torch.cat(embeddings)

    def run_stream(self, images_BHWC: Pixels) -> ArrayOutputs:
        """As `__call__`, in one of up to `plan.streams` threads that compute batches at the same time.

        (B,H,W,C) uint8 -> logits (B,classes), embedding (B,width). For callers with threads of their own, who get each
        result when it is ready; `imap` yields results in order. The threads should run nothing but engines.
        """
        self._init_worker()
        return self(images_BHWC)

    def _init_worker(self) -> None:  # noqa: B027 - most engines need no preparation
        """Prepare a thread of `imap`."""

    def features(self, images_BHWC: Pixels, indices: int | Sequence[int]) -> list[FloatArray]:
        """(B,H,W,C) uint8 images -> the outputs of the selected blocks, (B,channels,rows,columns) maps."""
        import torch

        with torch.inference_mode():
            images = to_tensor(images_BHWC).to(self.plan.device)
            return [output.float().cpu().numpy() for output in self.intermediates(images, indices)]

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> list[Tensor]:
        """Return the outputs of the selected blocks for (B,H,W,C) uint8 images: (B,channels,rows,columns) maps.

        indices: as in `ImageModel.forward_intermediates`. Computed by the original model unless an engine overrides it.
        """
        assert self.spec, "this engine reads normalized batches"
        return intermediates_of(self.model, normalise(images_BHWC, self.spec), indices)


def to_tensor(images_BHWC: Pixels) -> Tensor:
    """Return images (B,H,W,C) as a tensor, copied only if PyTorch does not support their memory.

    It refuses negative strides, as of a flipped array, and warns about read-only arrays.
    """
    import torch

    return torch.from_numpy(np.require(images_BHWC, requirements=("C", "W")))


def intermediates_of(model: ImageModel, x: Tensor, indices: int | Sequence[int]) -> list[Tensor]:
    """Return only the outputs of the selected blocks, (B,channels,rows,columns) maps; later blocks are not run."""
    outputs = model.forward_intermediates(x, indices=indices, intermediates_only=True, stop_early=True)
    assert isinstance(outputs, list)
    return outputs


class GraphEngine(Engine):
    """A graph that another runtime runs without PyTorch: a file, or one that was built in memory (graph is None)."""

    graph: Path | None = None

    @property
    def graph_hash(self) -> str:
        """As in Engine; for a file, the SHA-256 of its weights."""
        return weights_file_hash(self.graph.parent) if self.graph else ""

    def save(self, folder: Path) -> None:
        """Write the graph into `folder`, under the name that `artefacts.GRAPHS` has for the engine. Raises OSError."""
        assert self.graph is not None
        for path in self.graph.parent.glob(f"{self.graph.stem}.*"):
            shutil.copyfile(path, folder / path.name)

    @abc.abstractmethod
    def __call__(self, x: Pixels | FloatArray) -> ArrayOutputs:
        """(B,H,W,C) uint8 or (B,C,H,W) normalized images -> logits (B,classes) and embedding (B,width)."""

    def run(self, x: Tensor) -> TensorOutputs:
        """As `__call__`, with tensors on the CPU: (B,H,W,C) or (B,C,H,W) -> logits (B,classes), embedding (B,width)."""
        import torch

        logits, embedding = self(x.numpy())
        return torch.from_numpy(logits), torch.from_numpy(embedding)
