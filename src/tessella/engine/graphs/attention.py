"""Transformer blocks of ConViT and CrossViT, and attention with one query token.

Shape suffixes: B images, N tokens, D model width, h heads, d head width.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from ..runtime import op, ov
from .ops import Affine, Array, Products, WeightReader, constant, gelu, reshape, standardize, transpose

Projection: TypeAlias = "tuple[Array, Array | None]"  # weight (D,D) and bias (D,) of a linear layer
Projections: TypeAlias = "tuple[Projection, Projection, Projection]"  # of queries, keys and values

EPS = 1e-6


def split_heads(x_BND: ov.Output, heads: int) -> ov.Node:
    """(B,N,D) -> (B,h,N,d)."""
    return transpose(reshape(x_BND, 0, 0, heads, -1), 0, 2, 1, 3)


def self_attention(
    weights: WeightReader,
    products: Products,
    normed_BND: ov.Output,
    scale_shift: Affine,
    heads: int,
    qkv: Projections,
    position: tuple[Array, Array] | None = None,
) -> ov.Node:
    """Multi-head attention of all tokens, with its output projection "attn.proj": (B,N,D) -> (B,N,D).

    normed_BND: the tokens after their norm, without its scale and shift. qkv: weight (D,D) and bias (D,) of queries,
    keys and values. position: attention by position (h,N,N) that is added to that by content, and a factor per head
    (h,) for the latter.
    """
    (q_weight, q_bias), key, value = qkv
    scale = np.float32((len(q_weight) // heads) ** -0.5)
    query = (q_weight * scale, None if q_bias is None else q_bias * scale)
    q_BhNd, k_BhNd, v_BhNd = (
        split_heads(products.linear(f"{weights.prefix}attn.{name}", normed_BND, weight, bias, scale_shift), heads)
        for name, (weight, bias) in zip("qkv", (query, key, value), strict=True)
    )
    attention = op.softmax(products.scores(f"{weights.prefix}attn.scores", q_BhNd, k_BhNd), -1)
    if position is not None:
        by_position, factor = position
        attention = op.add(op.multiply(attention, constant(factor[:, None, None])), constant(by_position))
    mixed_BhNd = products.weighted_values(f"{weights.prefix}attn.values", attention, v_BhNd)
    mixed = reshape(transpose(mixed_BhNd, 0, 2, 1, 3), 0, 0, -1)
    return products.linear(f"{weights.prefix}attn.proj", mixed, weights["attn.proj.weight"], weights["attn.proj.bias"])


def split_qkv(weights: WeightReader) -> Projections:
    """Return the parts of the linear layer "attn.qkv" as `self_attention` takes them."""
    bias = weights.get("attn.qkv.bias")
    biases = (None,) * 3 if bias is None else np.split(bias, 3)
    q, k, v = zip(np.split(weights["attn.qkv.weight"], 3), biases, strict=True)
    return q, k, v


def block(weights: WeightReader, products: Products, x_BND: ov.Output, heads: int) -> ov.Node:
    """A transformer block with norms before attention and MLP: (B,N,D) -> (B,N,D)."""
    normed = standardize(x_BND, EPS)
    attended = self_attention(weights, products, normed, weights.norm("norm1"), heads, split_qkv(weights))
    return add_mlp(weights, products, op.add(x_BND, attended))


def add_mlp(weights: WeightReader, products: Products, x_BND: ov.Output) -> ov.Node:
    """Add the MLP of a transformer block to its tokens: (B,N,D) -> (B,N,D)."""
    first, second = f"{weights.prefix}mlp.fc1", f"{weights.prefix}mlp.fc2"
    read = standardize(x_BND, EPS)
    hidden = products.linear(first, read, weights["mlp.fc1.weight"], weights["mlp.fc1.bias"], weights.norm("norm2"))
    return op.add(x_BND, products.linear(second, gelu(hidden), weights["mlp.fc2.weight"], weights["mlp.fc2.bias"]))


def single_query(
    products: Products,
    name: str,
    token_B1D: ov.Output,
    tokens_BND: ov.Output,
    scale_shift: Affine,
    heads: int,
    qkv: Projections,
    proj: tuple[Array, Array],
) -> ov.Node:
    """Attention of one token to all tokens, which projects neither keys nor values: -> (B,1,D).

    token_B1D, tokens_BND: the query and all tokens, normed without scale and shift. name: of the attention. qkv: weight
    (D,D) and bias (D,) of queries, keys and values. proj: weight and bias of the output projection. See
    `engine/rewrites/single_query.py` for the algebra.
    """
    (q_weight, q_bias), (k_weight, _), (v_weight, v_bias) = qkv
    scale, shift = (part.astype(np.float64) for part in scale_shift)
    width = len(q_weight)
    head = width // heads
    head_scale = np.float32(head**-0.5)
    q_bias = None if q_bias is None else q_bias * head_scale
    q_B1D = products.linear(f"{name}.query", token_B1D, q_weight * head_scale, q_bias, scale_shift)
    q_hBd = reshape(transpose(reshape(q_B1D, 0, heads, head), 1, 0, 2), heads, -1, head)
    key_hdD = (k_weight * scale).reshape(heads, head, width)
    key_BhD = transpose(op.matmul(q_hBd, constant(key_hdD), False, False), 1, 0, 2)
    attention_BhN = op.softmax(op.matmul(key_BhD, tokens_BND, False, True), -1)
    mean_hBD = transpose(op.matmul(attention_BhN, tokens_BND, False, False), 1, 0, 2)
    value_hdD = (v_weight * scale).reshape(heads, head, width)
    mixed_hBd = op.matmul(mean_hBD, constant(value_hdD), False, True)
    mixed_B1D = reshape(transpose(mixed_hBd, 1, 0, 2), -1, 1, width)
    v_shift = v_weight @ shift + (0 if v_bias is None else v_bias)
    weight, bias = proj
    return products.linear(f"{name}.proj", mixed_B1D, weight, bias + weight @ v_shift)
