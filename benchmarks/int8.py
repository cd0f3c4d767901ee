"""Compare int8 and bfloat16 with float32 of the same engine: speed, and agreement of the outputs.

    python benchmarks/int8.py RESULT.csv [MODEL ...]

Engines are opened as `load` does, with the default batch size, and take turns in one process. Models without built-in
weights get random ones. The agreement is that of the gate on the photographs of the package, before any product is left
in float32. With --eager, PyTorch's eager model is measured, too; it computes what timm's does.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time

from tessella.data.samples import sample_images
from tessella.engine import make_plan, open_engine
from tessella.engine.base import Engine
from tessella.engine.judging import judge, split
from tessella.machine import cpu_class, cpu_name
from tessella.performance.candidates import load_case
from tessella.weights.network import as_network

FIVE = ("convmixer_768_32", "convit_base", "gmixer_24_224", "mixer_b16_224", "crossvit_9_240")


def measure(name: str, rounds: int, *, eager: bool) -> list[dict[str, object]]:
    """Return a row for each precision of a model."""
    case = load_case(name)
    network, size = as_network(case.model), (case.spec.height, case.spec.width)
    compared, calibration = split(None, case.spec)
    engines: dict[tuple[str, str], Engine] = {}
    choices = [("openvino", one) for one in ("float32", "bfloat16", "int8")] + [("eager", "float32")] * eager
    for engine, precision in choices:
        plan = make_plan("cpu", precision, engine, None, "throughput", network, size)
        engines[engine, precision] = open_engine(network, plan, size, case.spec, calibration)
    batch = next(iter(engines.values())).plan.batch_size
    images = sample_images(case.spec, batch)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in engines}
    for turn in range(rounds + 1):
        for key, opened in engines.items():
            start = time.perf_counter()
            next(opened.imap([images]))
            if turn:
                seconds[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    exact = medians["openvino", "float32"]
    rows = []
    for (engine, precision), median in medians.items():
        row: dict[str, object] = dict(model=case.name, weights=case.weights, engine=engine, precision=precision)
        row |= dict(
            batch=batch, n=rounds, ms_per_batch=round(1e3 * median, 2), images_per_second=round(batch / median, 2)
        )
        row |= dict(times_float32=round(exact / median, 3))
        if precision != "float32":
            verdict = judge(network, engines[engine, precision], compared, case.spec)
            row |= {field: value for field, value in verdict._asdict().items() if field != "has_classes"}
            row["passes"] = verdict.passes(precision)
        row |= dict(cpu=cpu_name(), cpu_class=cpu_class(), cores=os.cpu_count(), load=os.getloadavg()[0])
        rows.append(row | dict(date=time.strftime("%Y-%m-%d")))
        print(row, flush=True)
    return rows


def main() -> None:
    """Measure the models and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result")
    parser.add_argument("models", nargs="*", default=FIVE)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name in options.models:
        rows += measure(name, options.rounds, eager=options.eager)
        fields = list(dict.fromkeys(field for row in rows for field in row))
        with open(options.result, "w", newline="") as file:  # noqa: PTH123
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
