"""The products that int8 has to leave in float32: those with the largest errors, as few as possible."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...data.decode import Pixels
from ...data.spec import InputSpec
from ..choice import images_per_request
from ..graphs import build_graph
from ..graphs.ops import Affine, Array, Products, Size
from ..openvino import core
from ..plan import Plan
from ..runtime import op, ov
from .observe import Statistics, sides
from .quantize import Quantizer

if TYPE_CHECKING:
    from ...weights.network import Network

log = logging.getLogger(__name__)
SECONDS = 180.0  # of a search; a trial that has begun is completed
MAX_FRACTION = 0.5  # of all products; with more in float32, int8 is no faster than other precisions
IMAGES = 16  # to measure the errors on


class Prober(Quantizer):
    """Computes every product exactly, and adds its error in 8 bits as outputs of the graph.

    names: the products in the order of the outputs.
    """

    def __init__(self, statistics: Mapping[str, Statistics]):
        super().__init__(statistics)
        self.names: list[str] = []
        self._outputs: list[ov.Node] = []

    def observed(self) -> list[ov.Node]:
        """As in Products: for each product its squared error (1,), and the square of the exact result (1,)."""
        return [op.result(output) for output in self._outputs]

    def map_input(self, name: str, x: ov.Output) -> ov.Output:
        """As in Products; the map stays exact."""
        return x

    def linear(
        self, name: str, x: ov.Output, weight: Array, bias: Array | None, scale_shift: Affine | None = None
    ) -> ov.Node:
        """As in Products."""
        exact = Products.linear(self, name, x, weight, bias, scale_shift)
        return self._compare(name, exact, super().linear(name, x, weight, bias, scale_shift))

    def from_left(self, name: str, x_BND: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """As in Products."""
        exact = Products.from_left(self, name, x_BND, weight, bias)
        return self._compare(name, exact, super().from_left(name, x_BND, weight, bias))

    def convolution(self, name: str, x: ov.Output, weight: Array, bias: Array, stride: int, padding: int) -> ov.Node:
        """As in Products."""
        exact = Products.convolution(self, name, x, weight, bias, stride, padding)
        return self._compare(name, exact, super().convolution(name, x, weight, bias, stride, padding))

    def depthwise(self, name: str, x: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """As in Products."""
        exact = Products.depthwise(self, name, x, weight, bias)
        return self._compare(name, exact, super().depthwise(name, x, weight, bias))

    def scores(self, name: str, q_BhNd: ov.Output, k_BhMd: ov.Output) -> ov.Node:
        """As in Products."""
        exact = Products.scores(self, name, q_BhNd, k_BhMd)
        return self._compare(name, exact, super().scores(name, q_BhNd, k_BhMd))

    def weighted_values(self, name: str, attention_BhNM: ov.Output, v_BhMd: ov.Output) -> ov.Node:
        """As in Products."""
        exact = Products.weighted_values(self, name, attention_BhNM, v_BhMd)
        return self._compare(name, exact, super().weighted_values(name, attention_BhNM, v_BhMd))

    def _compare(self, name: str, exact: ov.Node, rounded: ov.Node) -> ov.Node:
        if name in self.statistics or self.statistics.keys() >= set(sides(name)):
            self.names.append(name)
            for value in (op.subtract(rounded, exact), exact):
                flat = op.reshape(op.multiply(value, value), op.constant(np.array([-1])), False)
                self._outputs.append(op.reduce_mean(flat, op.constant(np.array([0])), True))
        return exact


def product_errors(
    network: Network, plan: Plan, size: Size, spec: InputSpec, images: Pixels, statistics: Mapping[str, Statistics]
) -> dict[str, float]:
    """Return the error of each product in 8 bits, relative to its result (root mean squares), on exact inputs.

    images: (N,H,W,C) uint8, of which IMAGES are used.
    """
    prober = Prober(statistics)
    graph = build_graph(network, size, spec, layout=plan.layout, products=prober)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": plan.threads, "NUM_STREAMS": 1}
    request = core().compile_model(graph, "CPU", settings).create_infer_request()
    count = images_per_request(network.config, size)
    images = images[:IMAGES]
    sums = np.zeros((len(prober.names), 2))
    for start in range(0, len(images), count):
        batch = images[start : start + count]
        values = list(request.infer([batch]).values())[2:]
        sums += len(batch) * np.array([float(value[0]) for value in values]).reshape(-1, 2)
    errors = np.sqrt(sums[:, 0] / np.maximum(sums[:, 1], 1e-30))
    return dict(zip(prober.names, map(float, errors), strict=True))


def find_exact(
    errors: Mapping[str, float],
    passes: Callable[[tuple[str, ...]], bool],
    seconds: float = SECONDS,
) -> tuple[str, ...] | None:
    """Return the names of the fewest products, those with the largest errors, that have to stay in float32.

    errors: by name. passes: returns whether the graph with these products in float32 is accurate enough; it is known
    to fail without any. seconds: time limit, after which the smallest number found so far is returned. None if
    MAX_FRACTION of the products is not enough.
    """
    worst: Sequence[str] = sorted(errors, key=errors.__getitem__, reverse=True)
    until = time.monotonic() + seconds
    failing, passing = 0, max(1, int(MAX_FRACTION * len(worst)))
    if not passes(tuple(worst[:passing])):
        log.info("int8 is not accurate enough even with %d of %d products in float32", passing, len(worst))
        return None
    while passing - failing > 1 and time.monotonic() < until:
        middle = (failing + passing) // 2
        passed = passes(tuple(worst[:middle]))
        log.info("int8 with %d of %d products in float32: %s", middle, len(worst), "passes" if passed else "fails")
        failing, passing = (failing, middle) if passed else (middle, passing)
    return tuple(worst[:passing])
