"""Presets: named training recipes with their sources, and how the command line chooses among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..checks import checked
from ..data.augment import Augmentation
from ..data.mix import Erasing, Mixing
from ..errors import UsageError
from ..weights.catalogue import default_model, full_name
from .config import TrainConfig, current_names, read_config

Settings = dict[str, object]

_DEIT: Settings = dict(  # ConViT and CrossViT were trained with the recipe of DeiT
    augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic"),
    erasing=Erasing(prob=0.25, mode="pixel"),
    mixing=Mixing(mixup=0.8, cutmix=1.0),
    repeats=3,
    epochs=300,
    weight_decay=0.05,
    schedule="cosine",
    warmup_fraction=5 / 300,
    warmup_lr=1e-6,
    min_lr=1e-5,
    drop_path_rate=0.1,
    select="last",
)
PRESETS: dict[str, tuple[str, Settings]] = {  # by name: the source, and the changes to the defaults of TrainConfig
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
            warmup_fraction=0.0,
            max_grad_norm=1.0,
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
            weight_decay=0.1,  # its 1e-4 is not multiplied by the learning rate; in AdamW it is
            schedule="linear",
            warmup_fraction=10_000 / 93_750,
            min_lr=1e-5,
            max_grad_norm=1.0,
            label_smoothing=0.0,
            loss="binary",
            drop_path_rate=0.1,
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
            init_from="pretrained",
            probe=True,
            freeze_batch_norm_stats=True,
            layer_decay=0.8,
            augmentation=Augmentation(scale=(0.35, 1.0), color_jitter=0.2),
            epochs=6,
            batch_size=32,
            lr=5e-4,
            warmup_fraction=0.1,
            max_grad_norm=1.0,
            ema_decay=0.99,
        ),
    ),
    "distill": (
        "settings of this project for learning from a --teacher, after arXiv:2106.05237",
        dict(
            augmentation=Augmentation(scale=(0.35, 1.0), color_jitter=(0.4, 0.4, 0.4, 0.1)),
            mixing=Mixing(mixup=0.5),
            epochs=100,
            batch_size=64,
            lr=3e-3,
            weight_decay=0.02,
            schedule="cosine",
            warmup_fraction=0.02,
            max_grad_norm=1.0,
            label_smoothing=0.0,
            ema_decay=0.999,
            channels_last=True,
            distill_target="both",
            distill_weight=1.0,
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
            warmup_fraction=0.2,
            max_grad_norm=1.0,
            ema_decay=0.999,
            channels_last=True,
        ),
    ),
}


@checked
def preset_config(preset: str = "", **changes: object) -> TrainConfig:
    """Return the config of a preset with changes; an empty name means the defaults of `TrainConfig`.

    Without a model, "finetune" takes the built-in model for photographs with its weights.
    Raises UsageError `bad_argument` for an unknown preset or field, or an invalid value.
    """
    if preset:
        _check_preset(preset)
    base = PRESETS[preset][1] if preset else {}
    settings = {**base, **current_names(changes)}
    if preset == "finetune" and settings["init_from"] != "scratch":
        settings.setdefault("model", default_model("embed"))
    return TrainConfig.from_dict(settings)


def choose_config(
    model: str | None,
    preset: str | None,
    file: str | None,
    scratch: bool,
    changes: Mapping[str, object],
    started_with: str | None = None,
) -> tuple[TrainConfig, str]:
    """Return the config for a command line, and a sentence that describes it.

    model: name of the model; None: the built-in model for photographs if it is fine-tuned, else its architecture.
    preset: a name in PRESETS; None: "finetune" if training starts from pretrained weights, else "small-data". file: a
    JSON file whose settings are used instead of a preset. scratch: start from random weights. changes: fields that
    override those of the preset or file. started_with: the model of the run that is resumed, which is kept if it was
    the default then.
    Raises UsageError `bad_argument`, also for distillation without a teacher, `not_found` (the file) and `no_weights`
    (none are published for the model).
    """
    changes = dict(changes)
    if file is not None and preset is not None:
        raise UsageError("bad_argument", "--preset and --config cannot be combined", hint="give only one of them")
    if preset is not None:
        _check_preset(preset)
    given = [*changes]
    if file is not None:
        changes = {**read_config(file), **changes}
    _check_teacher(preset, given, changes)
    if model is not None:
        changes["model"] = model
    elif "model" not in changes:
        default = default_model("embed", started_with)
        is_fine_tuned = preset in (None, "finetune") and file is None and not scratch
        changes["model"] = default if is_fine_tuned else default.partition(".")[0]
    if scratch:
        changes["init_from"] = "scratch"
    name = changes["model"]
    names_weights = isinstance(name, str) and (":" in name or "." in name)  # not only an architecture
    if not scratch and not names_weights and preset == "finetune":
        _check_weights_exist(str(name))
        names_weights = True
    init_from = changes.setdefault("init_from", "pretrained" if names_weights else "scratch")
    if init_from == "pretrained" and isinstance(name, str):
        changes["model"] = name = full_name(name)
    match init_from:
        case "scratch":
            initial = "random weights"
        case "pretrained":
            initial = "pretrained weights"
        case _:
            initial = f"the weights in {init_from}"
    if file is not None:
        return TrainConfig.from_dict(changes), f"{name}: {initial}, config {file}"
    preset = preset or ("finetune" if names_weights and not scratch else "small-data")
    if init_from == "scratch":  # random features are not probed, and their statistics are not kept
        changes.setdefault("probe", False)
        changes.setdefault("freeze_batch_norm_stats", False)
    return preset_config(preset, **changes), f"{name}: {initial}, preset {preset}: {PRESETS[preset][0]}"


def _check_preset(preset: str) -> None:
    if preset not in PRESETS:
        raise UsageError("bad_argument", f"there is no preset {preset!r}", hint=f"choose from {', '.join(PRESETS)}")


def _check_teacher(preset: str | None, given: Iterable[str], changes: Mapping[str, object]) -> None:
    """Raise UsageError `bad_argument` for distillation without a teacher. given: names of fields besides the file's."""
    wanted = next((name for name in given if name.startswith("distill")), "")
    if not wanted and preset == "distill":
        wanted = "the preset distill"
    if wanted and not changes.get("teacher"):
        raise UsageError(
            "bad_argument", f"{wanted} is given, but there is no teacher to learn from", hint="--teacher MODEL"
        )


def _check_weights_exist(name: str) -> None:
    """Raise UsageError `no_weights` unless pretrained weights are published for the architecture."""
    from ..weights.catalogue import resolve

    row = resolve(name)[1]
    if row is None or not (row.file or row.hf_hub_id):
        raise UsageError(
            "no_weights",
            f"there are no pretrained weights of {name!r} to fine-tune",
            hint="--preset small-data trains it from random weights; see `tessella list --pretrained`",
        )
