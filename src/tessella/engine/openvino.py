"""A converted model in OpenVINO, on a CPU, without PyTorch."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..data.decode import Pixels
from ..data.transforms import InputSpec
from .base import FloatArray, GraphEngine
from .plan import Plan

if TYPE_CHECKING:
    from ..models.base import ImageModel

PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what the graph does not say itself


class OpenVinoEngine(GraphEngine):
    """Any batch size; a pass has a request to itself, so threads may share it."""

    def __init__(
        self,
        graph: Path,
        plan: Plan,
        size: tuple[int, int],
        spec: InputSpec | None = None,
        model: ImageModel | None = None,
    ):
        import openvino as ov

        super().__init__(model, plan, size, spec)
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION[plan.precision],
            "INFERENCE_NUM_THREADS": plan.threads,
            "NUM_STREAMS": plan.streams,
        }
        self.compiled: Any = ov.Core().compile_model(graph, "CPU", settings)
        self.free: deque[Any] = deque()  # requests that no thread uses now; one holds buffers, so they are kept
        self.graph = graph

    def __call__(self, x: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        try:
            request = self.free.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        logits, embedding = request.infer([x], share_inputs=True).values()
        self.free.append(request)
        return logits, embedding


def open_model(
    model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None, samples: Pixels | None
) -> OpenVinoEngine:
    from .convert import as_openvino
    from .exported import GRAPHS

    return OpenVinoEngine(as_openvino(model, plan, size, spec, samples) / GRAPHS["openvino"], plan, size, spec, model)
