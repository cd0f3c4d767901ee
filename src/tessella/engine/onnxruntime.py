"""A converted model in ONNX Runtime, on a CPU and in float32, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.decode import Pixels
from ..data.spec import InputSpec
from .base import ArrayOutputs, FloatArray, GraphEngine
from .plan import Plan

if TYPE_CHECKING:
    from ..weights.network import Network


class OnnxRuntimeEngine(GraphEngine):
    """Runs batches of any size; the threads that call it count as threads of the plan."""

    def __init__(
        self,
        graph: Path,
        plan: Plan,
        size: tuple[int, int],
        spec: InputSpec | None = None,
        network: Network | None = None,
    ):
        import onnxruntime

        super().__init__(network, plan, size, spec)
        self.graph = graph
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, plan.threads - plan.streams + 1)
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def __call__(self, x: Pixels | FloatArray) -> ArrayOutputs:
        if not len(x):
            return self.empty_outputs(x)
        logits, embedding = self.session.run(None, {"images": x})
        return logits, embedding
