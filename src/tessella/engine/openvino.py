"""The rewritten model in OpenVINO, on a CPU; converted once, then read from the cache."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.transforms import InputSpec
from ..models.base import ImageModel
from .artefacts import cached
from .base import Engine, Outputs, facts_of
from .eager import exported, quiet
from .plan import Plan

GRAPH = "model.xml"
PRECISION = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoEngine(Engine):
    """Any batch size; requests are one a thread, so threads may share it."""

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        import openvino as ov

        super().__init__(model, plan, size, spec)
        # one file serves every precision: the runtime rounds
        folder = cached("openvino", facts_of(self, openvino=ov.__version__) | {"precision": "float32"}, self._convert)
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION[plan.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": plan.threads,
        }
        self.compiled: Any = ov.Core().compile_model(folder / GRAPH, "CPU", settings)
        self.requests = threading.local()

    def _convert(self, folder: Path) -> None:
        import openvino as ov

        program = exported(self.model, self.plan, self.spec, self.example(2))
        with quiet():
            graph = ov.convert_model(program)
        ov.save_model(graph, folder / GRAPH, compress_to_fp16=False)

    def run(self, x: Tensor) -> Outputs:
        if not hasattr(self.requests, "own"):
            self.requests.own = self.compiled.create_infer_request()
        found = self.requests.own.infer([x.numpy()], share_inputs=True)
        logits, embedding = found.values()
        return torch.from_numpy(logits), torch.from_numpy(embedding)
