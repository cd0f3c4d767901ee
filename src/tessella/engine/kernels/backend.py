"""When a kernel runs by Triton, and how Triton is reached: late, as it is optional and takes seconds to import."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib import util
from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
SINGLE = (torch.float32, *HALF)  # float64 is left to the plain functions


def has_triton() -> bool:
    return util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in NumPy, one program after another: Triton's own switch, for tests on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernel_of(name: str, plain: Callable[..., Tensor], x: Tensor, dtypes: tuple[torch.dtype, ...]) -> Any:
    """What runs on `x`: the kernel in Triton where it can, else the plain function of the same signature.

    dtypes: that the kernel is made for on a GPU; the interpreter takes any of SINGLE.
    """
    by_triton = x.dtype in (SINGLE if interpreted() else dtypes) and (x.is_cuda or interpreted()) and has_triton()
    return importlib.import_module(f".{name}_triton", __package__).run if by_triton else plain


def wide(x: Tensor) -> torch.dtype:
    """What sums are kept in: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)
