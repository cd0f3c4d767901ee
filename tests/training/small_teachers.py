"""Small teachers as files, made with OpenVINO, with the same computation in PyTorch to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.engine.openvino import core
from tessella.engine.runtime import op, ov

WIDTH, CLASSES = 6, 3
Values = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class SmallTeacher(NamedTuple):
    """A convolution, ReLU, pooling and a linear layer; for inputs as the network takes them, in the layout NCHW."""

    path: Path
    kernel: Values
    weight: Values
    bias: Values
    shuffled: bool

    def embedding(self, x_BCHW: Tensor) -> Tensor:
        features = F.conv2d(x_BCHW, torch.from_numpy(self.kernel), stride=2).relu().mean((2, 3))
        return features.reshape(-1, 2, WIDTH // 2).transpose(1, 2).flatten(1) if self.shuffled else features

    def logits(self, x_BCHW: Tensor) -> Tensor:
        return self.embedding(x_BCHW) @ torch.from_numpy(self.weight) + torch.from_numpy(self.bias)


def save_teacher(
    path: Path,
    layout: str = "NHWC",
    dtype: str = "u8",
    side: int = 16,
    batch: int = 1,
    softmax: bool = True,
    shuffled: bool = False,
    seed: int = 0,
) -> SmallTeacher:
    """Write a teacher. batch: -1 for any number of images.

    As in files made for one image, a constant shape starts with the batch if that is fixed. shuffled: the features of
    two halves alternate, which the graph does in a way that only one image fits.
    """
    core()
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 1 / 255 if dtype == "u8" else 1, (WIDTH, 3, 3, 3)).astype(np.float32)
    weight, bias = rng.normal(0, 1, (WIDTH, CLASSES)).astype(np.float32), rng.normal(0, 1, CLASSES).astype(np.float32)
    shape = [batch, side, side, 3] if layout == "NHWC" else [batch, 3, side, side]
    image = op.parameter(shape, getattr(ov.Type, dtype), name="image")
    image.output(0).set_names({"image"})
    x = op.convert(image, "f32")
    if layout == "NHWC":
        x = op.transpose(x, op.constant(np.array([0, 3, 1, 2])))
    x = op.relu(op.convolution(x, op.constant(kernel), [2, 2], [0, 0], [0, 0], [1, 1]))
    pooled = op.reduce_mean(x, op.constant(np.array([2, 3])), True)
    pooled.set_friendly_name("pooled")
    if shuffled:
        halves = op.reshape(pooled, op.constant(np.array([2, WIDTH // 2])), False)
        pooled = op.transpose(halves, op.constant(np.array([1, 0])))
    rows = op.reshape(pooled, op.constant(np.array([batch, WIDTH])), False)
    rows.set_friendly_name("features")
    y = op.add(op.matmul(rows, op.constant(weight), False, False), op.constant(bias))
    y.set_friendly_name("scores")
    end = op.result(op.softmax(y, 1) if softmax else y)
    end.output(0).set_names({"predictions"})
    ov.save_model(ov.Model([end], [image], "small"), path, compress_to_fp16=False)
    return SmallTeacher(path, kernel, weight, bias, shuffled)
