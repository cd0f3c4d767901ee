"""Compare AdamW and Muon: `scripts/bench optimizers TRAIN --runs FOLDER`.

TRAIN is cifar10-train.parquet, of which a tenth is held out, chosen by a hash of the keys; test images are not read.
Each model is trained from random weights with both optimizers and the same settings, without a teacher and for few
epochs. Unfinished runs in FOLDER are resumed, finished ones are used as they are. The rows, one per epoch, are written
to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import train_cifar10 as recipe
from table import RESULTS, write_table

from tessella.data.datasets import open_split
from tessella.training import EpochEvent, TrainConfig, TrainingEvent, train

MODELS = ("mixer_ti_p4_32", "gmixer_ti_p4_32", "convit_ti_p4_32", "crossvit_ti_dagger_p4_32")
OPTIMIZERS = ("adamw", "muon")


def config_of(model: str, optimizer: str, epochs: int, seed: int) -> TrainConfig:
    augmentation = dict(scale=[0.6, 1.0], ratio=[0.9, 1.11], interpolation="bicubic")
    augmentation["auto_augment"] = "rand-m7-mstd0.5-inc1"
    return TrainConfig.from_dict(
        dict(
            model=model, img_size=32, mean=[0.4914, 0.4822, 0.4465], std=[0.247, 0.2435, 0.2616], crop_pct=1.0,
            augmentation=augmentation, batch_size=128, optimizer=optimizer, lr=0.002, warmup_fraction=0.1,
            max_grad_norm=1.0, ema_decay=0.999, epochs=epochs, seed=seed, select="last", calibrate=False,
        )
    )  # fmt: skip


def print_epoch(event: TrainingEvent) -> None:
    if isinstance(event, EpochEvent):
        print(event.as_row(), flush=True)


def rows_of(run: Path, config: TrainConfig) -> list[dict[str, Any]]:
    """Return a row for each epoch of a finished run."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        dict(
            model=config.model, optimizer=config.optimizer, lr=config.lr, batch_size=config.batch_size,
            epochs=config.epochs, seed=config.seed, epoch=event["epoch"] + 1, loss=round(event["loss"], 4),
            val_loss=round(event["val_loss"], 4), val_top1=round(100 * event["val_top1"], 2),
            val_images=event["val_images"], seconds=event["seconds"],
        )
        for event in events if event["kind"] == "epoch"
    ]  # fmt: skip


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="TRAIN", help="cifar10-train.parquet")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    images = open_split(str(recipe.copy_data(args.file, args.runs / "data")))
    rows = []
    for model in args.models:
        for optimizer in OPTIMIZERS:
            config = config_of(model, optimizer, args.epochs, args.seed)
            run = args.runs / f"{model}_{optimizer}_{args.epochs}_{args.seed}"
            if not (run / "report" / "report.md").exists():
                train(images, run, config, on_event=print_epoch)
            rows += rows_of(run, config)
    write_table("optimizers", rows, args.out)


if __name__ == "__main__":
    main()
