"""The rewritten model in ONNX Runtime, on a CPU; exported once, then read from the cache."""

from __future__ import annotations

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

GRAPH = "model.onnx"


class OnnxRuntimeEngine(Engine):
    """Any batch size, float32."""

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        import onnxruntime

        super().__init__(model, plan, size, spec)
        folder = cached("onnx", facts_of(self), self._export)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = plan.threads
        options.log_severity_level = 3  # errors
        self.session: Any = onnxruntime.InferenceSession(
            str(folder / GRAPH), options, providers=["CPUExecutionProvider"]
        )

    def _export(self, folder: Path) -> None:
        program = exported(self.model, self.plan, self.spec, self.example(2))
        names: dict[str, Any] = dict(input_names=["images"], output_names=["logits", "embedding"])
        with quiet():
            torch.onnx.export(program, f=str(folder / GRAPH), dynamo=True, external_data=False, verbose=False, **names)

    def run(self, x: Tensor) -> Outputs:
        logits, embedding = self.session.run(None, {"images": x.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(embedding)
