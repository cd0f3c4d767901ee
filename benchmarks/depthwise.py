"""Measure training steps of ConvMixer in bfloat16 with the faster weight gradient of depthwise convolutions.

`scripts/bench depthwise`. A step is forward, backward and AdamW on random images, as `tessella train` does it, with
channels-last memory. Steps with PyTorch's own gradient and with that of tessella/training/depthwise.py alternate, and
each one is the first of every second pair. Rows are written to benchmarks/results as a CSV file: the median time per
image of both, and the median of the ratios of pairs with their range.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from table import RESULTS, write_table

from tessella import create_model
from tessella.training.depthwise import use_fast_gradients

# model, image size in pixels, batch size, changed fields of the config
CASES: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("convmixer_256_8_ks3_p4", 32, 128, dict(dim=128, patch_size=2, kernel_size=5)),
    ("convmixer_384_8_ks5_p8", 96, 32, {}),
    ("convmixer_768_32", 224, 2, {}),
    ("convmixer_1024_20_ks9_p14", 224, 4, {}),
)


def make_step(
    name: str, size: int, batch: int, args: dict[str, Any], converted: bool, precision: str = "bfloat16"
) -> Callable[[], float]:
    """Return a function that does a training step and returns its milliseconds per image.

    args: changed fields of the model's config. converted: with the faster weight gradient.
    """
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, **args).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's overloads
    if converted and not use_fast_gradients(model):
        raise SystemExit("this CPU has no AVX-512, without which the faster gradient is not used")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def step() -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return (time.perf_counter() - started) * 1000 / batch

    return step


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7, metavar="N", help="pairs of steps per model [default: 7]")
    parser.add_argument("--note", default="", help="conditions of the measurement, kept with the rows")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    rows = []
    for name, size, batch, changes in CASES:
        plain, fast = (make_step(name, size, batch, changes, converted) for converted in (False, True))
        plain(), fast()  # the first steps prepare kernels and memory
        pairs = [(plain(), fast()) if i % 2 else (fast(), plain())[::-1] for i in range(args.steps)]
        ratios = [one / other for one, other in pairs]
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        rows.append(
            dict(
                model=name,
                changes=" ".join(f"{key}={value}" for key, value in changes.items()),
                img_size=size,
                batch_size=batch,
                pytorch_ms=f"{medians[0]:.2f}",
                windows_ms=f"{medians[1]:.2f}",
                ratio=f"{statistics.median(ratios):.2f}",
                least=f"{min(ratios):.2f}",
                most=f"{max(ratios):.2f}",
                n=args.steps,
                note=args.note,
            )
        )
        print(rows[-1], flush=True)
    write_table("depthwise", rows, args.out, precision="bfloat16")


if __name__ == "__main__":
    main()
