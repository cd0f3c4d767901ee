"""The graph of ConViT: constant attention by position, and a last block that computes the class token only.

Shape suffixes: as in models/convit.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...data.spec import InputSpec
from ...models.configs.convit import ConViTConfig
from ..runtime import op, ov
from .attention import EPS, Projections, add_mlp, block, self_attention, single_query, split_qkv
from .ops import (
    Array,
    Products,
    Size,
    WeightReader,
    classify,
    constant,
    image_input,
    integers,
    layer_norm,
    patches,
    slice_tokens,
    softmax,
    standardize,
    to_pixels,
    tokens_of,
)

LAYOUTS = ("",)


def build(
    weights: WeightReader, cfg: ConViTConfig, size: Size, spec: InputSpec | None, products: Products, pool: str
) -> tuple[ov.Node, Sequence[ov.Output]]:
    """Return the parameter and the outputs, logits and embedding, of the graph."""
    images, images_BHWC = image_input(size, cfg.in_chans, spec)
    weight, bias = to_pixels(weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], spec)
    x = patches(products, "patch_embed.proj", images_BHWC, weight, bias, size)
    grid = size[0] // cfg.patch_size, size[1] // cfg.patch_size
    if cfg.use_pos_embed:
        x = op.add(x, constant(weights["pos_embed"]))
    local = min(cfg.local_up_to_layer, cfg.depth)
    # patches are not read after the last block, unless they are pooled; a local block has no class token
    shortened = pool == "token" and local < cfg.depth
    for i in range(cfg.depth - shortened):
        if i == local:
            x = op.concat([tokens_of(weights["cls_token"], x), x], 1)
        inner = weights.under(f"blocks.{i}.")
        if i < local:
            x = local_block(inner, products, x, cfg.num_heads, grid)
        else:
            x = block(inner, products, x, cfg.num_heads)
    if shortened:
        if local == cfg.depth - 1:
            x = op.concat([tokens_of(weights["cls_token"], x), x], 1)
        x = token_block(weights.under(f"blocks.{cfg.depth - 1}."), products, x, cfg.num_heads)
    elif local == cfg.depth:
        x = op.concat([tokens_of(weights["cls_token"], x), x], 1)
    if pool == "token":
        token = x if shortened else slice_tokens(x, 0, 1)
        embedding = op.squeeze(layer_norm(token, weights.norm("norm"), EPS), integers(1))
    else:
        normed = layer_norm(slice_tokens(x, 1, 1 + grid[0] * grid[1]), weights.norm("norm"), EPS)
        embedding = op.reduce_mean(normed, integers(1), keep_dims=False)
    return images, classify(products, embedding, weights.get("head.weight"), weights.get("head.bias"))


def local_block(weights: WeightReader, products: Products, x_BND: ov.Output, heads: int, grid: Size) -> ov.Node:
    """A block with gated positional self-attention: (B,N,D) -> (B,N,D).

    Attention by position depends on the weights only, so it is a constant that is added to attention by content.
    """
    bias = weights.get("attn.qk.bias")
    q_bias, k_bias = (None, None) if bias is None else np.split(bias, 2)
    q, k = np.split(weights["attn.qk.weight"], 2)
    qkv: Projections = ((q, q_bias), (k, k_bias), (weights["attn.v.weight"], weights.get("attn.v.bias")))
    gate = 1 / (1 + np.exp(-weights["attn.gating_param"].astype(np.float64)))
    position = (position_attention(weights["attn.pos_proj.weight"], grid) * gate[:, None, None], 1 - gate)
    normed = standardize(x_BND, EPS)
    attended = self_attention(weights, products, normed, weights.norm("norm1"), heads, qkv, position)
    return add_mlp(weights, products, op.add(x_BND, attended))


def position_attention(weight_H3: Array, grid: Size) -> Array:
    """Return attention by position (H,N,N), float64, on a grid (rows, columns).

    The scores are the sum of a function of dx and one of dy, so the softmax over the grid is the product of one over
    rows and one over columns, and the bias cancels.
    """
    by_x, by_y, by_distance = weight_H3.astype(np.float64).T

    def over(side: int, by: Array) -> Array:
        offset = np.arange(side)[None] - np.arange(side)[:, None]  # [i,j]: from i to j
        return softmax(by[:, None, None] * offset + by_distance[:, None, None] * offset**2)

    rows, columns = over(grid[0], by_y), over(grid[1], by_x)
    both = rows[:, :, None, :, None] * columns[:, None, :, None, :]  # (H,Y,X,Y,X)
    count = grid[0] * grid[1]
    return both.reshape(len(both), count, count)


def token_block(weights: WeightReader, products: Products, x_BND: ov.Output, heads: int) -> ov.Node:
    """The last block, of which only the class token is computed: (B,1+N,D) -> (B,1,D)."""
    token, normed = slice_tokens(x_BND, 0, 1), standardize(x_BND, EPS)
    attended = single_query(
        products,
        f"{weights.prefix}attn",
        slice_tokens(normed, 0, 1),
        normed,
        weights.norm("norm1"),
        heads,
        split_qkv(weights),
        (weights["attn.proj.weight"], weights["attn.proj.bias"]),
    )
    return add_mlp(weights, products, op.add(token, attended))
