"""Where a model runs, by which engine, how precisely, and why: every "auto" is resolved here and nowhere else."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from dataclasses import dataclass
from importlib import util
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import UsageError
from ..extras import install_command
from ..fingerprint import config_text

if TYPE_CHECKING:
    from ..models.base import ImageModel

Mode = Literal["throughput", "latency"]
MODES = ("throughput", "latency")
PRECISIONS = ("float32", "bfloat16", "int8")
TORCH_PRECISIONS = ("float32", "bfloat16")
DEFAULT_BATCH = {"cpu": 8, "cuda": 128, "mps": 32}  # images; on a CPU larger ones fall out of cache and gain nothing
MOST_IMAGES = 65_536  # in a batch
MOST_STREAMS = 4  # without a measurement; each has its own buffers


class EngineKind(NamedTuple):
    """What is known of an engine before it is opened."""

    packages: tuple[str, ...]  # import names of what it needs besides torch
    devices: tuple[str, ...]  # () for all
    precisions: tuple[str, ...]


ENGINES = {
    "eager": EngineKind((), (), TORCH_PRECISIONS),  # the reference: the model as it is
    "rewritten": EngineKind((), (), TORCH_PRECISIONS),  # the exact rewrites, run by PyTorch
    "compile": EngineKind((), ("cpu", "cuda"), TORCH_PRECISIONS),  # the same through torch.compile
    "openvino": EngineKind(("openvino",), ("cpu",), PRECISIONS),
    "onnxruntime": EngineKind(("onnxruntime", "onnx", "onnxscript"), ("cpu",), ("float32",)),
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
    threads: int  # cores that the model works on
    choices: tuple[Choice, ...]
    streams: int = 1  # passes at the same time, on a CPU; each on its share of the threads
    layout: str = ""  # one of rewrite.LAYOUTS for the model's family; "" for its first

    def __str__(self) -> str:
        return "\n".join(f"{row.what}: {row.chosen} ({row.reason})" for row in self.choices)

    @property
    def pass_threads(self) -> int:
        """Of one pass on a CPU, where their number decides the last bits of some results; 0 elsewhere."""
        return max(1, self.threads // self.streams) if self.device == "cpu" else 0

    def with_choice(self, choice: Choice) -> Plan:
        """The same, with the row of that name replaced, or added at the end."""
        rows = [choice if row.what == choice.what else row for row in self.choices]
        return dataclasses.replace(self, choices=tuple(rows if choice in rows else [*rows, choice]))


def make_plan(
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | None = None,
    mode: Mode = "throughput",
    model: ImageModel | None = None,
    size: tuple[int, int] | None = None,
) -> Plan:
    """Resolve "auto" for this machine; anything else is taken as it is, or refused with UsageError.

    What can be refused without PyTorch is refused before it is imported.

    mode: "throughput" for many images, "latency" for one at a time. model and its image size (height, width): with them
    what `tessella tune` measured for the model on this machine is used where engine and precision are both "auto".
    """
    _check_choices(device, precision, engine, batch_size, mode)
    import torch

    from .tuned import find_tuned

    asked = "asked for"
    where, why_device = (device, asked) if device != "auto" else _find_device()
    try:
        target = torch.device(where)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError):
        raise _no_device(device) from None
    threads = torch.get_num_threads()
    why_batch = asked if batch_size else "one image at a time" if mode == "latency" else f"default on {target.type}"
    batch = batch_size or (1 if mode == "latency" else DEFAULT_BATCH.get(target.type, 8))
    tuned = None
    if model is not None and size is not None and engine == precision == "auto" and target.type == "cpu":
        tuned = find_tuned(model.arch, config_text(model.config), size, threads, mode)
        if tuned is not None and tuned.engine != "rewritten" and missing_packages(tuned.engine, tuned.precision):
            tuned = None
    if tuned is not None:
        why = "measured: see engine"
        runner, exact, streams, layout = tuned.engine, tuned.precision, tuned.streams, tuned.layout
        if batch_size is None:
            batch, why_batch = tuned.batch_size, why
        why_engine, why_precision, why_streams = tuned.reason, why, why
    else:
        runner, why_engine = _choose_engine(engine, precision)
        exact = "float32" if precision == "auto" else precision
        why_precision = asked if precision != "auto" else "exact; a lossy one is used only when asked for or tuned"
        streams, why_streams = _choose_streams(runner, target.type, threads, mode)
        layout = ""
    check_engine(runner, target.type, exact)
    shares = f"{threads} threads, {streams} at a time" if streams > 1 else f"{threads} threads"
    rows = [
        Choice("device", str(target), why_device),
        Choice("precision", exact, why_precision),
        Choice("engine", runner, why_engine),
        Choice("mode", mode, asked if mode == "latency" else "many images; latency is for one at a time"),
        Choice("batch", f"{batch} images", why_batch),
        Choice("threads", shares, f"PyTorch's own choice, of {os.cpu_count()} cores; {why_streams}"),
    ]
    return Plan(str(target), exact, runner, batch, threads, tuple(rows), streams, layout)


def _choose_engine(engine: str, precision: str) -> tuple[str, str]:
    if engine != "auto":
        return engine, "asked for"
    if precision == "int8":
        return "openvino", "the engine that computes in int8"
    return "rewritten", "same answers in fewer steps, ready at once; `tessella tune` finds what is fastest here"


def _choose_streams(engine: str, device: str, threads: int, mode: str) -> tuple[int, str]:
    if device != "cpu" or engine in ("eager", "compile"):
        return 1, "all on one batch"
    if mode == "latency":
        return 1, "all on one image"
    return streams_for(threads), "whole images a core: cores do not wait for each other"


def streams_for(threads: int) -> int:
    """At most MOST_STREAMS of equal shares that leave the fewest threads idle, and of those the most."""
    return max(range(min(2, threads), min(threads, MOST_STREAMS) + 1), key=lambda n: (threads // n * n, n))


def _check_choices(device: str, precision: str, engine: str, batch_size: int | None, mode: str) -> None:
    """Refuse what no machine can do."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d{1,3})?", device):
        raise _no_device(device)
    for what, value, known in (
        ("precision", precision, ("auto", *PRECISIONS)),
        ("engine", engine, ("auto", *ENGINES)),
        ("mode", mode, MODES),
    ):
        if not isinstance(value, str) or value not in known:
            expected = f"{', '.join(known[:-1])} or {known[-1]}"
            raise UsageError("bad_argument", f"{what} is {value!r}, expected {expected}")
    check_batch(batch_size)


def _no_device(device: object) -> UsageError:
    return UsageError(
        "bad_argument",
        f"device {device!r} is not available here",
        hint="use auto, cpu, cuda, cuda:1 or mps; `tessella doctor` shows what was found",
    )


def check_batch(batch_size: int | None) -> None:
    """UsageError `bad_argument` for what is no batch size."""
    if batch_size is None:
        return
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if not whole or not 1 <= batch_size <= MOST_IMAGES:
        raise UsageError("bad_argument", f"batch_size is {batch_size!r}, expected 1 to {MOST_IMAGES:,} images")


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
    if missing := missing_packages(engine, precision):
        raise UsageError(
            "missing_dependency",
            f"engine {engine!r} needs {' and '.join(missing)}" + (" for int8" if precision == "int8" else ""),
            hint=install_command(missing),
        )


def missing_packages(engine: str, precision: str = "float32") -> list[str]:
    """Import names of packages that the engine needs and that are not installed."""
    needed = (*ENGINES[engine].packages, *(("nncf",) if precision == "int8" else ()))
    return [package for package in needed if not util.find_spec(package)]


@functools.cache
def has_native_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are faster than in float32 there: AVX512-BF16 or AMX, a GPU since Ampere."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device == "cpu" and any(check() for check in found if check)


def _find_device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return "cuda", f"found {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "mps", "found an Apple GPU"
    return "cpu", "no GPU that PyTorch can use was found"
