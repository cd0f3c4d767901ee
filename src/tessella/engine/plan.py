"""The plan of a model: device, engine, precision and batch size, each with a reason. Every "auto" is resolved here."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
from dataclasses import dataclass
from importlib import util
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import UsageError
from ..extras import install_command, require
from ..machine import has_cpu_bfloat16, may_have_gpu, thread_count
from ..text import any_of, count_of
from .kinds import ENGINES as ENGINES
from .kinds import MAX_BATCH_SIZE as MAX_BATCH_SIZE
from .kinds import MAX_STREAMS as MAX_STREAMS
from .kinds import PRECISIONS as PRECISIONS

if TYPE_CHECKING:
    from ..weights.network import AnyModel, Network
    from .tuned import Tuned

log = logging.getLogger(__name__)
Mode = Literal["throughput", "latency"]
MODES = ("throughput", "latency")
FAST = "fast"  # the fastest precision that passes the gate; resolved when an engine is opened
DEFAULT_BATCH = {"cpu": 8, "cuda": 128, "mps": 32}  # batch size; on a CPU larger batches do not fit the cache


class Choice(NamedTuple):
    """One row of a plan: a setting, its value, and the reason for the value."""

    what: str
    chosen: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.chosen} ({self.reason})"


@dataclass(frozen=True)
class Plan:
    """The resolved settings that a model runs with, and a reason for each."""

    device: str
    precision: str  # one of PRECISIONS, or FAST before an engine is opened
    engine: str  # a key of ENGINES
    batch_size: int
    threads: int  # of all streams together
    choices: tuple[Choice, ...]
    streams: int = 1  # concurrent forward passes on a CPU; each uses an equal part of the threads
    layout: str = ""  # one of `rewrites.layouts_of(model)`; "" for the engine's default
    request: int = 0  # images that OpenVINO computes at once, out of a batch; 0 for the complete batch
    exact: tuple[str, ...] = ()  # names of the products that int8 leaves in float32

    def __str__(self) -> str:
        return "\n".join(map(str, self.choices))

    @property
    def pass_threads(self) -> int:
        """Threads per forward pass on a CPU, which affect the last bits of some results; 0 on other devices."""
        return max(1, self.threads // self.streams) if self.device == "cpu" else 0

    def choice(self, what: str) -> Choice:
        """Return the row of the setting `what`, such as "precision"; raises KeyError for an unknown setting."""
        return {row.what: row for row in self.choices}[what]

    def with_choice(self, choice: Choice) -> Plan:
        """Return a copy of the plan with the row of this setting replaced, or appended if there is none."""
        rows = [choice if row.what == choice.what else row for row in self.choices]
        return dataclasses.replace(self, choices=tuple(rows if choice in rows else [*rows, choice]))


def make_plan(
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | None = None,
    mode: Mode = "throughput",
    model: AnyModel | None = None,
    size: tuple[int, int] | None = None,
) -> Plan:
    """Resolve every "auto" for this machine; other values are used unchanged, or refused.

    mode: "throughput" for many images, "latency" for one at a time. model, size: for a model and its image size
    (height, width), the settings that `tessella tune` measured for it on this machine are used if engine and precision
    are both "auto". PyTorch is imported only if it may find a GPU, or if another device or engine needs it.
    Raises UsageError `bad_argument` or `missing_dependency`.
    """
    _check_choices(device, precision, engine, batch_size, mode)
    target, why_device = _open_device(device)
    kind = target.partition(":")[0]
    threads = _thread_count(engine)
    network = None if model is None else _as_network(model)
    tuned = None
    if network is not None and size is not None and engine == precision == "auto" and kind == "cpu":
        tuned = _find_usable(network, size, threads, mode)
    if tuned is not None:
        settings = _Settings(
            engine=tuned.engine,
            why_engine=tuned.reason,
            precision=tuned.precision,
            why_precision=_MEASURED,
            streams=tuned.streams,
            why_streams=_MEASURED,
            layout=tuned.layout,
        )
    else:
        settings = _default_settings(engine, precision, kind, threads, mode, network)
    batch, why_batch = _choose_batch(batch_size, tuned, mode, kind)
    check_engine(settings.engine, kind, settings.precision)
    streams = settings.streams
    request = 0
    if settings.engine == "openvino" and network is not None and size is not None:
        from .choice import images_per_request

        request = images_per_request(network.config, size)
    rows = (
        Choice("device", target, why_device),
        Choice("precision", settings.precision, settings.why_precision),
        Choice("engine", settings.engine, settings.why_engine),
        mode_choice(mode),
        Choice("batch", count_of(batch, "image"), why_batch),
        Choice(
            "threads",
            describe_threads(threads, streams),
            f"on {os.cpu_count()} cores; {settings.why_streams}",
        ),
    )
    layout = settings.layout
    return Plan(target, settings.precision, settings.engine, batch, threads, rows, streams, layout, request)


def _thread_count(engine: str) -> int:
    """Return the number of threads of an engine: for those of PyTorch, the one that the program may have set there."""
    if engine in ("eager", "rewritten", "compile") and not missing_packages(engine):
        import torch

        return torch.get_num_threads()
    return thread_count()


def check_settings(
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | None = None,
    mode: Mode = "throughput",
) -> None:
    """Refuse settings that this machine does not support, as `make_plan` does; for use before a model is downloaded.

    Combinations that no machine supports are refused before PyTorch is imported.
    Raises UsageError `bad_argument` or `missing_dependency`.
    """
    _check_choices(device, precision, engine, batch_size, mode)
    kind = _open_device(device)[0].partition(":")[0]
    settings = _default_settings(engine, precision, kind, 1, mode, None)
    check_engine(settings.engine, kind, settings.precision)


def describe_threads(threads: int, streams: int) -> str:
    """Return the threads of a plan as text, with the number of batches that they compute at the same time."""
    batches = f", {streams} batches at a time" if streams > 1 else ""
    return f"{count_of(threads, 'thread')}{batches}"


def _as_network(model: AnyModel) -> Network:
    from ..weights.network import as_network  # imports NumPy, which the command line does not need to read options

    return as_network(model)


_MEASURED = "measured by `tessella tune`, see engine"


class _Settings(NamedTuple):
    """The settings that `tessella tune` measures, or their defaults; each with the reason."""

    engine: str
    why_engine: str
    precision: str
    why_precision: str
    streams: int
    why_streams: str
    layout: str = ""


def mode_choice(mode: Mode) -> Choice:
    """Return the row of the plan for `mode`."""
    return Choice(
        "mode", mode, "requested" if mode == "latency" else "for many images; latency is for one image at a time"
    )


def _find_usable(network: Network, size: tuple[int, int], threads: int, mode: Mode) -> Tuned | None:
    """Return the tuned settings of a model, or None if there are none or a package of their engine is missing.

    Settings with an unknown layout are ignored, with a warning.
    """
    from .tuned import Workload, find_tuned

    tuned = find_tuned(Workload.of(network, size, threads), mode)
    if tuned is None or missing_packages(tuned.engine):
        return None
    if tuned.layout and tuned.layout not in (layouts := _layouts_of(network, tuned.engine)):
        known = any_of(layouts) if layouts else "none"
        log.warning("the tuned settings of %s are ignored: layout is %r, known: %s", network.arch, tuned.layout, known)
        return None
    return tuned


def _layouts_of(network: Network, engine: str) -> tuple[str, ...]:
    """Return the names of the layouts that `tessella tune` compares; PyTorch is imported for its own engines only."""
    if engine == "openvino":
        from .graphs import layouts_of, why_not

        return layouts_of(network) if why_not(network) is None else ()
    from .rewrites import layouts_of as rewritten_layouts

    return rewritten_layouts(network.to_module())


def _default_settings(
    engine: str, precision: str, device: str, threads: int, mode: Mode, network: Network | None
) -> _Settings:
    if engine != "auto":
        runner, why_engine = engine, "requested"
    elif precision == "int8" or (precision == FAST and device == "cpu"):
        runner, why_engine = "openvino", "the only engine that supports int8"
    elif device != "cpu":
        runner, why_engine = "rewritten", "same outputs with fewer operations, for any batch size"
    else:
        from .choice import fastest_engine

        runner, why_engine = fastest_engine(network, threads, mode)
    if precision == "auto":
        chosen, why_precision = "float32", "exact; lossy precisions are used only if requested or tuned"
    else:
        chosen, why_precision = precision, "requested"
    if device != "cpu" or runner in ("eager", "compile"):
        streams, why_streams = 1, "all threads on one batch"
    elif mode == "latency":
        streams, why_streams = 1, "all threads on one image"
    else:
        streams, why_streams = (
            streams_for(threads),
            "each core processes whole images, so that cores do not wait for each other",
        )
    return _Settings(runner, why_engine, chosen, why_precision, streams, why_streams)


def _choose_batch(batch_size: int | None, tuned: Tuned | None, mode: Mode, device: str) -> tuple[int, str]:
    if batch_size is not None:
        return batch_size, "requested"
    if tuned is not None:
        return tuned.batch_size, _MEASURED
    if mode == "latency":
        return 1, "one image at a time"
    return DEFAULT_BATCH.get(device, 8), f"default on {device}"


def streams_for(threads: int) -> int:
    """Return the number of streams up to MAX_STREAMS that leaves the fewest of `threads` idle, the largest if equal."""
    return max(range(min(2, threads), min(threads, MAX_STREAMS) + 1), key=lambda n: (threads // n * n, n))


def _check_choices(device: str, precision: str, engine: str, batch_size: int | None, mode: str) -> None:
    """Raise UsageError `bad_argument` for settings that no machine supports."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d{1,3})?", device):
        raise _no_device(device)
    for what, value, known in (
        ("precision", precision, ("auto", *PRECISIONS, FAST)),
        ("engine", engine, ("auto", *ENGINES)),
        ("mode", mode, MODES),
    ):
        if not isinstance(value, str) or value not in known:
            raise UsageError("bad_argument", f"{what} is {value!r}, expected {any_of(known)}")
    check_batch(batch_size)


def _no_device(device: object) -> UsageError:
    return UsageError(
        "bad_argument",
        f"device {device!r} is not available on this machine",
        hint="use auto, cpu, cuda, cuda:1 or mps; `tessella doctor` shows what was found",
    )


def check_batch(batch_size: int | None) -> None:
    """Raise UsageError `bad_argument` unless `batch_size` is None or an integer from 1 to MAX_BATCH_SIZE."""
    if batch_size is None:
        return
    integer = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if not integer or not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise UsageError("bad_argument", f"batch_size is {batch_size!r}, expected 1 to {MAX_BATCH_SIZE:,} images")


def check_engine(engine: str, device: str, precision: str) -> None:
    """Raise UsageError `bad_argument` if the engine lacks a device or precision, else `missing_dependency`."""
    kind = ENGINES[engine]
    if kind.devices and device not in kind.devices:
        raise UsageError("bad_argument", f"engine {engine!r} runs on {' or '.join(kind.devices)}, not on {device}")
    if precision not in (*kind.precisions, FAST):
        supporting = " or ".join(name for name, other in ENGINES.items() if precision in other.precisions)
        raise UsageError(
            "bad_argument",
            f"engine {engine!r} computes in {' or '.join(kind.precisions)}, not in {precision}",
            hint=f"for {precision} use {supporting}",
        )
    if missing := missing_packages(engine):
        raise UsageError(
            "missing_dependency",
            f"engine {engine!r} needs {' and '.join(missing)}",
            hint=install_command(missing),
        )


def missing_packages(engine: str) -> list[str]:
    """Return the import names of packages that the engine needs and that are not installed."""
    return [package for package in ENGINES[engine].packages if not util.find_spec(package)]


@functools.cache
def has_native_bfloat16(device: str) -> bool:
    """Return whether the device has fast bfloat16 products: AVX512-BF16 or AMX, or a GPU since Ampere."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and has_cpu_bfloat16()


def _open_device(device: str) -> tuple[str, str]:
    """Return the device and the reason for it.

    Raises UsageError `bad_argument` if it is not available, `missing_dependency` if it needs PyTorch.
    """
    if device == "cpu":
        return "cpu", "requested"
    if device == "auto" and not may_have_gpu():
        return "cpu", "no GPU that PyTorch could use was found"
    require("torch", f"device {device!r}")
    import torch

    name, reason = (device, "requested") if device != "auto" else _find_device()
    try:
        target = torch.device(name)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError):
        raise _no_device(device) from None
    return str(target), reason


def _find_device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return "cuda", f"found {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "mps", "found an Apple GPU"
    return "cpu", "PyTorch found no GPU that it can use"
