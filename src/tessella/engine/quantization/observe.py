"""Statistics of the inputs of a graph's products, computed inside the graph, so that they need little memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graphs.ops import Affine, Array, Products, fold, integers
from ..runtime import op, ov

MIN_POSITIONS = 4  # of an image; products of fewer, such as the head, take no time, and would lose accuracy in 8 bits
QUANTILE = 0.95  # of the images fit into a range; with all of them, the range would grow with their number
READS_IMAGE = ("stem.", "patch_embed.")  # names of products that read the image, which stay in float32, too


@dataclass(frozen=True)
class Statistics:
    """Statistics of a value that products read; C is the axis that they sum over.

    low, high: (C,), between which a channel is in QUANTILE of the images. mean: (C,). weight: (C,), the largest
    absolute weight of each channel in all products that read the value.
    """

    low: Array
    high: Array
    mean: Array
    weight: Array


def sides(name: str) -> tuple[str, str]:
    """Return the names of the statistics of both factors of a product of two activations."""
    return f"{name}.left", f"{name}.right"


def key_of(x: ov.Output) -> str:
    """Return a name of a value that is unique in this process."""
    node = x.get_node() if isinstance(x, ov.Output) else x
    return str(node.get_friendly_name())


class Observer(Products):
    """Adds the range and the mean of each channel of the inputs of products as outputs of the graph.

    reads: by product, the first product that reads the same value. weights: by such a first product, see Statistics.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[str, str] = {}
        self.weights: dict[str, Array] = {}
        self._first: dict[str, str] = {}  # by value
        self._outputs: list[ov.Node] = []

    def observe(self, name: str, x: ov.Output, axis: int, weight_OC: Array) -> None:
        """Add the statistics of the channels of `x`, its `axis`, unless another product reads `x`, too."""
        output = x if isinstance(x, ov.Output) else x.output(0)
        shape = output.get_partial_shape()
        axis %= len(shape)
        others = [i for i in range(len(shape)) if i != axis]
        positions = np.prod([1.0, *(shape[i].get_length() for i in others[1:] if shape[i].is_static)])
        if positions < MIN_POSITIONS or name.startswith(READS_IMAGE):
            return
        first = self.reads[name] = self._first.setdefault(key_of(x), name)
        largest = np.abs(weight_OC).max(0)
        if first in self.weights:
            self.weights[first] = np.maximum(self.weights[first], largest)
            return
        self.weights[first] = largest
        axes = integers(*others[1:])  # separately for each image
        self._outputs += [reduce(x, axes, False) for reduce in (op.reduce_min, op.reduce_max, op.reduce_mean)]

    def observed(self) -> list[ov.Node]:
        """As `Products.observed`: the smallest, largest and mean values (B,C) of each input in turn."""
        return [op.result(output) for output in self._outputs]

    def statistics(self, outputs: list[list[Array]]) -> dict[str, Statistics]:
        """Return the statistics by product. outputs: for every batch, the values of `observed`."""
        found = {}
        for i, (first, weight) in enumerate(self.weights.items()):
            low, high, mean = (np.concatenate([batch[3 * i + j] for batch in outputs]) for j in range(3))
            low, high = np.quantile(low, 1 - QUANTILE, axis=0), np.quantile(high, QUANTILE, axis=0)
            found[first] = Statistics(low, high, mean.mean(0, dtype=np.float64), weight)
        return {name: found[first] for name, first in self.reads.items()}

    def linear(
        self, name: str, x: ov.Output, weight: Array, bias: Array | None, scale_shift: Affine | None = None
    ) -> ov.Node:
        """As in Products."""
        self.observe(name, x, -1, fold(weight, bias, scale_shift)[0])
        return super().linear(name, x, weight, bias, scale_shift)

    def scores(self, name: str, q_BhNd: ov.Output, k_BhMd: ov.Output) -> ov.Node:
        """As in Products."""
        self.observe_pair(name, (q_BhNd, -1), (k_BhMd, -1))
        return super().scores(name, q_BhNd, k_BhMd)

    def weighted_values(self, name: str, attention_BhNM: ov.Output, v_BhMd: ov.Output) -> ov.Node:
        """As in Products."""
        self.observe_pair(name, (attention_BhNM, -1), (v_BhMd, 2))
        return super().weighted_values(name, attention_BhNM, v_BhMd)

    def observe_pair(self, name: str, *factors: tuple[ov.Output, int]) -> None:
        """Add the statistics of both factors of a product of activations, which are summed over the given axes."""
        for side, (x, axis) in zip(sides(name), factors, strict=True):
            self.observe(side, x, axis, np.ones((1, x.get_output_partial_shape(0)[axis].get_length())))

    def from_left(self, name: str, x_BND: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """As in Products."""
        self.observe(name, x_BND, 1, weight)
        return super().from_left(name, x_BND, weight, bias)

    def convolution(self, name: str, x: ov.Output, weight: Array, bias: Array, stride: int, padding: int) -> ov.Node:
        """As in Products; only convolutions of 1 x 1 are observed."""
        if weight.shape[2:] == (1, 1) and not padding:
            self.observe(name, x, 1, weight[:, :, 0, 0])
        return super().convolution(name, x, weight, bias, stride, padding)

    def depthwise(self, name: str, x: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """As in Products."""
        self.observe(name, x, 1, np.abs(weight).max((1, 2, 3))[None])
        return super().depthwise(name, x, weight, bias)
