"""Operations of a graph, and the products of activations with weights, which other precisions replace.

Shape suffixes: B images, H W pixels, C color channels, N tokens, D model width, h heads, d head width.
Weights are NumPy arrays; scales and shifts are folded into them in NumPy, so the runtime receives constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...data.spec import InputSpec
from ..runtime import op, ov
from .depthwise import depthwise_convolution

Array: TypeAlias = NDArray[np.floating]
Affine: TypeAlias = "tuple[Array, Array]"  # scale and shift per channel
Size: TypeAlias = tuple[int, int]  # (height, width)


def constant(values: Array | float) -> ov.Node:
    """Return a float32 constant of any shape."""
    return op.constant(np.require(values, np.float32, "C"), shared_memory=True)


def integers(*values: int) -> ov.Node:
    """Return a constant with the axes, sizes or bounds that an operator reads."""
    return op.constant(np.array(values, np.int64))


def reshape(x: ov.Output, *sizes: int) -> ov.Node:
    """Reshape to `sizes`; 0 keeps the size of an axis, -1 stands for the remaining one."""
    return op.reshape(x, integers(*sizes), special_zero=True)


def transpose(x: ov.Output, *axes: int) -> ov.Node:
    """Permute the axes."""
    return op.transpose(x, integers(*axes))


def slice_tokens(x_BND: ov.Output, start: int, stop: int) -> ov.Node:
    """Return the tokens from `start` to before `stop`: (B,N,D) -> (B,stop-start,D)."""
    return op.slice(x_BND, integers(start), integers(stop), integers(1), integers(1))


def tokens_of(weight: Array, like_BND: ov.Output) -> ov.Node:
    """Repeat tokens (1,n,D) for every image of a batch: -> (B,n,D)."""
    _, count, width = weight.shape
    batch = op.gather(op.shape_of(like_BND), integers(0), op.constant(np.int64(0)))
    return op.broadcast(constant(weight), op.concat([batch, integers(count, width)], 0))


def standardize(x: ov.Output, eps: float) -> ov.Node:
    """Layer norm over the last axis without scale and shift, which are folded into the products that read it."""
    return op.mvn(x, integers(-1), True, eps, "inside_sqrt")


def affine(x: ov.Output, scale_shift: Affine, axes_after: int = 0) -> ov.Node:
    """Multiply by a scale and add a shift per channel.

    axes_after: the number of axes that follow the channel axis.
    """
    scale, shift = (part.reshape(-1, *(1,) * axes_after) for part in scale_shift)
    return op.add(op.multiply(x, constant(scale)), constant(shift))


def layer_norm(x: ov.Output, scale_shift: Affine, eps: float) -> ov.Node:
    """Layer norm over the last axis."""
    return affine(standardize(x, eps), scale_shift)


def gelu(x: ov.Output) -> ov.Node:
    """GELU with the error function, as PyTorch computes it."""
    return op.gelu(x, "erf")


def softmax(x: Array) -> Array:
    """Softmax over the last axis of an array (...,N) in float64."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class WeightReader:
    """The weights of a network by their published names, below a prefix such as "blocks.0."."""

    def __init__(self, tensors: Mapping[str, NDArray[np.generic]], prefix: str = ""):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Array:
        """Return an array (...) of type float32; raises KeyError."""
        return np.asarray(self.tensors[self.prefix + name], np.float32)

    def get(self, name: str) -> Array | None:
        """Return an array (...) of type float32, or None if the network has no such weight."""
        return self[name] if self.prefix + name in self.tensors else None

    def under(self, prefix: str) -> WeightReader:
        """Return a reader of the weights whose names continue with `prefix`."""
        return WeightReader(self.tensors, self.prefix + prefix)

    def norm(self, name: str) -> Affine:
        """Return the scale and shift of a layer norm."""
        return self[f"{name}.weight"], self[f"{name}.bias"]

    def batch_norm(self, name: str, eps: float = 1e-5) -> Affine:
        """Return the scale and shift, float64 (D,), that a batch norm applies to each channel at inference."""
        variance, mean = (self[f"{name}.{part}"].astype(np.float64) for part in ("running_var", "running_mean"))
        scale = self[f"{name}.weight"] / np.sqrt(variance + eps)
        return scale, self[f"{name}.bias"] - scale * mean


def fold(weight: Array, bias: Array | None, scale_shift: Affine | None) -> tuple[Array, Array | None]:
    """Return weight (out,in) and bias (out,) of a linear layer that reads scale * x + shift.

    The bias is summed in float64.
    """
    if scale_shift is None:
        return weight, bias
    scale, shift = scale_shift
    moved = np.einsum("oi,i->o", weight, shift, dtype=np.float64)
    return weight * scale.astype(np.float32), moved if bias is None else moved + bias


class Products:
    """The products of a graph with constant weights, in float32; subclasses observe their inputs or compute in 8 bits.

    Every product has a name: that of the module with the weights. precision: in which the runtime will compute what is
    float32 in the graph; the choice of kernels depends on it.
    """

    def __init__(self, precision: str = "float32"):
        self.precision = precision

    def map_input(self, name: str, x: ov.Output) -> ov.Output:
        """Return a map (B,D,h,w) as the depthwise convolution `name` and everything else should read it."""
        return x

    def observed(self) -> list[ov.Node]:
        """Return further outputs of the graph."""
        return []

    def linear(
        self, name: str, x: ov.Output, weight: Array, bias: Array | None, scale_shift: Affine | None = None
    ) -> ov.Node:
        """Linear layer on the last axis: (...,in) -> (...,out).

        scale_shift: of the norm before it, which is folded into weight (out,in) and bias (out,).
        """
        weight, bias = fold(weight, bias, scale_shift)
        y = op.matmul(x, constant(weight), False, True)
        return y if bias is None else op.add(y, constant(bias))

    def scores(self, name: str, q_BhNd: ov.Output, k_BhMd: ov.Output) -> ov.Node:
        """Products of queries and keys: (B,h,N,d), (B,h,M,d) -> (B,h,N,M)."""
        return op.matmul(q_BhNd, k_BhMd, False, True)

    def weighted_values(self, name: str, attention_BhNM: ov.Output, v_BhMd: ov.Output) -> ov.Node:
        """Sums of values weighted by attention: (B,h,N,M), (B,h,M,d) -> (B,h,N,d)."""
        return op.matmul(attention_BhNM, v_BhMd, False, False)

    def from_left(self, name: str, x_BND: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """Linear layer across the tokens: (B,N,D) -> (B,out,D), without transposing them."""
        return op.add(op.matmul(constant(weight[None]), x_BND, False, False), constant(bias[:, None]))

    def convolution(self, name: str, x: ov.Output, weight: Array, bias: Array, stride: int, padding: int) -> ov.Node:
        """Convolution with a square kernel: (B,C,H,W) -> (B,D,h,w); weight: (D,C,k,k)."""
        y = op.convolution(x, constant(weight), [stride] * 2, [padding] * 2, [padding] * 2, [1, 1])
        return op.add(y, constant(bias[:, None, None]))

    def depthwise(self, name: str, x: ov.Output, weight: Array, bias: Array) -> ov.Node:
        """Depthwise convolution that keeps the size: (B,D,h,w) -> (B,D,h,w); weight: (D,1,k,k)."""
        return op.add(
            depthwise_convolution(x, constant(weight[:, None]), self.precision), constant(bias[:, None, None])
        )


def to_pixels(weight: Array, bias: Array, spec: InputSpec | None) -> tuple[Array, Array]:
    """Return weight (D,C,k,k) and bias (D,) of a convolution without padding that reads pixels from 0 to 255.

    The normalization (u / 255 - mean) / std is affine, so it can be folded. spec: None for images that are normalized.
    """
    if spec is None:
        return weight, bias
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (spec.mean, spec.std))
    moved = (weight * (mean / std)).sum((1, 2, 3))
    return (weight / (255 * std)).astype(np.float32), bias - moved


def image_input(size: Size, channels: int, spec: InputSpec | None) -> tuple[ov.Node, ov.Output]:
    """Return the parameter of a graph, and the images as float32 (B,H,W,C).

    spec: with it, the graph reads (B,H,W,C) uint8 images, without it (B,C,H,W) normalized floats.
    """
    if spec is None:
        images = op.parameter([-1, channels, *size], np.float32, name="images")
        return images, transpose(images, 0, 2, 3, 1)
    images = op.parameter([-1, *size, channels], np.uint8, name="images")
    return images, op.convert(images, "f32")


def patches(products: Products, name: str, images_BHWC: ov.Output, weight: Array, bias: Array, size: Size) -> ov.Node:
    """Patch embedding as one product, since patches do not overlap: float (B,H,W,C) -> (B,N,D).

    weight: (D,C,p,p). size: (height, width) of the images, of which p x p patches are read.
    """
    width, channels, side, _ = weight.shape
    rows, columns = size[0] // side, size[1] // side
    split = reshape(images_BHWC, 0, rows, side, columns, side * channels)
    flat = reshape(transpose(split, 0, 1, 3, 2, 4), 0, rows * columns, side * side * channels)
    return products.linear(name, flat, weight.transpose(0, 2, 3, 1).reshape(width, -1), bias)


def classify(
    products: Products, embedding_BD: ov.Output, weight: Array | None, bias: Array | None
) -> Sequence[ov.Output]:
    """Return the outputs of a graph: logits (B,classes) and embedding (B,D). weight: None for a model without head."""
    if weight is None:
        return [embedding_BD, embedding_BD]
    return [products.linear("head", embedding_BD, weight, bias), embedding_BD]
