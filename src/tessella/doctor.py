"""What this machine has, what Tessella chose on it and why, and whether the built-in model gives its known answer."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata, util

import numpy as np

from .engine import Choice
from .engine.plan import has_native_bfloat16
from .engine.tuned import all_tuned
from .predictor import DEFAULT_MODEL, load

NEEDED = ("torch", "numpy", "pillow", "safetensors", "huggingface_hub", "openvino", "pyarrow", "lancedb", "matplotlib",
          "prometheus_client")  # fmt: skip
OPTIONAL = {
    "simplejpeg": "fast JPEG decoding",
    "onnxruntime": "the engine of that name (extra onnx)",
    "nncf": "int8 with OpenVINO (extra int8)",
    "ray": "several machines (extra ray)",
    "tensorboard": "`train --tensorboard` (extra train)",
}


def examine() -> list[Choice]:
    """Rows (what, found or chosen, why), ending with a test of the built-in model."""
    import torch

    rows = [
        Choice("python", platform.python_version(), f"{platform.system()} {platform.machine()}"),
        Choice("tessella", metadata.version("tessella"), "installed"),
    ]
    rows += [Choice(package, _version(package), "needed") for package in NEEDED]
    rows += [Choice(package, _version(package), f"optional: {use}") for package, use in OPTIONAL.items()]
    rows.append(Choice("vector units", torch.backends.cpu.get_cpu_capability(), "what PyTorch uses of this CPU"))
    native = has_native_bfloat16("cpu")
    rows.append(Choice("bfloat16", "native" if native else "emulated", "faster than float32 on this CPU"
                       if native else "no gain on this CPU: its products are rounded float32 ones"))  # fmt: skip
    rows.append(_hub())
    rows += _tuned(torch.get_num_threads())
    start = time.perf_counter()
    predictor = load()
    rows += predictor.plan.choices
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    predictor.predict([np.zeros((64, 64, 3), np.uint8)] * 8)
    passed = time.perf_counter() - start
    rows.append(Choice("built-in model", "works", f"{DEFAULT_MODEL}: loaded and verified in {loaded:.2f} s, "
                       f"8 images in {passed:.2f} s"))  # fmt: skip
    return rows


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "found, of unknown version" if util.find_spec(package) else "not installed"


def _tuned(threads: int) -> list[Choice]:
    """What `tessella tune` found, and whether it still holds."""
    rows = []
    for record in all_tuned():
        holds = record.holds(threads)
        for mode, winner in record.winners.items():
            chosen = " ".join(filter(None, (winner.engine, winner.precision, winner.layout)))
            chosen += f", {winner.streams} x {winner.batch_size} images"
            why = winner.reason if holds else f"not used: other machine, threads or versions; was {winner.reason}"
            rows.append(Choice(f"{record.arch}, {mode}", chosen, why))
    return rows or [Choice("tuned models", "none", "`tessella tune MODEL` measures what is fastest here")]


def _hub() -> Choice:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Choice("model hub", "offline", "HF_HUB_OFFLINE is set: only weights in the cache can be used")
    why = "HF_ENDPOINT is set" if os.environ.get("HF_ENDPOINT") else "huggingface_hub's default"
    return Choice("model hub", constants.ENDPOINT, f"{why}; not contacted now")
