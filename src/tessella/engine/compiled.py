"""The rewritten model with torch.compile: slow to start, with one program for each of two batch sizes.

On a GPU, a program is a CUDA graph; its parts are chosen by timing them on the first batch of its size
(`selection.py`). The kernels of this package are compared with the compiler's only if the user requests it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..weights.network import Network
from .base import ArrayOutputs, TensorOutputs, to_tensor
from .eager import RewrittenEngine, suppress_warnings, wrap_outputs
from .kernels import EXPERIMENTAL, are_requested
from .plan import Choice, Plan
from .selection import OFF, choose_attention, choose_kernels

Result = TypeVar("Result")
CompileOptions: TypeAlias = dict[str, str | int | bool | Callable[..., object]]

# the settings of mode "max-autotune" without its CUDA graphs: unlike those, `Graph` runs in any thread, without guards
GPU_OPTIONS: CompileOptions = {"max_autotune": True, "coordinate_descent_tuning": True}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # largest relative difference of norms of an accepted candidate


class CompileEngine(RewrittenEngine):
    """Programs for one image and for a full batch; a batch in between is padded, so that nothing is compiled again.

    On a CPU, weights are constants of the program, packed in the order in which its matrix products read them. On a
    GPU, the first forward pass of each size selects the attention backend and, if requested, our kernels or the
    compiler's code. choices: what was selected on a GPU, and why.
    """

    def __init__(self, network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(network, plan, size, spec)
        self.choices: list[Choice] = []
        self.on_gpu = torch.device(plan.device).type == "cuda"
        if self.on_gpu:
            self.plan = plan.with_choice(planned_kernels())
        self.compiled: set[int] = set()  # batch sizes
        self.graphs: dict[int, Graph[TensorOutputs]] = {}  # by batch size
        self.lock = threading.Lock()  # a graph has one buffer for its input and one for its outputs
        if not self.on_gpu:
            with suppress_warnings():
                self.program: Callable[[Tensor], TensorOutputs] = compile_alone(self.module, {"freezing": True})

    def __call__(self, images_BHWC: Pixels) -> ArrayOutputs:
        if not self.on_gpu:
            return super().__call__(images_BHWC)
        # from pinned memory, a chunk is copied to the GPU while the previous one is being computed
        chunks = to_tensor(images_BHWC).split(self.plan.batch_size)
        parts = [self.run(chunk.pin_memory().to(self.plan.device, non_blocking=True)) for chunk in chunks]
        logits, embedding = (torch.cat(outputs).cpu().numpy() for outputs in zip(*parts, strict=True))
        return logits, embedding

    @torch.no_grad()  # the compiler does not freeze weights in inference mode
    def run(self, x: Tensor) -> TensorOutputs:
        """Run the model in chunks of the plan's batch size: (B,...) -> logits (B,classes), embedding (B,width)."""
        if not len(x):
            return self._run_nothing(x)
        parts = [self._run_chunk(chunk) for chunk in x.split(self.plan.batch_size)]
        logits, embeddings = zip(*parts, strict=True)
        return (logits[0], embeddings[0]) if len(parts) == 1 else (torch.cat(logits), torch.cat(embeddings))

    def _run_nothing(self, x: Tensor) -> TensorOutputs:
        """Return the outputs for a batch without images as `empty_outputs` does, without starting the compiler."""
        logits, embedding = self.module(x.new_zeros((1, *self.shape)))
        return logits[:0], embedding[:0]

    def _run_chunk(self, x: Tensor) -> TensorOutputs:
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
        """Compile the program for the batch size of `x` with the attention and kernels that are fastest on `x`."""
        tolerance, at = TOLERANCE[self.plan.precision], f"batch {len(x)}"
        with suppress_warnings(), torch.cuda.device(x.device):
            attention, choices = choose_attention(lambda: self.module(x), tolerance, at, graphed)
            with attention:
                fastest, kernels = choose_kernels(self.rewritten, lambda: self.module(x), tolerance, at, compiled_graph)
                self.choices += [*choices, kernels]
                self.graphs[len(x)] = Graph(compile_alone(wrap_outputs(fastest, self.plan, self.spec), GPU_OPTIONS), x)
        return self.graphs[len(x)]


def planned_kernels() -> Choice:
    """Return the row of a plan about the kernels of this package, before anything was measured."""
    if are_requested():
        return Choice("kernels", "the fastest", f"{EXPERIMENTAL}=1: compared with the compiler's on the first batch")
    return Choice("kernels", "the compiler's", OFF)


class Graph(Generic[Result]):
    """A function of one tensor of any shape, captured as a CUDA graph; calls need a tensor of the same shape.

    A call runs no Python code of the function. It overwrites the result of the previous call.
    """

    def __init__(self, function: Callable[[Tensor], Result], x: Tensor):
        self.x = x.clone()  # keeps the strides of `x`
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # work of the first calls (compiling, tuning, workspaces) must not be captured
            for _ in range(3):
                function(self.x)
        torch.cuda.current_stream().wait_stream(warm_up)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            self.graph, capture_error_mode="thread_local"
        ):  # other threads may copy to the GPU meanwhile
            self.result = function(self.x)

    def __call__(self, x: Tensor) -> Result:
        self.x.copy_(x, non_blocking=True)
        return self.replay()

    def replay(self) -> Result:
        """Run the graph again with the last input."""
        self.graph.replay()
        return self.result


_program_ids = itertools.count()


def compile_alone(
    module: Callable[[Tensor], Result],
    options: CompileOptions | None = None,
    backend: str | Callable[..., object] = "inductor",
) -> Callable[[Tensor], Result]:
    """Compile `module` with its own code object, because the compiler keeps at most eight programs per code object.

    options, backend: as in torch.compile.
    """

    def program(x: Tensor) -> Result:
        return module(x)

    code = program.__code__.replace(co_name=f"program_{next(_program_ids)}")
    function = FunctionType(code, globals(), closure=program.__closure__)
    return torch.compile(function, dynamic=False, fullgraph=True, backend=backend, options=options)


def graphed(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that runs `run` as a CUDA graph, so that only GPU time is measured."""
    return Graph(lambda _: run(), torch.empty(0, device="cuda")).replay


def compiled_graph(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return a function that runs the compiled `module` on `x`, a tensor of any shape, as a CUDA graph."""
    return Graph(compile_alone(module, GPU_OPTIONS), x).replay
