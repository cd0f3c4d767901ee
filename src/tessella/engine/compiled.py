"""The rewritten model through torch.compile: slow to start, one program for each of two batch sizes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..data.transforms import InputSpec
from ..models.base import ImageModel
from .base import Outputs
from .eager import RewrittenEngine, quiet
from .plan import Plan


class CompileEngine(RewrittenEngine):
    """Programs for one image and for a full batch; a batch in between is padded, so that nothing is compiled again.

    On a CPU weights are frozen into the program, packed as its matrix products want them.
    """

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(model, plan, size, spec)
        options: dict[str, Any] = {"freezing": True} if plan.device == "cpu" else {"triton.cudagraphs": True}
        self.compiled: set[int] = set()  # batch sizes
        with quiet():
            self.program = torch.compile(self.module, dynamic=False, options=options)

    @torch.no_grad()  # freezing is left out in inference mode
    def run(self, x: Tensor) -> Outputs:
        full = self.plan.batch_size
        parts = [self._piece(piece) for piece in x.split(full)]
        logits, embeddings = zip(*parts, strict=True)
        return (logits[0], embeddings[0]) if len(parts) == 1 else (torch.cat(logits), torch.cat(embeddings))

    def _piece(self, x: Tensor) -> Outputs:
        count = len(x)
        if 1 < count < self.plan.batch_size:
            x = torch.cat((x, x[:1].expand(self.plan.batch_size - count, *x.shape[1:])))
        with nullcontext() if len(x) in self.compiled else quiet():
            logits, embedding = self.program(x.contiguous())
        self.compiled.add(len(x))
        return logits[:count].clone(), embedding[:count].clone()  # a replayed CUDA graph writes over its outputs
