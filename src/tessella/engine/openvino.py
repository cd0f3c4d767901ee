"""A converted model in OpenVINO, on a CPU, without PyTorch."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.decode import Pixels
from ..data.spec import InputSpec
from .base import ArrayOutputs, FloatArray, GraphEngine
from .plan import Plan

if TYPE_CHECKING:
    import openvino as ov

    from ..models.base import ImageModel

PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # for products that the graph leaves open

_core_lock = threading.Lock()
_core: ov.Core | None = None


def core() -> ov.Core:
    """Return the only openvino.Core of this process, which is never freed.

    On CPUs with large signal frames (AMX), a Core sets an alternate signal stack for the thread that creates it, and
    restores the previous one when it is freed. If several are not freed in reverse order, the signal stack of the
    thread is unmapped memory, and the next signal with a Python handler kills the process without a message (OpenVINO
    2026.4).

    Call this before any other function of OpenVINO: its bindings look up NumPy on first use, and two threads that do
    this at the same time can deadlock over the GIL.
    """
    global _core
    import openvino as ov

    with _core_lock:
        if _core is None:
            ov.Type.f32.to_dtype()  # looks up NumPy now, in one thread
            created = ov.Core()
            created.get_property("CPU", "FULL_DEVICE_NAME")  # sets the signal stack now, before any other Core does
            _core = created
    return _core


class OpenVinoEngine(GraphEngine):
    """Runs batches of any size; each forward pass has its own request, so threads may share the engine."""

    def __init__(
        self,
        graph: Path,
        plan: Plan,
        size: tuple[int, int],
        spec: InputSpec | None = None,
        model: ImageModel | None = None,
    ):
        super().__init__(model, plan, size, spec)
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[plan.precision],
            "INFERENCE_NUM_THREADS": plan.threads,
            "NUM_STREAMS": plan.streams,
        }
        self.compiled = core().compile_model(graph, "CPU", settings)
        self.idle: deque[ov.InferRequest] = deque()  # unused requests, kept because each has its own buffers
        self.graph = graph

    def __call__(self, x: Pixels | FloatArray) -> ArrayOutputs:
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        logits, embedding = request.infer([x], share_inputs=True).values()
        self.idle.append(request)
        return logits, embedding
