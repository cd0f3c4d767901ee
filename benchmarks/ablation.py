"""Measure the effect of kernel and patch size on a small ConvMixer: `scripts/bench ablation TRAIN --runs FOLDER`.

TRAIN is cifar10-train.parquet, next to cifar10-test.parquet. The variants are trained one after the other with the
same settings and seed, and evaluated on all test images. Unfinished runs in FOLDER are resumed, finished ones are used
as they are. The paper trains ConvMixer-256/8 for 200 epochs with more augmentation, so only differences can be
compared: here relative to kernel 9 at patch 2; the paper compares kernels at patch 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from table import RESULTS, write_table

from tessella.data.augment import Augmentation
from tessella.info import info
from tessella.training import EpochEvent, TrainConfig, TrainingEvent, train

# (kernel, patch): top-1 of ConvMixer-256/8 in the paper, arXiv:2201.09792
PAPER = {(3, 1): 93.61, (5, 1): 95.11, (7, 1): 95.72, (9, 1): 95.88, (9, 2): 95.08, (9, 4): 92.61}
KERNELS, PATCHES = (9, 3, 5, 7), (2, 4)  # of the sweeps; patch sizes are compared with the first kernel
SMALL = dict(dim=128, depth=4, act_layer="gelu")


def config_of(kernel: int, patch: int, epochs: int) -> TrainConfig:
    return TrainConfig(
        model="convmixer_256_8_ks3_p4", model_args=SMALL | dict(kernel_size=kernel, patch_size=patch), img_size=32,
        mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616), crop_pct=1.0,
        augmentation=Augmentation(crop="pad", padding=4), batch_size=64, lr=2e-3, schedule="linear",
        warmup_fraction=0.1, max_grad_norm=1.0, epochs=epochs, select="last", channels_last=True,
    )  # fmt: skip


def print_epoch(event: TrainingEvent) -> None:
    if isinstance(event, EpochEvent):
        print(event.as_row())


def row_of(kernel: int, patch: int, run: Path, config: TrainConfig) -> dict[str, Any]:
    report = json.loads((run / "report" / "report.json").read_text())
    metrics = report["metrics"]
    cost = info(f"local-dir:{run}").cost
    return dict(
        kernel=kernel, patch=patch, epochs=config.epochs, seed=config.seed, params=cost.params,
        mmacs=round(cost.macs / 1e6, 1), top1=round(100 * metrics["top1"], 2), images=metrics["count"],
        seconds=round(sum(epoch["seconds"] for epoch in report["history"])),
    )  # fmt: skip


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="TRAIN", help="cifar10-train.parquet")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    variants = [(kernel, PATCHES[0]) for kernel in KERNELS] + [(KERNELS[0], patch) for patch in PATCHES[1:]]
    rows = []
    for kernel, patch in variants:
        config = config_of(kernel, patch, args.epochs)
        run = args.runs / f"k{kernel}_p{patch}_{args.epochs}"
        if not (run / "report" / "report.md").exists():
            train(args.data, run, config, on_event=print_epoch)
        rows.append(row_of(kernel, patch, run, config))
        paper = PAPER[9, patch] - PAPER[9, PATCHES[0]] if kernel == 9 else PAPER[kernel, 1] - PAPER[9, 1]
        rows[-1] |= dict(change=round(rows[-1]["top1"] - rows[0]["top1"], 2), paper_change=round(paper, 2))
    write_table("ablation", rows, args.out)


if __name__ == "__main__":
    main()
