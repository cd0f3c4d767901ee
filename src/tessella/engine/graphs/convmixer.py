"""The graph of ConvMixer: convolutions that the runtime fuses with their activation, and with the norm after it.

Shape suffixes: as in models/convmixer.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...data.spec import InputSpec
from ...models.configs.convmixer import ConvMixerConfig
from ..runtime import op, ov
from .ops import (
    Affine,
    Products,
    Size,
    WeightReader,
    affine,
    classify,
    constant,
    gelu,
    image_input,
    integers,
    to_pixels,
    transpose,
)

LAYOUTS = ("",)


def build(
    weights: WeightReader, cfg: ConvMixerConfig, size: Size, spec: InputSpec | None, products: Products, pool: str
) -> tuple[ov.Node, Sequence[ov.Output]]:
    """Return the parameter and the outputs, logits and embedding, of the graph."""
    images, images_BHWC = image_input(size, cfg.in_chans, spec)

    def act_and_norm(x: ov.Output, scale_shift: Affine) -> ov.Node:
        # In this order the runtime computes all three steps with the convolution. Folding the norm into a clamp (see
        # `engine/rewrites/convmixer.py`) would need a pass over the map of its own.
        return affine(op.relu(x) if cfg.act_layer == "relu" else gelu(x), scale_shift, axes_after=2)

    weight, bias = to_pixels(weights["stem.0.weight"], weights["stem.0.bias"], spec)
    x = products.convolution("stem.0", transpose(images_BHWC, 0, 3, 1, 2), weight, bias, cfg.patch_size, 0)
    x = act_and_norm(x, weights.batch_norm("stem.2"))
    for i in range(cfg.depth):
        block = f"blocks.{i}."
        inner = weights.under(block)
        x = products.map_input(f"{block}0.fn.0", x)
        spatial = products.depthwise(
            f"{block}0.fn.0",
            x,
            inner["0.fn.0.weight"],
            inner["0.fn.0.bias"],
        )
        x = op.add(act_and_norm(spatial, inner.batch_norm("0.fn.2")), x)
        x = products.convolution(f"{block}1", x, inner["1.weight"], inner["1.bias"], 1, 0)
        x = act_and_norm(x, inner.batch_norm("3"))
    return images, classify(products, pool_map(x, pool), weights.get("head.weight"), weights.get("head.bias"))


def pool_map(x_BDhw: ov.Output, kind: str) -> ov.Node:
    """(B,D,h,w) -> (B,D), or (B,2D) for "catavgmax"; the fast kinds give the same numbers."""
    kind = kind.replace("fast", "") or "avg"
    mean = op.reduce_mean(x_BDhw, integers(2, 3), keep_dims=False)
    if kind == "avg":
        return mean
    largest = op.reduce_max(x_BDhw, integers(2, 3), keep_dims=False)
    if kind == "max":
        return largest
    if kind == "avgmax":
        return op.multiply(op.add(mean, largest), constant(0.5))
    return op.concat([mean, largest], 1)
