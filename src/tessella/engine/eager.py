"""The engines that run in PyTorch: the reference, and the rewritten model."""

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
from ..weights.modules import is_standard
from ..weights.network import Network
from .base import ArrayOutputs, Batch, Engine, TensorOutputs, intermediates_of, to_tensor
from .plan import Plan
from .rewrites import Rewritten, Unchanged, rewrite

log = logging.getLogger(__name__)


class ThreadCountGuard:
    """A context manager that restores PyTorch's number of threads when the last of several overlapping uses ends.

    `torch.set_num_threads` affects the calling thread and every thread that starts later.
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
    """An engine that runs in PyTorch, on the device of the plan."""

    network: Network

    def __call__(self, images_BHWC: Pixels) -> ArrayOutputs:
        assert self.spec, "this engine reads normalized batches"
        logits, embedding = self.run(to_tensor(images_BHWC).to(self.plan.device, non_blocking=True))
        return logits.cpu().numpy(), embedding.cpu().numpy()

    def _imap(self, batches: Iterable[Batch], split_batch: bool) -> Iterator[TensorOutputs | ArrayOutputs]:
        with nullcontext() if self.plan.streams == 1 else _THREAD_COUNT:
            yield from super()._imap(batches, split_batch)

    def _init_worker(self) -> None:
        if self.plan.streams > 1:
            torch.set_num_threads(self.plan.pass_threads)


class EagerEngine(TorchEngine):
    """The reference: the unchanged model. Every other engine is compared with it."""

    def __init__(self, network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(network, plan, size, spec)
        model = network.to_module()
        self.dtype: torch.dtype = getattr(torch, plan.precision)
        if any(p.dtype != self.dtype or p.device != torch.device(plan.device) for p in model.parameters()):
            model = copy.deepcopy(model).to(device=plan.device, dtype=self.dtype)
        self.net = model

    def _preprocess(self, x: Tensor) -> Tensor:
        return (normalise(x, self.spec) if self.spec else x).to(self.dtype)

    @torch.inference_mode()
    def run(self, x: Tensor) -> TensorOutputs:
        """As `Engine.run`: (B,...) -> logits (B,classes), embedding (B,width)."""
        if not len(x):
            return self.empty_outputs(x)
        features = self.net.forward_features(self._preprocess(x))
        embedding = self.net.forward_head(features, pre_logits=True)
        return self.net.forward_head(features).float(), embedding.float()

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> list[Tensor]:
        return intermediates_of(self.net, self._preprocess(images_BHWC), indices)


class RewrittenEngine(TorchEngine):
    """The exact rewrites, run by PyTorch without a compiler: ready immediately, for any batch size and image size."""

    def __init__(self, network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(network, plan, size, spec)
        self.rewritten = rewritten_for(network.to_module(), plan, spec)
        self.module = wrap_outputs(self.rewritten, plan, spec)

    @torch.inference_mode()
    def run(self, x: Tensor) -> TensorOutputs:
        """As `Engine.run`: (B,...) -> logits (B,classes), embedding (B,width)."""
        if not len(x):
            return self.empty_outputs(x)
        outputs: TensorOutputs = self.module(x)
        return outputs

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> list[Tensor]:
        if isinstance(self.rewritten, Unchanged):
            return super().intermediates(images_BHWC, indices)
        return intermediates_of(self.rewritten.net, images_BHWC.permute(0, 3, 1, 2), indices)


class OnPixels(nn.Module):
    """A rewritten model that reads (B,H,W,C) uint8 images -> logits (B,classes), embedding (B,width)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> TensorOutputs:
        outputs: TensorOutputs = self.inner(images.permute(0, 3, 1, 2))
        return outputs


class Float32Outputs(nn.Module):
    """Convert floating-point inputs (B,...) of a model to `dtype`, and its two outputs (B,...) to float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, images: Tensor) -> TensorOutputs:
        logits, embedding = self.inner(images.to(self.dtype) if images.is_floating_point() else images)
        return logits.float(), embedding.float()


def rewritten_for(model: ImageModel, plan: Plan, spec: InputSpec | None) -> Rewritten:
    """Return the rewritten model on the device and in the precision of the plan; weights are rounded after folding.

    A model that was changed by hand is not rewritten, as the rewrites assume what its config says.
    """
    if is_standard(model):
        rewritten = rewrite(model, spec=spec, layout=plan.layout)
    else:
        log.info("%s was changed by hand, so it runs without rewrites", model.arch)
        rewritten = Unchanged(copy.deepcopy(model).eval().requires_grad_(False), spec)
    return rewritten.to(device=plan.device, dtype=getattr(torch, plan.precision))


def wrap_outputs(rewritten: Rewritten, plan: Plan, spec: InputSpec | None) -> nn.Module:
    """Return a module with the inputs of `Engine.run` and float32 outputs."""
    return Float32Outputs(OnPixels(rewritten) if spec else rewritten, getattr(torch, plan.precision)).eval()


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress the warnings of converters and compilers, which are about deprecations and optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
