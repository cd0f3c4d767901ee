"""Describe this computer: its CPU or GPU, its cores, and the versions of the packages that run models."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path

# packages whose version changes the speed or the results of models
RUNTIMES = ("torch", "openvino", "nncf", "onnx", "onnxscript", "onnxruntime")


def versions() -> dict[str, str]:
    """Return the versions of this package and of the installed runtimes, by name."""
    from importlib import metadata  # takes 15 ms

    from ._version import __version__

    result = dict(tessella=__version__)
    for name in RUNTIMES:
        with suppress(metadata.PackageNotFoundError):
            result[name] = metadata.version(name)
    return result


def cpu_name() -> str:
    """Return the name of the CPU as the system reports it."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """Return a short hash of the CPU's instruction sets, because the names of virtual CPUs do not distinguish them."""
    return hashlib.sha256((_cpu_line("flags") or _cpu_line("Features")).encode()).hexdigest()[:8]


@functools.cache
def _cpu_line(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def hardware(device: str) -> str:
    """Return the name of a GPU, or that of the CPU with its cores and the vector units that PyTorch uses."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def other_versions() -> str:
    """Return the names and versions of other installed packages that affect benchmarks, as text."""
    from importlib import metadata

    packages = []
    for name in ("timm", "openvino", "nncf", "onnxruntime", "onnx", "triton"):
        with suppress(metadata.PackageNotFoundError):
            packages.append(f"{name} {metadata.version(name)}")
    return ", ".join(packages)


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
