"""Calibration: statistics of a network on images, cached, and the int8 graph that is built from them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...data.decode import Pixels
from ...data.spec import InputSpec
from ...errors import WeightsError
from ...text import count_of
from ..artefacts import cached
from ..choice import images_per_request
from ..facts import array_hash, conversion_facts
from ..graphs import build_graph
from ..graphs.ops import Size
from ..openvino import core
from ..runtime import ov
from .observe import Observer, Statistics, sides
from .quantize import Quantizer
from .search import product_errors

if TYPE_CHECKING:
    from ...weights.network import Network
    from ..plan import Plan

log = logging.getLogger(__name__)
# Relative error above which a product of two activations stays in float32. Most have 0.005 to 0.02; attention
# to many tokens beside attention to one of them has more, since weights below 1/510 of the largest one become 0.
MAX_PAIR_ERROR = 0.03
FIELDS = ("low", "high", "mean", "weight")


def quantized_graph(
    network: Network,
    plan: Plan,
    size: Size,
    spec: InputSpec | None,
    samples: Pixels,
    exact: Collection[str] = (),
) -> tuple[ov.Model, str]:
    """Return the graph of a network in int8 (see `build_graph`), and a hash of its weights and ranges.

    samples: (N,H,W,C) uint8 images to calibrate on. exact: names of products that stay in float32. Raises WeightsError
    `cache_failed`, or `conversion_failed` if activations overflow.
    """
    quantizer = Quantizer(calibrate(network, plan, size, samples), exact)
    graph = build_graph(network, size, spec, layout=plan.layout, products=quantizer)
    return graph, quantizer.digest.hexdigest()


def calibrate(network: Network, plan: Plan, size: Size, samples: Pixels) -> dict[str, Statistics]:
    """Return the statistics of all products that can be computed in 8 bits, by name; they are cached.

    samples: (N,H,W,C) uint8 images. Raises WeightsError `cache_failed`, and `conversion_failed` if a statistic is not
    finite because activations overflow.
    """
    recipe = dataclasses.replace(InputSpec.from_cfg(network.pretrained_cfg), height=size[0], width=size[1])
    facts = conversion_facts(network, plan, size, recipe, samples=array_hash(samples), openvino=ov.__version__)

    def measure(folder: Path) -> None:
        count = count_of(len(samples), "image")
        log.info("calibrating %s for int8 on %s (only the first time)", network.arch, count)
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            rows = observe(network, plan, size, recipe, samples)
        if not overflowing(rows):
            rows = without_inaccurate_pairs(rows, product_errors(network, plan, size, recipe, samples, rows))
        arrays = {f"{name} {field}": getattr(row, field) for name, row in rows.items() for field in FIELDS}
        np.savez(folder / "statistics.npz", **arrays)

    with np.load(cached("calibration", facts, measure) / "statistics.npz") as stored:
        known = dict.fromkeys(key.rpartition(" ")[0] for key in stored.files)
        rows = {name: Statistics(*(stored[f"{name} {field}"] for field in FIELDS)) for name in known}
    if names := overflowing(rows):
        raise WeightsError(
            "conversion_failed",
            f"the activations of {network.arch} overflow in {count_of(len(names), 'product')}, the first is {names[0]}",
            hint="use precision 'float32'",
        )
    return rows


def overflowing(rows: Mapping[str, Statistics]) -> list[str]:
    """Return the names of products with statistics that are not finite."""
    return [name for name, row in rows.items() if not all(np.isfinite(getattr(row, field)).all() for field in FIELDS)]


def without_inaccurate_pairs(rows: Mapping[str, Statistics], errors: Mapping[str, float]) -> dict[str, Statistics]:
    """Return the statistics without those of products of two activations with an error above MAX_PAIR_ERROR."""
    inaccurate = [name for name, error in errors.items() if error > MAX_PAIR_ERROR]
    if dropped := {side for name in inaccurate for side in sides(name)} & set(rows):
        log.info("too inaccurate in int8: %s of attention", count_of(len(dropped) // 2, "product"))
    return {name: row for name, row in rows.items() if name not in dropped}


def observe(network: Network, plan: Plan, size: Size, spec: InputSpec, samples: Pixels) -> dict[str, Statistics]:
    """Run (N,H,W,C) uint8 images through the exact graph and return the statistics of its products by name."""
    observer = Observer()
    graph = build_graph(network, size, spec, layout=plan.layout, products=observer)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": plan.threads, "NUM_STREAMS": 1}
    request = core().compile_model(graph, "CPU", settings).create_infer_request()
    count = images_per_request(network.config, size)
    outputs = []
    for start in range(0, len(samples), count):
        values = list(request.infer([samples[start : start + count]]).values())
        outputs.append([np.array(value) for value in values[2:]])
    return observer.statistics(outputs)
