"""Show where the time of a model goes in OpenVINO, by kind of node: `scripts/bench profile MODEL [--precision P]`.

The graph is the one that Tessella's default engine runs; the times are OpenVINO's own counters, for one batch at a
time. A product of two large matrices takes turns with the batches, so that the share of its rate can be stated. The
table is printed as Markdown, and written to a CSV file with --out.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tessella.data.samples import sample_images
from tessella.engine import make_plan, open_engine
from tessella.engine.base import Engine
from tessella.engine.judging import CALIBRATION
from tessella.engine.openvino import PRECISION_HINTS, OpenVinoEngine, core
from tessella.engine.plan import PRECISIONS
from tessella.engine.trial import settle_layout
from tessella.machine import hardware
from tessella.performance.candidates import Case, load_case
from tessella.performance.products import SIDE, matrix_product

COLUMNS = (
    "model", "precision", "batch", "node", "nodes", "kernels", "ms", "share", "n", "total_ms", "wall_ms", "gmacs",
    "product_gflops", "share_of_product", "layout", "streams", "request", "hardware", "date",
)  # fmt: skip


def opened(case: Case, precision: str, batch: int) -> Engine:
    """Open the engine of OpenVINO as `load` does without `tune`, without the gate."""
    size = (case.spec.height, case.spec.width)
    plan = make_plan("cpu", precision, "openvino", batch, "latency" if batch == 1 else "throughput", case.network, size)
    plan = settle_layout(case.network, plan, size, case.spec)
    calibration = sample_images(case.spec, CALIBRATION) if precision == "int8" else None
    return open_engine(case.network, plan, size, case.spec, calibration)


def profiled(engine: OpenVinoEngine) -> Any:
    """Return a request of the same graph with counters."""
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[engine.plan.precision],
        "INFERENCE_NUM_THREADS": engine.plan.threads,
        "NUM_STREAMS": 1,
        "PERF_COUNT": True,
    }
    return core().compile_model(engine.source, "CPU", settings).create_infer_request()


def profile(case: Case, precision: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row per kind of node, the slowest first, with times in milliseconds per batch."""
    engine = opened(case, precision, batch)
    assert isinstance(engine, OpenVinoEngine)
    request = profiled(engine)
    images = np.random.default_rng(0).integers(0, 256, (batch, *engine.shape), np.uint8)
    step = min(engine.plan.request or batch, batch)
    product = matrix_product(precision, "cpu", SIDE["cpu"], engine.plan.threads)
    assert product
    times: dict[str, list[float]] = defaultdict(lambda: [0.0] * rounds)
    counts: dict[str, set[str]] = defaultdict(set)
    kernels: dict[str, set[str]] = defaultdict(set)
    walls, products = [], []
    for number in range(-1, rounds):
        start = time.perf_counter()
        for first in range(0, batch, step):
            request.infer([images[first : first + step]], share_inputs=True)
            for node in request.profiling_info:
                if number >= 0 and node.real_time.total_seconds():
                    times[node.node_type][number] += 1e3 * node.real_time.total_seconds()
                    counts[node.node_type].add(node.node_name)
                    kernels[node.node_type].add(node.exec_type)
        wall = time.perf_counter() - start
        start = time.perf_counter()
        product()
        if number >= 0:
            walls.append(wall)
            products.append(time.perf_counter() - start)
    rate = 2 * SIDE["cpu"] ** 3 / statistics.median(products) / 1e9
    total = statistics.median(sum(of_kind[number] for of_kind in times.values()) for number in range(rounds))
    facts = dict(
        model=case.name, precision=precision, batch=batch, n=rounds, total_ms=total,
        wall_ms=1e3 * statistics.median(walls), gmacs=case.macs / 1e9, product_gflops=rate,
        share_of_product=2 * case.macs * batch / (total / 1e3) / rate / 1e9, layout=engine.plan.layout,
        streams=1, request=step, hardware=hardware("cpu"), date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    rows = []
    for kind, values in times.items():
        median = statistics.median(values)
        told = " ".join(sorted(kernels[kind]))
        rows.append(facts | dict(node=kind, nodes=len(counts[kind]), kernels=told, ms=median, share=median / total))
    return sorted(rows, key=lambda row: -row["ms"])


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with a sentence about its conditions."""
    first = rows[0]
    share, rate, nodes = 100 * first["share_of_product"], first["product_gflops"], first["total_ms"]
    lines = [
        f"{first['model']}, {first['precision']}, batch of {first['batch']} in requests of {first['request']}, "
        f"{first['hardware']}, n = {first['n']}: {nodes:.1f} ms in nodes, {first['wall_ms']:.1f} ms in all; "
        f"{share:.0f} % of the matrix product's {rate:.0f} GFLOP/s",
        "",
        "| node | number | ms | share | kernels |",
        "| --- | --: | --: | --: | --- |",
    ]
    for row in rows:
        cells = (row["node"], str(row["nodes"]), f"{row['ms']:.2f}", f"{100 * row['share']:.1f} %", row["kernels"])
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()})


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/bench profile", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=PRECISIONS)
    parser.add_argument("--batch", nargs="+", type=int, default=[8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="CSV file")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.models:
        case = load_case(name)
        for precision in args.precision:
            for batch in args.batch:
                found = profile(case, precision, batch, args.rounds)
                print(*markdown(found), "", sep="\n", flush=True)
                rows += found
                if args.out:
                    write(args.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
