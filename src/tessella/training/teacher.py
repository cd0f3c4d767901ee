"""The teacher of a run: a model of this package or a file, and the classes that a student gets from it.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ..data.labels import labels_for_classes
from ..data.names import normalize_class_name
from ..data.spec import InputSpec
from ..errors import UsageError
from ..fingerprint import config_text, weights_hash
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

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that depend on the weights, the input and the class names of the teacher."""
        facts = [self.model.arch, config_text(self.model.config), weights_hash(self.model), self.spec.to_cfg()]
        return hashlib.sha256(json.dumps([*facts, self.class_names]).encode()).hexdigest()[:16]

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

    Raises UsageError `bad_argument` if the teacher's logits cannot be combined with the labels: it has other classes.
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
        class_order(config, teacher, data_classes)
        return data_classes
    if names:
        return names
    if count == len(data_classes):
        return data_classes
    known = labels_for_classes(count)
    return tuple(str(i) for i in range(count)) if known is None else known.names


def class_order(config: TrainConfig, teacher: Teacher, data_classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the teacher's class index of each of the K classes of the data, as which its logits are learned.

    None: the order is the same, or the names of the teacher's classes are unknown or cannot be compared. The teacher
    has K classes, too. Raises UsageError `bad_argument` if they have other names.
    """
    names, classes = ([normalize_class_name(name) for name in side] for side in (teacher.class_names, data_classes))
    if not names or names == classes or _are_indices(names) != _are_indices(classes):
        return None
    known = labels_for_classes(len(names))
    if known is not None and names == [*known.names] and set(classes) == set(known.synsets):
        names = [*known.synsets]
    index = {name: i for i, name in enumerate(names)}
    if index.keys() != set(classes) or len(index) < len(names):
        other = next((name for name in classes if name not in index), classes[0])
        raise UsageError(
            "bad_argument",
            f"the teacher {config.teacher} has other classes than the data, such as {names[0]!r}; the data has "
            f"{other!r}",
            hint="fine-tune the teacher on this data first and give its folder, local-dir:FOLDER; or set "
            "distill_weight to 1, to learn the teacher's classes; or distill_target to embedding; or, if only the "
            "names differ, teacher_labels to a file with those of the data",
        )
    order = tuple(index[name] for name in classes)
    return None if order == tuple(range(len(order))) else order


def _are_indices(names: list[str]) -> bool:
    """Return whether classes are called by their indices, 0 to K - 1, as in folders without names."""
    return sorted(names) == sorted(str(i) for i in range(len(names)))
