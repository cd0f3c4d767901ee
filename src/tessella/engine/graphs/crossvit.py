"""The graph of CrossViT: cross-attention without keys and values, resizing as a product, and a shorter last stage.

Shape suffixes: as in models/crossvit.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...data.spec import InputSpec
from ...models.configs.crossvit import STEMS, CrossViTConfig, branch_sizes
from ..runtime import op, ov
from .attention import EPS, Projection, block, single_query
from .ops import (
    Array,
    Products,
    Size,
    WeightReader,
    affine,
    classify,
    constant,
    gelu,
    image_input,
    integers,
    layer_norm,
    patches,
    reshape,
    slice_tokens,
    standardize,
    to_pixels,
    tokens_of,
    transpose,
)

LAYOUTS = ("",)
BRANCHES = (0, 1)
CUBIC = -0.75  # PyTorch's coefficient of bicubic interpolation


def build(
    weights: WeightReader, cfg: CrossViTConfig, size: Size, spec: InputSpec | None, products: Products, pool: str
) -> tuple[ov.Node, Sequence[ov.Output]]:
    """Return the parameter and the outputs, logits and embedding, of the graph."""
    images, images_BHWC = image_input(size, cfg.in_chans, spec)
    xs: list[ov.Output] = []
    counts = []
    for b, target in enumerate(branch_sizes(size, cfg)):
        fitted = fit_image(images_BHWC, size, target, cfg.crop_scale, cfg.in_chans)
        x = embed(weights, products, b, fitted, target, cfg, spec)
        counts.append((target[0] // cfg.patch_size[b]) * (target[1] // cfg.patch_size[b]))
        position = weights[f"pos_embed_{b}"]
        token = tokens_of(weights[f"cls_token_{b}"] + position[:, :1], x)
        xs.append(op.concat([token, op.add(x, constant(position[:, 1:]))], 1))
    tokens: list[ov.Output] = []
    for stage, depth in enumerate(cfg.depth):
        inner = weights.under(f"blocks.{stage}.")
        for b in BRANCHES:
            for i in range(depth[b]):
                xs[b] = block(inner.under(f"blocks.{b}.{i}."), products, xs[b], cfg.num_heads[b])
        parts = [(slice_tokens(xs[b], 0, 1), slice_tokens(xs[b], 1, 1 + counts[b])) for b in BRANCHES]
        is_last = stage + 1 == len(cfg.depth)
        if is_last and pool == "avg":  # the exchange does not change the patches
            break
        tokens = [exchange(inner, products, cfg, depth[2], b, parts[b][0], parts[1 - b][1]) for b in BRANCHES]
        if not is_last:
            xs = [op.concat([tokens[b], parts[b][1]], 1) for b in BRANCHES]
    pooled: list[ov.Output] = []
    for b in BRANCHES:
        norm = weights.norm(f"norm.{b}")
        if pool == "token":
            pooled.append(op.squeeze(layer_norm(tokens[b], norm, EPS), integers(1)))
        else:
            mean = op.reduce_mean(standardize(parts[b][1], EPS), integers(1), keep_dims=False)
            pooled.append(affine(mean, norm))
    return images, classify(products, op.concat(pooled, 1), *joint_head(weights))


def joint_head(weights: WeightReader) -> tuple[Array, Array] | tuple[None, None]:
    """Return weight and bias of one head that computes the mean of both branches' heads."""
    heads = [(weights.get(f"head.{b}.weight"), weights.get(f"head.{b}.bias")) for b in BRANCHES]
    (weight_0, bias_0), (weight_1, bias_1) = heads
    if weight_0 is None or weight_1 is None or bias_0 is None or bias_1 is None:
        return None, None
    return np.concatenate([weight_0, weight_1], 1) / 2, (bias_0 + bias_1) / 2


def embed(
    weights: WeightReader,
    products: Products,
    branch: int,
    images_BHWC: ov.Output,
    size: Size,
    cfg: CrossViTConfig,
    spec: InputSpec | None,
) -> ov.Node:
    """Patch embedding of a branch, from its image (B,H,W,C): -> (B,N,D)."""
    name = f"patch_embed.{branch}.proj"
    if not cfg.multi_conv:
        weight, bias = to_pixels(weights[f"{name}.weight"], weights[f"{name}.bias"], spec)
        return patches(products, name, images_BHWC, weight, bias, size)
    if spec is not None:  # the convolutions are padded with zeros, so pixels are normalized before them
        mean, std = (np.array(values, np.float64) for values in (spec.mean, spec.std))
        images_BHWC = affine(images_BHWC, (1 / (255 * std), -mean / std))
    x = transpose(images_BHWC, 0, 3, 1, 2)
    for i, (_, stride, padding) in enumerate(STEMS[cfg.patch_size[branch]]):
        x = op.relu(x) if i else x
        layer = f"{name}.{2 * i}"
        weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        x = products.convolution(layer, x, weight, bias, stride, padding)
    return transpose(reshape(x, 0, cfg.embed_dim[branch], -1), 0, 2, 1)


def fit_image(images_BHWC: ov.Output, size: Size, target: Size, crop: bool, channels: int) -> ov.Output:
    """Fit images of `size` to the `target` size of a branch: unchanged, cropped to the center or resized."""
    if size == target:
        return images_BHWC
    if crop and target[0] <= size[0] and target[1] <= size[1]:
        top, left = (round((old - new) / 2) for old, new in zip(size, target, strict=True))
        stop = integers(top + target[0], left + target[1])
        return op.slice(images_BHWC, integers(top, left), stop, integers(1, 1), integers(1, 2))
    # bicubic interpolation is linear: a product from the left for rows, and one from the right for columns
    rows = op.matmul(
        constant(resize_matrix(size[0], target[0])[None]),
        reshape(images_BHWC, 0, size[0], size[1] * channels),
        False,
        False,
    )
    columns = np.kron(resize_matrix(size[1], target[1]), np.eye(channels))
    return reshape(op.matmul(rows, constant(columns), False, True), 0, *target, channels)


def resize_matrix(old: int, new: int) -> Array:
    """Return the (N,M) float64 matrix of PyTorch's bicubic resize without antialiasing from M = old to N = new."""
    matrix = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        first = int(np.floor(center))
        for j in range(first - 1, first + 3):
            matrix[i, min(max(j, 0), old - 1)] += _cubic(abs(center - j))
    return matrix


def _cubic(distance: float) -> float:
    """Return the kernel of bicubic interpolation at a distance in pixels (Keys 1981)."""
    if distance <= 1:
        return (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
    if distance < 2:
        return CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return 0.0


def exchange(
    weights: WeightReader,
    products: Products,
    cfg: CrossViTConfig,
    fusions: int,
    branch: int,
    token_B1D: ov.Output,
    others_BND: ov.Output,
) -> ov.Node:
    """Return the new class token of a branch after attention to the patches of the other one: (B,1,D) -> (B,1,D).

    fusions: the number of cross-attentions in the stage's config.
    """
    other = 1 - branch
    token = project(weights, products, f"projs.{branch}.", token_B1D)
    for i in range(max(fusions, 1)):
        inner = weights.under(f"fusion.{branch}.{i}." if fusions else f"fusion.{branch}.")
        normed = standardize(token, EPS)
        # further cross-attentions read the token only
        tokens = op.concat([normed, standardize(others_BND, EPS)], 1) if i == 0 else normed
        q, k, v = (projection(inner, f"attn.{name}") for name in ("wq", "wk", "wv"))
        proj = inner["attn.proj.weight"], inner["attn.proj.bias"]
        attended = single_query(
            products,
            f"{inner.prefix}attn",
            normed,
            tokens,
            inner.norm("norm1"),
            cfg.num_heads[other],
            (q, k, v),
            proj,
        )
        token = op.add(token, attended)
    return project(weights, products, f"revert_projs.{branch}.", token)


def projection(weights: WeightReader, name: str) -> Projection:
    """Return weight (D,D) and bias (D,) of a linear layer."""
    return weights[f"{name}.weight"], weights.get(f"{name}.bias")


def project(weights: WeightReader, products: Products, name: str, token_B1D: ov.Output) -> ov.Node:
    """Norm, GELU and a linear layer to the width of the other branch: (B,1,D) -> (B,1,out)."""
    inner = weights.under(name)
    hidden = gelu(layer_norm(token_B1D, inner.norm("0"), EPS))
    return products.linear(f"{inner.prefix}2", hidden, inner["2.weight"], inner["2.bias"])
