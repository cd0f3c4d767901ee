"""What this computer is: its CPU or GPU, its cores, and the versions of the packages that compute."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

RUNTIMES = (
    "torch",
    "openvino",
    "nncf",
    "onnx",
    "onnxscript",
    "onnxruntime",
)  # another version of one of these wants another measurement


def versions() -> dict[str, str]:
    """Of this package and of the runtimes that are installed under their usual names."""
    from ._version import __version__

    found = dict(tessella=__version__)
    for name in RUNTIMES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def cpu_name() -> str:
    """As the system calls it."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """A short hash of the instruction sets that the system lists; names of virtual CPUs do not tell them apart."""
    return hashlib.sha256((_cpu_line("flags") or _cpu_line("Features")).encode()).hexdigest()[:8]


@functools.cache
def _cpu_line(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def hardware(device: str) -> str:
    """A GPU's name; a CPU's with its cores and the vector units that PyTorch uses."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def other_versions() -> str:
    """Of the other packages that a candidate may be made of, where they are installed."""
    found = []
    for name in ("timm", "openvino", "nncf", "onnxruntime", "onnx", "triton"):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
