"""A converted model in ONNX Runtime, on a CPU, float32, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..data.decode import Pixels
from ..data.spec import InputSpec
from .base import FloatArray, GraphEngine
from .plan import Plan

if TYPE_CHECKING:
    from ..models.base import ImageModel


class OnnxRuntimeEngine(GraphEngine):
    """Any batch size; the threads that call it are among those of the plan."""

    def __init__(
        self,
        graph: Path,
        plan: Plan,
        size: tuple[int, int],
        spec: InputSpec | None = None,
        model: ImageModel | None = None,
    ):
        import onnxruntime

        super().__init__(model, plan, size, spec)
        self.graph = graph
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, plan.threads - plan.streams + 1)
        options.log_severity_level = 3  # errors
        self.session: Any = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def __call__(self, x: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        logits, embedding = self.session.run(None, {"images": x})
        return logits, embedding


def open_model(
    model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None, samples: Pixels | None
) -> OnnxRuntimeEngine:
    from .convert import as_onnx
    from .exported import GRAPHS

    return OnnxRuntimeEngine(as_onnx(model, plan, size, spec) / GRAPHS["onnxruntime"], plan, size, spec, model)
