"""A converted model in OpenVINO, on a CPU, without PyTorch."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..data.decode import Pixels
from ..data.spec import InputSpec
from .base import FloatArray, GraphEngine
from .plan import Plan

if TYPE_CHECKING:
    from ..models.base import ImageModel

PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what the graph does not say itself


_MAKING = threading.Lock()
_core: Any = None


def core() -> Any:
    """The one openvino.Core of this process, which is never freed.

    Where signal frames may be large (AMX), a Core gives its maker thread a stack for signals, and at its end puts
    back the one it found. Several, freed in another order than last made first, leave the thread with one that is
    unmapped, and the next signal with a Python handler kills the process without a word (OpenVINO 2026.4).

    To be called before anything else of OpenVINO: its bindings look NumPy up at their first need of it, and where two
    threads do so at once, one holds the GIL and waits for the other, which waits for the GIL, for ever.
    """
    global _core
    import openvino as ov

    with _MAKING:
        if _core is None:
            ov.Type.f32.to_dtype()  # NumPy is looked up now, by one thread
            made = ov.Core()
            made.get_property("CPU", "FULL_DEVICE_NAME")  # sets the stack now, before any other Core does
            _core = made
    return _core


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
        super().__init__(model, plan, size, spec)
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION[plan.precision],
            "INFERENCE_NUM_THREADS": plan.threads,
            "NUM_STREAMS": plan.streams,
        }
        self.compiled: Any = core().compile_model(graph, "CPU", settings)
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
