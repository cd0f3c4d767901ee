"""The rewritten model through torch.compile: slow to start, one program for each of two batch sizes.

On a GPU a program is a CUDA graph; its parts are chosen by timing them on the first batch of its size (`selection.py`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..models.base import ImageModel
from .base import ArrayOutputs, TensorOutputs
from .eager import RewrittenEngine, suppress_warnings, wrap_outputs
from .plan import Choice, Plan
from .selection import choose_attention, choose_kernels

Result = TypeVar("Result")

# the settings of mode "max-autotune" without its CUDA graphs: ours can be replayed from any thread, without guards
GPU_OPTIONS: dict[str, Any] = {"max_autotune": True, "coordinate_descent_tuning": True}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative difference of norms up to which a candidate agrees


class CompileEngine(RewrittenEngine):
    """Programs for one image and for a full batch; a batch in between is padded, so that nothing is compiled again.

    On a CPU, weights are constants of the program, packed in the order that its matrix products read them. On a GPU,
    the first pass of each size chooses the attention backend, and our kernels or the compiler's own code.
    choices: what was chosen on a GPU, and why.
    """

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(model, plan, size, spec)
        self.choices: list[Choice] = []
        self.on_gpu = torch.device(plan.device).type == "cuda"
        self.compiled: set[int] = set()  # batch sizes
        self.graphs: dict[int, Graph[TensorOutputs]] = {}  # by batch size
        self.lock = threading.Lock()  # a graph has one buffer for its input and one for its outputs
        if not self.on_gpu:
            with suppress_warnings():
                self.program = compile_alone(self.module, options={"freezing": True})

    def __call__(self, images_BHWC: Pixels) -> ArrayOutputs:
        if not self.on_gpu:
            return super().__call__(images_BHWC)
        # from pinned memory, a piece is copied to the GPU while the one before it is being computed
        pieces = torch.from_numpy(images_BHWC).split(self.plan.batch_size)
        parts = [self.run(piece.pin_memory().to(self.plan.device, non_blocking=True)) for piece in pieces]
        logits, embedding = (torch.cat(outputs).cpu().numpy() for outputs in zip(*parts, strict=True))
        return logits, embedding

    @torch.no_grad()  # the compiler does not freeze weights in inference mode
    def run(self, x: Tensor) -> TensorOutputs:
        full = self.plan.batch_size
        parts = [self._run_piece(piece) for piece in x.split(full)]
        logits, embeddings = zip(*parts, strict=True)
        return (logits[0], embeddings[0]) if len(parts) == 1 else (torch.cat(logits), torch.cat(embeddings))

    def _run_piece(self, x: Tensor) -> TensorOutputs:
        count = len(x)
        if 1 < count < self.plan.batch_size:
            x = torch.cat((x, x[:1].expand(self.plan.batch_size - count, *x.shape[1:])))
        if self.on_gpu:
            with self.lock:
                graph = self.graphs.get(len(x)) or self._make_graph(x.contiguous())
                logits, embedding = graph(x)
                return logits[:count].clone(), embedding[:count].clone()
        with nullcontext() if len(x) in self.compiled else suppress_warnings():
            logits, embedding = self.program(x.contiguous())
        self.compiled.add(len(x))
        return logits[:count].clone(), embedding[:count].clone()

    def _make_graph(self, x: Tensor) -> Graph[TensorOutputs]:
        """Compile the program of this batch size from the parts that are fastest on `x`."""
        tolerance, at = TOLERANCE[self.plan.precision], f"batch {len(x)}"
        with suppress_warnings(), torch.cuda.device(x.device):
            attention, choices = choose_attention(lambda: self.module(x), tolerance, at, graphed)
            with attention:
                fastest, kernels = choose_kernels(self.rewritten, lambda: self.module(x), tolerance, at, compiled_graph)
                self.choices += [*choices, kernels]
                self.graphs[len(x)] = Graph(compile_alone(wrap_outputs(fastest, self.plan, self.spec)), x)
        return self.graphs[len(x)]


class Graph(Generic[Result]):
    """A function of one tensor of one shape as a CUDA graph: a call runs no Python code and checks nothing.

    Each call overwrites the result of the one before.
    """

    def __init__(self, function: Callable[[Tensor], Result], x: Tensor):
        self.x = x.clone()  # keeps the strides of `x`
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # what happens once (compiling, tuning, workspaces) must not be captured
            for _ in range(3):
                function(self.x)
        torch.cuda.current_stream().wait_stream(warm_up)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # others may upload meanwhile
            self.result = function(self.x)

    def __call__(self, x: Tensor) -> Result:
        self.x.copy_(x, non_blocking=True)
        return self.replay()

    def replay(self) -> Result:
        """Run the graph again on the last input."""
        self.graph.replay()
        return self.result


_program_ids = itertools.count()


def compile_alone(module: nn.Module, **settings: Any) -> Callable[[Tensor], Any]:
    """Compile `module` under a code object of its own, as the compiler keeps at most eight programs per code object.

    settings: of torch.compile; by default those for GPUs.
    """

    def program(x: Tensor) -> Any:
        return module(x)

    code = program.__code__.replace(co_name=f"program_{next(_program_ids)}")
    function = FunctionType(code, globals(), closure=program.__closure__)
    return torch.compile(function, dynamic=False, fullgraph=True, **(settings or {"options": GPU_OPTIONS}))


def graphed(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return `run` as a CUDA graph, so that its time is the GPU's."""
    return Graph(lambda _: run(), torch.empty(0, device="cuda")).replay


def compiled_graph(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return a compiled pass of `module` over `x` as a CUDA graph."""
    return Graph(compile_alone(module), x).replay
