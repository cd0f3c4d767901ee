"""Prepare a run: check its images, its folder and its model before the first step."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..checks import check_fields
from ..data.datasets import LabelledImages, open_split
from ..data.mixture import Mixture
from ..data.spec import InputSpec
from ..data.unlabelled import ImagePool, TrainingImages, open_unlabelled
from ..errors import UsageError
from ..evaluation.leakage import check_unchanged, read_image_record, write_image_record
from ..models.base import ImageModel
from ..storage import folder_lock
from .config import TrainConfig, distillation_settings, is_teacher_file
from .distillation import Distillation
from .distributed import DistributedContext
from .events import TrainingEvent, TrainingRemark
from .model import build_model
from .run_folder import LOCK, SETTINGS, TrainingRecord
from .teacher import ModelTeacher, build_teacher, class_order, student_classes
from .teacher_file import file_fingerprint

MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The location of the images of a run.

    data: path of the labeled images. val: path of the validation images; None: the validation split of `data`, or, if
    it has none, `val_fraction` of the images, from 0 to 1. unlabelled: inputs with more images to distill on, without
    classes. Raises UsageError `bad_argument` for values of the wrong type.
    """

    data: str | Path
    val: str | Path | None = None
    val_fraction: float = 0.1
    unlabelled: tuple[str | Path, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def open(self) -> tuple[LabelledImages, LabelledImages]:
        """Return training and validation images; raises UsageError and ImageError."""
        return open_split(self.data, val=self.val, val_fraction=self.val_fraction)

    def open_all(self) -> TrainingImages:
        """Return training, validation and unlabeled images; raises UsageError and ImageError."""
        return TrainingImages(*self.open(), open_unlabelled(self.unlabelled) if self.unlabelled else None)


@dataclass(frozen=True)
class TrainingSetup:
    """The parts of a run that are fixed before its first step. workers: number of data loader processes."""

    folder: Path
    config: TrainConfig
    images: TrainingImages
    context: DistributedContext
    workers: int
    on_event: Callable[[TrainingEvent], None]

    def prepare(self, stack: ExitStack) -> PreparedModel:
        """Lock the folder until `stack` ends, check what is in it, write train.json, and build the model.

        A run with other settings is refused before the model is built; a folder is not created if it cannot be built.
        """
        folder, config, is_first = self.folder, self.config, self.context.rank == 0
        lock = folder_lock(folder, LOCK, hint="wait for that training to end, or give another --out")
        is_file = bool(config.teacher) and is_teacher_file(config.teacher)
        record = TrainingRecord.of(config, self.images, file_fingerprint(config) if is_file else "")
        exists = (folder / SETTINGS).exists()
        if exists:
            stack.enter_context(lock if is_first else nullcontext())
            record.check_resumable(folder)
        teacher = build_teacher(config, self.context.device) if config.teacher else None
        if isinstance(teacher, ModelTeacher):
            record = dataclasses.replace(record, teacher=teacher.fingerprint())
            if exists:
                record.check_resumable(folder)
        labelled = self.images.train.classes
        classes = labelled if teacher is None else student_classes(config, teacher, labelled)
        torch.manual_seed(config.seed)
        model, spec = build_model(config, classes)
        distillation = None
        if teacher is not None:
            order = class_order(config, teacher, labelled) if config.distills_logits and config.uses_labels else None
            distillation = Distillation(teacher, config, spec, classes != labelled, folder, order)
        if not exists:
            stack.enter_context(lock if is_first else nullcontext())
            if is_first and (folder / SETTINGS).exists():  # another run has started while the model was built
                record.check_resumable(folder)
        if is_first:
            record.write(folder)
            if exists:
                check_unchanged(folder, self.images.train, self.images.val)
            if read_image_record(folder) is None:
                parent = config.model if config.init_from == "pretrained" else ""
                images = self.images
                if warning := write_image_record(folder, images.train, images.val, parent, images.unlabelled):
                    self.on_event(TrainingRemark(text=warning))
        return PreparedModel(model, spec, classes, distillation)


class PreparedModel(NamedTuple):
    """The model of a run before its first step, the input it reads, its classes, and its teacher if there is one."""

    model: ImageModel
    spec: InputSpec
    classes: tuple[str, ...]
    distillation: Distillation | None


def check_distillation(config: TrainConfig, images: TrainingImages, shard: bool) -> None:
    """Raise UsageError `bad_argument` for settings of distillation that do not fit together."""
    if not config.teacher and (names := distillation_settings(config)):
        raise UsageError(
            "bad_argument", f"{names[0]} is set, but there is no teacher to learn from", hint="--teacher MODEL"
        )
    if images.unlabelled is not None and not config.teacher:
        raise UsageError("bad_argument", "unlabeled images can only be used with a teacher", hint="--teacher MODEL")
    if images.unlabelled is not None and not config.distill_weight:
        raise UsageError("bad_argument", "unlabeled images are not used if distill_weight is 0")
    if images.unlabelled is None and (config.unlabelled_fraction or config.unlabelled_weights):
        raise UsageError(
            "bad_argument",
            "unlabelled_fraction and unlabelled_weights need unlabeled images",
            hint="--unlabelled DATA",
        )
    mixture_of(config, images)
    if config.teacher_epochs and (config.mixing.enabled or config.erasing.prob):
        raise UsageError(
            "bad_argument",
            "teacher_epochs repeats crops, which mixup, CutMix and random erasing would change",
            hint="set teacher_epochs to 0, or leave out mixing and erasing",
        )
    if not config.distills_embedding:
        return
    if shard:
        raise UsageError(
            "bad_argument",
            "--shard cannot distill embeddings: the projection of the student is not sharded",
            hint="leave out --shard, or set distill_target to logits",
        )
    if config.trainable == "head":
        raise UsageError(
            "bad_argument",
            "with --head-only, the embedding is not trained, so it cannot be distilled",
            hint="set distill_target to logits, or leave out --head-only",
        )


def mixture_of(config: TrainConfig, images: TrainingImages) -> Mixture | None:
    """Return the shares of labeled and unlabeled images, if there are any of the latter.

    Raises UsageError `bad_argument` if the number of weights differs from the number of inputs.
    """
    if images.unlabelled is None:
        return None
    fraction, weights = config.unlabelled_fraction, config.unlabelled_weights
    return Mixture.of(len(images.train), images.unlabelled.counts, fraction, weights)


def check_batch_size(config: TrainConfig, images: LabelledImages | ImagePool, context: DistributedContext) -> None:
    """Raise UsageError `bad_argument` if the images do not fill a batch, or a batch cannot be split evenly."""
    if len(images) < config.batch_size:
        raise UsageError(
            "bad_argument",
            f"there are {len(images)} training images, fewer than the batch size of {config.batch_size}",
            hint=f"use --batch-size {max(len(images) // 4, 1)} or less",
        )
    if config.batch_size % context.world_size:
        multiple = math.ceil(config.batch_size / context.world_size) * context.world_size
        raise UsageError(
            "bad_argument",
            f"a batch of {config.batch_size} images cannot be split evenly over {context.world_size} processes",
            hint=f"use --batch-size {multiple}",
        )


def check_workers(workers: int | None) -> None:
    """Raise UsageError `bad_argument` if the number of data loader processes is out of range."""
    if workers is not None and (type(workers) is not int or not 0 <= workers <= MAX_WORKERS):
        raise UsageError("bad_argument", f"workers is {workers!r}, expected 0 to {MAX_WORKERS}")


def default_workers() -> int:
    """Return the number of data loader processes: one per core besides the one that trains, at most 8."""
    return min(max((os.cpu_count() or 2) - 1, 0), 8)
