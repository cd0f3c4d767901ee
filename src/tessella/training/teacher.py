"""The teacher of a run: a model of this package or a file, and the classes that a student gets from it.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..data.labels import labels_for_classes
from ..data.spec import InputSpec
from ..errors import UsageError
from ..storage import read_regular
from ..weights.factory import create_model
from ..weights.load import image_size
from .config import TrainConfig, is_teacher_file
from .teacher_base import Teacher, TeacherOutputs
from .teacher_file import FileTeacher


class ModelTeacher(Teacher):
    """A model of this package."""

    def __init__(self, config: TrainConfig, device: torch.device):
        """Load the model that `config.teacher` names; raises UsageError and WeightsError as `create_model` does."""
        size = config.teacher_img_size
        model = create_model(config.teacher, pretrained=True).to(device)
        if size and image_size(model):
            model = create_model(config.teacher, pretrained=True, img_size=size).to(device)
        self.model = model.eval().requires_grad_(False)
        self.spec = InputSpec.from_cfg(model.pretrained_cfg)
        self.wants = config.distills_logits, config.distills_embedding
        self.remarks = []
        if config.teacher_background:
            raise UsageError(
                "bad_argument",
                "teacher_background is only for teachers that are files; a model has no background classes",
            )
        super().__init__(
            name=config.teacher,
            size=(size, size) if size else image_size(model),
            num_classes=model.num_classes if config.distills_logits else 0,
            width=model.head_hidden_size if config.distills_embedding else 0,
            class_names=tuple(model.pretrained_cfg.get("label_names") or ()),
        )

    def describe(self) -> str:
        """Return a sentence on the teacher's outputs."""
        parts = [f"{self.num_classes:,} classes"] if self.num_classes else []
        parts += [f"embedding of {self.width:,} numbers"] if self.width else []
        return f"teacher: {self.name}, {', '.join(parts)}"

    @torch.no_grad()
    def __call__(self, pixels_BCHW: Tensor) -> TeacherOutputs:
        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=pixels_BCHW.device)[:, None, None]

        x = (pixels_BCHW - column(self.spec.mean)) / column(self.spec.std)
        if not self.wants[1]:
            return TeacherOutputs(self.model(x).float(), None)
        features = self.model.forward_features(x)
        embedding = self.model.forward_head(features, pre_logits=True).float()
        return TeacherOutputs(self.model.forward_head(features).float() if self.wants[0] else None, embedding)


def build_teacher(config: TrainConfig, device: torch.device) -> Teacher:
    """Return the teacher that the config names, with the names of its classes.

    Raises UsageError (bad_argument, not_found) and WeightsError.
    """
    is_file = is_teacher_file(config.teacher)
    teacher: Teacher = FileTeacher(config) if is_file else ModelTeacher(config, device)
    if config.teacher_labels and config.distills_logits:
        teacher.class_names = _read_class_names(config, teacher.num_classes)
    return teacher


def _read_class_names(config: TrainConfig, num_classes: int) -> tuple[str, ...]:
    path = Path(config.teacher_labels)
    try:
        lines = read_regular(path).decode().splitlines()
    except OSError as error:
        raise UsageError("not_found", f"teacher_labels {str(path)!r} could not be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError("bad_argument", f"teacher_labels {str(path)!r} is not UTF-8 text") from None
    names = tuple(line.strip() for line in lines if line.strip())[config.teacher_background :]
    if len(names) != num_classes:
        raise UsageError(
            "bad_argument",
            f"teacher_labels {str(path)!r} has {len(names):,} names, the teacher has {num_classes:,} classes (both "
            f"without the first {config.teacher_background})",
            hint="teacher_background is the number of classes to leave out at the beginning",
        )
    return names


def student_classes(config: TrainConfig, teacher: Teacher, data_classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes of a student: those of the data or, if the labels are not used, of the teacher.

    Raises UsageError `bad_argument` if the teacher's logits cannot be combined with the labels.
    """
    if not config.distills_logits:
        return data_classes
    names, count = teacher.class_names, teacher.num_classes
    if config.uses_labels:
        if count != len(data_classes):
            raise UsageError(
                "bad_argument",
                f"the teacher {config.teacher} has {count} classes, the data has {len(data_classes)}",
                hint="fine-tune the teacher on this data first and give its folder, local-dir:FOLDER; or set "
                "distill_weight to 1, to learn the teacher's classes; or distill_target to embedding",
            )
        return data_classes
    if names:
        return names
    if count == len(data_classes):
        return data_classes
    known = labels_for_classes(count)
    return tuple(str(i) for i in range(count)) if known is None else known.names
