"""What the kernels in Triton share; the only place that imports it."""

from __future__ import annotations

from typing import Any

from triton import Config, autotune, jit  # type: ignore[import-untyped,import-not-found,unused-ignore]
from triton import language as tl

from .backend import interpreted

__all__ = ["jit", "tl", "product", "tuned", "power_of_2"]


@jit
def product(a, b, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """a @ b in float32; WIDE since the interpreter has no product of bfloat16, whose products float32 holds."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


def tuned(kernel: Any, key: list[str], shapes: list[tuple[dict[str, int], int]]) -> Any:
    """The kernel in the fastest of `shapes` (sizes of its blocks, warps), timed once for each value of `key`.

    The first shape is taken by the interpreter, where nothing can be timed.
    """
    configs = [Config(sizes, num_warps=warps, num_stages=2) for sizes, warps in shapes]
    return autotune(configs[:1] if interpreted() else configs, key=key)(kernel)


def power_of_2(count: int) -> int:
    """The smallest power of 2 from `count` and 16 up: the lengths of blocks, 16 the least in a product of them."""
    return max(16, 1 << (count - 1).bit_length())
