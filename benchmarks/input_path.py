"""Measure how fast images become model input, and how "fast" differs from "exact".

`python benchmarks/input_path.py PHOTOS.tar`: for each input recipe, every photograph of the archive takes three paths
from the file's bytes to uint8 pixels of the model's input size, on one thread. The paths take turns of 20 photographs
in rotating order:

    pillow  Image.open, convert("RGB"), resize, crop: as timm does, without this package
    exact   load_pixels(mode="exact"), the same pixels with limits and coded errors
    fast    load_pixels(mode="fast")

and then the steps of these paths one by one: reading the header, decoding at full size and reduced (to gray levels:
without color conversion and chroma), and the resizes. The archive is read `--rounds` times. Times are those of the
thread, so that other processes on the machine disturb them less. The time of a photograph is the best of its rounds,
that of a recipe the mean over photographs, and its spread the range of that mean between rounds. The differences count
gray levels between "exact" and "fast". With `--models`, top classes and embeddings of both are compared, too. The
result is written to benchmarks/results as a CSV file.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
import platform
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
from PIL import Image
from table import RESULTS, unused_path

import tessella
from tessella.data.formats import jpeg
from tessella.data.resize import fit, geometry, resize_exact
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.data.turbo import decode_jpeg
from tessella.machine import hardware
from tessella.records import slug

RECIPES = {  # of the published checkpoints and the built-in model; mean and std are not used
    "convmixer": InputSpec(crop_pct=0.96),
    "in1k_224": InputSpec(),
    "mixer_miil": InputSpec(interpolation="bilinear"),
    "crossvit_240": InputSpec(height=240, width=240),
    "crossvit_408": InputSpec(height=408, width=408, crop_pct=1.0),
    "cifar10_32": InputSpec(height=32, width=32, crop_pct=1.0),
    "size_64": InputSpec(height=64, width=64, crop_pct=1.0),
    "size_96": InputSpec(height=96, width=96, crop_pct=1.0),
}
BLOCK = 20  # photographs per turn: enough to warm the caches, few enough for other load to affect all paths
OVER = (0, 1, 2, 4, 8)  # gray levels
FIELDS = (
    "recipe", "path", "images", "rounds", "ms_per_image", "ms_lowest_round", "ms_highest_round", "times_pillow",
    "times_exact", "mean_difference", "max_difference", "values", *(f"share_over_{level}" for level in OVER),
    "same_top_class", "cosine_mean", "cosine_lowest", "model", "hardware", "load_average", "python", "pillow",
    "simplejpeg", "numpy", "date",
)  # fmt: skip

Step = Callable[[bytes], object]


def pillow(data: bytes, spec: InputSpec) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    plan = geometry(image.height, image.width, spec)
    image = image.resize((plan.width, plan.height), Image.Resampling[spec.interpolation.upper()])
    return np.asarray(image.crop((plan.left, plan.top, plan.left + spec.width, plan.top + spec.height)))


def paths(spec: InputSpec) -> dict[str, Step]:
    return {
        "pillow": lambda data: pillow(data, spec),
        "exact": lambda data: load_pixels(data, spec, policy="timm", mode="exact"),
        "fast": lambda data: load_pixels(data, spec, policy="timm", mode="fast"),
    }


def steps_of_decoding() -> dict[str, Step]:
    def reduced(space: str, factor: int) -> Step:
        def step(data: bytes) -> object:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            size = dict(min_height=-(-height // factor), min_width=-(-width // factor))
            return simplejpeg.decode_jpeg(data, space, **(size if factor > 1 else {}))

        return step

    sizes = {1: "full size", 2: "1/2", 4: "1/4", 8: "1/8"}
    return {
        "header": jpeg.read,
        **{
            f"decode to {space}, {name}": reduced(space, factor)
            for space in ("RGB", "GRAY")
            for factor, name in sizes.items()
        },
        "decode by Pillow": lambda data: Image.open(io.BytesIO(data)).convert("RGB"),
    }


def steps_of_resizing(photos: list[bytes], spec: InputSpec) -> dict[str, Step]:
    decoded = {data: decode_jpeg(data, jpeg.read(data), "exact") for data in photos}

    def by_pillow(data: bytes) -> object:
        plan = geometry(*decoded[data].shape[:2], spec)
        rows, columns = slice(plan.top, plan.top + spec.height), slice(plan.left, plan.left + spec.width)
        return resize_exact(decoded[data], plan.height, plan.width, rows, columns, spec.interpolation)

    def ours(mode: str) -> Step:
        return lambda data: fit(decoded[data], geometry(*decoded[data].shape[:2], spec), spec, mode)  # type: ignore[arg-type]

    return {"resize by Pillow": by_pillow, "resize exact": ours("exact"), "resize fast, full size": ours("fast")}


def by_turns(photos: list[bytes], steps: dict[str, Step], rounds: int) -> np.ndarray:
    """Return the seconds of every (step, round, photograph)."""
    times = np.zeros((len(steps), rounds, len(photos)))
    calls = list(steps.values())
    for turn in range(rounds):
        for block, first in enumerate(range(0, len(photos), BLOCK)):
            for i in range(len(calls)):
                step = (i + block + turn) % len(calls)
                for n in range(first, min(first + BLOCK, len(photos))):
                    start = time.thread_time()
                    calls[step](photos[n])
                    times[step, turn, n] = time.thread_time() - start
    return times


def timed(photos: list[bytes], steps: dict[str, Step], rounds: int) -> Iterator[tuple[str, dict[str, object], float]]:
    times = by_turns(photos, steps, rounds)
    seconds, by_round = times.min(1).mean(1), times.mean(2)
    for i, name in enumerate(steps):
        row: dict[str, object] = dict(
            path=name,
            images=len(photos),
            rounds=rounds,
            ms_per_image=f"{seconds[i] * 1e3:.3f}",
            ms_lowest_round=f"{by_round[i].min() * 1e3:.3f}",
            ms_highest_round=f"{by_round[i].max() * 1e3:.3f}",
        )
        yield name, row, seconds[i]


def differences(photos: list[bytes], spec: InputSpec) -> dict[str, object]:
    histogram = np.zeros(256, np.int64)
    for data in photos:
        exact, fast = (load_pixels(data, spec, policy="timm", mode=mode).astype(int) for mode in ("exact", "fast"))
        assert np.array_equal(exact, pillow(data, spec)), "exact is not Pillow's result"
        histogram += np.bincount(np.abs(exact - fast).ravel(), minlength=256)
    share = histogram / histogram.sum()
    return dict(
        mean_difference=f"{share @ np.arange(256):.4f}",
        max_difference=int(histogram.nonzero()[0].max()),
        values=int(histogram.sum()),
        **{f"share_over_{level}": f"{share[level + 1 :].sum():.3g}" for level in OVER},
    )


def outputs(photos: list[bytes], name: str) -> dict[str, object]:
    """Compare the outputs of a model for both transforms."""
    exact, fast = (tessella.load(name, device="cpu", transform=mode).predict(photos) for mode in ("exact", "fast"))
    cosine = (exact.embeddings * fast.embeddings).sum(1)  # of unit length
    return dict(
        model=name,
        images=len(photos),
        same_top_class=f"{(exact.probabilities.argmax(1) == fast.probabilities.argmax(1)).mean():.4f}",
        cosine_mean=f"{cosine.mean():.5f}",
        cosine_lowest=f"{cosine.min():.5f}",
    )


def measure(photos: list[bytes], rounds: int, models: list[str]) -> Iterator[dict[str, object]]:
    for _, row, _ in timed(photos, steps_of_decoding(), rounds):
        yield row
    for name, spec in RECIPES.items():
        seconds: dict[str, float] = {}
        for path, row, taken in timed(photos, paths(spec), rounds):
            seconds[path] = taken
            ratios = {
                f"times_{base}": f"{seconds[base] / taken:.2f}" for base in ("pillow", "exact") if base in seconds
            }
            yield dict(recipe=name, **row, **ratios, **(differences(photos, spec) if path == "fast" else {}))
        for _, row, _ in timed(photos, steps_of_resizing(photos, spec), rounds):
            yield dict(recipe=name, **row)
    for name in models:
        yield dict(path="fast", **outputs(photos, name))


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help=".tar file with JPEG photographs")
    parser.add_argument("--rounds", type=int, default=3, help="number of timed rounds")
    parser.add_argument("--limit", type=int, default=None, help="maximum number of photographs, evenly spaced")
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME", help="models whose outputs are compared")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    with tarfile.open(args.archive) as archive:
        members = [m for m in archive if m.name.lower().endswith((".jpg", ".jpeg"))]
        count = min(args.limit or len(members), len(members))
        chosen = [members[i * len(members) // count] for i in range(count)]
        photos = [file.read() for m in chosen if (file := archive.extractfile(m))]
    conditions = dict(
        hardware=hardware("cpu"),
        python=platform.python_version(),
        pillow=PIL.__version__,
        simplejpeg=simplejpeg.__version__,
        numpy=np.__version__,
        date=datetime.date.today().isoformat(),
    )
    out = unused_path(args.out / f"input-path_{slug(hardware('cpu'))}_{args.archive.stem}_{conditions['date']}.csv")
    gains = []
    with out.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        for row in measure(photos, args.rounds, args.models):
            table.writerow(dict(load_average=f"{os.getloadavg()[0]:.1f}", **row, **conditions))
            file.flush()
            print({key: value for key, value in row.items() if value}, file=sys.stderr)
            if row["path"] == "fast" and "times_exact" in row:
                gains.append(float(str(row["times_exact"])))
    print(f"{out}: fast is {min(gains):.2f} to {max(gains):.2f} (median {statistics.median(gains):.2f}) times exact")


if __name__ == "__main__":
    main()
