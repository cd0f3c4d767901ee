"""Distillation: a trained model whose predictions are training targets in addition to the labels.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.spec import InputSpec
from ..errors import UsageError
from ..weights.factory import create_model
from .config import TrainConfig


@dataclass
class Teacher:
    """The teacher model. teacher_spec, student_spec: the models may normalise images in different ways."""

    model: nn.Module
    teacher_spec: InputSpec
    student_spec: InputSpec

    @torch.no_grad()
    def logits(self, x_BCHW: Tensor) -> Tensor:
        """Return the teacher's (B,K) float32 logits for images that are normalised for the student."""

        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=x_BCHW.device)[:, None, None]

        pixels = x_BCHW * column(self.student_spec.std) + column(self.student_spec.mean)
        logits_BK: Tensor = self.model((pixels - column(self.teacher_spec.mean)) / column(self.teacher_spec.std))
        return logits_BK.float()

    def loss(self, x_BCHW: Tensor, logits_BK: Tensor, config: TrainConfig) -> Tensor:
        """Return the mean loss of the student's logits over the batch, a scalar.

        It is the cross-entropy with the teacher's class ("hard"), or the divergence from its distribution ("soft").
        """
        targets_BK = self.logits(x_BCHW)
        if config.distill == "hard":
            return F.cross_entropy(logits_BK, targets_BK.argmax(1))
        temperature = config.distill_temperature
        divergence = F.kl_div(
            F.log_softmax(logits_BK / temperature, 1),
            F.log_softmax(targets_BK / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * temperature**2  # so that the gradients do not shrink as the temperature rises


def build_teacher(config: TrainConfig, spec: InputSpec, num_classes: int, device: torch.device) -> Teacher:
    """Return `config.teacher` with its pretrained weights; spec: that of the student.

    Raises UsageError `bad_argument` if it has another number of classes.
    """
    model = create_model(config.teacher, pretrained=True).to(device).eval().requires_grad_(False)
    if model.num_classes != num_classes:
        raise UsageError(
            "bad_argument",
            f"the teacher {config.teacher} has {model.num_classes} classes, the data has {num_classes}",
            hint="fine-tune the teacher on this data first and give its folder, local-dir:FOLDER",
        )
    return Teacher(model, InputSpec.from_cfg(model.pretrained_cfg), spec)
