"""The kernel of gpsa.py in Triton: each program computes rows of a head, over all tokens at once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .backend import interpreted
from .blocks import Kernel, jit, power_of_2, product, tl, tuned

MAX_SCORES = 64 * 256  # per program
SHAPES = [(dict(ROWS=64), 8), (dict(ROWS=32), 8), (dict(ROWS=32), 4), (dict(ROWS=16), 8)]


def run(qkv_BNX: Tensor, content_gate_H: Tensor, position_HNM: Tensor) -> Tensor:
    """As `gpsa.gpsa`, on a GPU or in Triton's interpreter."""
    qkv, position = qkv_BNX.contiguous(), position_HNM.contiguous()
    (batch, tokens, three), heads = qkv.shape, len(content_gate_H)
    y_BND = qkv.new_empty(batch, tokens, three // 3)
    width, keys = three // 3 // heads, power_of_2(tokens)
    with torch.cuda.device_of(qkv):
        kernel_for(keys)[lambda sizes: (-(-tokens // sizes["ROWS"]), heads, batch)](
            qkv,
            content_gate_H,
            position,
            y_BND,
            tokens,
            position.stride(0),
            position.stride(1),
            width**-0.5,
            HEADS=heads,
            WIDTH=width,
            BLOCK_d=power_of_2(width),
            KEYS=keys,
            WIDE=interpreted(),
        )
    return y_BND


@functools.cache
def kernel_for(keys: int) -> Kernel:
    """Return the kernel, tuned for rows of `keys` scores, a power of 2; timings are kept for the process."""
    shapes = [shape for shape in SHAPES if shape[0]["ROWS"] * keys <= MAX_SCORES]
    return tuned(rows_of_a_head, ["tokens", "HEADS", "WIDTH"], shapes)


@jit
def rows_of_a_head(  # type: ignore[no-untyped-def]
    qkv_ptr,
    content_gate_ptr,
    position_ptr,
    y_ptr,
    tokens,
    stride_h,
    stride_n,
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_d: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute ROWS tokens of one head of one image, which attend to all tokens."""
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, keys, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, BLOCK_d)
    base = qkv_ptr + image * tokens * (3 * HEADS * WIDTH) + head * WIDTH + d[None, :]
    row_ok, key_ok, d_ok = rows < tokens, keys < tokens, d < WIDTH
    from_keys, keys_ok = base + keys[:, None] * (3 * HEADS * WIDTH), key_ok[:, None] & d_ok[None, :]
    q = tl.load(base + rows[:, None] * (3 * HEADS * WIDTH), mask=row_ok[:, None] & d_ok[None, :], other=0.0)
    k = tl.load(from_keys + HEADS * WIDTH, mask=keys_ok, other=0.0)
    scores = product(q, tl.trans(k), WIDE) * scale
    scores = tl.where(key_ok[None, :], scores, float("-inf"))
    content = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    content *= (tl.load(content_gate_ptr + head).to(tl.float32) / tl.sum(content, axis=1))[:, None]
    position = tl.load(
        position_ptr + head * stride_h + rows[:, None] * stride_n + keys[None, :],
        mask=row_ok[:, None] & key_ok[None, :],
        other=0.0,
    ).to(tl.float32)
    v = tl.load(from_keys + 2 * HEADS * WIDTH, mask=keys_ok, other=0.0)
    y = product((content + position).to(v.dtype), v, WIDE)
    to = y_ptr + (image * tokens + rows[:, None]) * (HEADS * WIDTH) + head * WIDTH + d[None, :]
    tl.store(to, y.to(y_ptr.dtype.element_ty), mask=row_ok[:, None] & d_ok[None, :])
