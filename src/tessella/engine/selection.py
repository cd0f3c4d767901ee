"""Choose the fastest of several implementations by measurement: kernels and attention backends on a GPU.

The functions that prepare and time a candidate are arguments, so that the selection itself is tested without a GPU.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..models.convmixer import ConvMixer
from .kernels import EXPERIMENTAL, LAYOUTS, are_requested, has_triton, use_kernels
from .plan import Choice
from .rewrites import Rewritten

Run: TypeAlias = Callable[[], Tensor]

ROUNDS = 5  # of timing, candidates in turn
OFF = f"those of this package are experimental, as no GPU has run them so far; {EXPERIMENTAL}=1 compares them"
ATTENTION = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def choose_kernels(
    rewritten: Rewritten,
    run: Callable[[], object],
    tolerance: float,
    at: str,
    prepare: Callable[[nn.Module, Tensor], Run],
    seconds: Callable[[Run], float] | None = None,
) -> tuple[Rewritten, Choice]:
    """Return `rewritten`, or a copy with our kernels if they are requested and run one block faster, and the reason.

    All blocks of a model have the same structure, so only the first one with a kernel is timed. run: runs the model on
    the real batch, which supplies the input of the block. at: the batch size in words. prepare: takes a module and its
    input, a tensor of any shape; returns a function that runs the module in the same way as the complete model.
    tolerance, seconds: as in `fastest`.
    """
    variants: dict[str, Rewritten] = {"the compiler's": rewritten}
    if not are_requested():
        return rewritten, Choice("kernels", "the compiler's", OFF)
    name = ""
    for layout in LAYOUTS if has_triton() else ():
        swapped = copy.deepcopy(rewritten)
        names = use_kernels(swapped, layout)
        if not names:
            break
        name, has_layouts = names[0], isinstance(rewritten.net, ConvMixer)
        variants[f"ours, {layout}" if has_layouts else "ours"] = swapped
        if not has_layouts:
            break
    if len(variants) == 1:
        reason = "the model has no block that our kernels support" if has_triton() else "Triton is not installed"
        return rewritten, Choice("kernels", "the compiler's", reason)
    block = rewritten.get_submodule(name)
    x = input_of(block, run)
    candidates = {key: partial(prepare, variant.get_submodule(name), x) for key, variant in variants.items()}
    best, choice = fastest("kernels", candidates, block(x), tolerance, f"one block at {at}", seconds)
    return variants[best], choice


def choose_attention(
    run: Callable[[], object],
    tolerance: float,
    at: str,
    prepare: Callable[[Run], Run],
    seconds: Callable[[Run], float] | None = None,
    backends: Mapping[str, SDPBackend] = ATTENTION,
) -> tuple[AbstractContextManager[object], list[Choice]]:
    """Return a context in which the fused attention of `run` uses the fastest backend, and the reason.

    If `run` has no fused attention, the context does nothing and the list is empty. at: the batch size in words.
    prepare: takes a function; returns one that runs it in the same way as the complete model. tolerance, seconds: as in
    `fastest`.
    """
    with AttentionCalls() as recorder:
        run()
    if not recorder.calls:
        return nullcontext(), []

    def attend() -> Tensor:
        return torch.cat([call().flatten() for call in recorder.calls.values()])

    def attend_by(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return attend()

    with sdpa_kernel(SDPBackend.MATH):
        expected = attend()
    candidates = {name: partial(prepare, partial(attend_by, backend)) for name, backend in backends.items()}
    measured_on = f"its {len(recorder.calls)} shapes at {at}"
    best, choice = fastest("attention", candidates, expected, tolerance, measured_on, seconds)
    return sdpa_kernel(backends[best]), [choice]


def fastest(
    what: str,
    candidates: Mapping[str, Callable[[], Run]],
    expected: Tensor,
    tolerance: float,
    measured_on: str,
    seconds: Callable[[Run], float] | None = None,
) -> tuple[str, Choice]:
    """Return the name of the fastest candidate that computes `expected`, with all times as the reason.

    what: the setting. candidates: functions that prepare a candidate and return a function that runs it once. expected:
    a tensor of any shape. tolerance: the largest relative difference of norms. measured_on: the input in words.
    seconds: measures the time of one run; `gpu_seconds` by default. Candidates that fail or differ by more than the
    tolerance are excluded. Raises RuntimeError if none is left.
    """
    seconds = seconds or gpu_seconds
    ready: dict[str, Run] = {}
    excluded: list[str] = []
    last_error: Exception | None = None
    for name, make in candidates.items():
        try:
            run = make()
            difference = relative_difference(run(), expected)
        except Exception as error:  # whatever the error is, another candidate may run
            last_error = error
            excluded.append(f"{name} failed ({type(error).__name__})")
            continue
        if difference <= tolerance:
            ready[name] = run
        else:  # also for NaN
            excluded.append(f"{name} is off by {difference:.1e}")
    if not ready:
        raise RuntimeError(f"no candidate for {what} works: {'; '.join(excluded)}") from last_error
    durations: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, run in ready.items():
            durations[name].append(seconds(run))
    medians = {name: statistics.median(values) for name, values in durations.items()}
    order = sorted(medians, key=medians.__getitem__)
    times = [f"{name} {medians[name] * 1e3:.3f} ms" for name in order]
    return order[0], Choice(what, order[0], f"{measured_on}: {', '.join([*times, *excluded])}")


def relative_difference(result: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors of the same shape, relative to the norm of `expected`."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def gpu_seconds(run: Run) -> float:
    """Return the mean time of several consecutive runs in seconds, measured by the GPU."""
    repeats = 20
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


class AttentionCalls(TorchFunctionMode):
    """Records the calls of fused attention as functions without arguments, one per shape."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[tuple[object, ...], partial[Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Tensor] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run a function of torch, and record it if it is fused attention."""
        options = kwargs or {}
        attention: Callable[..., Tensor] = F.scaled_dot_product_attention
        if func is attention:
            shapes = tuple((x.shape, x.stride()) for x in args[:3])
            self.calls.setdefault(shapes, partial(attention, *args, **options))
        return func(*args, **options)


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return the first input of `module` during `run`, a tensor of any shape."""
    inputs: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    try:
        run()
    finally:
        hook.remove()
    return inputs[0]
