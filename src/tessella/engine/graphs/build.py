"""Build the graph of a network: its family's builder, and the reasons for which a network has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...data.spec import InputSpec
from ...models.configs import FamilyConfig
from ...models.configs.convit import ConViTConfig
from ...models.configs.convmixer import POOLS as CONVMIXER_POOLS
from ...models.configs.convmixer import ConvMixerConfig
from ...models.configs.crossvit import CrossViTConfig
from ...models.configs.mixer import MixerConfig
from ..runtime import ov
from . import convit, convmixer, crossvit, mixer
from .ops import Products, Size, WeightReader

if TYPE_CHECKING:
    from ...weights.network import Network

POOLS: dict[type[FamilyConfig], tuple[str, ...]] = {  # pools that give one vector per image
    ConvMixerConfig: tuple(pool for pool in CONVMIXER_POOLS if pool),
    ConViTConfig: ("token", "avg"),
    MixerConfig: ("avg",),
    CrossViTConfig: ("token", "avg"),
}


def why_not(network: Network) -> str | None:
    """Return why the network has no graph and is converted by PyTorch instead; None if it has one."""
    if not network.is_standard:
        return "the modules of the model are not those of its config"
    if network.global_pool not in POOLS[type(network.config)]:
        return f"global_pool={network.global_pool!r} gives no vector per image"
    return None


def layouts_of(network: Network) -> tuple[str, ...]:
    """Return the names of equivalent graphs whose speed depends on the CPU, the default first."""
    return mixer.LAYOUTS if isinstance(network.config, MixerConfig) else ("",)


@np.errstate(over="ignore", invalid="ignore")  # folded weights may overflow; the outputs show it
def build_graph(
    network: Network, size: Size, spec: InputSpec | None, *, layout: str = "", products: Products | None = None
) -> ov.Model:
    """Return the openvino.Model of a network for which `why_not` gives None: images -> logits, embedding.

    size: (height, width) of the images in pixels. spec: with it, the graph reads (B,H,W,C) uint8 images, without it
    (B,C,H,W) normalized floats. The outputs are float32, logits (B,classes) and embedding (B,width). layout: one of
    `layouts_of(network)`; "" is the first. products: how products with weights are computed; float32 by default.
    """
    weights, products, cfg = WeightReader(network.tensors), products or Products(), network.config
    pool = network.global_pool
    if isinstance(cfg, MixerConfig):
        images, outputs = mixer.build(weights, cfg, size, spec, products, layout or mixer.LAYOUTS[0])
    elif isinstance(cfg, ConvMixerConfig):
        images, outputs = convmixer.build(weights, cfg, size, spec, products, pool)
    elif isinstance(cfg, ConViTConfig):
        images, outputs = convit.build(weights, cfg, size, spec, products, pool)
    else:
        images, outputs = crossvit.build(weights, cfg, size, spec, products, pool)
    results = [ov.opset13.result(output) for output in outputs]
    for result, name in zip(results, ("logits", "embedding"), strict=True):
        result.output(0).set_names({name})
    return ov.Model([*results, *products.observed()], [images], network.arch)
