"""The engines that are PyTorch itself: the reference, and the rewritten model."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..models.base import ImageModel
from .base import ArrayOutputs, Batch, Engine, TensorOutputs, intermediates_of
from .plan import Plan
from .rewrites import Rewritten, rewrite


class ThreadCountGuard:
    """Restore PyTorch's number of threads when the last of several overlapping uses ends.

    `torch.set_num_threads` acts on the calling thread and on every thread that starts later.
    """

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, 1

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.before = torch.get_num_threads()
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                torch.set_num_threads(self.before)


_THREAD_COUNT = ThreadCountGuard()


class TorchEngine(Engine):
    """Runs in this process's PyTorch, on the device of the plan."""

    model: ImageModel

    def __call__(self, images_BHWC: Pixels) -> ArrayOutputs:
        assert self.spec, "this engine reads normalized batches"
        logits, embedding = self.run(torch.from_numpy(images_BHWC).to(self.plan.device, non_blocking=True))
        return logits.cpu().numpy(), embedding.cpu().numpy()

    def _imap(self, batches: Iterable[Batch], split_batch: bool) -> Iterator[TensorOutputs | ArrayOutputs]:
        with nullcontext() if self.plan.streams == 1 else _THREAD_COUNT:
            yield from super()._imap(batches, split_batch)

    def _init_worker(self) -> None:
        if self.plan.streams > 1:
            torch.set_num_threads(self.plan.pass_threads)


class EagerEngine(TorchEngine):
    """The reference: the unchanged model. Every other engine is compared with it."""

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(model, plan, size, spec)
        self.dtype: torch.dtype = getattr(torch, plan.precision)
        if any(p.dtype != self.dtype or p.device != torch.device(plan.device) for p in model.parameters()):
            model = copy.deepcopy(model).to(device=plan.device, dtype=self.dtype)
        self.net = model

    def _preprocess(self, x: Tensor) -> Tensor:
        return (normalise(x, self.spec) if self.spec else x).to(self.dtype)

    @torch.inference_mode()
    def run(self, x: Tensor) -> TensorOutputs:
        features = self.net.forward_features(self._preprocess(x))
        embedding = self.net.forward_head(features, pre_logits=True)
        return self.net.forward_head(features).float(), embedding.float()

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> list[Tensor]:
        return intermediates_of(self.net, self._preprocess(images_BHWC), indices)


class RewrittenEngine(TorchEngine):
    """The exact rewrites, run by PyTorch without a compiler: ready at once, for any batch and any size of the model."""

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(model, plan, size, spec)
        self.rewritten = rewritten_for(model, plan, spec)
        self.module = wrap_outputs(self.rewritten, plan, spec)

    @torch.inference_mode()
    def run(self, x: Tensor) -> TensorOutputs:
        outputs: TensorOutputs = self.module(x)
        return outputs

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> list[Tensor]:
        return intermediates_of(self.rewritten.net, images_BHWC.permute(0, 3, 1, 2), indices)


class OnPixels(nn.Module):
    """A rewritten model that reads images in the layout of arrays: (B,H,W,C) uint8."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> TensorOutputs:
        outputs: TensorOutputs = self.inner(images.permute(0, 3, 1, 2))
        return outputs


class Float32Outputs(nn.Module):
    """Outputs in float32 for a model that computes in `dtype`, to which floating-point inputs are converted."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, images: Tensor) -> TensorOutputs:
        logits, embedding = self.inner(images.to(self.dtype) if images.is_floating_point() else images)
        return logits.float(), embedding.float()


def rewritten_for(model: ImageModel, plan: Plan, spec: InputSpec | None) -> Rewritten:
    """Return the rewritten model on the plan's device and in its precision; weights are rounded after folding."""
    return rewrite(model, spec=spec, layout=plan.layout).to(device=plan.device, dtype=getattr(torch, plan.precision))


def wrap_outputs(rewritten: Rewritten, plan: Plan, spec: InputSpec | None) -> nn.Module:
    """Return one module that takes what `Engine.run` takes and returns float32 outputs."""
    return Float32Outputs(OnPixels(rewritten) if spec else rewritten, getattr(torch, plan.precision)).eval()


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress the warnings of converters and compilers: deprecations, and optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
