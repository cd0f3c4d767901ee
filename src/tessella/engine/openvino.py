"""A converted model in OpenVINO, on a CPU, without PyTorch."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.decode import Pixels
from ..data.spec import InputSpec
from .base import ArrayOutputs, FloatArray, GraphEngine
from .plan import Plan

if TYPE_CHECKING:
    from ..models.base import ImageModel

PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # for products that the graph leaves open

_core_lock = threading.Lock()
_core: Any = None  # an openvino.Core; the package has no usable types


def core() -> Any:
    """Return the one openvino.Core of this process, which is never freed.

    With large signal frames (AMX), a Core gives the thread that creates it a stack for signals, and restores the
    earlier one at its end. Several, freed in another order than last created first, leave the thread with one that is
    unmapped, and the next signal with a Python handler kills the process without a message (OpenVINO 2026.4).

    Call this before anything else of OpenVINO: its bindings look NumPy up on first use, and if two threads do so at
    once, one holds the GIL and waits for the other, which waits for the GIL, forever.
    """
    global _core
    import openvino as ov

    with _core_lock:
        if _core is None:
            ov.Type.f32.to_dtype()  # NumPy is looked up now, by one thread
            created = ov.Core()
            created.get_property("CPU", "FULL_DEVICE_NAME")  # sets the stack now, before any other Core does
            _core = created
    return _core


class OpenVinoEngine(GraphEngine):
    """Takes any batch size; each pass has its own request, so threads may share the engine."""

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
        self.idle: deque[Any] = deque()  # requests that no thread is using; each holds buffers, so they are kept
        self.graph = graph

    def __call__(self, x: Pixels | FloatArray) -> ArrayOutputs:
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        logits, embedding = request.infer([x], share_inputs=True).values()
        self.idle.append(request)
        return logits, embedding
