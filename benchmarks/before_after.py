"""Compare two checkouts of this project on one machine: how fast commands start and engines run.

    python benchmarks/before_after.py BEFORE AFTER [--rounds 7] [--out FILE.csv]

BEFORE and AFTER are checkouts. Each measurement is a separate process; the checkouts take turns, so that other load on
the machine affects both. The report has medians with the fastest and slowest values, and the median over the rounds of
the ratio after / before.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from table import unused_path

from tessella.machine import hardware

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
ENGINES = ("eager", "rewritten", "openvino", "onnxruntime")
PROGRAM = """
import time, numpy as np, tessella
images = np.random.default_rng(0).integers(0, 256, (320, 32, 32, 3), np.uint8)
for engine in {engines!r}:
    model = tessella.load({name!r}, engine=engine, precision="float32", batch_size=8)
    model.predict(images)
    start = time.perf_counter()
    for _ in range(2):
        model.predict(images)
    print(2 * len(images) / (time.perf_counter() - start))
"""
MODELS = ("convmixer_256_8_ks3_p4.cifar10", "mixer_ti_p4_32.cifar10", "crossvit_ti_dagger_p4_32.cifar10")


def own_folder(tree: Path, folder: Path) -> Path:
    """Return the folder for the files of a checkout; two checkouts can have the same name."""
    return folder / hashlib.sha256(str(tree).encode()).hexdigest()[:8]


def run(tree: Path, arguments: list[str], folder: Path, status: tuple[int, ...] = (0,)) -> tuple[float, str]:
    """Run Python with the package of a checkout; return seconds and standard output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "HF_HUB_OFFLINE": "1",
        "TESSELLA_CACHE": str(own_folder(tree, folder) / "cache"),
    }
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in status:
        raise SystemExit(f"{tree}: {arguments}: {done.stderr}")
    return time.perf_counter() - start, done.stdout


def start_up(trees: tuple[Path, Path], rounds: int, folder: Path) -> Iterator[tuple[str, str, list[tuple[float, ...]]]]:
    """Yield (name, unit, seconds before and after per round) for each command; a first round warms the caches."""
    places = {name: str(trees[1] / name) for name in ("examples", "clothing")}
    runs = {tree: own_folder(tree, folder) / "run" for tree in trees}
    for tree in trees:
        run(tree, ["-m", "tessella", "run", places["clothing"], "-o", str(runs[tree])], folder)
        run(tree, ["-m", "tessella", "index", str(runs[tree])], folder)
    for name, command in COMMANDS.items():
        times = []
        for number in range(rounds + 1):
            pair = []
            for tree in trees if number % 2 else trees[::-1]:
                fresh = own_folder(tree, folder) / "fresh"
                shutil.rmtree(fresh, ignore_errors=True)
                arguments = [part.format(**places, fresh=fresh, run=runs[tree]) for part in command]
                pair.append((tree, run(tree, arguments, folder, (0, 3) if name == "a wrong path" else (0,))[0]))
            times.append(tuple(seconds for _, seconds in sorted(pair, key=lambda entry: trees.index(entry[0]))))
        yield name, "s", times[1:]


def engines(trees: tuple[Path, Path], rounds: int, folder: Path) -> Iterator[tuple[str, str, list[tuple[float, ...]]]]:
    """Yield (name, unit, images per second before and after per round) for each engine and model."""
    for name in MODELS:
        program = PROGRAM.format(name=name, engines=ENGINES)
        rates: dict[str, list[tuple[float, ...]]] = {engine: [] for engine in ENGINES}
        for number in range(rounds + 1):  # the first round converts the models
            order = trees if number % 2 else trees[::-1]
            printed = {tree: run(tree, ["-c", program], folder)[1].split() for tree in order}
            for position, engine in enumerate(ENGINES if number else ()):
                rates[engine].append(tuple(float(printed[tree][position]) for tree in trees))
        for engine, pairs in rates.items():
            yield f"{name}, {engine}", "images/s", pairs


def main() -> None:
    """Measure and print; write a CSV file with --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV file; if it exists, a number is added")
    args = parser.parse_args()
    trees = (args.before.resolve(), args.after.resolve())
    rows = []
    with tempfile.TemporaryDirectory(prefix="tessella-before-after-") as temporary:
        folder = Path(temporary)
        for name, unit, values in chain(start_up(trees, args.rounds, folder), engines(trees, args.rounds, folder)):
            before, after = zip(*values, strict=True)
            ratio = statistics.median(b / a for a, b in values)
            row: dict[str, object] = dict(what=name, unit=unit, n=len(values), ratio=round(ratio, 3))
            for label, some in (("before", before), ("after", after)):
                row |= {
                    label: round(statistics.median(some), 3),
                    f"{label}_min": round(min(some), 3),
                    f"{label}_max": round(max(some), 3),
                }
            row |= dict(hardware=hardware("cpu"), date=time.strftime("%Y-%m-%d"))
            print(row, flush=True)
            rows.append(row)
    if args.out:
        with unused_path(args.out).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
