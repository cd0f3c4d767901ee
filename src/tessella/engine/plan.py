"""Where a model runs, by which engine, how precisely, and why: every "auto" is resolved here and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import util
from typing import NamedTuple

from ..errors import UsageError

PRECISIONS = ("float32", "bfloat16")
DEFAULT_BATCH = {"cpu": 8, "cuda": 128, "mps": 32}  # images; on a CPU larger ones fall out of cache and gain nothing


class EngineKind(NamedTuple):
    """What is known of an engine before it is opened."""

    packages: tuple[str, ...]  # import names of what it needs besides torch
    extra: str  # of this package, that installs it
    devices: tuple[str, ...]  # () for all
    precisions: tuple[str, ...]


ENGINES = {
    "eager": EngineKind((), "", (), PRECISIONS),  # the reference: the model as it is
    "rewritten": EngineKind((), "", (), PRECISIONS),  # the exact rewrites, run by PyTorch
    "compile": EngineKind((), "", ("cpu", "cuda"), PRECISIONS),  # the same through torch.compile
    "openvino": EngineKind(("openvino",), "openvino", ("cpu",), PRECISIONS),
    "onnxruntime": EngineKind(("onnxruntime", "onnx", "onnxscript"), "onnx", ("cpu",), ("float32",)),
}


class Choice(NamedTuple):
    """One row of a plan."""

    what: str
    chosen: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How a model runs: resolved settings, and why each is what it is."""

    device: str
    precision: str  # one of PRECISIONS
    engine: str  # a key of ENGINES
    batch_size: int  # images a pass
    threads: int
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        return "\n".join(f"{row.what}: {row.chosen} ({row.reason})" for row in self.choices)


def make_plan(
    device: str = "auto", precision: str = "auto", engine: str = "auto", batch_size: int | None = None
) -> Plan:
    """Resolve "auto" for this machine; anything else is taken as it is, or refused with UsageError."""
    import torch

    asked = "asked for"
    where, why_device = (device, asked) if device != "auto" else _find_device()
    try:
        target = torch.device(where)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError):
        raise UsageError(
            "bad_argument", f"device {device!r} is not available here", hint="use 'cpu', or see `tessella doctor`"
        ) from None
    if precision != "auto" and precision not in PRECISIONS:
        raise UsageError("bad_argument", f"precision is {precision!r}, expected auto, {' or '.join(PRECISIONS)}")
    if engine != "auto" and engine not in ENGINES:
        raise UsageError("bad_argument", f"engine is {engine!r}, expected auto, {' or '.join(ENGINES)}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise UsageError("bad_argument", f"batch_size is {batch_size!r}, expected a positive number of images")
    runner = "rewritten" if engine == "auto" else engine
    exact = "float32" if precision == "auto" else precision
    check_engine(runner, target.type, exact)
    size = batch_size or DEFAULT_BATCH.get(target.type, 8)
    threads = torch.get_num_threads()
    return Plan(
        str(target),
        exact,
        runner,
        size,
        threads,
        (
            Choice("device", str(target), why_device),
            Choice("precision", exact, asked if precision != "auto" else "exact; a lossy one is used only when asked"),
            Choice("engine", runner, asked if engine != "auto" else "same answers in fewer steps, ready at once"),
            Choice("batch", f"{size} images", asked if batch_size else f"default on {target.type}"),
            Choice("threads", str(threads), f"PyTorch's own choice, of {os.cpu_count()} cores"),
        ),
    )


def check_engine(engine: str, device: str, precision: str) -> None:
    """Refuse what an engine cannot do, and one whose package is not installed."""
    kind = ENGINES[engine]
    if kind.devices and device not in kind.devices:
        raise UsageError("bad_argument", f"engine {engine!r} runs on {' or '.join(kind.devices)}, not on {device}")
    if precision not in kind.precisions:
        able = " or ".join(name for name, other in ENGINES.items() if precision in other.precisions)
        raise UsageError(
            "bad_argument",
            f"engine {engine!r} computes in {' or '.join(kind.precisions)}, not in {precision}",
            hint=f"for {precision} use {able}",
        )
    if missing := [package for package in kind.packages if not util.find_spec(package)]:
        raise UsageError(
            "missing_dependency",
            f"engine {engine!r} needs {' and '.join(missing)}",
            hint=f'pip install "tessella[{kind.extra}]"',
        )


def _find_device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return "cuda", f"found {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "mps", "found an Apple GPU"
    return "cpu", "no GPU that PyTorch can use was found"
