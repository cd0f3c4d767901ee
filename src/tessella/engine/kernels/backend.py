"""Decide whether a kernel runs in Triton, which is optional and takes seconds to import."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib import util
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")
EXPERIMENTAL = "TESSELLA_EXPERIMENTAL_KERNELS"  # an environment variable, "1" to use the kernels
HALF = (torch.bfloat16, torch.float16)
SINGLE = (torch.float32, *HALF)  # float64 is computed by the plain functions


def has_triton() -> bool:
    """Return whether Triton is installed."""
    return util.find_spec("triton") is not None


def are_requested() -> bool:
    """Return whether the user wants these kernels, which are off by default: no GPU has run them so far."""
    return os.environ.get(EXPERIMENTAL) == "1"


def interpreted() -> bool:
    """Return whether Triton's interpreter is enabled, which runs kernels in NumPy, for tests on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernel_of(name: str, plain: Callable[P, Tensor], x: Tensor, dtypes: tuple[torch.dtype, ...]) -> Callable[P, Tensor]:
    """Return the Triton kernel `name` if it can run on `x`, a tensor of any shape, else `plain`.

    plain: a function with the same signature in plain PyTorch. dtypes: those that the kernel supports on a GPU; the
    interpreter supports all of SINGLE.
    """
    by_triton = x.dtype in (SINGLE if interpreted() else dtypes) and (x.is_cuda or interpreted()) and has_triton()
    if not by_triton:
        return plain
    run: Callable[P, Tensor] = importlib.import_module(f".{name}_triton", __package__).run
    return run


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype for sums over `x`, a tensor of any shape: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)
