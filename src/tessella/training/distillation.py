"""Distillation: how a student learns from its teacher's logits and embeddings.

Pooled features of a network with ReLU all point in nearly the same direction, so their mean over training images is
subtracted first; what is left tells images apart. The student's embedding reaches the width of the teacher's through a
linear projection, which is trained with it and not kept (arXiv:2106.05237 describes training with the same crops for
both, strong augmentation and many epochs).

Shape suffixes: B batch, C channels, H height, W width, K classes, D width of the teacher's embedding.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.loader import Batch
from ..data.row_cache import RowCache, RowKey, to_half
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..errors import ImageError, OutputError
from ..models.base import ImageModel
from .config import TrainConfig
from .distributed import DistributedContext
from .teacher_base import Teacher, TeacherOutputs

OUTPUTS = "teacher_outputs.bin"  # in the folder of a run, until it is finished
_CHUNK = 64  # images that the teacher reads at once
_LEAST_STD = 0.1  # of a feature, relative to the mean: features that hardly vary would be scaled up to noise


class StudentOutputs(NamedTuple):
    """The outputs of a student for a batch; None for outputs without a target."""

    logits: Tensor | None  # (B,K) float32
    embedding: Tensor | None  # (B,D) float32, projected to the width of the teacher's


class Student(nn.Module):
    """A model with the projection of its embedding: (B,C,H,W) -> (logits (B,K) or None, projected embedding (B,D))."""

    def __init__(self, model: ImageModel, projection: nn.Module, needs_logits: bool):
        super().__init__()
        self.model, self.projection, self.needs_logits = model, projection, needs_logits

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        features = self.model.forward_features(x)
        embedding = self.projection(self.model.forward_head(features, pre_logits=True))
        return self.model.forward_head(features) if self.needs_logits else None, embedding


class Distillation:
    """The teacher of a run, and the losses of a student that learns from it.

    own_classes: the student has the teacher's classes, so that labels say nothing about its logits. center: mean and
    standard deviation of the teacher's embedding, each (D,) float32, once they are known. cache: the teacher's outputs
    for the crops of a run in which they repeat, with logits in the order of its classes.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: TrainConfig,
        spec: InputSpec,
        own_classes: bool,
        folder: Path,
        order: tuple[int, ...] | None = None,
    ):
        """Combine a teacher with the config of the run and the input of the student.

        folder: of the run. order: the teacher's class index of each of the student's K classes; None if it is the same.
        """
        self.order = order
        self.teacher, self.config, self.spec, self.own_classes = teacher, config, spec, own_classes
        self.center: dict[str, Tensor] = {}
        self.cache = RowCache(folder / OUTPUTS, teacher.num_classes + teacher.width) if config.teacher_epochs else None
        self.size = spec.height, spec.width
        self.teacher_size = teacher.size or self.size
        # images are rendered at the larger of both sizes, so that both see the same crop
        self.rendered = max(self.size[0], self.teacher_size[0]), max(self.size[1], self.teacher_size[1])

    @property
    def validates(self) -> bool:
        """Whether validation compares the student with the teacher, because there are no labels for its outputs."""
        return not self.config.uses_labels and (self.own_classes or not self.config.distills_logits)

    @property
    def measure(self) -> str:
        """What `val_top1` is, for messages."""
        if not self.validates:
            return "top-1"
        return "agreement with the teacher" if self.config.distills_logits else "cosine with the teacher"

    def student_input(self, x_BCHW: Tensor) -> Tensor:
        """Return rendered images (B,C,H,W) at the size of the student."""
        return resized(x_BCHW, self.size)

    @torch.no_grad()
    def targets(self, x_BCHW: Tensor) -> TeacherOutputs:
        """Return the teacher's outputs for rendered (B,C,H,W) images that are normalized for the student.

        Logits are in the order of the student's classes.
        """
        return self._ordered(self._teacher_outputs(x_BCHW))

    def _ordered(self, outputs: TeacherOutputs) -> TeacherOutputs:
        if self.order is None or outputs.logits is None:
            return outputs
        return outputs._replace(logits=outputs.logits[:, list(self.order)])

    def _teacher_outputs(self, x_BCHW: Tensor) -> TeacherOutputs:
        """Return the teacher's outputs as `targets` does, with logits in the order of the teacher's classes."""

        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=x_BCHW.device)[:, None, None]

        pixels = x_BCHW * column(self.spec.std) + column(self.spec.mean)
        return self.teacher(resized(pixels, self.teacher_size))

    def batch_targets(self, batch: Batch, device: torch.device) -> TeacherOutputs:
        """Return the teacher's outputs for a batch that is not mixed; those that are new are added to the cache.

        They are rounded to float16 if there is a cache, whether they are read from it or not. Raises OutputError
        `output_failed`.
        """
        if self.cache is None:
            x = normalise(batch.x, self.spec) if batch.x.dtype == torch.uint8 else batch.x
            return self.targets(x.to(device))
        assert batch.crops is not None
        keys, known, rows, rendered = batch.crops
        outputs = torch.empty(len(keys), self.cache.width, dtype=torch.float16)
        if len(rows):
            outputs[known] = rows
        new = (~known).nonzero().flatten()
        for first in range(0, len(new), _CHUNK):
            positions, part = new[first : first + _CHUNK], rendered[first : first + _CHUNK]
            targets = self._teacher_outputs(normalise(part.to(device), self.spec))
            values = to_half(torch.cat([value for value in targets if value is not None], 1).cpu().numpy())
            outputs[positions] = torch.from_numpy(values)
            for i, row in zip(positions.tolist(), values, strict=True):
                self._write(keys[i], row)
        logits, embedding = outputs.float().to(device).split([self.teacher.num_classes, self.teacher.width], 1)
        return self._ordered(
            TeacherOutputs(
                logits if self.config.distills_logits else None, embedding if self.config.distills_embedding else None
            )
        )

    def _write(self, key: RowKey, row: NDArray[np.float16]) -> None:
        assert self.cache is not None
        try:
            self.cache.put(key, row)
        except OSError as error:
            raise OutputError(
                "output_failed",
                f"{self.cache.path} could not be written: {error.strerror or error}",
                hint="free some space and run the same command again: it resumes from the last checkpoint",
            ) from error

    def loss(self, outputs: StudentOutputs, targets: TeacherOutputs) -> Tensor:
        """Return the mean loss of the student over the batch, a scalar: the sum over what is distilled."""
        parts = []
        if outputs.logits is not None and targets.logits is not None:
            parts.append(self._logits_loss(outputs.logits, targets.logits))
        if outputs.embedding is not None and targets.embedding is not None:
            weight = self.config.distill_embedding_weight if self.config.distill_target == "both" else 1.0
            parts.append(self._embedding_loss(outputs.embedding, targets.embedding) * weight)
        return sum(parts[1:], parts[0])

    def _logits_loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        """Return the cross-entropy with the teacher's class ("hard"), or divergence from its distribution ("soft")."""
        if self.config.distill == "hard":
            return F.cross_entropy(logits_BK, targets_BK.argmax(1))
        temperature = self.config.distill_temperature
        divergence = F.kl_div(
            F.log_softmax(logits_BK / temperature, 1),
            F.log_softmax(targets_BK / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * temperature**2  # so that the gradients do not shrink as the temperature rises

    def _embedding_loss(self, embedding_BD: Tensor, targets_BD: Tensor) -> Tensor:
        """Return the mean of 1 - cosine, or of the squared error in units of the standard deviation."""
        centered_BD = targets_BD - self.center["mean"]
        if self.config.distill_embedding_loss == "cosine":
            return 1 - F.cosine_similarity(embedding_BD, centered_BD).mean()
        return F.mse_loss(embedding_BD, centered_BD / self.center["std"])

    def score(self, outputs: StudentOutputs, targets: TeacherOutputs) -> float:
        """Return the sum over the batch of what `measure` names."""
        if outputs.logits is not None and targets.logits is not None:
            return float((outputs.logits.argmax(1) == targets.logits.argmax(1)).sum())
        assert outputs.embedding is not None
        assert targets.embedding is not None
        centered_BD = targets.embedding - self.center["mean"]
        return float(F.cosine_similarity(outputs.embedding, centered_BD).sum())

    def find_center(self, batches: Iterable[Batch], context: DistributedContext) -> str:
        """Measure mean and standard deviation of the teacher's embedding on images of all processes; return a sentence.

        Every process must call it, with its part of the images. Raises ImageError `unreadable` if none can be read.
        """
        started = time.monotonic()
        sums = torch.zeros(2, self.teacher.width, dtype=torch.float64)
        count = 0
        for batch in batches:
            if not len(batch.labels):
                continue
            embedding = self.batch_targets(batch, context.device).embedding
            assert embedding is not None
            values = embedding.double().cpu()
            sums += torch.stack([values.sum(0), values.square().sum(0)])
            count += len(values)
        total, *flat = context.all_reduce_sum(count, *sums.flatten().tolist())
        if not total:
            raise ImageError("unreadable", "none of the first training images can be read")
        mean, square = torch.tensor(flat, dtype=torch.float64).reshape(2, -1) / total
        std = (square - mean.square()).clamp(min=0).sqrt()
        std = std.clamp(min=_LEAST_STD * max(float(std.square().mean().sqrt()), 1e-12))
        self.center = dict(mean=mean.float().to(context.device), std=std.float().to(context.device))
        seconds = time.monotonic() - started
        return f"the teacher's embedding is centered on its mean over {int(total):,} training crops, {seconds:.0f} s"


def resized(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B,C,H,W) images at another height and width: the same tensor, means of 2 x 2 pixels, or antialiased."""
    height, width = x_BCHW.shape[2:]
    if (height, width) == size:
        return x_BCHW
    if (height, width) == (2 * size[0], 2 * size[1]):
        return F.avg_pool2d(x_BCHW, 2)
    return F.interpolate(x_BCHW, size, mode="bilinear", antialias=True)
