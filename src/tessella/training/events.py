"""Events of a training run: `train` calls `on_event` with each of them.

The rows of metrics.jsonl are `EpochEvent.as_row`, `ProbeEvent.as_row` and, for some steps, `StepEvent.as_row`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

PROBE_EPOCH = -1  # epoch number of the linear probe, which precedes epoch 0

Row = dict[str, str | int | float]


@dataclass(frozen=True, kw_only=True)
class TrainingRemark:
    """A sentence for the user, such as a warning. Only the first process reports remarks."""

    text: str


@dataclass(frozen=True, kw_only=True)
class EmbeddingEvent:
    """Progress of the embeddings that the linear probe is fitted on, which fine-tuning starts from.

    done: images embedded so far, over all processes; images: their number.
    """

    done: int
    images: int


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One optimizer step.

    step: steps done, from 1 to `steps`; steps: total number of steps of the run; epoch: from 0; loss: mean over the
    batch of all processes; lr: learning rate; images_per_second: mean rate in this epoch, over all processes.
    """

    kind: ClassVar[str] = "step"

    step: int
    steps: int
    epoch: int
    loss: float
    lr: float
    images_per_second: float

    def as_row(self) -> Row:
        """Return the row of metrics.jsonl, which does not include the rate."""
        row = {"kind": self.kind} | _fields(self)
        del row["images_per_second"]
        return row


@dataclass(frozen=True, kw_only=True)
class EpochEvent:
    """The end of an epoch, after its validation.

    epoch: from 0; step: steps done; lr: learning rate of the last step; loss: mean training loss; images: images
    trained on; skipped: images that could not be read; bad_steps: steps that were not applied because their loss or
    gradient was not finite; val_top1: accuracy from 0 to 1; val_loss: mean cross-entropy; val_images: validation
    images; val_errors: validation images that could not be read; seconds: duration, validation included.

    If a student does not use the labels (`distill_weight` 1), it is compared with its teacher: val_loss is the loss of
    distillation, and val_top1, which `measure` names, the share of images with the teacher's top class or, if only the
    embedding is distilled, the mean cosine of the projected embedding with the centered one of the teacher, -1 to 1.
    A student of logits that has the classes of the data is compared with the labels all the same.
    """

    kind: ClassVar[str] = "epoch"

    epoch: int
    step: int
    lr: float
    loss: float
    images: int
    skipped: int
    bad_steps: int
    val_top1: float
    val_loss: float
    val_images: int
    val_errors: int
    seconds: float
    measure: str = "top-1"

    @property
    def score(self) -> str:
        """What was measured, as text: `top-1 87.50 %`, or `cosine with the teacher 0.5512`."""
        value = f"{self.val_top1:.4f}" if self.measure.startswith("cosine") else f"{100 * self.val_top1:.2f} %"
        return f"{self.measure} {value}"

    def as_row(self) -> Row:
        """Return the row of metrics.jsonl, which does not include `measure`."""
        row = {"kind": self.kind} | _fields(self)
        del row["measure"]
        return row


@dataclass(frozen=True, kw_only=True)
class ProbeEvent:
    """The validation of the linear probe that fine-tuning starts from; the fields are those of `EpochEvent`."""

    kind: ClassVar[str] = "probe"

    epoch: int = PROBE_EPOCH
    step: int = 0
    val_top1: float
    val_loss: float
    val_images: int
    val_errors: int
    seconds: float

    def as_row(self) -> Row:
        """Return the row of metrics.jsonl."""
        return {"kind": self.kind} | _fields(self)


MetricsEvent = StepEvent | EpochEvent | ProbeEvent
TrainingEvent = MetricsEvent | EmbeddingEvent | TrainingRemark


def _fields(event: MetricsEvent) -> Row:
    return dataclasses.asdict(event)
