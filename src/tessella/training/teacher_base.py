"""The interface of teachers: callables from pixels to logits and embeddings.

Shape suffixes: B batch, C channels, H height, W width, K classes, D width of the teacher's embedding.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

from torch import Tensor


class TeacherOutputs(NamedTuple):
    """The outputs of a teacher for a batch, in float32; None for outputs that were not requested."""

    logits: Tensor | None  # (B,K)
    embedding: Tensor | None  # (B,D)


class Teacher(abc.ABC):
    """A trained model.

    size: height and width of its images in pixels; None if it reads any size. num_classes, width: 0 for
    an output that was not requested. class_names: their names, or empty if they are unknown.
    """

    remarks: list[str]  # sentences for the user

    def __init__(
        self, name: str, size: tuple[int, int] | None, num_classes: int, width: int, class_names: tuple[str, ...]
    ):
        self.name, self.size, self.num_classes, self.width = name, size, num_classes, width
        self.class_names = class_names

    @abc.abstractmethod
    def __call__(self, pixels_BCHW: Tensor) -> TeacherOutputs:
        """Return the outputs for (B,3,H,W) float32 pixels from 0 to 1, of the teacher's size."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return a sentence on the teacher's input and outputs."""
