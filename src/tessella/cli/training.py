"""tessella train."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
import sys
import typing
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .console import Command
from .options import data_argument, option, resumable_out_option, validation_options


class TrainCommand(Command):
    """The command `train`, which has options for the most important settings only."""

    def instead_of(self, word: str, ctx: click.Context) -> str:
        """Return how to give a setting that has no option; similar and former names are recognized, too."""
        options = {name.lstrip("-").replace("-", "_") for name in self.option_names(ctx)}
        settings = _settings(options)
        known = [*options, *(name for name in settings if name not in options)]
        begun = [name for name in known if len(word) > 2 and name.startswith(word)]
        similar = [word] if word in settings else begun or difflib.get_close_matches(word, known, n=1)
        general = super().instead_of(word, ctx)
        if general or not similar or word in options or options.intersection(similar):
            return general
        ways = " or ".join(dict.fromkeys(way for name in similar for way in settings[name]))
        return f"put {ways} into a file and give it with --config FILE"


def _settings(options: Collection[str]) -> dict[str, list[str]]:
    """Return how a config states each setting, by its name without its section, and by a former name.

    options: settings whose former names are left out.
    """
    from ..training.config import FORMER_NAMES, TrainConfig

    ways: dict[str, list[str]] = {}
    for name, kind in typing.get_type_hints(TrainConfig).items():
        ways.setdefault(name, []).append(f'{{"{name}": ...}}')
        for inner in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            ways.setdefault(inner.name, []).append(f'{{"{name}": {{"{inner.name}": ...}}}}')
    return {former: ways[name] for former, name in FORMER_NAMES.items() if name not in options} | ways


@click.command(
    cls=TrainCommand,
    needs_torch="training",
    examples=[
        "tessella train photos --out runs/photos",
        "tessella train photos -m mixer_b16_224.goog_in21k_ft_in1k --epochs 10 --out runs/mixer",
        "tessella train photos -m convmixer_256_8_ks3_p4 --scratch --img-size 64 --out runs/scratch",
        "tessella train photos --config runs/photos/train.json --lr 0.001 --out runs/lower-lr",
        "tessella train photos --preset distill --teacher teacher.tflite --unlabelled more.tar --out runs/student",
    ],
)
@data_argument
@validation_options
@option(
    "-m",
    "--model",
    group="Model",
    metavar="NAME",
    help="Model to train: a name such as mixer_b16_224.goog_in21k, hf-hub:ORG/REPO or local-dir:FOLDER.  "
    "[default: the built-in model for photographs, or its architecture with --scratch, --config or another preset than "
    "finetune]",
)
@option("--scratch", group="Model", is_flag=True, help="Start from random weights.")
@option("--img-size", group="Model", type=click.IntRange(1, 4000), help="Input size in pixels, square.")
@option(
    "--teacher",
    group="Distillation",
    metavar="MODEL",
    help="Teacher to learn from: a model name, an .onnx, .xml (OpenVINO) or .tflite file, or a folder of "
    "`tessella export`.",
)
@option(
    "--unlabelled",
    group="Distillation",
    metavar="DATA",
    multiple=True,
    aliases=["--unlabeled"],
    help="Images without classes to distill on: a folder, .tar or .parquet file, or a glob. Repeatable.",
)
@option(
    "--distill-target",
    group="Distillation",
    type=click.Choice(["logits", "embedding", "both"]),
    help="What is learned from the teacher.  [default: logits; both with the preset distill]",
)
@option(
    "--distill-weight",
    group="Distillation",
    type=click.FloatRange(0, 1),
    metavar="WEIGHT",
    help="Weight of the teacher against the labels; 1 ignores labels.  [default: 0.5; 1 with the preset distill]",
)
@option(
    "--preset",
    group="Training",
    metavar="NAME",
    help="Training recipe: convmixer, convit, crossvit, mixer, gmixer, finetune, distill or small-data.  "
    "[default: finetune for pretrained weights, else small-data]",
)
@option(
    "--config",
    group="Training",
    metavar="FILE",
    help="JSON file with all or some of the settings, such as train.json of a run.",
)
@option("--epochs", group="Training", type=click.IntRange(1, 1_000_000), help="Number of epochs.")
@option(
    "--batch-size",
    group="Training",
    type=click.IntRange(1, 1_000_000),
    help="Global batch size, over all processes.",
)
@option(
    "--lr", group="Training", type=click.FloatRange(0, 1000, min_open=True), metavar="RATE", help="Peak learning rate."
)
@option(
    "--layer-decay",
    group="Training",
    type=click.FloatRange(0, 1, True),
    metavar="FACTOR",
    help="Layer-wise learning-rate decay.",
)
@option(
    "--ema-decay",
    group="Training",
    type=click.FloatRange(0, 1),
    metavar="DECAY",
    aliases=["--ema"],
    help="Decay of the exponential moving average of the weights; 0 turns it off.",
)
@option("--head-only", group="Training", is_flag=True, help="Train only the classifier.")
@option("--seed", group="Training", type=click.IntRange(0, 2**63 - 1), help="Random seed.")
@resumable_out_option
@option("--tensorboard", group="Output", is_flag=True, help="Also write TensorBoard logs to FOLDER/tensorboard.")
@option(
    "--device", group="Advanced", default="auto", show_default=True, metavar="NAME", help="Device: cpu, cuda or cuda:1."
)
@option(
    "--precision",
    group="Advanced",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Data type for automatic mixed precision.",
)
@option(
    "--grad-accum-steps",
    group="Advanced",
    type=click.IntRange(1, 1_000_000),
    aliases=["--accumulate"],
    help="Gradient accumulation steps per batch, to save memory.",
)
@option("--compile", group="Advanced", is_flag=True, help="Use torch.compile.")
@option("--shard", group="Advanced", is_flag=True, help="Shard the weights over the torchrun processes (FSDP2).")
@option(
    "--workers",
    group="Advanced",
    type=click.IntRange(0, 256),
    help="Number of data loader processes.  [default: cores - 1, at most 8]",
)
def train(data: str, val: str | None, val_fraction: float, out: str, tensorboard: bool, **options: Any) -> None:
    """Train or fine-tune a classifier on labeled images.

    The output folder contains a report and the model, which other commands load with --model local-dir:FOLDER. To
    train with several processes: torchrun --nproc-per-node N -m tessella train ...
    """
    from ..data.datasets import open_split
    from ..data.unlabelled import TrainingImages, open_unlabelled
    from ..training.config import is_teacher_file
    from ..training.events import TrainingEvent, TrainingRemark
    from ..training.presets import choose_config
    from ..training.run_folder import TrainingRecord

    names = ("model", "preset", "config", "scratch", "device", "workers", "shard", "unlabelled")
    model, preset, file, scratch, device, workers, shard, unlabelled = (options.pop(name) for name in names)
    changes = {name: value for name, value in options.items() if value is not None}
    if changes.pop("head_only"):
        changes["trainable"] = "head"
    if not changes["compile"]:  # the flag does not turn off what a config file turns on
        del changes["compile"]
    config, description = choose_config(model, preset, file, scratch, changes, TrainingRecord.model_of(out))
    if unlabelled and not config.teacher:
        raise UsageError("bad_argument", "unlabeled images can only be used with a teacher", hint="--teacher MODEL")
    labelled = open_split(data, val=val, val_fraction=val_fraction)
    images = TrainingImages(*labelled, open_unlabelled(unlabelled) if unlabelled else None)
    command = shlex.join(["tessella", *sys.argv[1:]])

    if is_teacher_file(config.teacher):  # idle threads of PyTorch would keep OpenVINO's cores busy
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..training.loop import train as run  # imported late: PyTorch is only needed once all arguments are checked
    from ..training.tensorboard import TensorBoardWriter
    from .progress import TrainingProgress

    with TrainingProgress() as progress, ExitStack() as stack:
        board = stack.enter_context(TensorBoardWriter(f"{out}/tensorboard")) if tensorboard else None

        def on_event(event: TrainingEvent) -> None:
            progress(event)
            if board is not None:
                board(event)

        on_event(TrainingRemark(text=description))
        run(images, out, config, device=device, workers=workers, shard=shard, command=command, on_event=on_event)
        name = shlex.quote(f"local-dir:{out}")
        report = f"the report is in {out}/report" if (Path(out) / "report").exists() else f"see {out}/README.md"
        on_event(TrainingRemark(text=f"{out} is ready: tessella classify -m {name} IMAGE; {report}"))
