"""The rewritten model through torch.compile: slow to start, one program for each of two batch sizes.

On a GPU a program is a CUDA graph, and what it is made of is chosen by timing it on the first batch of its size.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..models.base import ImageModel
from ..models.convmixer import ConvMixer
from .base import FloatArray, Outputs
from .eager import RewrittenEngine, quiet, whole
from .kernels import LAYOUTS, has_triton, use_kernels
from .plan import Choice, Plan
from .rewrite import Rewritten

Run = Callable[[], Any]

# what mode "max-autotune" stands for, without its CUDA graphs: ours can be replayed from any thread, without guards
GPU_OPTIONS: dict[str, Any] = {"max_autotune": True, "coordinate_descent_tuning": True}
ROUNDS = 5  # of timing, candidates in turn
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative difference of norms up to which a candidate agrees
ATTENTION = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


class CompileEngine(RewrittenEngine):
    """Programs for one image and for a full batch; a batch in between is padded, so that nothing is compiled again.

    On a CPU weights are frozen into the program, packed as its matrix products want them. On a GPU the first pass of
    each size chooses the attention backend, and our kernels or the compiler's own code; choices says what and why.
    """

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        super().__init__(model, plan, size, spec)
        self.choices: list[Choice] = []
        self.on_gpu = torch.device(plan.device).type == "cuda"
        self.compiled: set[int] = set()  # batch sizes
        self.graphs: dict[int, Graph] = {}  # by batch size
        self.lock = threading.Lock()  # a graph has one place for its input and one for its answer
        if not self.on_gpu:
            with quiet():
                self.program = compile_alone(self.module, options={"freezing": True})

    def __call__(self, images_BHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        if not self.on_gpu:
            return super().__call__(images_BHWC)
        # from pinned memory a piece uploads while the one before it is being computed
        pieces = torch.from_numpy(images_BHWC).split(self.plan.batch_size)
        parts = [self.run(piece.pin_memory().to(self.plan.device, non_blocking=True)) for piece in pieces]
        logits, embedding = (torch.cat(found).cpu().numpy() for found in zip(*parts, strict=True))
        return logits, embedding

    @torch.no_grad()  # freezing is left out in inference mode
    def run(self, x: Tensor) -> Outputs:
        full = self.plan.batch_size
        parts = [self._piece(piece) for piece in x.split(full)]
        logits, embeddings = zip(*parts, strict=True)
        return (logits[0], embeddings[0]) if len(parts) == 1 else (torch.cat(logits), torch.cat(embeddings))

    def _piece(self, x: Tensor) -> Outputs:
        count = len(x)
        if 1 < count < self.plan.batch_size:
            x = torch.cat((x, x[:1].expand(self.plan.batch_size - count, *x.shape[1:])))
        if self.on_gpu:
            with self.lock:
                graph = self.graphs.get(len(x)) or self._graph_for(x.contiguous())
                logits, embedding = graph(x)
                return logits[:count].clone(), embedding[:count].clone()
        with nullcontext() if len(x) in self.compiled else quiet():
            logits, embedding = self.program(x.contiguous())
        self.compiled.add(len(x))
        return logits[:count].clone(), embedding[:count].clone()

    def _graph_for(self, x: Tensor) -> Graph:
        """The program of this batch size, made of what is fastest on `x`."""
        tolerance, at = TOLERANCE[self.plan.precision], f"batch {len(x)}"
        with quiet(), torch.cuda.device(x.device):
            attention, chosen = choose_attention(lambda: self.module(x), tolerance, at, graphed)
            with attention:
                fast, also = choose_kernels(self.rewritten, lambda: self.module(x), tolerance, at, compiled_graph)
                self.choices += [*chosen, also]
                self.graphs[len(x)] = Graph(compile_alone(whole(fast, self.plan, self.spec)), x)
        return self.graphs[len(x)]


class Graph:
    """A function of one tensor of one shape as a CUDA graph: no Python runs, and nothing is checked, when it is called.

    What it returns is written over by the next call.
    """

    def __init__(self, function: Callable[[Tensor], Any], x: Tensor):
        self.x = x.clone()  # keeps the strides of `x`
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what happens once (compiling, tuning, workspaces) must not be captured
            for _ in range(3):
                function(self.x)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # others may upload meanwhile
            self.answer = function(self.x)

    def __call__(self, x: Tensor) -> Any:
        self.x.copy_(x, non_blocking=True)
        return self.again()

    def again(self) -> Any:
        """The same input once more."""
        self.graph.replay()
        return self.answer


# --- choosing by measurement ------------------------------------------------------------------------------------------


def choose_kernels(
    rewritten: Rewritten,
    run: Run,
    tolerance: float,
    at: str,
    ready: Callable[[nn.Module, Tensor], Run],
    seconds: Callable[[Run], float] | None = None,
) -> tuple[Rewritten, Choice]:
    """`rewritten` as it is, or a copy with our kernels: whichever runs its first block with a kernel faster.

    Blocks of a model are alike, so one stands for all. run: a pass over the real batch, which shows what the block is
    given. ready: a module and its input -> what runs it the way the whole model will.
    """
    variants: dict[str, Rewritten] = {"the compiler's own": rewritten}
    name = ""
    for layout in LAYOUTS if has_triton() else ():
        swapped = copy.deepcopy(rewritten)
        names = use_kernels(swapped, layout)
        if not names:
            break
        name, layouts_differ = names[0], isinstance(rewritten.net, ConvMixer)
        variants[f"ours, {layout}" if layouts_differ else "ours"] = swapped
        if not layouts_differ:
            break
    if len(variants) == 1:
        why = "none of ours fits the model" if has_triton() else "Triton is not installed"
        return rewritten, Choice("kernels", "the compiler's own", why)
    block = rewritten.get_submodule(name)
    x = input_of(block, run)
    candidates = {key: ready_later(ready, one.get_submodule(name), x) for key, one in variants.items()}
    best, choice = fastest("kernels", candidates, block(x), tolerance, f"one block at {at}", seconds)
    return variants[best], choice


def ready_later(ready: Callable[[nn.Module, Tensor], Run], module: nn.Module, x: Tensor) -> Callable[[], Run]:
    return lambda: ready(module, x)


def choose_attention(
    run: Run,
    tolerance: float,
    at: str,
    ready: Callable[[Run], Run],
    seconds: Callable[[Run], float] | None = None,
    backends: Mapping[str, SDPBackend] = ATTENTION,
) -> tuple[AbstractContextManager[Any], list[Choice]]:
    """A context in which the fused attention of `run` uses the fastest backend, and why; neither where it has none."""
    with AttentionCalls() as recorder:
        run()
    if not recorder.calls:
        return nullcontext(), []

    def attend() -> Tensor:
        calls = recorder.calls.values()
        return torch.cat([F.scaled_dot_product_attention(*args, **more).flatten() for args, more in calls])

    def under(backend: SDPBackend) -> Callable[[], Run]:
        def make() -> Run:
            def forced() -> Tensor:
                with sdpa_kernel(backend):
                    return attend()

            return ready(forced)

        return make

    with sdpa_kernel(SDPBackend.MATH):
        expected = attend()
    candidates = {name: under(backend) for name, backend in backends.items()}
    best, choice = fastest("attention", candidates, expected, tolerance, f"its {len(recorder.calls)} shapes at {at}",
                           seconds)  # fmt: skip
    return sdpa_kernel(backends[best]), [choice]


def fastest(
    what: str,
    candidates: Mapping[str, Callable[[], Run]],
    expected: Tensor,
    tolerance: float,
    measured_on: str,
    seconds: Callable[[Run], float] | None = None,
) -> tuple[str, Choice]:
    """The candidate that is fastest of those that give `expected`, with all times as the reason.

    candidates: each makes itself ready and returns what runs it once. seconds: of one run. One that fails, or whose
    answer differs by more than the tolerance, is out. Raises RuntimeError where none is left.
    """
    seconds = seconds or gpu_seconds
    ready, out = {}, []
    last_error: Exception | None = None
    for name, make in candidates.items():
        try:
            run = make()
            off = relative_difference(run(), expected)
        except Exception as error:  # whatever one failed by, another may run
            last_error = error
            out.append(f"{name} failed ({type(error).__name__})")
            continue
        if off <= tolerance:
            ready[name] = run
        else:  # not a number, too
            out.append(f"{name} is off by {off:.1e}")
    if not ready:
        raise RuntimeError(f"no {what} to choose from: {'; '.join(out)}") from last_error
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, run in ready.items():
            taken[name].append(seconds(run))
    medians = {name: statistics.median(found) for name, found in taken.items()}
    order = sorted(medians, key=medians.__getitem__)
    times = [f"{name} {medians[name] * 1e3:.3f} ms" for name in order]
    return order[0], Choice(what, order[0], f"{measured_on}: {', '.join([*times, *out])}")


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference as part of the norm of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def gpu_seconds(run: Run) -> float:
    """Of one run among several in a row, by the GPU's own clock."""
    times = 20
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


class AttentionCalls(TorchFunctionMode):
    """Notes the arguments of fused attention, once for each shape."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls.setdefault(tuple((x.shape, x.stride()) for x in args[:3]), (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def input_of(module: nn.Module, run: Run) -> Tensor:
    """What `module` is given while `run` runs."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        run()
    finally:
        hook.remove()
    return seen[0]


_numbers = itertools.count()


def compile_alone(module: nn.Module, **how: Any) -> Callable[[Tensor], Any]:
    """torch.compile under a code object of its own, as the compiler keeps eight programs of one and no more."""

    def program(x: Tensor) -> Any:
        return module(x)

    code = program.__code__.replace(co_name=f"program_{next(_numbers)}")
    own = FunctionType(code, globals(), closure=program.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True, **(how or {"options": GPU_OPTIONS}))


def graphed(run: Run) -> Run:
    """As a CUDA graph, so that what is timed is the GPU."""
    return Graph(lambda _: run(), torch.empty(0, device="cuda")).again


def compiled_graph(module: nn.Module, x: Tensor) -> Run:
    return Graph(compile_alone(module), x).again
