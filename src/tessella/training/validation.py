"""Validation: the accuracy and loss of a model in training on images that it is not trained on.

A student without labels is compared with its teacher instead: see `EpochEvent`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F

from ..data.loader import Loader, eval_batches
from ..errors import ImageError
from .events import PROBE_EPOCH
from .trainer import Trainer


class Validation(NamedTuple):
    """The result of a validation.

    top1: accuracy from 0 to 1; loss: mean cross-entropy (for both, see `EpochEvent`); images: number of images that
    were read; errors: number of images that could not be read.
    """

    top1: float
    loss: float
    images: int
    errors: int


def validate(trainer: Trainer, loader: Loader, count: int) -> Validation:
    """Return accuracy and loss on the `count` images of `loader`, each used once, over all processes.

    Raises ImageError `unreadable` if none can be read.
    """
    context = trainer.context
    correct = loss = images = errors = 0.0
    size = 4 * max(trainer.config.batch_size // context.world_size, 1)
    batches = eval_batches(count, size, context.rank, context.world_size)
    passes = math.ceil(math.ceil(count / context.world_size) / size)  # equal in all processes, for sharded weights
    compares = trainer.distillation is not None and trainer.distillation.validates
    for batch in loader.run([*batches, *[[]] * (passes - len(batches))]):
        if compares:
            score, batch_loss = trainer.compare(batch)
            correct, loss = correct + score, loss + batch_loss
        else:
            logits = trainer.predict(batch)
            correct += int((logits.argmax(1) == batch.labels).sum())
            loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        images += len(batch.labels)
        errors += len(batch.skipped)
    correct, loss, images, errors = context.all_reduce_sum(correct, loss, images, errors)
    assert images + errors == count
    if not images:
        raise ImageError("unreadable", "none of the validation images can be read", hint="give others with --val")
    return Validation(correct / images, loss / images, int(images), int(errors))


@dataclass(frozen=True)
class BestEpoch:
    """The best epoch so far, by accuracy on the validation images, then by loss; epoch -1 is the linear probe."""

    top1: float = -1.0
    loss: float = 0.0
    epoch: int = PROBE_EPOCH
    checkpoint_id: int = 0

    def better(self, validation: Validation, epoch: int, checkpoint_id: int) -> BestEpoch:
        """Return the better one of this and another epoch, this one if they are equal."""
        if (validation.top1, -validation.loss) > (self.top1, -self.loss):
            return BestEpoch(validation.top1, validation.loss, epoch, checkpoint_id)
        return self

    def as_state(self) -> dict[str, float]:
        """Return the fields under the names that checkpoints use."""
        return dict(top1=self.top1, loss=self.loss, epoch=self.epoch, moment=self.checkpoint_id)

    @classmethod
    def from_state(cls, state: dict[str, float]) -> BestEpoch:
        """Return the fields from a checkpoint, as `as_state` wrote them."""
        return cls(state["top1"], state["loss"], int(state["epoch"]), int(state["moment"]))


@dataclass(frozen=True)
class ProbeBaseline:
    """Accuracy and loss, on the validation images, of the linear probe that fine-tuning starts from."""

    top1: float
    loss: float

    def comparison(self, best: BestEpoch, selects_last: bool) -> str:
        """Return a sentence on whether fine-tuning beat the probe, and which weights are kept."""
        source = "the probe" if best.epoch == PROBE_EPOCH else f"epoch {best.epoch}"
        kept = f"the weights of {'the last epoch' if selects_last else source} are kept"
        probe_percent, best_percent = 100 * self.top1, 100 * best.top1
        if best.epoch == PROBE_EPOCH:
            return f"fine-tuning did not beat the linear probe ({probe_percent:.2f} %): {kept}"
        if best_percent == probe_percent:
            return f"fine-tuning equals the linear probe in accuracy and has a lower loss: {kept}"
        return f"fine-tuning beat the linear probe ({best_percent:.2f} % against {probe_percent:.2f} %): {kept}"
