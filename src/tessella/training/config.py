"""How a model is trained: one frozen config, the presets with their sources, and the learning rate as a function.

A preset is a set of changes to `TrainConfig`; options of the command line change it further. The train.json of a run
holds every field and makes the same run again.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..checks import check_fields, checked
from ..data.augment import Augmentation
from ..data.mix import Erasing, Mixing
from ..errors import UsageError
from ..storage import read_regular

DEFAULT_MODEL = "convmixer_256_8_ks3_p4.cifar10"  # the built-in model, as in predictor.py, which imports more

MAX_IMG_SIZE = 4000  # pixels per side: the square is data.limits.Limits.intermediate
BOUNDS: dict[str, tuple[float, float]] = {  # least and greatest value of each number in TrainConfig
    "img_size": (1, MAX_IMG_SIZE),
    "crop_pct": (0, 2),
    "layer_decay": (0, 1),
    "repeats": (1, 1000),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000),
    "accumulate": (1, 1_000_000),
    "lr": (0, 1000),
    "momentum": (0, 1),
    "eps": (0, 1),
    "weight_decay": (0, 1000),
    "warmup": (0, 1),
    "warmup_lr": (0, 1000),
    "min_lr": (0, 1000),
    "clip_norm": (0, 1e9),
    "smoothing": (0, 1),
    "drop_path": (0, 1),
    "ema": (0, 1),
    "distill_weight": (0, 1),
    "distill_temperature": (0, 1000),
    "checkpoint_minutes": (0, 1e6),
    "keep": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a run depends on besides its data and the number of its processes."""

    model: str = "convmixer_256_8_ks3_p4"
    model_args: Mapping[str, Any] = field(default_factory=dict)  # fields of the architecture's config
    start: str = "scratch"  # or "pretrained" (the weights of `model`), or a weight file for exactly this model
    part: Literal["all", "head"] = "all"  # what learns; with "head" the rest also keeps its batch statistics
    probe: bool = False  # start from a classifier fitted on frozen embeddings, not a random one
    keep_statistics: bool = False  # batch norms keep the statistics of the weights that training begins with
    layer_decay: float = 1.0  # learning rate of a layer over that of the next
    img_size: int | None = None  # pixels; None: the model's own
    mean: tuple[float, ...] | None = None  # of the pixels, from 0 to 1; None: the model's own
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None  # share of a resized image's side that is evaluated; None: the model's own

    augmentation: Augmentation = field(default_factory=Augmentation)
    erasing: Erasing = field(default_factory=Erasing)
    mixing: Mixing = field(default_factory=Mixing)
    repeats: int = 1  # copies of an image in a batch, each augmented by itself; an epoch keeps its length

    epochs: int = 30
    batch_size: int = 64  # images a step, of all processes
    accumulate: int = 1  # parts that a batch is computed in, to save memory
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3  # the highest
    momentum: float = 0.9  # of sgd
    eps: float = 1e-8  # of adamw
    weight_decay: float = 0.05  # not on biases, norms, and what the model excludes
    schedule: Literal["cosine", "linear", "onecycle", "constant"] = "cosine"
    warmup: float = 0.05  # share of the steps in which the rate rises in a line to `lr`; onecycle has its own
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    clip_norm: float = 0.0  # 0: no clipping
    smoothing: float = 0.1
    loss: Literal["softmax", "binary"] = "softmax"
    drop_path: float = 0.0
    ema: float = 0.0  # decay of the averaged weights that are evaluated and kept; 0: the weights themselves
    teacher: str = ""  # a model name; its answers are learned beside the labels
    distill: Literal["soft", "hard"] = "soft"
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    select: Literal["best", "last"] = "best"  # which epoch's weights become the model

    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of autocast
    grad_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    on_bad_loss: Literal["stop", "skip"] = "stop"  # if a loss or gradient is not finite; "skip" at most ten in a row
    checkpoint_minutes: float = 5.0  # besides one at the end of each epoch
    keep: int = 2  # newest checkpoints, besides the best
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            number = type(value) in (int, float) or (value is None and name in ("img_size", "crop_pct"))
            if not number or (value is not None and not low <= value <= high):  # nan is refused too
                raise UsageError("bad_argument", f"{name} is {value!r}, expected {low:g} to {high:g}")
        for name in ("lr", "layer_decay", "distill_temperature", "crop_pct"):
            if getattr(self, name) == 0:
                raise UsageError("bad_argument", f"{name} is 0, expected more than 0")
        for name in ("mean", "std"):
            values = getattr(self, name)
            good = values is None or (values and all(type(v) in (int, float) and 0 <= v <= 1 for v in values))
            if not good or (name == "std" and values and 0 in values):
                raise UsageError("bad_argument", f"{name} is {values!r}, expected a number from 0 to 1 per channel")
        for name, kind in typing.get_type_hints(TrainConfig).items():
            if typing.get_origin(kind) is Literal and getattr(self, name) not in (known := typing.get_args(kind)):
                raise UsageError(
                    "bad_argument", f"{name} is {getattr(self, name)!r}", hint=f"choose from {', '.join(known)}"
                )

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `TrainConfig.from_dict` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Raises UsageError `bad_argument` for fields that are not known and values of another type."""
        made: TrainConfig = _read(cls, values, "the config")
        return made


def _read(cls: Any, values: Any, what: str) -> Any:
    """A dataclass of JSON's objects: tuples of lists, dataclasses of dicts."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UsageError("bad_argument", f"{what} is {values!r}, expected a JSON object")
    kinds = typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(kinds)):
        close = difflib.get_close_matches(unknown[0], kinds, n=1)
        raise UsageError(
            "bad_argument",
            f"{what} has no field {', '.join(map(repr, unknown))}",
            hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(kinds)}",
        )
    return cls(**{name: _value(kinds[name], value, name) for name, value in values.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _read(kind, value, name)
    if isinstance(value, list):
        value = tuple(value)
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    plain = {typing.get_origin(option) or option for option in options}
    if Literal in plain or type(value) in plain or (type(value) is int and float in plain):
        return value
    if isinstance(value, Mapping) and any(getattr(one, "__name__", "") == "Mapping" for one in plain):
        return dict(value)
    if value is None and type(None) in plain:
        return None
    raise UsageError("bad_argument", f"{name} is {value!r}, expected {getattr(kind, '__name__', kind)}")


_DEIT = dict(  # shared by ConViT's and CrossViT's authors, who trained in DeiT's way
    augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic"),
    erasing=Erasing(prob=0.25, mode="pixel"),
    mixing=Mixing(mixup=0.8, cutmix=1.0),
    repeats=3,
    epochs=300,
    weight_decay=0.05,
    schedule="cosine",
    warmup=5 / 300,
    warmup_lr=1e-6,
    min_lr=1e-5,
    drop_path=0.1,
    select="last",
)
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # name: where it comes from, what it changes
    "convmixer": (
        "the authors' README and fork of timm 0.5 (convmixer_768_32: 300 epochs; 1536_20: 150)",
        dict(
            augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", interpolation="random"),
            erasing=Erasing(prob=0.25, mode="pixel"),
            mixing=Mixing(mixup=0.5, cutmix=0.5),
            epochs=300,
            batch_size=640,
            lr=0.01,
            eps=1e-3,
            weight_decay=2e-5,
            schedule="onecycle",
            warmup=0.0,
            clip_norm=1.0,
            select="last",
        ),
    ),
    "convit": ("the defaults of the authors' main.py", dict(_DEIT, batch_size=1024, lr=1e-3)),
    "crossvit": ("the authors' main.py and README", dict(_DEIT, batch_size=4096, lr=4e-3)),
    "mixer": (
        "big_vision's mixer_b16_i1k config, from scratch on ImageNet-1k",
        dict(
            augmentation=Augmentation(auto_augment="rand-m15-n2-p1-mmax15", interpolation="bilinear"),
            mixing=Mixing(mixup=0.5),
            epochs=300,
            batch_size=4096,
            lr=1e-3,
            weight_decay=0.1,  # its 1e-4 is not multiplied by the learning rate, AdamW's is
            schedule="linear",
            warmup=10_000 / 93_750,
            min_lr=1e-5,
            clip_norm=1.0,
            smoothing=0.0,
            loss="binary",
            drop_path=0.1,
            select="last",
        ),
    ),
    "gmixer": (
        "settings of this project; the recipe of timm's gMixer weights is not published",
        dict(_DEIT, batch_size=1024, lr=1e-3, repeats=1),
    ),
    "finetune": (
        "settings of this project for fine-tuning a pretrained model",
        dict(
            start="pretrained",
            probe=True,
            keep_statistics=True,
            layer_decay=0.8,
            augmentation=Augmentation(scale=(0.35, 1.0), color_jitter=0.2),
            epochs=6,
            batch_size=32,
            lr=5e-4,
            warmup=0.1,
            clip_norm=1.0,
            ema=0.99,
        ),
    ),
    "small-data": (
        "settings of this project for training on small images from random weights",
        dict(
            augmentation=Augmentation(crop="pad", padding=4),
            crop_pct=1.0,
            epochs=30,
            batch_size=64,
            lr=2e-3,
            schedule="linear",
            warmup=0.2,
            clip_norm=1.0,
            ema=0.999,
            channels_last=True,
        ),
    ),
}


@checked
def recipe(preset: str = "", **changes: Any) -> TrainConfig:
    """The config of a preset ("": the defaults of TrainConfig) with changes; raises UsageError `bad_argument`."""
    if preset and preset not in PRESETS:
        raise UsageError("bad_argument", f"there is no preset {preset!r}", hint=f"choose from {', '.join(PRESETS)}")
    base = PRESETS[preset][1] if preset else {}
    return TrainConfig.from_dict({**base, **changes})


def choose(
    model: str | None, preset: str | None, file: str | None, scratch: bool, changes: Mapping[str, Any]
) -> tuple[TrainConfig, str]:
    """Return the config for a command line, and a sentence that describes it.

    A config file is taken as it is, with the changes. Without one, the preset is "finetune" where training starts from
    pretrained weights, else "small-data". Without a model, the built-in one is fine-tuned.
    """
    changes = dict(changes)
    if file is not None and preset is not None:
        raise UsageError("bad_argument", "--preset and --config cannot be combined", hint="give only one of them")
    if preset is not None and preset not in PRESETS:
        raise UsageError("bad_argument", f"there is no preset {preset!r}", hint=f"choose from {', '.join(PRESETS)}")
    if file is not None:
        changes = {**read_config(file), **changes}
    if model is not None:
        changes["model"] = model
    elif preset in (None, "finetune") and file is None and not scratch:
        changes["model"] = DEFAULT_MODEL
    if scratch:
        changes["start"] = "scratch"
    name = changes.get("model", TrainConfig.model)
    named = isinstance(name, str) and (":" in name or "." in name)  # names weights, not only an architecture
    if not scratch and not named and preset == "finetune":
        need_weights(name)
        named = True
    changes.setdefault("start", "pretrained" if named else "scratch")
    start = "pretrained weights" if changes["start"] == "pretrained" else "random weights"
    if changes["start"] not in ("pretrained", "scratch"):
        start = f"the weights in {changes['start']}"
    if file is not None:
        return TrainConfig.from_dict(changes), f"{name}: {start}, config {file}"
    preset = preset or ("finetune" if named and not scratch else "small-data")
    if changes["start"] == "scratch":
        changes.setdefault("probe", False)  # of random features
        changes.setdefault("keep_statistics", False)
    return recipe(preset, **changes), f"{name}: {start}, preset {preset}: {PRESETS[preset][0]}"


def need_weights(name: str) -> None:
    """Raise UsageError unless pretrained weights are published for the architecture."""
    from ..weights.catalogue import resolve

    row = resolve(name)[1]
    if row is None or not (row.file or row.hf_hub_id):
        raise UsageError(
            "no_weights",
            f"there are no pretrained weights of {name!r} to fine-tune",
            hint="--preset small-data trains it from random weights; see `tessella list --pretrained`",
        )


@checked
def read_config(file: str | Path) -> dict[str, Any]:
    """The settings in a JSON file: a config, or the train.json of a run."""
    try:
        values = json.loads(read_regular(file))
    except OSError as error:
        raise UsageError("not_found", f"the config {str(file)!r} could not be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError("bad_argument", f"the config {str(file)!r} is not JSON: {error}") from None
    found = values.get("config", values) if isinstance(values, dict) else values
    if not isinstance(found, dict):
        raise UsageError("bad_argument", f"the config {str(file)!r} is not a JSON object of settings")
    return found


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[str, str]]:
    """Settings that differ, by their dotted names: (old, new) as JSON."""
    before, after = (_flat("", json.loads(json.dumps(config.as_dict()))) for config in (old, new))
    names = [*after, *(name for name in before if name not in after)]
    return {
        name: (before.get(name, "unset"), after.get(name, "unset"))
        for name in names
        if before.get(name) != after.get(name)
    }


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {prefix: json.dumps(value)}
    parts = (_flat(f"{prefix}.{name}" if prefix else name, one) for name, one in value.items())
    return {name: text for part in parts for name, text in part.items()}


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of step 0 <= step < steps: warm-up in a line, then the schedule.

    onecycle is the ConvMixer authors': 0 to lr at 2/5 of the run, lr / 20 at 4/5, 0 at its end, in lines.
    """
    done = step / steps
    if config.schedule == "onecycle":
        points = ((0.0, 0.0), (0.4, config.lr), (0.8, config.lr / 20), (1.0, 0.0))
        for (start, low), (end, high) in itertools.pairwise(points):
            if done <= end:
                return low + (high - low) * (done - start) / (end - start)
    rise = config.warmup * steps
    if step < rise:
        return config.warmup_lr + (config.lr - config.warmup_lr) * min((step + 1) / rise, 1.0)
    if config.schedule == "constant":
        return config.lr
    left = 1.0 - (step - rise) / max(steps - rise, 1)
    share = left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return config.min_lr + (config.lr - config.min_lr) * share
