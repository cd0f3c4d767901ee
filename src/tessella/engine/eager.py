"""The engines that are PyTorch itself: the reference, and the rewritten model."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..models.base import ImageModel
from .base import Engine, FloatArray, Outputs
from .plan import Plan
from .rewrite import Rewritten, rewrite


class Shares:
    """While threads work on a share of the cores each; PyTorch's own number is put back when the last is done.

    What `torch.set_num_threads` is told holds for the thread that calls it and for every thread that starts later.
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


_SHARES = Shares()


class TorchEngine(Engine):
    """Runs in this process's PyTorch, on the device of the plan."""

    model: ImageModel

    def __call__(self, images_BHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        assert self.spec, "this engine reads normalised batches"
        logits, embedding = self.run(torch.from_numpy(images_BHWC).to(self.plan.device, non_blocking=True))
        return logits.cpu().numpy(), embedding.cpu().numpy()

    def in_turn(self, batches: Iterable[Any], *, divide: bool = True) -> Iterator[Any]:
        with nullcontext() if self.plan.streams == 1 else _SHARES:
            yield from super().in_turn(batches, divide=divide)

    def _enter(self) -> None:
        if self.plan.streams > 1:
            torch.set_num_threads(self.plan.pass_threads)


class EagerEngine(TorchEngine):
    """The reference: the model as it is, step by step. Every other engine is compared with it."""

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(model, plan, size, spec)
        self.dtype = getattr(torch, plan.precision)
        if any(p.dtype != self.dtype or p.device != torch.device(plan.device) for p in model.parameters()):
            model = copy.deepcopy(model).to(device=plan.device, dtype=self.dtype)
        self.net = model

    def _prepared(self, x: Tensor) -> Tensor:
        return (normalise(x, self.spec) if self.spec else x).to(self.dtype)

    @torch.inference_mode()
    def run(self, x: Tensor) -> Outputs:
        features = self.net.forward_features(self._prepared(x))
        embedding = self.net.forward_head(features, pre_logits=True)
        return self.net.forward_head(features).float(), embedding.float()

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> Any:
        x = self._prepared(images_BHWC)
        return self.net.forward_intermediates(x, indices=indices, intermediates_only=True, stop_early=True)


class RewrittenEngine(TorchEngine):
    """The exact rewrites, run by PyTorch without a compiler: no waiting, any batch, any size that the model takes."""

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(model, plan, size, spec)
        self.rewritten = rewritten_for(model, plan, spec)
        self.module = whole(self.rewritten, plan, spec)

    @torch.inference_mode()
    def run(self, x: Tensor) -> Outputs:
        found: Outputs = self.module(x)
        return found

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> Any:
        x = images_BHWC.permute(0, 3, 1, 2)
        return self.rewritten.net.forward_intermediates(x, indices=indices, intermediates_only=True, stop_early=True)


class OnPixels(nn.Module):
    """A rewritten model that reads images as they lie in memory: (B,H,W,C) uint8."""

    def __init__(self, fast: nn.Module):
        super().__init__()
        self.fast = fast

    def forward(self, images: Tensor) -> Any:
        return self.fast(images.permute(0, 3, 1, 2))


class Float32(nn.Module):
    """Answers in float32, whatever the model inside computes in; inputs that are floats go in as it wants them."""

    def __init__(self, fast: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.fast, self.dtype = fast, dtype

    def forward(self, images: Tensor) -> Outputs:
        logits, embedding = self.fast(images.to(self.dtype) if images.is_floating_point() else images)
        return logits.float(), embedding.float()


def rewritten_for(model: ImageModel, plan: Plan, spec: InputSpec | None) -> Rewritten:
    """The rewritten model where and as precise as the plan says; weights are folded before they are rounded."""
    return rewrite(model, spec=spec, layout=plan.layout).to(device=plan.device, dtype=getattr(torch, plan.precision))


def whole(rewritten: Rewritten, plan: Plan, spec: InputSpec | None) -> nn.Module:
    """What `Engine.run` takes in, float32 answers out, as one module."""
    return Float32(OnPixels(rewritten) if spec else rewritten, getattr(torch, plan.precision)).eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without a converter's notes on its own inner workings: deprecations, and packages it could use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
