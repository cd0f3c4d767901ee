"""Report the installed packages, the choices for this machine with reasons, and a test of the built-in model."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata, util

import numpy as np

from ._version import __version__
from .engine import Choice
from .engine.plan import has_native_bfloat16
from .engine.tuned import all_tuned
from .machine import instruction_set, thread_count
from .predictor import load
from .text import count_of

NEEDED = (
    *("numpy", "pillow", "safetensors", "huggingface_hub", "openvino"),
    *("pyarrow", "lancedb", "matplotlib", "prometheus_client"),
)
OPTIONAL = {
    "simplejpeg": "fast JPEG decoding",
    "torch": "training, features, GPUs, other engines and image sizes (extra torch)",
    "onnxruntime": "the ONNX Runtime engine (extra onnx)",
    "ray": "runs on several machines (extra ray)",
    "tensorboard": "`train --tensorboard` (extra train)",
}


def examine() -> list[Choice]:
    """Return rows (what, found or chosen, why); the last one is a test of the built-in model.

    Raises the errors of `load`.
    """
    rows = [
        Choice("python", platform.python_version(), f"{platform.system()} {platform.machine()}"),
        Choice("tessella", __version__, "installed"),
    ]
    rows += [Choice(package, _version(package), "required") for package in NEEDED]
    rows += [Choice(package, _version(package), f"optional: {use}") for package, use in OPTIONAL.items()]
    rows.append(Choice("instruction set", instruction_set(), "the best of this CPU for matrix products"))
    native = has_native_bfloat16("cpu")
    why = "faster than float32" if native else "not faster: this CPU computes in float32 and rounds the results"
    rows.append(Choice("bfloat16", "native" if native else "emulated", why))
    rows.append(_hub())
    rows += _tuned(thread_count())
    start = time.perf_counter()
    predictor = load()
    rows += predictor.plan.choices
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    predictor.predict([np.zeros((64, 64, 3), np.uint8)] * 8)
    predicted = time.perf_counter() - start
    why = f"{predictor.name}: loaded and verified in {loaded:.2f} s, 8 images in {predicted:.2f} s"
    return [*rows, Choice("built-in model", "works", why)]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown version" if util.find_spec(package) else "not installed"


def _tuned(threads: int) -> list[Choice]:
    """Return the results of `tessella tune`, and whether they still apply."""
    rows = []
    for record in all_tuned():
        holds = record.holds(threads)
        for mode, winner in record.winners.items():
            chosen = " ".join(filter(None, (winner.engine, winner.precision, winner.layout)))
            chosen += f", {winner.streams} x {count_of(winner.batch_size, 'image')}"
            unused = f"not used: the machine, threads or versions differ; it was {winner.reason}"
            rows.append(Choice(f"{record.arch}, {mode}", chosen, winner.reason if holds else unused))
    return rows or [Choice("tuned models", "none", "run `tessella tune MODEL` to find the fastest settings")]


def _hub() -> Choice:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Choice("model hub", "offline", "HF_HUB_OFFLINE is set: only weights in the cache are used")
    why = "HF_ENDPOINT is set" if os.environ.get("HF_ENDPOINT") else "the default of huggingface_hub"
    return Choice("model hub", constants.ENDPOINT, f"{why}; not contacted by this command")
