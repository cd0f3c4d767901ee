"""Measure which engine settings are fastest for each family on this CPU: `scripts/bench rates [--write]`.

For a model of each family and both modes (many images, one at a time), the variants take turns in one process with the
eager model: OpenVINO with each of its equivalent graphs, numbers of streams and images per request, and, in float32,
the rewritten model in PyTorch. In bfloat16, only families with several equivalent graphs are measured. With --write,
the best of each engine replace the rows of this class of CPU, precision, number of threads and mode in
src/tessella/engine/tables/rates.json, which `engine="auto"` reads. Rows of other CPUs are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessella.engine import make_plan, open_engine
from tessella.engine.base import Engine
from tessella.engine.choice import TABLE
from tessella.engine.graphs import layouts_of
from tessella.engine.plan import DEFAULT_BATCH, MODES, Mode, Plan, has_native_bfloat16
from tessella.machine import cpu_class, cpu_name, thread_count
from tessella.performance.candidates import Case, load_case
from tessella.storage import write_atomic

REPRESENTATIVES = (  # one model of each family: its speed relative to eager PyTorch depends on the family most of all
    "convmixer_768_32", "convit_base", "gmixer_24_224", "mixer_b16_224", "crossvit_9_240", "resmlp_24_224",
    "gmlp_s16_224",
)  # fmt: skip
REQUESTS = (1, 2, 4, 8)
PAUSE, TURN_SECONDS = 0.25, 0.2  # seconds, see tessella.performance.measuring
SLOW = 1.4  # after the first round, variants slower than the fastest by this factor are dropped, except for eager


@dataclass
class Variant:
    """A way to run a model that takes turns."""

    plan: Plan
    engine: Engine
    images: np.ndarray[Any, Any]
    batches: int = 1  # per turn
    seconds: list[float] = field(default_factory=list)  # per image

    @property
    def name(self) -> str:
        parts = (self.plan.engine, self.plan.layout, f"{self.plan.streams} streams", f"{self.plan.request} per request")
        return ", ".join(filter(None, parts))

    def run_turn(self) -> float:
        """Run the batches of a turn and return the seconds per image."""
        time.sleep(PAUSE)
        start = time.perf_counter()
        for _ in self.engine.imap([self.images] * self.batches, split_batch=self.batches == 1):
            pass
        return (time.perf_counter() - start) / (self.batches * len(self.images))

    def warm_up(self) -> None:
        """Run twice, and set the number of batches of a turn: a multiple of the streams of at least TURN_SECONDS."""
        self.run_turn()
        batch_seconds = self.run_turn() * len(self.images)
        streams = self.plan.streams
        self.batches = streams * max(1, round(TURN_SECONDS / batch_seconds / streams))


def plans(case: Case, mode: Mode, precision: str) -> Iterator[Plan]:
    """Yield the plan of the eager model, then those of all variants."""
    batch = 1 if mode == "latency" else DEFAULT_BATCH["cpu"]
    size = (case.spec.height, case.spec.width)
    yield make_plan("cpu", "float32", "eager", batch, mode, case.network, size)
    usual = make_plan("cpu", precision, "openvino", batch, mode, case.network, size)
    threads = usual.threads
    streams = sorted({1} if mode == "latency" else {1, max(1, threads // 2), threads})
    if precision == "float32":
        rewritten = make_plan("cpu", precision, "rewritten", batch, mode, case.network, size)
        for count in streams:
            yield dataclasses.replace(rewritten, streams=count)
    for layout in layouts_of(case.network):
        for count in streams:
            for request in REQUESTS if batch > 1 else (1,):
                yield dataclasses.replace(usual, layout=layout, streams=count, request=request)


def measure(case: Case, mode: Mode, precision: str, rounds: int) -> list[Variant]:
    """Return all variants with their times: the eager model first, then the fastest first."""
    variants: list[Variant] = []
    for plan in plans(case, mode, precision):
        engine = open_engine(case.network, plan, (case.spec.height, case.spec.width), case.spec)
        shape = (plan.batch_size, *engine.shape)
        variant = Variant(plan, engine, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        variant.warm_up()
        variants.append(variant)
    eager = variants[0]
    for number in range(rounds):
        for variant in variants[number % len(variants) :] + variants[: number % len(variants)]:
            variant.seconds.append(variant.run_turn())
        fastest = min(min(variant.seconds) for variant in variants)
        variants = [one for one in variants if one is eager or min(one.seconds) < SLOW * fastest]
    return [eager, *sorted(variants[1:], key=lambda one: statistics.median(one.seconds))]


def rows_of(case: Case, mode: Mode, variants: Sequence[Variant]) -> Iterator[dict[str, object]]:
    """Yield the rows of the table for one model: the fastest variant of each engine."""
    eager, *others = variants
    base = statistics.median(eager.seconds)
    seen: set[str] = set()
    for variant in others:
        plan = variant.plan
        if plan.engine in seen:
            continue
        seen.add(plan.engine)
        yield dict(
            family=case.network.arch.partition("_")[0], cpu=cpu_class(), threads=plan.threads, mode=mode,
            engine=plan.engine, precision=plan.precision, layout=plan.layout, streams=plan.streams,
            request=plan.request,
            ratio=round(base / statistics.median(variant.seconds), 3),
            source=f"{cpu_name()}, {case.network.arch}, n = {len(variant.seconds)}, {time.strftime('%Y-%m-%d')}",
        )  # fmt: skip


def merge(new: Sequence[dict[str, object]], old: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Return the rows of both; new ones replace those of the same family, CPU, precision, threads and mode."""

    def key(row: dict[str, object]) -> tuple[object, ...]:
        return tuple(row.get(name, "float32") for name in ("family", "cpu", "precision", "threads", "mode"))

    replaced = {key(row) for row in new}
    return sorted([*(row for row in old if key(row) not in replaced), *new], key=lambda row: tuple(map(str, key(row))))


def print_variants(case: Case, mode: Mode, variants: Sequence[Variant]) -> None:
    base = statistics.median(variants[0].seconds)
    precision, rounds = variants[-1].plan.precision, len(variants[0].seconds)
    print(f"\n{case.network.arch}, {mode}, {precision}, images per second; lowest and highest of {rounds} rounds:")
    for one in variants:
        median, fastest, slowest = (function(one.seconds) for function in (statistics.median, min, max))
        print(f"{1 / median:9.2f} ({1 / slowest:.2f} to {1 / fastest:.2f}), {base / median:.2f} x eager: {one.name}")
    sys.stdout.flush()


def main() -> int:
    assert __doc__ is not None
    precisions = ["float32", *(["bfloat16"] if has_native_bfloat16("cpu") else [])]
    parser = argparse.ArgumentParser(prog="scripts/bench rates", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=REPRESENTATIVES, metavar="NAME")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--precisions", nargs="+", default=precisions, choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="replace the rows of this class of CPU in the table")
    args = parser.parse_args()
    print(f"{cpu_name()} ({cpu_class()}), {thread_count()} threads")
    with tempfile.TemporaryDirectory(prefix="tessella-rates-") as cache:
        os.environ["TESSELLA_CACHE"] = cache  # what the user tuned must not affect the plans
        for name in args.models:
            case = load_case(name)
            several = len(layouts_of(case.network)) > 1
            for mode, precision in itertools.product(args.modes, args.precisions):
                if precision != "float32" and not several:
                    continue
                variants = measure(case, mode, precision, args.rounds)
                print_variants(case, mode, variants)
                rows = merge([*rows_of(case, mode, variants)], json.loads(TABLE.read_text()))
                if args.write:
                    write_table(rows)
                del variants
    return 0


def write_table(rows: Sequence[dict[str, object]]) -> None:
    """Write the table with one row per line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomic(TABLE, f"[\n{lines}\n]\n".encode())


if __name__ == "__main__":
    sys.exit(main())
