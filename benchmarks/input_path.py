"""Measure how fast images become model input, and how "fast" differs from "exact".

`python benchmarks/input_path.py PHOTOS.tar`: for each input recipe of the published checkpoints, every photograph of
the archive takes three paths from the file's bytes to uint8 pixels of the model's input size, on one thread. The
paths take turns of 20 photographs in rotating order:

    pillow  Image.open, convert("RGB"), resize, crop: as timm does, without this package
    exact   load_pixels(mode="exact"), the same pixels with limits and coded errors
    fast    load_pixels(mode="fast")

The archive is read `--rounds` times. The time of a photograph is the best of its rounds, that of a recipe the mean over
photographs, and its spread the range of that mean between rounds. The result is written to benchmarks/results as a CSV
file.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
import platform
import re
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
import torch
from PIL import Image

from tessella.data.resize import geometry
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels

RECIPES = {  # of the published checkpoints; mean and std are not used
    "convmixer": InputSpec(crop_pct=0.96),
    "in1k_224": InputSpec(),
    "mixer_goog": InputSpec(mean=(0.5,) * 3, std=(0.5,) * 3),
    "mixer_miil": InputSpec(interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3),
    "crossvit_240": InputSpec(height=240, width=240),
    "crossvit_408": InputSpec(height=408, width=408, crop_pct=1.0),
}
FIELDS = (
    "recipe", "path", "images", "rounds", "ms_per_image", "ms_lowest_round", "ms_highest_round", "images_per_s",
    "times_pillow", "times_exact", "max_difference", "values", "values_off_by_1", "values_off_by_2_or_more",
    "cpu", "load_average", "python", "torch", "pillow", "simplejpeg", "date",
)  # fmt: skip


def pillow(data: bytes, spec: InputSpec) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    plan = geometry(image.height, image.width, spec)
    image = image.resize((plan.width, plan.height), Image.Resampling[spec.interpolation.upper()])
    return np.asarray(image.crop((plan.left, plan.top, plan.left + spec.width, plan.top + spec.height)))


def exact(data: bytes, spec: InputSpec) -> np.ndarray:
    return load_pixels(data, spec, policy="timm", mode="exact")


def fast(data: bytes, spec: InputSpec) -> np.ndarray:
    return load_pixels(data, spec, policy="timm", mode="fast")


BLOCK = 20  # photographs per turn: enough to warm the caches, few enough for other load to affect all paths
PATHS: tuple[Callable[[bytes, InputSpec], np.ndarray], ...] = (pillow, exact, fast)


def measure(photos: list[bytes], spec: InputSpec, rounds: int) -> dict[str, dict[str, object]]:
    times = np.zeros((len(PATHS), rounds, len(photos)))
    histogram = np.zeros(256, np.int64)
    for turn in range(rounds):
        for block, first in enumerate(range(0, len(photos), BLOCK)):
            numbers = range(first, min(first + BLOCK, len(photos)))
            results: dict[tuple[int, int], np.ndarray] = {}
            for i in range(len(PATHS)):
                path = (i + block + turn) % len(PATHS)
                for n in numbers:
                    start = time.perf_counter()
                    results[path, n] = PATHS[path](photos[n], spec)
                    times[path, turn, n] = time.perf_counter() - start
            for n in numbers if turn == 0 else ():
                assert np.array_equal(results[0, n], results[1, n]), "exact is not Pillow's result"
                histogram = histogram + np.bincount(
                    np.abs(results[1, n].astype(int) - results[2, n]).ravel(), minlength=256
                )
    seconds = times.min(1).mean(1)
    by_round = times.mean(2)
    rows: dict[str, dict[str, object]] = {}
    for i, name in enumerate(("pillow", "exact", "fast")):
        rows[name] = dict(
            images=len(photos),
            rounds=rounds,
            ms_per_image=f"{seconds[i] * 1e3:.3f}",
            ms_lowest_round=f"{by_round[i].min() * 1e3:.3f}",
            ms_highest_round=f"{by_round[i].max() * 1e3:.3f}",
            images_per_s=f"{1 / seconds[i]:.1f}",
            times_pillow=f"{seconds[0] / seconds[i]:.2f}",
            times_exact=f"{seconds[1] / seconds[i]:.2f}",
        )
    rows["fast"] |= dict(
        max_difference=int(histogram.nonzero()[0].max()),
        values=int(histogram.sum()),
        values_off_by_1=int(histogram[1]),
        values_off_by_2_or_more=int(histogram[2:].sum()),
    )
    return rows


def cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help=".tar file with JPEG photographs")
    parser.add_argument("--rounds", type=int, default=3, help="number of timed rounds")
    parser.add_argument("--limit", type=int, default=None, help="maximum number of photographs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tarfile.open(args.archive) as archive:
        members = [m for m in archive if m.name.lower().endswith((".jpg", ".jpeg"))][: args.limit]
        photos = [file.read() for m in members if (file := archive.extractfile(m))]
    conditions = dict(
        cpu=cpu_name(),
        python=platform.python_version(),
        torch=torch.__version__,
        pillow=PIL.__version__,
        simplejpeg=simplejpeg.__version__,
        date=datetime.date.today().isoformat(),
    )
    slug = re.sub(r"[^a-z0-9]+", "-", conditions["cpu"].lower()).strip("-")
    out = args.out / f"input_path_{slug}_torch{torch.__version__}_{conditions['date'].replace('-', '')}.csv"
    gains = []
    with out.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for name, spec in RECIPES.items():
            rows = measure(photos, spec, args.rounds)
            gains.append(float(str(rows["fast"]["times_exact"])))
            for path, row in rows.items():
                table.writerow(
                    dict(recipe=name, path=path, load_average=f"{os.getloadavg()[0]:.1f}", **row, **conditions)
                )
            print(name, {path: row["ms_per_image"] for path, row in rows.items()}, rows["fast"], file=sys.stderr)
    print(f"{out}: fast is {min(gains):.2f} to {max(gains):.2f} (median {statistics.median(gains):.2f}) times exact")


if __name__ == "__main__":
    main()
