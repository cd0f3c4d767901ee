"""A converted model in OpenVINO, on a CPU, without PyTorch."""

from __future__ import annotations

import threading
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
    """Any batch size; requests are one a thread, so threads may share it."""

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
        self.requests = threading.local()
        self.graph = graph

    def __call__(self, x: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        if not hasattr(self.requests, "own"):
            self.requests.own = self.compiled.create_infer_request()
        logits, embedding = self.requests.own.infer([x], share_inputs=True).values()
        return logits, embedding


def open_model(
    model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None, samples: Pixels | None
) -> OpenVinoEngine:
    from .convert import as_openvino
    from .exported import GRAPHS

    return OpenVinoEngine(as_openvino(model, plan, size, spec, samples) / GRAPHS["openvino"], plan, size, spec, model)
