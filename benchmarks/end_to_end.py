"""Compare the rate from files to predictions with that of the model: `python benchmarks/end_to_end.py PHOTOS.tar`.

For each model, in rounds whose order rotates: the engine on batches of decoded pixels ("model"), and
`Predictor.records` on the files of the archive, with the transform "exact" and "fast". Engine, plan and number of
images are the same; weights are random. `share_of_model` is the rate from files divided by that of the model, medians
of the same rounds. `share_of_cpu` is the CPU time of the model divided by that of everything: other work on the machine
disturbs it less. The engine is the one that `load` chooses for the model on this machine, or --engine. Peak memory is
what the last round added to the process, after half and after all of its images. The result is written to
benchmarks/results as a CSV file.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from table import RESULTS, unused_path

from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.engine import make_plan
from tessella.machine import hardware
from tessella.performance.candidates import load_case
from tessella.performance.memory import PeakMemory
from tessella.pipeline import ImageReader
from tessella.predictor import Predictor
from tessella.records import slug

FIVE = ("convmixer_768_32", "convit_base", "gmixer_24_224", "mixer_b16_224", "crossvit_9_240")
FIELDS = (
    "model", "engine", "precision", "streams", "batch", "path", "images", "rounds", "images_per_second", "slowest",
    "fastest", "share_of_model", "cpu_ms_per_image", "share_of_cpu", "load_average", "errors", "peak_mb_half",
    "peak_mb", "threads", "hardware", "date",
)  # fmt: skip


def photographs(archive: str) -> Iterator[Source]:
    """Yield the photographs of the archive, over and over again."""
    while True:
        yield from iter_sources([archive])


class Taken(NamedTuple):
    """What a round took: seconds, and CPU seconds of this process."""

    seconds: float
    cpu: float


def from_files(predictor: Predictor, archive: str, count: int) -> tuple[Taken, int, float, float]:
    """Return what `count` photographs took, the errors, and the memory (MB) added after half and all."""
    errors, half = 0, 0.0
    memory = PeakMemory("cpu")
    start, cpu = time.perf_counter(), time.process_time()
    for number, record in enumerate(predictor.records(islice(photographs(archive), count)), 1):
        errors += record.status != "ok"
        if number == count // 2:
            half = memory.peak_mb() or 0.0
    taken = Taken(time.perf_counter() - start, time.process_time() - cpu)
    return taken, errors, half, memory.peak_mb() or 0.0


def model_alone(predictor: Predictor, count: int) -> float:
    """Return the seconds for `count` images that are already decoded."""
    return run_model(predictor, count).seconds


def run_model(predictor: Predictor, count: int) -> Taken:
    """Return what `count` images took that are already decoded."""
    size = predictor.plan.batch_size
    spec = predictor.spec
    batch = np.random.default_rng(0).integers(0, 256, (size, spec.height, spec.width, 3), np.uint8)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in predictor.engine.imap(batch[: min(size, count - done)] for done in range(0, count, size)):
        pass
    return Taken(time.perf_counter() - start, time.process_time() - cpu)


def measure(name: str, archive: str, seconds: float, rounds: int, engine: str) -> list[dict[str, object]]:
    case = load_case(name)
    size = (case.spec.height, case.spec.width)
    plan = make_plan("cpu", "float32" if engine != "auto" else "auto", engine, None, "throughput", case.network, size)
    exact = Predictor(case.network, plan=plan)
    fast = copy.copy(exact)  # the same engine
    fast._reader = ImageReader(exact.spec, "fast", exact.policy, exact.limits)
    few = 4 * plan.batch_size
    rate = few / min(model_alone(exact, few) for _ in range(2))
    count = max(few, round(rate * seconds))
    runs = {
        "model": lambda: (run_model(exact, count), 0, 0.0, 0.0),
        "exact": lambda: from_files(exact, archive, count),
        "fast": lambda: from_files(fast, archive, count),
    }
    taken: dict[str, list[Taken]] = {path: [] for path in runs}
    errors, halves, peaks = dict[str, int](), dict[str, float](), dict[str, float]()
    for turn in range(rounds):
        for place in range(len(runs)):
            path = [*runs][(place + turn) % len(runs)]
            found, errors[path], halves[path], peaks[path] = runs[path]()
            taken[path].append(found)
    rows: list[dict[str, object]] = []
    for path, rows_taken in taken.items():
        times = [row.seconds for row in rows_taken]
        share = statistics.median(row.seconds for row in taken["model"]) / statistics.median(times)
        cpu = statistics.median(row.cpu for row in rows_taken)
        share_of_cpu = statistics.median(row.cpu for row in taken["model"]) / cpu
        row: dict[str, object] = dict(
            model=name,
            engine=plan.engine,
            precision=plan.precision,
            streams=plan.streams,
            batch=plan.batch_size,
            path=path,
            images=count,
            rounds=rounds,
            images_per_second=round(count / statistics.median(times), 2),
            slowest=round(count / max(times), 2),
            fastest=round(count / min(times), 2),
            share_of_model=round(share, 3),
            cpu_ms_per_image=round(1e3 * cpu / count, 3),
            share_of_cpu=round(share_of_cpu, 3),
            load_average=round(os.getloadavg()[0], 1),
            errors=errors[path],
            peak_mb_half=round(halves[path]),
            peak_mb=round(peaks[path]),
            threads=plan.threads,
            hardware=hardware("cpu"),
            date=time.strftime("%Y-%m-%d"),
        )
        rows.append(row)
        print(f"{name:18} {plan.engine} {path:6} {row['images_per_second']:>8} images/s,", end=" ")
        print(f"{100 * share:.1f} % of the model, CPU time {100 * share_of_cpu:.1f} %", flush=True)
    return rows


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", help=".tar file with JPEG photographs")
    parser.add_argument("--models", nargs="+", default=FIVE, metavar="NAME", help="models to measure")
    parser.add_argument("--seconds", type=float, default=12, help="seconds per round of the model alone")
    parser.add_argument("--rounds", type=int, default=3, help="number of timed rounds")
    parser.add_argument("--engine", default="auto", help="engine, as for `tessella classify`")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    path = unused_path(args.out / f"end-to-end_{slug(hardware('cpu'))}_{time.strftime('%Y-%m-%d')}.csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for name in args.models:
            writer.writerows(measure(name, args.archive, args.seconds, args.rounds, args.engine))
            file.flush()
    print(path)


if __name__ == "__main__":
    main()
