"""A model in OpenVINO, on a CPU, without PyTorch: a graph built from its weights, or a converted file."""

from __future__ import annotations

import logging
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..errors import WeightsError
from .artefacts import GRAPHS
from .base import ArrayOutputs, FloatArray, GraphEngine
from .first_passes import DisagreementError, FirstPasses
from .plan import Plan

if TYPE_CHECKING:
    from ..weights.network import Network
    from .runtime import ov

log = logging.getLogger(__name__)
ATTEMPTS = 3  # to compile a graph whose first passes agree
PLEASE_REPORT = "Please report this with the model, the CPU and the version of OpenVINO"
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


class _Compiled:
    """A compiled graph: its streams, the requests that are not in use, and the checks of its first passes."""

    def __init__(self, graph: Path | ov.Model, plan: Plan):
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[plan.precision],
            "INFERENCE_NUM_THREADS": plan.threads,
            "NUM_STREAMS": plan.streams,
        }
        self.model = core().compile_model(graph, "CPU", settings)
        self.idle: deque[ov.InferRequest] = deque()  # kept because each request has its own buffers
        self.first_passes = FirstPasses(plan.streams, plan.precision)

    def infer(self, x: Pixels | FloatArray) -> ArrayOutputs:
        """Run one pass: (B,H,W,C) uint8 or (B,C,H,W) normalized images -> logits (B,classes), embedding (B,width)."""
        request = self._take()
        logits, embedding = request.infer([x], share_inputs=True).values()
        self.idle.append(request)
        return logits, embedding

    def infer_all(self, x: Pixels | FloatArray, size: int) -> ArrayOutputs:
        """As `infer`, in passes of `size` images. Raises DisagreementError."""
        outputs = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            self.first_passes.check(part, self.run_streams)
            outputs.append(self.infer(part))
        logits, embeddings = zip(*outputs, strict=True)
        return outputs[0] if len(outputs) == 1 else (np.concatenate(logits), np.concatenate(embeddings))

    def run_streams(self, x: Pixels | FloatArray) -> list[ArrayOutputs]:
        """As `infer`, in every stream at the same time.

        There are as many requests as streams, and an idle stream takes the next one. OpenVINO does not tell which
        stream computed a request.
        """
        requests = [self._take() for _ in range(self.first_passes.streams)]
        for request in requests:
            request.start_async([x], share_inputs=True)
        outputs = []
        for request in requests:
            request.wait()
            logits, embedding = (request.get_output_tensor(i).data.copy() for i in range(2))
            outputs.append((logits, embedding))
        self.idle.extend(requests)
        return outputs

    def _take(self) -> ov.InferRequest:
        try:
            return self.idle.pop()
        except IndexError:
            return self.model.create_infer_request()


class OpenVinoEngine(GraphEngine):
    """Runs batches of any size; each forward pass has its own request, so threads may share the engine.

    graph: a file, or a graph in memory with its `graph_hash`. A batch is computed in requests of `plan.request` images,
    whose activations fit the CPU's cache better. Several streams are checked by `FirstPasses`; if they disagree, the
    graph is compiled again, with a warning. After ATTEMPTS, `__call__` raises WeightsError `unstable_engine`.
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
        self.source = graph
        self._replacing = threading.Lock()
        self.current = _Compiled(graph, plan)
        if isinstance(graph, Path):
            self.graph = graph
        else:
            self.built_hash = graph_hash

    @property
    def graph_hash(self) -> str:
        """As in Engine: of a file, or of the settings that a graph in memory was built with."""
        return super().graph_hash if self.graph else self.built_hash

    def save(self, folder: Path) -> None:
        """As `GraphEngine.save`."""
        if isinstance(self.source, Path):
            super().save(folder)
        else:
            from .runtime import save_graph

            save_graph(self.source, folder / GRAPHS["openvino"])

    def __call__(self, x: Pixels | FloatArray) -> ArrayOutputs:
        if not len(x):
            return self.empty_outputs(x)
        for _ in range(ATTEMPTS):
            current = self.current
            try:
                return current.infer_all(x, self.plan.request or len(x))
            except DisagreementError as error:
                log.warning("%s; the model is compiled again. %s", error, PLEASE_REPORT)
                self._compile_again(current)
        raise WeightsError(
            "unstable_engine",
            f"OpenVINO gave different outputs for the same images in {ATTEMPTS} attempts",
            hint="use another engine, such as 'rewritten'",
        )

    def _compile_again(self, failed: _Compiled) -> None:
        """Replace `failed`, unless another thread has done so."""
        with self._replacing:
            if self.current is failed:
                self.current = _Compiled(self.source, self.plan)
