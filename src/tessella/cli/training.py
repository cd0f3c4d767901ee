"""tessella train."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from .console import Command
from .options import option

if TYPE_CHECKING:
    pass


@click.command(cls=Command)
@click.argument("data")
@option("-m", "--model", help="Architecture, checkpoint, hf-hub:org/repo or local-dir:folder to start from.  "
              "[default: the built-in model]")  # fmt: skip
@option("-o", "--out", required=True, metavar="FOLDER", help="Output folder. Rerun the same command to resume.")
@option("--preset", metavar="NAME", help="One of convmixer, convit, crossvit, mixer, gmixer, finetune, "
              "small-data.  [default: finetune for a pretrained model, else small-data]")  # fmt: skip
@option(
    "--config", metavar="FILE.json", help="JSON file with all or some of the settings, such as train.json of a run."
)
@option(
    "--val", metavar="DATA", help="Validation images.  [default: the validation split of DATA, or a fraction of it]"
)
@option("--val-fraction", type=click.FloatRange(0, 1, True, True), default=0.1, show_default=True,
              help="Validation fraction, used if the data has no validation split.")  # fmt: skip
@option("--scratch", is_flag=True, help="Start from random weights.")
@option("--head-only", is_flag=True, help="Train only the classifier.")
@option("--layer-decay", type=click.FloatRange(0, 1, True), help="Layer-wise learning-rate decay.")
@option("--epochs", type=click.IntRange(1, 1_000_000), help="Number of epochs.")
@option("--batch-size", type=click.IntRange(1, 1_000_000), help="Global batch size, over all processes.")
@option(
    "--accumulate", type=click.IntRange(1, 1_000_000), help="Gradient accumulation steps per batch, to save memory."
)
@option("--lr", type=click.FloatRange(0, 1000, min_open=True), help="Peak learning rate.")
@option("--img-size", type=click.IntRange(1, 4000), help="Height and width of the model's input in pixels.")
@option("--ema", type=click.FloatRange(0, 1), help="Decay of the moving average of the weights; 0 turns it off.")
@option("--teacher", metavar="MODEL", help="Teacher model for distillation.")
@option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]), help="Autocast precision.")
@option("--compile", "compile_", is_flag=True, help="Use torch.compile.")
@option("--shard", is_flag=True, help="Shard the weights over the torchrun processes (FSDP2).")
@option("--device", default="auto", show_default=True, help="cpu, cuda.")
@option("--workers", type=click.IntRange(0, 256), help="Number of data loader processes.  [default: cores - 1]")
@option("--seed", type=click.IntRange(0, 2**63 - 1), help="Random seed.")
@option("--tensorboard", is_flag=True, help="Also write TensorBoard logs to FOLDER/tensorboard.")
def train(
    data: str, model: str | None, out: str, preset: str | None, config: str | None, val: str | None,
    val_fraction: float, scratch: bool, head_only: bool, compile_: bool, shard: bool, device: str, workers: int | None,
    tensorboard: bool, **given: Any,
) -> None:  # fmt: skip
    """Train or fine-tune a classifier on labelled images.

    DATA is a folder with one subfolder per class, Parquet in the Hugging Face layout, WebDataset tars, or a CSV file of
    path,label. With several processes: torchrun --nproc-per-node N -m tessella train ...
    """
    from ..data.datasets import open_split
    from ..training.config import choose

    changes = {name: value for name, value in given.items() if value is not None}
    changes |= dict(part="head") if head_only else {}
    changes |= dict(compile=True) if compile_ else {}
    chosen, why = choose(model, preset, config, scratch, changes)
    images = open_split(data, val=val, val_fraction=val_fraction)
    command = shlex.join(["tessella", *sys.argv[1:]])

    from ..training.loop import train as run  # imported late: PyTorch is only needed once all arguments are checked
    from .progress import Watcher

    with Watcher(out if tensorboard else None) as watch:
        watch(dict(kind="remark", text=why))
        run(images, out, chosen, device=device, workers=workers, shard=shard, command=command, watch=watch)
        name = shlex.quote(f"local-dir:{out}")
        watch(dict(kind="remark", text=f"{out} is ready: tessella classify -m {name} IMAGE; {out}/report"))
