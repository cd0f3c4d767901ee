"""How fast each engine runs a model: uint8 images in, logits and embedding out, weights by rule.

    python benchmarks/engines.py OUT.csv [--models ...] [--engines ...] [--batches 8 1] [--rounds 7]

Engines take turns (A B C, A B C, ...), so that what else the machine does meets all of them; the figure is the median
of the rounds, and the ratio is to `eager` in the same rounds.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the rule that fills the weights

from tessella.data.transforms import InputSpec
from tessella.engine import make_plan, open_engine
from tessella.models import build
from tests.golden_rule import fill_golden

FIVE = ["convmixer_768_32", "convit_base", "gmixer_24_224", "mixer_b16_224", "crossvit_9_240"]
COLUMNS = ["model", "engine", "precision", "batch", "images_per_second", "slowest", "fastest", "ratio_to_eager",
           "rounds", "seconds_to_ready", "threads", "cpu", "torch", "date"]  # fmt: skip


def measure(name: str, engines: list[str], batches: list[int], rounds: int, precision: str) -> list[dict[str, object]]:
    model = build(name).eval()
    fill_golden(model)
    side = getattr(model.config, "img_size", 224)
    height, width = (side, side) if isinstance(side, int) else side
    spec = InputSpec(height=height, width=width)
    conditions = dict(precision=precision, rounds=rounds, threads=torch.get_num_threads(), cpu=cpu(),
                      torch=torch.__version__, date=time.strftime("%Y-%m-%d"))  # fmt: skip
    opened, ready = {}, {}
    for engine in engines:
        start = time.perf_counter()
        opened[engine] = open_engine(model, make_plan("cpu", precision, engine, max(batches)), (height, width), spec)
        for batch in batches:
            opened[engine].run(torch.zeros(batch, height, width, 3, dtype=torch.uint8))
        ready[engine] = time.perf_counter() - start
    rows: list[dict[str, object]] = []
    for batch in batches:
        pixels = torch.randint(256, (batch, height, width, 3), dtype=torch.uint8)
        seconds: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(rounds):
            for engine in engines:
                start = time.perf_counter()
                opened[engine].run(pixels)
                seconds[engine].append(time.perf_counter() - start)
        for engine in engines:
            taken = statistics.median(seconds[engine])
            rows.append(dict(model=name, engine=engine, batch=batch, images_per_second=round(batch / taken, 2),
                             slowest=round(batch / max(seconds[engine]), 2),
                             fastest=round(batch / min(seconds[engine]), 2),
                             ratio_to_eager=round(statistics.median(seconds["eager"]) / taken, 2),
                             seconds_to_ready=round(ready[engine], 1), **conditions))  # fmt: skip
            print(f"{name:18} batch {batch}  {engine:12} {batch / taken:7.2f} images/s  x{rows[-1]['ratio_to_eager']}")
    return rows


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=FIVE)
    parser.add_argument("--engines", nargs="+", default=["eager", "rewritten", "openvino"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args()
    engines = ["eager", *(engine for engine in args.engines if engine != "eager")]
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for name in args.models:
            writer.writerows(measure(name, engines, args.batches, args.rounds, args.precision))
            file.flush()


if __name__ == "__main__":
    main()
