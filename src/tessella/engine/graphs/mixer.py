"""The graphs of MLP-Mixer, gMixer, ResMLP and gMLP: products across patches from the left, and folded norms.

Shape suffixes: as in models/mixer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...data.spec import InputSpec
from ...models.configs.mixer import MixerConfig
from ..runtime import op, ov
from .ops import (
    Affine,
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
    patches,
    standardize,
    to_pixels,
    transpose,
)

LAYOUTS = ("left", "right")  # the product across patches: W @ X, or with transposed tokens
EPS = 1e-6
GATE_EPS = 1e-5  # of the norm in the gate of gMLP


def build(
    weights: WeightReader,
    cfg: MixerConfig,
    size: Size,
    spec: InputSpec | None,
    products: Products,
    layout: str,
) -> tuple[ov.Node, Sequence[ov.Output]]:
    """Return the parameter and the outputs, logits and embedding, of the graph."""
    images, images_BHWC = image_input(size, cfg.in_chans, spec)
    weight, bias = to_pixels(weights["stem.proj.weight"], weights["stem.proj.bias"], spec)
    x = patches(products, "stem.proj", images_BHWC, weight, bias, size)
    if cfg.stem_norm:
        is_affine = cfg.kind == "resmlp"
        x = affine(x if is_affine else standardize(x, EPS), norm_of(weights, "stem.norm", cfg.kind))
    block: Callable[[str, ov.Output], ov.Node]
    if cfg.kind == "resmlp":
        block = ResMlp(weights, products, layout).block
    elif cfg.kind == "gmlp":
        block = GMlp(weights, products, layout).block
    else:
        block = Mixer(weights, products, layout, gated=cfg.kind == "gmixer").block
    for i in range(cfg.num_blocks):
        x = block(f"blocks.{i}.", x)
    # the scale and shift of the last norm commute with the mean over the patches
    last = x if cfg.kind == "resmlp" else standardize(x, EPS)
    embedding = affine(op.reduce_mean(last, integers(1), keep_dims=False), norm_of(weights, "norm", cfg.kind))
    return images, classify(products, embedding, weights.get("head.weight"), weights.get("head.bias"))


def norm_of(weights: WeightReader, name: str, kind: str) -> Affine:
    """Return the scale and shift (D,) of a norm: a LayerNorm, or the Affine of ResMLP."""
    if kind != "resmlp":
        return weights.norm(name)
    return weights[f"{name}.alpha"].ravel(), weights[f"{name}.beta"].ravel()


class Blocks:
    """What the blocks of all kinds share. layout: one of LAYOUTS."""

    def __init__(self, weights: WeightReader, products: Products, layout: str):
        self.weights, self.products, self.layout = weights, products, layout

    def across(self, name: str, x: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """Linear layer across patches, on tokens as `to_mix` returns them."""
        if self.layout == "left":
            return self.products.from_left(name, x, weight, bias)
        return self.products.linear(name, x, weight, bias)

    def to_mix(self, x_BND: ov.Output) -> ov.Output:
        """Return tokens as `across` reads them: unchanged, or (B,D,N) in the layout "right"; its own inverse."""
        return x_BND if self.layout == "left" else transpose(x_BND, 0, 2, 1)

    def channels(self, block: str, x_BND: ov.Output, scale_shift: Affine, scale: Array | None = None) -> ov.Node:
        """Return the MLP across channels of tokens before the affine part of their norm.

        scale: (D,), multiplies the result.
        """
        name = f"{block}mlp_channels."
        inner = self.weights.under(name)
        hidden = gelu(self.products.linear(f"{name}fc1", x_BND, inner["fc1.weight"], inner["fc1.bias"], scale_shift))
        weight, bias = inner["fc2.weight"], inner["fc2.bias"]
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        return self.products.linear(f"{name}fc2", hidden, weight, bias)


class Mixer(Blocks):
    """Blocks of MLP-Mixer and gMixer: (B,N,D) -> (B,N,D)."""

    def __init__(self, weights: WeightReader, products: Products, layout: str, *, gated: bool):
        super().__init__(weights, products, layout)
        self.gated = gated

    def block(self, block: str, x_BND: ov.Output) -> ov.Node:
        """Return the tokens after the block whose weights start with `block`."""
        inner = self.weights.under(block)
        normed = affine(standardize(x_BND, EPS), inner.norm("norm1"))
        mixed = self.mlp(f"{block}mlp_tokens.", self.to_mix(normed), self.across)
        x_BND = op.add(x_BND, self.to_mix(mixed))
        normed, scale_shift = standardize(x_BND, EPS), inner.norm("norm2")
        if not self.gated:
            return op.add(x_BND, self.channels(block, normed, scale_shift))

        def linear(name: str, x: ov.Output, weight: Array, bias: Array) -> ov.Node:
            return self.products.linear(name, x, weight, bias, None if name.endswith("fc2") else scale_shift)

        return op.add(x_BND, self.mlp(f"{block}mlp_channels.", normed, linear))

    def mlp(self, name: str, x: ov.Output, linear: Callable[[str, ov.Output, Array, Array], ov.Node]) -> ov.Node:
        """Return an MLP with `linear` for its layers; the two halves of a gated one are products of their own."""
        inner = self.weights.under(name)
        weight, bias = inner["fc1.weight"], inner["fc1.bias"]
        if self.gated:
            half = len(weight) // 2
            gate = linear(f"{name}fc1.gate", x, weight[half:], bias[half:])
            hidden = op.multiply(linear(f"{name}fc1.value", x, weight[:half], bias[:half]), op.swish(gate))
        else:
            hidden = gelu(linear(f"{name}fc1", x, weight, bias))
        return linear(f"{name}fc2", hidden, inner["fc2.weight"], inner["fc2.bias"])


class ResMlp(Blocks):
    """Blocks of ResMLP: X + (W X) * scale + constant, then an MLP with folded scales: (B,N,D) -> (B,N,D)."""

    def block(self, block: str, x_BND: ov.Output) -> ov.Node:
        """Return the tokens after the block whose weights start with `block`."""
        inner = self.weights.under(block)
        (alpha, beta), affine2 = norm_of(inner, "norm1", "resmlp"), norm_of(inner, "norm2", "resmlp")
        weight, bias, ls1 = inner["linear_tokens.weight"], inner["linear_tokens.bias"], inner["ls1"]
        name = f"{block}linear_tokens"
        mixed = self.to_mix(self.across(name, self.to_mix(x_BND), weight, np.zeros_like(bias)))
        shift_ND = (weight.sum(1, dtype=np.float64)[:, None] * beta + bias[:, None]) * ls1
        x_BND = op.add(x_BND, op.add(op.multiply(mixed, constant(ls1 * alpha)), constant(shift_ND)))
        return op.add(x_BND, self.channels(block, x_BND, affine2, scale=inner["ls2"]))


class GMlp(Blocks):
    """Blocks of gMLP: an MLP whose gate mixes across patches: (B,N,D) -> (B,N,D)."""

    def block(self, block: str, x_BND: ov.Output) -> ov.Node:
        """Return the tokens after the block whose weights start with `block`."""
        name = f"{block}mlp_channels."
        inner, products = self.weights.under(name), self.products
        read = standardize(x_BND, EPS)
        weight, bias = inner["fc1.weight"], inner["fc1.bias"]
        scale_shift, half = self.weights.norm(f"{block}norm"), len(weight) // 2
        value = gelu(products.linear(f"{name}fc1.value", read, weight[:half], bias[:half], scale_shift))
        gate = gelu(products.linear(f"{name}fc1.gate", read, weight[half:], bias[half:], scale_shift))
        normed = self.to_mix(affine(standardize(gate, GATE_EPS), inner.norm("gate.norm")))
        mixed = self.across(f"{name}gate.proj", normed, inner["gate.proj.weight"], inner["gate.proj.bias"])
        gated = op.multiply(value, self.to_mix(mixed))
        return op.add(x_BND, products.linear(f"{name}fc2", gated, inner["fc2.weight"], inner["fc2.bias"]))
