"""The settings of a training run as one frozen dataclass, and how it is read from JSON.

The train.json of a run holds every field, so it is enough to repeat the run.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from ..checks import check_fields, checked, show
from ..data.augment import Augmentation
from ..data.mix import Erasing, Mixing
from ..engine.exported import is_exported
from ..errors import UsageError
from ..storage import expand_home, read_regular
from ..weights.catalogue import full_name

TEACHER_SUFFIXES = (".onnx", ".xml", ".tflite")
MAX_IMG_SIZE = 4000  # pixels per side: the square is data.limits.Limits.intermediate
BOUNDS: dict[str, tuple[float, float]] = {  # smallest and largest value of each number in TrainConfig
    "img_size": (1, MAX_IMG_SIZE),
    "crop_pct": (0, 2),
    "layer_decay": (0, 1),
    "repeats": (1, 1000),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000),
    "grad_accum_steps": (1, 1_000_000),
    "lr": (0, 1000),
    "momentum": (0, 1),
    "eps": (0, 1),
    "weight_decay": (0, 1000),
    "warmup_fraction": (0, 1),
    "warmup_lr": (0, 1000),
    "min_lr": (0, 1000),
    "max_grad_norm": (0, 1e9),
    "label_smoothing": (0, 1),
    "drop_path_rate": (0, 1),
    "ema_decay": (0, 1),
    "distill_weight": (0, 1),
    "distill_temperature": (0, 1000),
    "distill_embedding_weight": (0, 1e6),
    "distill_center_images": (1, 1_000_000),
    "teacher_img_size": (1, MAX_IMG_SIZE),
    "teacher_background": (0, 1_000_000),
    "teacher_epochs": (0, 1_000_000),
    "unlabelled_fraction": (0, 1),
    "checkpoint_minutes": (0, 1e6),
    "keep_checkpoints": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
}
POSITIVE = ("lr", "layer_decay", "distill_temperature", "crop_pct")  # 0 is refused, too
OPTIONAL = ("img_size", "crop_pct", "teacher_img_size", "unlabelled_fraction")  # numbers that may be None
FORMER_NAMES = {  # of fields, in configs and in train.json of earlier versions
    "start": "init_from",
    "part": "trainable",
    "accumulate": "grad_accum_steps",
    "clip_norm": "max_grad_norm",
    "smoothing": "label_smoothing",
    "keep_statistics": "freeze_batch_norm_stats",
    "warmup": "warmup_fraction",
    "drop_path": "drop_path_rate",
    "ema": "ema_decay",
    "keep": "keep_checkpoints",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings that determine the result of a training run, besides its data and the number of processes.

    Raises UsageError `bad_argument` if a value has the wrong type or is out of range.
    """

    model: str = "convmixer_384_8_ks5_p8"  # an architecture; the default is that of the built-in model for photographs
    model_args: Mapping[str, Any] = field(default_factory=dict)  # fields of the architecture's config
    init_from: str = "scratch"  # random weights; "pretrained": those of `model`; or a weight file for `model`
    trainable: Literal["all", "head"] = "all"  # "head": train the classifier only; batch norms keep their statistics
    probe: bool = False  # start from a classifier fitted on embeddings of the frozen model instead of a random one
    freeze_batch_norm_stats: bool = False  # batch norms keep the statistics of the initial weights
    layer_decay: float = 1.0  # learning rate of a layer divided by that of the next layer
    img_size: int | None = None  # pixels; None: that of the model
    mean: tuple[float, ...] | None = None  # per channel, of pixels from 0 to 1; None: that of the model
    std: tuple[float, ...] | None = None  # per channel; None: that of the model
    crop_pct: float | None = None  # fraction of the side of a resized image used in validation; None: the model's

    augmentation: Augmentation = field(default_factory=Augmentation)
    erasing: Erasing = field(default_factory=Erasing)
    mixing: Mixing = field(default_factory=Mixing)
    repeats: int = 1  # copies of each image in a batch, each with its own augmentation; an epoch keeps its length

    epochs: int = 30
    batch_size: int = 64  # images per step, over all processes
    grad_accum_steps: int = 1  # parts in which a batch is computed, to save memory
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"  # "muon": AdamW with orthogonalized updates of matrices
    lr: float = 1e-3  # peak learning rate
    momentum: float = 0.9  # for SGD
    eps: float = 1e-8  # for AdamW
    weight_decay: float = 0.05  # not applied to biases, norms, and parameters that the model excludes
    schedule: Literal["cosine", "linear", "onecycle", "constant"] = "cosine"
    warmup_fraction: float = 0.05  # fraction of the steps in which the rate rises linearly to `lr`; not for onecycle
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    max_grad_norm: float = 0.0  # 0: no gradient clipping
    label_smoothing: float = 0.1
    loss: Literal["softmax", "binary"] = "softmax"
    drop_path_rate: float = 0.0
    ema_decay: float = 0.0  # decay of the moving average of the weights, which is validated and kept; 0: no average
    teacher: str = ""  # model name, or a file (.onnx, .xml, .tflite) or exported folder; see docs/guide/training.md
    distill: Literal["soft", "hard"] = "soft"  # of logits: the teacher's distribution, or its top class only
    distill_weight: float = 0.5  # of distillation against the labels; 1: the labels are not used
    distill_temperature: float = 1.0
    distill_target: Literal["logits", "embedding", "both"] = "logits"
    distill_embedding_loss: Literal["cosine", "regression"] = "cosine"  # to the teacher's centered embedding
    distill_embedding_weight: float = 1.0  # of the embedding's loss, which is added to that of the logits, with "both"
    distill_center_images: int = 1024  # training crops whose mean embedding is subtracted
    teacher_layout: Literal["", "NHWC", "NCHW"] = ""  # of a file's input; "": found by the axis of length 3
    teacher_mean: tuple[float, ...] | None = None  # of a file's input, for pixels from 0 to 1: (x - mean) / std
    teacher_std: tuple[float, ...] | None = None
    teacher_img_size: int | None = None  # pixels; None: that of the teacher, or the student's if it reads any size
    teacher_embedding: str = ""  # name of the output or node with the embedding; "": the input of the last layer
    teacher_logits: str = ""  # name of the output or node with the logits; "": the output, before a softmax
    teacher_epochs: int = 0  # epochs after which crops, and the teacher's outputs, repeat; 0: all epochs have new crops
    teacher_labels: str = ""  # text file of the teacher's class names, one a line
    teacher_background: int = 0  # number of classes to leave out at the beginning of a file's output and labels
    unlabelled_fraction: float | None = None  # of each batch; None: in proportion to the numbers of images
    unlabelled_weights: tuple[float, ...] | None = None  # of the unlabeled inputs; None: their numbers of images
    select: Literal["best", "last"] = "best"  # epoch whose weights become the model
    calibrate: bool = True  # on the validation images, at the end

    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of autocast
    grad_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    on_bad_loss: Literal["stop", "skip"] = "stop"  # if a loss or gradient is not finite; "skip": at most ten in a row
    checkpoint_minutes: float = 5.0  # time between checkpoints, besides the one at the end of each epoch
    keep_checkpoints: int = 2  # number of newest checkpoints to keep, besides the best
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            is_number = type(value) in (int, float) or (value is None and name in OPTIONAL)
            if not is_number or (value is not None and not low <= value <= high):  # NaN is refused, too
                raise UsageError("bad_argument", f"{name} is {value!r}, expected {low:g} to {high:g}")
        for name in POSITIVE:
            if getattr(self, name) == 0:
                raise UsageError("bad_argument", f"{name} is 0, expected more than 0")
        for name in ("mean", "std", "teacher_mean", "teacher_std"):
            values = getattr(self, name)
            valid = values is None or (values and all(type(v) in (int, float) and 0 <= v <= 1 for v in values))
            if not valid or (name.endswith("std") and values and 0 in values):
                raise UsageError("bad_argument", f"{name} is {values!r}, expected a number from 0 to 1 per channel")
        weights = self.unlabelled_weights
        if weights is not None and not (weights and all(0 < weight < math.inf for weight in weights)):
            raise UsageError(
                "bad_argument", f"unlabelled_weights is {weights!r}, expected a positive number for each input"
            )

    @property
    def uses_labels(self) -> bool:
        """Whether the labels are training targets."""
        return not self.teacher or self.distill_weight < 1

    @property
    def distills_logits(self) -> bool:
        """Whether the teacher's logits are training targets."""
        return bool(self.teacher) and self.distill_target != "embedding"

    @property
    def distills_embedding(self) -> bool:
        """Whether the teacher's embedding is a training target."""
        return bool(self.teacher) and self.distill_target != "logits"

    def as_dict(self) -> dict[str, object]:
        """Return the fields as a dictionary for JSON, which `TrainConfig.from_dict` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TrainConfig:
        """Return the config with the given fields, as JSON has them; missing fields have their defaults.

        Former names of fields (`FORMER_NAMES`) are accepted. Raises UsageError `bad_argument` for unknown fields, for
        a field given under both of its names, and for values of the wrong type.
        """
        _check_names(TrainConfig, values, "the config")
        values = current_names(values)
        for name in ("augmentation", "erasing", "mixing"):
            section = values.get(name)
            if isinstance(section, Mapping):
                _check_names(typing.get_type_hints(TrainConfig)[name], section, name)
        try:
            return msgspec.convert(values, TrainConfig, strict=True)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, UsageError):  # of a `__post_init__`
                raise error.__cause__ from None
            raise _invalid_value(str(error), values) from None
        except UnicodeEncodeError as error:  # in a field with a fixed set of values
            raise UsageError(
                "bad_argument", f"the config has {show(error.object)}, which is not valid Unicode"
            ) from None


def distillation_settings(config: TrainConfig) -> list[str]:
    """Return the names of the settings about a teacher, besides the teacher itself, that differ from their defaults."""
    defaults = TrainConfig()
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name.startswith(("distill", "teacher_"))]
    return [name for name in names if getattr(config, name) != getattr(defaults, name)]


def is_teacher_file(name: str) -> bool:
    """Return True for the name of a file or an exported folder, and False for the name of a model.

    Raises UsageError `bad_argument` for a path in the home folder of an unknown user.
    """
    return name.lower().endswith(TEACHER_SUFFIXES) or is_exported(teacher_path(name))


def teacher_path(name: str) -> Path:
    """Return the path of a teacher for which `is_teacher_file` is True. Raises UsageError `bad_argument` as it does."""
    return expand_home(name.removeprefix("local-dir:"))


def current_names(values: Mapping[str, object]) -> dict[str, object]:
    """Return settings with former names of fields replaced by the current ones.

    Raises UsageError `bad_argument` if a field is given under both of its names.
    """
    for former, name in FORMER_NAMES.items():
        if former in values and name in values:
            raise UsageError(
                "bad_argument",
                f"the config has both {name!r} and its former name {former!r}",
                hint=f"remove {former!r}",
            )
    return {FORMER_NAMES.get(name, name): value for name, value in values.items()}


def _check_names(cls: type, values: Mapping[str, object], what: str) -> None:
    """Refuse unknown fields and suggest a similar one; msgspec would ignore them in a dataclass."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UsageError("bad_argument", f"{what} is {show(values)}, expected a JSON object")
    known = [field.name for field in dataclasses.fields(cls)]
    former = FORMER_NAMES if cls is TrainConfig else {}
    if unknown := sorted(set(values) - {*known, *former}):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        raise UsageError(
            "bad_argument",
            f"{what} has no field {', '.join(map(repr, unknown))}",
            hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}",
        )


def _invalid_value(message: str, values: Mapping[str, object]) -> UsageError:
    """Return the UsageError for an error of msgspec, "Expected `int`, got `str` - at `$.epochs`"."""
    reason, _, place = message.rpartition(" - at ")
    path = re.findall(r"\w+", place.partition("$")[2])
    kind: object = TrainConfig
    value: object = values
    for name in path:
        value = value[name] if isinstance(value, Mapping) else cast("Sequence[object]", value)[int(name)]
        kind = typing.get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    if typing.get_origin(kind) is Literal:
        expected = f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    else:
        expected = reason.partition(", got")[0].removeprefix("Expected ").replace("`", "")
    return UsageError("bad_argument", f"{'.'.join(path)} is {show(value)}, expected {expected}")


@checked
def read_config(file: str | Path) -> dict[str, object]:
    """Return the settings in a JSON file, a config or the train.json of a run, under the current names.

    Raises UsageError `not_found` if the file cannot be read, and `bad_argument` if it is not a JSON object.
    """
    try:
        values = json.loads(read_regular(file))
    except OSError as error:
        raise UsageError("not_found", f"the config {str(file)!r} could not be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError("bad_argument", f"the config {str(file)!r} is not JSON: {error}") from None
    settings = values.get("config", values) if isinstance(values, dict) else values
    if not isinstance(settings, dict):
        raise UsageError("bad_argument", f"the config {str(file)!r} is not a JSON object of settings")
    return current_names(settings)


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[str, str]]:
    """Return the settings that differ, by their dotted names: (old, new) as JSON.

    An architecture and its default checkpoint are the same model: which weights are loaded depends on `init_from`.
    """
    before, after = (_flatten("", _as_read(config)) for config in (old, new))
    names = [*after, *(name for name in before if name not in after)]
    if full_name(old.model) == full_name(new.model):
        names.remove("model")
    return {
        name: (before.get(name, "unset"), after.get(name, "unset"))
        for name in names
        if before.get(name) != after.get(name)
    }


def _as_read(config: TrainConfig) -> object:
    """Return the fields as they are read from train.json: 1 is 1.0 for a field that is a float."""
    values = json.loads(json.dumps(config.as_dict()))
    return json.loads(json.dumps(TrainConfig.from_dict(values).as_dict()))


def _flatten(prefix: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {prefix: json.dumps(value)}
    parts = (_flatten(f"{prefix}.{name}" if prefix else name, part) for name, part in value.items())
    return {name: text for part in parts for name, text in part.items()}
