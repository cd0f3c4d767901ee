"""Compare two checkouts of this project on one machine: how fast commands start and engines run.

    python benchmarks/before_after.py BEFORE AFTER [--rounds 7] [--out FILE.csv]

BEFORE and AFTER are checkouts. Each measurement is a separate process; the checkouts take turns, so that other load on
the machine affects both. The report has medians with the fastest and slowest values, and the median over the rounds of
the ratio after / before.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

COMMANDS = {
    "import tessella": ["-c", "import tessella"],
    "tessella --help": ["-m", "tessella", "--help"],
    "tessella list": ["-m", "tessella", "list"],
    "tessella info NAME": ["-m", "tessella", "info", "convit_base.fb_in1k"],
    "a wrong path": ["-m", "tessella", "train", "nowhere", "-o", "run"],
    "tessella classify cat.jpg": ["-m", "tessella", "classify", "{examples}/cat.jpg"],
    "tessella embed examples": ["-m", "tessella", "embed", "{examples}"],
    "tessella run clothing": ["-m", "tessella", "run", "{clothing}", "-o", "{fresh}"],
    "tessella search, by key": ["-m", "tessella", "search", "{run}", "key:{clothing}/hat/0614.jpg"],
}
ENGINE = """
import sys, time, numpy as np, tessella
model = tessella.load({name!r}, engine={engine!r}, precision="float32", batch_size=8, **{options!r})
images = np.random.default_rng(0).integers(0, 256, (8 * {batches}, {size}, {size}, 3), np.uint8)
model.predict(images)
start = time.perf_counter()
model.predict(images)
print(len(images) / (time.perf_counter() - start))
"""
MODELS = [("convmixer_256_8_ks3_p4.cifar10", 32, 40), ("mixer_ti_p4_32.cifar10", 32, 40)]
ENGINES = ("eager", "rewritten", "openvino", "onnxruntime")


def run(tree: Path, arguments: list[str], folder: Path, status: tuple[int, ...] = (0,)) -> tuple[float, str]:
    """Run Python with the package of a checkout; return seconds and standard output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "HF_HUB_OFFLINE": "1",
        "TESSELLA_CACHE": str(folder / f"cache-{tree.name}"),
    }
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in status:
        raise SystemExit(f"{tree}: {arguments}: {done.stderr}")
    return time.perf_counter() - start, done.stdout


def start_up(trees: tuple[Path, Path], rounds: int, folder: Path) -> Iterator[tuple[str, str, list[tuple[float, ...]]]]:
    """Yield (name, unit, seconds before and after per round) for each command; a first round warms the caches."""
    places = {name: str(trees[1] / name) for name in ("examples", "clothing")}
    runs = {tree: folder / f"run-{tree.name}" for tree in trees}
    for tree in trees:
        run(tree, ["-m", "tessella", "run", places["clothing"], "-o", str(runs[tree])], folder)
        run(tree, ["-m", "tessella", "index", str(runs[tree])], folder)
    for name, command in COMMANDS.items():
        times = []
        for number in range(rounds + 1):
            pair = []
            for tree in trees if number % 2 else trees[::-1]:
                fresh = folder / f"fresh-{tree.name}"
                shutil.rmtree(fresh, ignore_errors=True)
                arguments = [part.format(**places, fresh=fresh, run=runs[tree]) for part in command]
                pair.append((tree, run(tree, arguments, folder, (0, 3) if name == "a wrong path" else (0,))[0]))
            times.append(tuple(seconds for _, seconds in sorted(pair, key=lambda entry: trees.index(entry[0]))))
        yield name, "s", times[1:]


def engines(trees: tuple[Path, Path], rounds: int, folder: Path) -> Iterator[tuple[str, str, list[tuple[float, ...]]]]:
    """Yield (name, unit, images per second before and after per round) for each engine and model."""
    for name, size, batches in MODELS:
        for engine in ENGINES:
            rates = []
            program = ENGINE.format(name=name, engine=engine, size=size, batches=batches, options={})
            for number in range(rounds):
                order = trees if number % 2 else trees[::-1]
                pair = {tree: float(run(tree, ["-c", program], folder)[1]) for tree in order}
                rates.append(tuple(pair[tree] for tree in trees))
            yield f"{name}, {engine}", "images/s", rates


def main() -> None:
    """Measure and print; write a CSV file with --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    trees = (args.before.resolve(), args.after.resolve())
    rows = []
    with tempfile.TemporaryDirectory(prefix="tessella-before-after-") as temporary:
        for name, unit, values in (
            *start_up(trees, args.rounds, Path(temporary)),
            *engines(trees, args.rounds, Path(temporary)),
        ):
            before, after = zip(*values, strict=True)
            ratio = statistics.median(b / a for a, b in values)
            row = dict(what=name, unit=unit, n=len(values), ratio=round(ratio, 3))
            for label, some in (("before", before), ("after", after)):
                row |= {
                    label: round(statistics.median(some), 3),
                    f"{label}_min": round(min(some), 3),
                    f"{label}_max": round(max(some), 3),
                }
            print(row, flush=True)
            rows.append(row)
    if args.out:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
