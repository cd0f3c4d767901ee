"""Describe this computer: its CPU or GPU, its cores, and the versions of the packages that run models.

PyTorch is not imported, except to name a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import sys
import threading
from contextlib import suppress
from importlib import util
from pathlib import Path
from typing import Literal, get_args

from .errors import UsageError

# packages whose version changes the speed or the results of models
RUNTIMES = ("torch", "openvino", "onnx", "onnxscript", "onnxruntime")

# A server decodes images and runs models at a priority this much below that of its event loop. With equal priorities,
# the loop would only get its share of the cores under load, and answers and refusals would be late.
NICE = 5

CpuClass = Literal["amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2", "neon", "other"]
CPU_CLASSES: tuple[CpuClass, ...] = get_args(CpuClass)  # the best first

# what Linux calls a feature -> our name; "avx512" is added for CPUs with the four sets that its kernels need
_LINUX_FEATURES = {
    "avx2": "avx2",
    "fma": "fma",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "amx_fp16": "amx_fp16",
    "asimd": "neon",  # the 64-bit form, with double precision
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
# the same for NumPy, which knows fewer features, but on every system
_NUMPY_FEATURES = {
    "AVX2": "avx2",
    "FMA3": "fma",
    "AVX512VNNI": "avx512_vnni",
    "AVX512BF16": "avx512_bf16",
    "AVX512FP16": "avx512_fp16",
    "ASIMD": "neon",
    "ASIMDDP": "dotprod",
    "SVE": "sve",
}
_AVX512_SETS = ("f", "bw", "dq", "vl")
_CUDA_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}


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
def vector_features() -> frozenset[str]:
    """Return the vector instruction sets of the CPU that matter for the speed of models.

    Names are "avx2", "fma", "avx_vnni", "avx512" (foundation, BW, DQ and VL), "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_bf16", "amx_int8", "amx_fp16", "neon", "dotprod", "i8mm", "bf16" and "sve". Outside of Linux,
    NumPy's detection is used, which does not report "avx_vnni", AMX, "i8mm" and "bf16".
    """
    if flags := _cpu_line("flags") or _cpu_line("Features"):
        found, names, prefix = set(flags.split()), _LINUX_FEATURES, "avx512"
    else:
        found, names, prefix = _numpy_features(), _NUMPY_FEATURES, "AVX512"
    sets = {prefix + (one if prefix.islower() else one.upper()) for one in _AVX512_SETS}
    return frozenset([names[one] for one in found & set(names)] + ["avx512"] * (sets <= found))


def _numpy_features() -> set[str]:
    """Return the CPU features by NumPy's names; NumPy has no public function for them except one that prints."""
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as features  # type: ignore[import-not-found]
    except ImportError:
        return {"ASIMD"} if platform.machine().lower() in ("arm64", "aarch64") else set()
    return {name for name, present in features.items() if present}


def cpu_class() -> CpuClass:
    """Return the class of the CPU for speed tables: the best of its instruction sets for matrix products."""
    features = vector_features()
    ranks: tuple[tuple[CpuClass, bool], ...] = (
        ("amx", not features.isdisjoint({"amx_bf16", "amx_int8"})),
        ("avx512_bf16", "avx512_bf16" in features),
        ("avx512_vnni", "avx512_vnni" in features),
        ("avx512", "avx512" in features),
        ("avx2_vnni", "avx_vnni" in features),
        ("avx2", "avx2" in features),
        ("neon", "neon" in features),
    )
    return next((name for name, present in ranks if present), "other")


def has_cpu_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices faster than float32 ones: AVX512-BF16 or AMX."""
    return not vector_features().isdisjoint({"avx512_bf16", "amx_bf16"})


def may_have_gpu() -> bool:
    """Return whether importing PyTorch to look for a GPU is worthwhile: in milliseconds, and without importing it.

    True if PyTorch is installed and the CUDA driver reports a device (of those in CUDA_VISIBLE_DEVICES), or there is
    ROCm's device file, or this is macOS on Apple silicon. PyTorch may still be unable to use the GPU. Never raises.
    """
    if not util.find_spec("torch"):
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return Path("/dev/kfd").exists() or _has_cuda_device()


def _has_cuda_device() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip() in ("", "-1"):
        return False  # an empty list, which also ends at the first -1
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(_CUDA_DRIVERS[sys.platform])
        return not driver.cuInit(0) and not driver.cuDeviceGetCount(ctypes.byref(count)) and count.value > 0
    except (OSError, AttributeError, KeyError):  # no driver, a foreign library, another system
        return False


@functools.cache
def _cpu_line(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def hardware(device: str) -> str:
    """Return the name of a GPU, or that of the CPU with its cores and the best of its instruction sets."""
    if device.partition(":")[0] == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {os.cpu_count()} cores, {instruction_set()}"


def instruction_set() -> str:
    """Return the class of the CPU as text for people, such as "AVX512-BF16"."""
    return cpu_class().replace("_", "-").upper() if cpu_class() != "other" else "no vector instructions known"


def other_versions() -> str:
    """Return the names and versions of other installed packages that affect benchmarks, as text."""
    from importlib import metadata

    packages = []
    for name in ("timm", "openvino", "onnxruntime", "onnx", "triton"):
        with suppress(metadata.PackageNotFoundError):
            packages.append(f"{name} {metadata.version(name)}")
    return ", ".join(packages)


def thread_count() -> int:
    """Return the number of threads that a model should use on this CPU.

    OMP_NUM_THREADS if it is set, else the physical cores that this process may use, as the two threads of a core share
    its vector units; no more than the CPU time that a container is granted.
    """
    requested = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if requested.isdecimal() and int(requested) > 0:
        return int(requested)
    cores = _physical_cores() or available_cores()
    return max(1, min(cores, _granted_cores() or cores))


def _physical_cores() -> int:
    """Return the number of physical cores among those that this process may use; 0 if the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return 0
    return len(siblings)


def _granted_cores() -> int:
    """Return the CPU time per second that the container's control group grants, rounded up; 0 if there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return 0


def total_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or what its container is granted.

    0 if the system does not say.
    """
    limits = []
    with suppress(AttributeError, ValueError, OSError):  # Windows has no such function
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # no such file, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=0)


def available_memory() -> int:
    """Return the bytes of memory that processes could still use here, caches included; 0 if the system does not say."""
    limits = []
    with suppress(OSError, ValueError, IndexError):
        values = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(values.get("MemAvailable", "").split()[0]) * 1024)
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such file, or "max"
        granted, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = next(line for line in (group / "memory.stat").read_text().splitlines() if "inactive_file " in line)
        limits.append(max(granted - used + int(cached.split()[1]), 1))
    return min(limits, default=0)


def lower_priority(steps: int) -> None:
    """Lower the priority of the calling thread by `steps` of `nice`, on Linux; elsewhere it belongs to the process."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + steps))


def require_fork(purpose: str) -> None:
    """Check that this system can fork processes and pass open files to them, which Windows cannot.

    purpose: the subject of the message. Raises UsageError `unsupported_system`.
    """
    import socket  # takes 3 ms

    if not (hasattr(os, "fork") and hasattr(socket, "recv_fds")):
        raise UsageError(
            "unsupported_system",
            f"{purpose} decodes images in forked processes, which {platform.system()} does not support",
            hint="use Linux, on Windows in WSL 2; `tessella classify`, `embed` and `search` work here",
        )


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
