"""What this machine has, what Tessella chose on it and why, and whether the built-in model gives its known answer."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata, util

import numpy as np

from ..engine import Choice
from ..predictor import DEFAULT_MODEL, load

OPTIONAL = {
    "simplejpeg": "fast JPEG decoding",
    "openvino": "the engine of that name",
    "onnxruntime": "the engine of that name",
    "pyarrow": "reading and writing Parquet",
}


def examine() -> list[Choice]:
    """Rows (what, found or chosen, why), ending with a test of the built-in model."""
    import torch

    rows = [
        Choice("python", platform.python_version(), f"{platform.system()} {platform.machine()}"),
        Choice("tessella", metadata.version("tessella"), "installed"),
    ]
    for package in ("torch", "numpy", "pillow", "safetensors", "huggingface_hub"):
        rows.append(Choice(package, metadata.version(package), "needed"))
    for package, use in OPTIONAL.items():
        found = metadata.version(package) if util.find_spec(package) else "not installed"
        rows.append(Choice(package, found, f"optional: {use}"))
    rows.append(Choice("vector units", torch.backends.cpu.get_cpu_capability(), "what PyTorch uses of this CPU"))
    rows.append(_hub())
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


def _hub() -> Choice:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Choice("model hub", "offline", "HF_HUB_OFFLINE is set: only weights in the cache can be used")
    why = "HF_ENDPOINT is set" if os.environ.get("HF_ENDPOINT") else "huggingface_hub's default"
    return Choice("model hub", constants.ENDPOINT, f"{why}; not contacted now")
