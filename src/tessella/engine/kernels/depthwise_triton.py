"""The kernel of depthwise.py in Triton: each program computes a few rows of an image in registers."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .blocks import Kernel, jit, tl, tuned
from .depthwise import memory_format

ROWS = 4  # output rows per program; a loaded input row is used for up to 4 of them
SHAPES = {  # by channels_last: threads of a warp should read adjacent addresses
    True: [(dict(COLS=32, BLOCK=64), 4), (dict(COLS=32, BLOCK=32), 4), (dict(COLS=16, BLOCK=64), 4)],
    False: [(dict(COLS=32, BLOCK=16), 4), (dict(COLS=32, BLOCK=32), 8), (dict(COLS=16, BLOCK=32), 4)],
}


def run(
    x_BDhw: Tensor,
    weight_KKD: Tensor,
    bias_D: Tensor,
    low_D: Tensor | None,
    high_D: Tensor | None,
    scale_D: Tensor | None,
    channels_last: bool,
) -> Tensor:
    """As `depthwise.depthwise`, on a GPU or in Triton's interpreter: (B,D,h,w) -> the same shape."""
    x = x_BDhw.contiguous(memory_format=memory_format(channels_last))
    y = torch.empty_like(x)
    batch, depth, height, width = x.shape
    first, second = (low_D, high_D) if scale_D is None else (scale_D, scale_D)

    def grid(sizes: dict[str, int]) -> tuple[int, int, int]:
        return -(-height // ROWS) * -(-width // sizes["COLS"]), -(-depth // sizes["BLOCK"]), batch

    with torch.cuda.device_of(x):
        kernel_for(channels_last)[grid](
            x,
            weight_KKD.contiguous(),
            bias_D,
            first,
            second,
            y,
            depth,
            height,
            width,
            *x.stride(),
            K=len(weight_KKD),
            GELU=scale_D is not None,
        )
    return y


@functools.cache
def kernel_for(channels_last: bool) -> Kernel:
    """Return the kernel, tuned for one memory format; timings are kept for the life of the process."""
    return tuned(rows_of_an_image, ["depth", "height", "width", "K"], SHAPES[channels_last])


@jit
def finish(acc, bias, first, second, x_ptr, y_ptr, at, inside, GELU: tl.constexpr):  # type: ignore[no-untyped-def]
    """Finish one output row of (COLS,BLOCK) sums: add the bias, apply the activation, add the input, store."""
    z = acc + bias
    if GELU:
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476)) * first
    else:  # NaN stays NaN, as in PyTorch
        z = tl.maximum(z, first, propagate_nan=tl.PropagateNan.ALL)
        z = tl.minimum(z, second, propagate_nan=tl.PropagateNan.ALL)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (x + z).to(y_ptr.dtype.element_ty), mask=inside)


@jit
def rows_of_an_image(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    first_ptr,
    second_ptr,
    y_ptr,
    depth,
    height,
    width,
    stride_b,
    stride_d,
    stride_y,
    stride_x,
    K: tl.constexpr,
    GELU: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute 4 rows x COLS columns x BLOCK channels of one image, in the layout that the strides describe.

    Each input row is loaded once per column offset and added to every output row that it affects, in registers:
    (K + 3) / 4 loads per output and offset instead of K, and no more products than the sum needs.
    """
    across = tl.cdiv(width, COLS)
    top, left = tl.program_id(0) // across * 4, tl.program_id(0) % across * COLS
    image = tl.program_id(2).to(tl.int64) * stride_b  # a large batch has more than 2**31 elements
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    col = left + tl.arange(0, COLS)
    d_ok = d < depth
    channel = d[None, :] * stride_d
    acc0, acc1 = tl.zeros((COLS, BLOCK), tl.float32), tl.zeros((COLS, BLOCK), tl.float32)
    acc2, acc3 = tl.zeros((COLS, BLOCK), tl.float32), tl.zeros((COLS, BLOCK), tl.float32)
    for dx in range(K):
        at = col + dx - K // 2
        readable = ((at >= 0) & (at < width))[:, None] & d_ok[None, :]
        for r in tl.static_range(K + 3):
            y = top + r - K // 2
            source = x_ptr + image + y * stride_y + at[:, None] * stride_x + channel
            tile = tl.load(source, mask=readable & (y >= 0) & (y < height), other=0.0).to(tl.float32)
            taps = weight_ptr + dx * depth + d  # input row r is the tap r - i of output row i
            if r < K:
                acc0 += tile * tl.load(taps + r * K * depth, mask=d_ok, other=0.0).to(tl.float32)[None, :]
            if r >= 1 and r < K + 1:
                acc1 += tile * tl.load(taps + (r - 1) * K * depth, mask=d_ok, other=0.0).to(tl.float32)[None, :]
            if r >= 2 and r < K + 2:
                acc2 += tile * tl.load(taps + (r - 2) * K * depth, mask=d_ok, other=0.0).to(tl.float32)[None, :]
            if r >= 3:
                acc3 += tile * tl.load(taps + (r - 3) * K * depth, mask=d_ok, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + d, mask=d_ok, other=0.0).to(tl.float32)[None, :]
    first = tl.load(first_ptr + d, mask=d_ok, other=0.0).to(tl.float32)[None, :]
    second = tl.load(second_ptr + d, mask=d_ok, other=0.0).to(tl.float32)[None, :]
    out = image + top * stride_y + col[:, None] * stride_x + channel
    inside = (col < width)[:, None] & d_ok[None, :]
    finish(acc0, bias, first, second, x_ptr, y_ptr, out, inside, GELU)  # row `top` itself always exists
    finish(acc1, bias, first, second, x_ptr, y_ptr, out + stride_y, inside & (top + 1 < height), GELU)
    finish(acc2, bias, first, second, x_ptr, y_ptr, out + 2 * stride_y, inside & (top + 2 < height), GELU)
    finish(acc3, bias, first, second, x_ptr, y_ptr, out + 3 * stride_y, inside & (top + 3 < height), GELU)
