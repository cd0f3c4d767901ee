"""Products with 8-bit weights and activations, in the form that OpenVINO turns into 8-bit kernels.

A value x with channels c is rounded as x[c] = offset + ratio[c] * scale * q, q from 0 to 255. The ratio divides the
difficulty between activations and weights (Xiao et al., "SmoothQuant", ICML 2023) and is folded into the weights;
the offset, which the kernels would have to handle separately, is folded into the bias. Weights have a scale per output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ..graphs.ops import Affine, Array, Products, constant, fold, integers
from ..runtime import op, ov
from .observe import Statistics, key_of, sides

STRENGTH = 0.25  # of the ratios: 0 for none. 0.5 helps random weights and harms the built-in models
LEVELS = 256  # of activations
# Weights use half of the range of 8 bits: without VNNI, two products are added in 16 bits, and those of the full range
# overflow without notice. An exported graph has to give the same outputs on every CPU.
LIMIT = 63


@dataclass(frozen=True)
class Input:
    """A value that is rounded: x[c] = offset[c] + ratio[c] * rounded[c]; offset and ratio are (C,), float64."""

    rounded: ov.Output
    offset: Array
    ratio: Array


class Quantizer(Products):
    """Computes the products that `statistics` has in 8 bits, except for those named in `exact`.

    exact: the names, or prefixes of names that end with ".". digest: of all rounded weights and all ranges.
    """

    def __init__(self, statistics: Mapping[str, Statistics], exact: Collection[str] = ()):
        super().__init__()
        left_out = {*exact, *(side for name in exact for side in sides(name))}
        self.statistics = {name: row for name, row in statistics.items() if name not in left_out}
        self.digest = hashlib.sha256()
        self._inputs: dict[tuple[str, bool], Input] = {}

    def map_input(self, name: str, x: ov.Output) -> ov.Output:
        """As in Products: the sum reads the rounded map, too, so that it is never written in float32."""
        if name not in self.statistics:
            return x
        read = self.rounded_input(name, x, 2, signed=True, by_channel=True)
        value = op.multiply(read.rounded, constant(read.ratio[:, None, None]))
        self._inputs[(key_of(value), True)] = read
        return value

    def rounded_input(
        self, name: str, x: ov.Output, after: int, *, signed: bool = False, by_channel: bool = False, limit: int = 0
    ) -> Input:
        """Return the input of a product in 8 bits; products that read the same value share it.

        after: the number of axes that follow the channels. signed: round to -128 to 127, with offset 0. by_channel:
        channels are not summed, so weights do not matter for the ratio. limit: the integer to which the largest
        measured value of a signed input is rounded; larger values are not clamped to it. 0: the end of the range.
        """
        key = (key_of(x), signed)
        if key in self._inputs:
            return self._inputs[key]
        row = self.statistics[name]
        low, high = row.low.astype(np.float64), row.high.astype(np.float64)
        middle = 0.0 if signed else (low.min() + high.max()) / 2
        reach = np.maximum(np.maximum(high - middle, middle - low), 1e-12)
        reach = np.maximum(reach, 1e-6 * reach.max())
        weight = np.maximum(row.weight.astype(np.float64), 1e-6 * row.weight.max() + 1e-30)
        ratio = np.sqrt(reach) if by_channel else (reach / weight) ** STRENGTH
        ratio /= np.exp(np.log(ratio).mean())
        scale = (reach / ratio).max() / (limit or (LEVELS - 1) / 2)
        first = -LEVELS // 2 * scale if signed else 0.0
        last = first + (LEVELS - 1) * scale
        offset = np.full_like(ratio, middle) if signed else middle - ratio * last / 2
        self.digest.update(f"{name} {scale!r}".encode() + offset.tobytes() + ratio.tobytes())
        shape = (-1, *(1,) * after)
        smooth = op.multiply(x, constant((1 / ratio).reshape(shape)))
        if not signed:
            smooth = op.add(smooth, constant((-offset / ratio).reshape(shape)))
        bounds = (constant(first), constant(last))
        self._inputs[key] = Input(op.fake_quantize(smooth, *bounds, *bounds, LEVELS), offset, ratio)
        return self._inputs[key]

    def rounded_weight(self, name: str, weight: Array, limit: int = LIMIT) -> tuple[ov.Node, Array]:
        """Return a weight (out,...) in 8 bits as a node, and the values (out,...) that it stands for, float64.

        limit: the largest of the integers.
        """
        axes = tuple(range(1, weight.ndim))
        scale = (np.maximum(np.abs(weight).max(axes, keepdims=True), 1e-30) / limit).astype(np.float32)
        values = np.round(weight / scale).clip(-limit, limit).astype(np.int8)
        self.digest.update(name.encode() + values.tobytes() + scale.tobytes())
        return op.multiply(op.convert(op.constant(values), "f32"), constant(scale)), values * scale.astype(np.float64)

    def corrected(self, name: str, read: Input, weight_OC: Array, rounded_OC: Array, bias: Array | None) -> Array:
        """Return the bias (O,) that makes the product exact for the mean of its input."""
        mean = self.statistics[name].mean.astype(np.float64)
        moved = weight_OC.astype(np.float64) @ mean - rounded_OC @ ((mean - read.offset) / read.ratio)
        return moved if bias is None else moved + bias

    def linear(
        self, name: str, x: ov.Output, weight: Array, bias: Array | None, scale_shift: Affine | None = None
    ) -> ov.Node:
        """As in Products."""
        if name not in self.statistics:
            return super().linear(name, x, weight, bias, scale_shift)
        weight, bias = fold(weight, bias, scale_shift)
        read = self.rounded_input(name, x, 0)
        node, rounded = self.rounded_weight(name, weight * read.ratio)
        bias = self.corrected(name, read, weight, rounded, bias)
        return op.add(op.matmul(read.rounded, node, False, True), constant(bias))

    def from_left(self, name: str, x_BND: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """As in Products."""
        if name not in self.statistics:
            return super().from_left(name, x_BND, weight, bias)
        # on the right, kernels take signed values only; without VNNI, they add 128 to a signed value on the left. The
        # right factor, and not the weight, therefore uses half of the range
        read = self.rounded_input(name, x_BND, 1, signed=True, limit=LIMIT)
        node, rounded = self.rounded_weight(name, weight * read.ratio, LEVELS // 2 - 1)
        bias = self.corrected(name, read, weight, rounded, bias)
        product = op.matmul(op.unsqueeze(node, integers(0)), read.rounded, False, False)
        return op.add(product, constant(bias[:, None]))

    def scores(self, name: str, q_BhNd: ov.Output, k_BhMd: ov.Output) -> ov.Node:
        """As in Products."""
        rounded = self.rounded_pair(name, q_BhNd, k_BhMd)
        return super().scores(name, *(rounded or (q_BhNd, k_BhMd)))

    def weighted_values(self, name: str, attention_BhNM: ov.Output, v_BhMd: ov.Output) -> ov.Node:
        """As in Products."""
        rounded = self.rounded_pair(name, attention_BhNM, v_BhMd)
        return super().weighted_values(name, *(rounded or (attention_BhNM, v_BhMd)))

    def rounded_pair(self, name: str, left: ov.Output, right: ov.Output) -> tuple[ov.Node, ov.Node] | None:
        """Return both factors of a product of two activations in 8 bits, or None to keep them in float32.

        The right one uses half of the range for the same reason as weights.
        """
        first, second = sides(name)
        if not {first, second} <= self.statistics.keys():
            return None
        return self.rounded_factor(first, left, LEVELS // 2 - 1), self.rounded_factor(second, right, LIMIT)

    def rounded_factor(self, name: str, x: ov.Output, limit: int) -> ov.Node:
        """Return a factor of a product of two activations in 8 bits.

        limit: the largest value if the factor has a sign; one that is never negative uses 0 to 255.
        """
        row = self.statistics[name]
        low, high = float(row.low.min()), float(row.high.max())
        signed = low < 0
        scale = max(-low, high, 1e-12) / (limit if signed else LEVELS - 1)
        self.digest.update(f"{name} {scale!r}".encode())
        if signed and limit < LEVELS // 2 - 1:
            x = op.clamp(x, -limit * scale, limit * scale)
        first = -LEVELS // 2 * scale if signed else 0.0
        bounds = (constant(first), constant(first + (LEVELS - 1) * scale))
        return op.fake_quantize(x, *bounds, *bounds, LEVELS)

    def convolution(self, name: str, x: ov.Output, weight: Array, bias: Array, stride: int, padding: int) -> ov.Node:
        """As in Products; only convolutions of 1 x 1 have statistics."""
        if name not in self.statistics:
            return super().convolution(name, x, weight, bias, stride, padding)
        read = self.rounded_input(name, x, 2)
        flat = weight[:, :, 0, 0]
        node, rounded = self.rounded_weight(name, weight * read.ratio[:, None, None])
        bias = self.corrected(name, read, flat, rounded[:, :, 0, 0], bias)
        y = op.convolution(read.rounded, node, [stride] * 2, [0] * 2, [0] * 2, [1, 1])
        return op.add(y, constant(bias[:, None, None]))

    def depthwise(self, name: str, x: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """As in Products."""
        if name not in self.statistics:
            return super().depthwise(name, x, weight, bias)
        # the padding is 0, so that the offset has to be 0, too
        read = self.rounded_input(name, x, 2, signed=True, by_channel=True)
        node, _ = self.rounded_weight(name, (weight * read.ratio[:, None, None, None])[:, None])
        before, after = (weight.shape[-1] - 1) // 2, weight.shape[-1] // 2
        y = op.group_convolution(read.rounded, node, [1, 1], [before] * 2, [after] * 2, [1, 1])
        return op.add(y, constant(bias[:, None, None]))
