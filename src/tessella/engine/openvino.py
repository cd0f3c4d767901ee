"""A model in OpenVINO, on a CPU, without PyTorch: a graph built from its weights, or a converted file."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.decode import Pixels
from ..data.spec import InputSpec
from .artefacts import GRAPHS
from .base import ArrayOutputs, FloatArray, GraphEngine
from .plan import Plan

if TYPE_CHECKING:
    from ..weights.network import Network
    from .runtime import ov

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
    from .runtime import ov

    with _core_lock:
        if _core is None:
            ov.Type.f32.to_dtype()  # looks up NumPy now, in one thread
            created = ov.Core()
            created.get_property("CPU", "FULL_DEVICE_NAME")  # sets the signal stack now, before any other Core does
            _core = created
    return _core


class OpenVinoEngine(GraphEngine):
    """Runs batches of any size; each forward pass has its own request, so threads may share the engine.

    graph: a file, or a graph in memory with its `graph_hash`. A batch is computed in requests of `plan.request` images,
    whose activations fit the CPU's cache better.
    """

    def __init__(
        self,
        graph: Path | ov.Model,
        plan: Plan,
        size: tuple[int, int],
        spec: InputSpec | None = None,
        network: Network | None = None,
        graph_hash: str = "",
    ):
        super().__init__(network, plan, size, spec)
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[plan.precision],
            "INFERENCE_NUM_THREADS": plan.threads,
            "NUM_STREAMS": plan.streams,
        }
        self.compiled = core().compile_model(graph, "CPU", settings)
        self.idle: deque[ov.InferRequest] = deque()  # unused requests, kept because each has its own buffers
        if isinstance(graph, Path):
            self.graph = graph
        else:
            self.built, self.built_hash = graph, graph_hash

    @property
    def graph_hash(self) -> str:
        """As in Engine: of a file, or of the settings that a graph in memory was built with."""
        return super().graph_hash if self.graph else self.built_hash

    def save(self, folder: Path) -> None:
        """As `GraphEngine.save`."""
        if self.graph:
            super().save(folder)
        else:
            from .runtime import save_graph

            save_graph(self.built, folder / GRAPHS["openvino"])

    def __call__(self, x: Pixels | FloatArray) -> ArrayOutputs:
        if not len(x):
            return self.empty_outputs(x)
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        size = self.plan.request or len(x)
        parts = [tuple(request.infer([x[i : i + size]], share_inputs=True).values()) for i in range(0, len(x), size)]
        self.idle.append(request)
        logits, embeddings = zip(*parts, strict=True)
        return (logits[0], embeddings[0]) if len(parts) == 1 else (np.concatenate(logits), np.concatenate(embeddings))
