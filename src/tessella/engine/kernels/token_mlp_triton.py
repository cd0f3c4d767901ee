"""The kernel of token_mlp.py in Triton: each program computes all patches of a few channels."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .backend import interpreted
from .blocks import Kernel, jit, power_of_2, product, tl, tuned
from .token_mlp import TokenMlpWeights

LARGEST_SLAB = 64 * 256  # elements per program
SHAPES = [
    (dict(BLOCK=64, UNITS=32), 8),
    (dict(BLOCK=64, UNITS=64), 8),
    (dict(BLOCK=32, UNITS=64), 8),
    (dict(BLOCK=16, UNITS=32), 8),
]


def run(x_BND: Tensor, mean_BN: Tensor, rstd_BN: Tensor, weights: TokenMlpWeights, gated: bool) -> Tensor:
    """As `token_mlp.token_mlp`, on a GPU or in Triton's interpreter."""
    x, weight1, weight2 = x_BND.contiguous(), weights.weight1.contiguous(), weights.weight2.contiguous()
    y = torch.empty_like(x)
    batch, tokens, width = x.shape
    rows = power_of_2(tokens)
    with torch.cuda.device_of(x):
        kernel_for(rows)[lambda sizes: (-(-width // sizes["BLOCK"]), batch)](
            x,
            mean_BN.contiguous(),
            rstd_BN.contiguous(),
            weights.scale,
            weights.shift,
            weight1,
            weights.bias1,
            weight2,
            weights.bias2,
            y,
            tokens,
            width,
            weight1.stride(0),
            weight2.stride(0),
            HIDDEN=len(weights.bias1) // (2 if gated else 1),
            GATED=gated,
            ROWS=rows,
            WIDE=interpreted(),
        )
    return y


@functools.cache
def kernel_for(rows: int) -> Kernel:
    """Return the kernel, tuned for `rows` patches, a power of 2; timings are kept for the life of the process."""
    shapes = [shape for shape in SHAPES if shape[0]["BLOCK"] * rows <= LARGEST_SLAB]
    return tuned(slab_of_an_image, ["tokens", "width", "HIDDEN", "GATED"], shapes)


@jit
def first_layer(weight_ptr, bias_ptr, units, real, n_ok, at, normed, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return UNITS rows of W1 n + b1; units past the last are 0, and stay 0 after any activation."""
    weight = tl.load(weight_ptr + at, mask=real[:, None] & n_ok[None, :], other=0.0)
    bias = tl.load(bias_ptr + units, mask=real, other=0.0).to(tl.float32)
    return product(weight, normed, WIDE) + bias[:, None]


@jit
def slab_of_an_image(  # type: ignore[no-untyped-def]
    x_ptr,
    mean_ptr,
    rstd_ptr,
    scale_ptr,
    shift_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    y_ptr,
    tokens,
    width,
    stride1,
    stride2,
    HIDDEN: tl.constexpr,
    GATED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Compute all patches x BLOCK channels of one image, UNITS hidden units at a time."""
    image = tl.program_id(1).to(tl.int64)
    n, d, e = tl.arange(0, ROWS), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, UNITS)
    n_ok, d_ok = n < tokens, d < width
    at, inside = image * tokens * width + n[:, None] * width + d[None, :], n_ok[:, None] & d_ok[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    mean = tl.load(mean_ptr + image * tokens + n, mask=n_ok, other=0.0)[:, None]
    rstd = tl.load(rstd_ptr + image * tokens + n, mask=n_ok, other=0.0)[:, None]
    scale = tl.load(scale_ptr + d, mask=d_ok, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(shift_ptr + d, mask=d_ok, other=0.0).to(tl.float32)[None, :]
    normed = ((x.to(tl.float32) - mean) * rstd * scale + shift).to(x.dtype)
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, HIDDEN, UNITS):
        units = start + e
        real = units < HIDDEN
        row = units[:, None] * stride1 + n[None, :]
        h = first_layer(weight1_ptr, bias1_ptr, units, real, n_ok, row, normed, WIDE)
        if GATED:
            row += HIDDEN * stride1
            gate = first_layer(weight1_ptr, bias1_ptr, units + HIDDEN, real, n_ok, row, normed, WIDE)
            h = h * gate * tl.sigmoid(gate)
        else:
            h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
        weight2 = tl.load(
            weight2_ptr + n[:, None] * stride2 + units[None, :], mask=n_ok[:, None] & real[None, :], other=0.0
        )
        acc += product(weight2, h.to(x.dtype), WIDE)
    bias2 = tl.load(bias2_ptr + n, mask=n_ok, other=0.0).to(tl.float32)[:, None]
    again = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)  # not kept in registers through the loop
    tl.store(y_ptr + at, (again + acc + bias2).to(y_ptr.dtype.element_ty), mask=inside)
