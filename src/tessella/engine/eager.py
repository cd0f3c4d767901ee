"""The engines that are PyTorch itself: the reference, and the rewritten model."""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data.transforms import InputSpec, normalise
from ..models.base import ImageModel
from .base import Engine, Float32, OnPixels, Outputs
from .plan import Plan
from .rewrite import Rewritten, rewrite


class EagerEngine(Engine):
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


class RewrittenEngine(Engine):
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


def rewritten_for(model: ImageModel, plan: Plan, spec: InputSpec | None) -> Rewritten:
    """The rewritten model where and as precise as the plan says; weights are folded before they are rounded."""
    return rewrite(model, spec=spec).to(device=plan.device, dtype=getattr(torch, plan.precision))


def whole(rewritten: Rewritten, plan: Plan, spec: InputSpec | None) -> nn.Module:
    """What `Engine.run` takes in, float32 answers out, as one module."""
    return Float32(OnPixels(rewritten) if spec else rewritten, getattr(torch, plan.precision)).eval()


def exported(model: ImageModel, plan: Plan, spec: InputSpec | None, example: Tensor) -> torch.export.ExportedProgram:
    """The whole rewritten model as a program of torch.export with a free batch, for converters to other runtimes."""
    exact = dataclasses.replace(plan, device="cpu", precision="float32")
    module = whole(rewritten_for(model, exact, spec), exact, spec)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


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
