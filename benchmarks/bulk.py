"""Measure bulk runs: `scripts/bench bulk PHOTOS.tar [--odd ODD.tar.gz] [--parts loader,memory...]`.

    loader   rate of `tessella run` (exact, fast, and fast with the engine --engine), and of timm's data set, transform
             and loader without a model, for the same input size; two processes each, with every photograph --times
             times; and the CPU time that an image takes with each
    odd      rate on the photographs, and on the same mixed with odd and broken files (a tenth of all files)
    memory   peak memory of the process for the photographs, and for ten times as many
    share    rate of a run with each of the large models and its tuned engine, relative to the model's rate in memory
    listing  a listing of ten million inputs: seconds to write it, seconds and memory until a run resumes with it

All parts but `share` use the built-in model for CIFAR-10. Comparisons use alternating rounds. Rows are written to
benchmarks/results as a CSV file.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cpu_time import cpu_seconds
from end_to_end import FIVE, model_alone
from peers import timm_importable
from table import RESULTS, unused_path

import tessella
from tessella.bulk import RunSettings, run
from tessella.bulk.manifest import Manifest, write_manifest
from tessella.data.names import IMAGE_SUFFIXES
from tessella.data.source import Source
from tessella.engine import make_plan
from tessella.machine import hardware
from tessella.performance.candidates import load_case
from tessella.performance.memory import PeakMemory
from tessella.predictor import Predictor
from tessella.records import slug

MODEL = "convmixer_256_8_ks3_p4.cifar10"  # of all results so far: small, so that reading images takes most of the time
PARTS = ("loader", "odd", "memory", "share", "listing")
PROCESSES = 2
ODD_SHARE = 0.1


def from_run(source: Path, folder: Path, predictor: Predictor, shard_rows: int = 256) -> tuple[float, Any]:
    """Return the seconds of a run, and its summary."""
    out = Path(tempfile.mkdtemp(dir=folder))
    begin = time.perf_counter()
    summary = run([str(source)], out, predictor, RunSettings(processes=PROCESSES, shard_rows=shard_rows))
    return time.perf_counter() - begin, summary


def from_timm(source: Path, predictor: Predictor) -> float:
    """Return the seconds for timm's loader to read a folder once, as in its validation script, without a model."""
    import timm.data

    spec = predictor.spec
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(source)), input_size=(3, spec.height, spec.width), batch_size=64,
        interpolation=spec.interpolation, mean=spec.mean, std=spec.std, crop_pct=spec.crop_pct, num_workers=PROCESSES,
        use_prefetcher=False, device=torch.device("cpu"),
    )  # fmt: skip
    begin = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - begin


def by_turns(paths: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(rounds):
        for name in sorted(paths, key=lambda name: (list(paths).index(name) + turn) % len(paths)):
            seconds[name].append(paths[name]())
    return seconds


def loader(photos: Path, folder: Path, rounds: int, times: int, engine: str) -> Iterator[dict[str, Any]]:
    assert timm_importable(), "timm is not installed: scripts/bench installs it"
    photos = times_over(photos, folder / "over", times)
    count = len(list(photos.rglob("*.*")))
    load = functools.partial(tessella.load, MODEL, device="cpu")
    exact, fast, other = load(), load(transform="fast"), load(transform="fast", engine=engine)
    used: dict[str, list[float]] = {}

    def measured(name: str, call: Callable[[], object]) -> float:
        seconds, cpu = cpu_seconds(call)
        used.setdefault(name, []).append(cpu)
        return seconds

    calls: dict[str, Callable[[], object]] = {
        "timm's loader, no model": lambda: from_timm(photos, exact),
        "run, exact": lambda: from_run(photos, folder, exact),
        "run, fast": lambda: from_run(photos, folder, fast),
        f"run, fast, {engine}": lambda: from_run(photos, folder, other),
    }
    seconds = by_turns({name: functools.partial(measured, name, call) for name, call in calls.items()}, rounds)
    base = statistics.median(seconds["timm's loader, no model"])
    for name, taken in seconds.items():
        milliseconds = round(1e3 * statistics.median(used[name]) / count, 3)
        ratio = round(base / statistics.median(taken), 2)
        yield rates("loader", name, count, taken) | dict(ratio=ratio, cpu_ms_per_image=milliseconds)


def odd(photos: Path, archive: Path, folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Mix odd files with the photographs, spread evenly by name, and compare the rates."""
    good = sorted(photos.rglob("*.*"))
    mixed = folder / "mixed"
    mixed.mkdir()
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile()]
        many = min(len(members), round(len(good) * ODD_SHARE / (1 - ODD_SHARE)))
        step = len(members) / many
        for i in range(many):
            member = members[int(i * step)]
            data = tar.extractfile(member)
            assert data is not None
            suffix = Path(member.name).suffix.lower()
            suffix = suffix if suffix in IMAGE_SUFFIXES else ".jpg"  # otherwise it would not be listed
            (mixed / f"{int(i * len(good) / many):05d} odd {i}{suffix}").write_bytes(data.read())
    for i, path in enumerate(good):
        os.link(path, mixed / f"{i:05d} {path.name}")
    predictor = tessella.load(MODEL, device="cpu")
    summaries: dict[str, Any] = {}

    def one(name: str, source: Path) -> float:
        seconds, summaries[name] = from_run(source, folder, predictor)
        return seconds

    paths = {"photographs": photos, "with odd files": mixed}
    seconds = by_turns({name: functools.partial(one, name, source) for name, source in paths.items()}, rounds)
    base = len(good) / statistics.median(seconds["photographs"])
    for name, taken in seconds.items():
        found = summaries[name]
        assert found.rows == (len(good) + many if "odd" in name else len(good)) == found.ok + sum(found.errors.values())
        row = rates("odd", name, found.rows, taken)
        yield row | dict(ratio=round(row["images_per_second"] / base, 3), errors=json.dumps(found.errors))


def memory(photos: Path, folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    predictor = tessella.load(MODEL, device="cpu")
    from_run(photos, folder, predictor)  # allocates what is allocated only once
    for name, source in {"once": photos, "ten times": times_over(photos, folder / "ten", 10)}.items():
        peak = PeakMemory("cpu")
        seconds, found = from_run(source, folder, predictor)
        yield rates("memory", name, found.rows, [seconds]) | dict(peak_mb=round(peak.peak_mb() or 0))


def times_over(photos: Path, folder: Path, times: int) -> Path:
    for i in range(times):
        (folder / str(i)).mkdir(parents=True)
        for path in photos.rglob("*.*"):
            os.link(path, folder / str(i) / path.name)
    return folder


def share(photos: Path, folder: Path, rounds: int, models: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    for name in models:
        case = load_case(name)
        size = (case.spec.height, case.spec.width)
        predictor = Predictor(
            case.network, name=name, plan=make_plan("cpu", "auto", "auto", None, "throughput", case.network, size)
        )
        few = 4 * predictor.plan.batch_size
        count = max(few, round(seconds * few / min(model_alone(predictor, few) for _ in range(2))))
        some = folder / name
        some.mkdir()
        for i, path in zip(range(count), endless(sorted(photos.rglob("*.*"))), strict=False):
            os.link(path, some / f"{i:06d}{path.suffix}")
        taken = by_turns(
            {"model alone": lambda: model_alone(predictor, count), "run": lambda: from_run(some, folder, predictor)[0]},  # noqa: B023
            rounds,
        )
        base = statistics.median(taken["model alone"])
        for path, times in taken.items():
            row = rates("share", f"{name} {predictor.plan.engine}, {path}", count, times)
            yield row | dict(ratio=round(base / statistics.median(times), 3))


def endless(paths: list[Path]) -> Iterator[Path]:
    while True:
        yield from paths


def listing(folder: Path, rows: int) -> Iterator[dict[str, Any]]:
    path = folder / "manifest.parquet"
    sources = (
        Source(f"photos/{i // 1000:05d}/{i:08d}.jpg", f"/photos/{i // 1000:05d}/{i:08d}.jpg") for i in range(rows)
    )
    peak = PeakMemory("cpu")
    begin = time.perf_counter()
    _, digest = write_manifest(path, sources, 1024)
    yield rates("listing", "written", rows, [time.perf_counter() - begin]) | dict(
        peak_mb=round(peak.peak_mb() or 0), megabytes=round(path.stat().st_size / 1e6)
    )
    peak = PeakMemory("cpu")
    begin = time.perf_counter()
    there = Manifest(path, digest)
    last = there.sources(there.shards - 1)
    assert len(last) > 0
    yield rates("listing", "opened, first inputs read", rows, [time.perf_counter() - begin]) | dict(
        peak_mb=round(peak.peak_mb() or 0)
    )


def rates(part: str, what: str, images: int, seconds: list[float]) -> dict[str, Any]:
    row = dict(
        part=part, what=what, images=images, rounds=len(seconds), seconds=round(statistics.median(seconds), 2),
        images_per_second=round(images / statistics.median(seconds), 2), slowest=round(images / max(seconds), 2),
        fastest=round(images / min(seconds), 2),
    )  # fmt: skip
    print(json.dumps(row), file=sys.stderr)
    return row


FIELDS = ("part", "what", "images", "rounds", "seconds", "images_per_second", "slowest", "fastest", "ratio",
          "cpu_ms_per_image", "errors", "peak_mb", "megabytes", "processes", "hardware", "torch", "date")  # fmt: skip


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/bench bulk", description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help=".tar file with JPEG photographs")
    parser.add_argument("--odd", type=Path, metavar="FILE", help="archive of odd and broken files, for the part odd")
    parser.add_argument("--parts", help="parts, separated by commas  [default: all; odd only with --odd]")
    parser.add_argument("--models", nargs="+", default=list(FIVE), metavar="NAME", help="models to measure")
    parser.add_argument("--seconds", type=float, default=30, help="seconds per round of the model alone, for share")
    parser.add_argument("--rounds", type=int, default=3, help="number of timed rounds")
    parser.add_argument("--times", type=int, default=10, help="copies of each photograph, for loader")
    parser.add_argument("--engine", default="openvino", help="another engine for loader")
    parser.add_argument("--limit", type=int, help="maximum number of photographs")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the listing")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    chosen = args.parts.split(",") if args.parts else [part for part in PARTS if part != "odd" or args.odd]
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"--parts has {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    if "odd" in chosen and not args.odd:
        parser.error("the part odd needs --odd FILE")
    version = ".".join(torch.__version__.split(".")[:2])
    name = f"bulk_{slug(hardware('cpu'))}_float32_torch{version}_{time.strftime('%Y-%m-%d')}.csv"
    path = unused_path(args.out / name)
    conditions = dict(
        processes=PROCESSES, hardware=hardware("cpu"), torch=torch.__version__, date=time.strftime("%Y-%m-%d")
    )
    with tempfile.TemporaryDirectory() as temporary, path.open("w", newline="") as file:
        folder = Path(temporary)
        photos = folder / "photos" / "all"  # timm expects a folder per class
        photos.mkdir(parents=True)
        with tarfile.open(args.archive) as tar:
            for member in [one for one in tar if one.name.endswith(".jpg")][: args.limit]:
                data = tar.extractfile(member)
                assert data is not None
                (photos / Path(member.name).name).write_bytes(data.read())
        parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = dict(
            loader=lambda: loader(photos.parent, folder, args.rounds, args.times, args.engine),
            odd=lambda: odd(photos, args.odd, folder, args.rounds),
            memory=lambda: memory(photos, folder, args.rounds),
            share=lambda: share(photos, folder, args.rounds, args.models, args.seconds),
            listing=lambda: listing(folder, args.rows),
        )
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for part in chosen:
            for row in parts[part]():
                writer.writerow(row | conditions)
                file.flush()
    print(path)


if __name__ == "__main__":
    main()
