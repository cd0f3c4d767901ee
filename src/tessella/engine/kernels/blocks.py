"""Helpers of the kernels in Triton; the only module that imports it.

A kernel takes pointers, sizes and strides one by one, so its signature exceeds the limit of 8 parameters: Triton 3.2,
which comes with the oldest supported PyTorch, has no tuples as arguments, and a size that selects the block shapes has
to be an argument of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from triton import Config, autotune, jit  # type: ignore[import-untyped,import-not-found,unused-ignore]
from triton import language as tl

from .backend import interpreted

__all__ = ["Kernel", "jit", "tl", "product", "tuned", "power_of_2"]

Grid = tuple[int, ...] | Callable[[dict[str, int]], tuple[int, ...]]  # programs per axis; may depend on block sizes


class Kernel(Protocol):
    """A kernel of Triton, which is called as `kernel[grid](*arguments)`."""

    def __getitem__(self, grid: Grid) -> Callable[..., object]:
        """Return a function that launches the kernel on a grid of programs."""


@jit
def product(a, b, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return a @ b in float32. WIDE: convert both to float32 first, as the interpreter has no bfloat16 product."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


def tuned(kernel: object, key: list[str], shapes: list[tuple[dict[str, int], int]]) -> Kernel:
    """Return the kernel with the fastest of `shapes`: (block sizes, number of warps).

    key: names of arguments; the shapes are timed once per combination of their values. The interpreter, which cannot
    time anything, uses the first shape.
    """
    configs = [Config(sizes, num_warps=warps, num_stages=2) for sizes, warps in shapes]
    fastest: Kernel = autotune(configs[:1] if interpreted() else configs, key=key)(kernel)
    return fastest


def power_of_2(count: int) -> int:
    """Return the smallest power of 2 that is at least `count` and 16, the smallest side of a block in a product."""
    return max(16, 1 << (count - 1).bit_length())
