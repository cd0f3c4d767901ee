"""Compare Tessella with the usual ways to run timm's models on this machine's CPU: `scripts/bench cpu`.

For every model and batch size, all candidates take turns in one process: timm's models with each engine that supports
them, and Tessella's engines. All figures are written to benchmarks/results as a CSV file, and the tables and ratios of
the README are printed. bfloat16 is measured if the CPU has instructions for it, or with --all.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import torch
from peers import Exports, stock, timm_importable

from tessella.engine import ENGINES
from tessella.engine.plan import has_native_bfloat16
from tessella.performance.candidates import Candidate, engine_candidate, load_case
from tessella.performance.figure import draw
from tessella.performance.measuring import BenchmarkRow, measure
from tessella.performance.table import conditions, csv_bytes
from tessella.performance.tuning import SECONDS, tune
from tessella.records import slug

FIVE = ("convmixer_768_32", "convit_base", "gmixer_24_224", "mixer_b16_224", "crossvit_9_240")
RESULTS = Path(__file__).resolve().parent / "results"
AUTO, TIMM = "auto", "timm"


def tessella_candidates(precisions: Sequence[str]) -> list[Candidate]:
    """Return each engine of this package, then the defaults after `tessella tune`."""
    pairs = [(name, one) for one in precisions for name, kind in ENGINES.items() if one in kind.precisions]
    return [
        *(engine_candidate(*pair) for pair in pairs if pair[0] not in ("eager", "compile")),
        engine_candidate("auto", "auto"),
    ]


def speed(rows: Iterable[BenchmarkRow], *names: str, precision: str | None = None) -> float | None:
    """Return the best median (images/s) of the named candidates; "timm*" means all of timm's, "" all of Tessella's."""

    def wanted(row: BenchmarkRow) -> bool:
        peer = row.candidate.startswith(TIMM)
        named = any({"timm*": peer, "": not peer}.get(name, row.candidate == name) for name in names)
        return named and precision in (None, row.precision)

    return max((row.images_per_second for row in rows if row.images_per_second and wanted(row)), default=None)


def quotient(over: float | None, under: float | None) -> float | None:
    return over / under if over and under else None


def ratios(rows: Sequence[BenchmarkRow]) -> dict[str, float | None]:
    """Return the ratios in which the goals are stated, for one model and batch size."""
    best_exact, best = speed(rows, "timm*", precision="float32"), speed(rows, "timm*")
    return {
        "our best float32 engine / best stock float32": quotient(speed(rows, "", precision="float32"), best_exact),
        "auto / best stock": quotient(speed(rows, AUTO), best),
        "auto / timm eager float32": quotient(speed(rows, AUTO), speed(rows, TIMM, precision="float32")),
    }


def tables(rows: Sequence[BenchmarkRow]) -> Iterator[str]:
    """Yield lines of Markdown: speeds and ratios per batch size, with a column per model."""
    models = list(dict.fromkeys(row.model for row in rows))
    for batch in dict.fromkeys(row.batch for row in rows):
        here = [row for row in rows if row.batch == batch]
        by_model = [[row for row in here if row.model == model] for model in models]
        head = [model.partition(".")[0] for model in models]
        yield f"\nImages per second at batch size {batch}, median, and fraction of the matrix product rate:\n"
        yield line(["candidate", "precision", *head])
        yield line(["---", "---", *["--:"] * len(head)])
        for position, first in enumerate(by_model[0]):
            same = [of_model[position] for of_model in by_model]
            computed = "/".join(dict.fromkeys(row.precision for row in same))  # "auto" may differ by model
            yield line([first.candidate, computed, *map(cell, same)])
        yield f"\nRatios of medians at batch size {batch}:\n"
        yield line(["ratio", *head, "geometric mean"])
        yield line(["---", *["--:"] * (len(head) + 1)])
        found = [ratios(of_model) for of_model in by_model]
        for name in found[0]:
            values = [one[name] for one in found]
            yield line([name, *map(number, values), number(geometric_mean(values))])


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(row: BenchmarkRow) -> str:
    if row.images_per_second is None:
        return row.status
    share = "" if row.share_of_gemm is None else f", {100 * row.share_of_gemm:.0f} %"
    return f"{row.images_per_second:.3g}{share}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """Return None if a value is missing, because a mean over fewer models would not be comparable."""
    known = [value for value in values if value]
    return math.exp(sum(map(math.log, known)) / len(known)) if known and len(known) == len(values) else None


def result_path(rows: Sequence[BenchmarkRow]) -> Path:
    """Return cpu_<hardware>_<precision>_<torch>_<date>.csv, with a number if the file exists."""
    precisions = {row.precision for row in rows if row.images_per_second}
    precision = precisions.pop() if len(precisions) == 1 else "mixed"
    version = ".".join(torch.__version__.split(".")[:2])
    stem = f"cpu_{slug(rows[0].hardware)}_{precision}_torch{version}_{time.strftime('%Y-%m-%d')}"
    names = (RESULTS / f"{stem}{'' if number == 1 else f'_{number}'}.csv" for number in count(1))
    return next(path for path in names if not path.exists())


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/bench cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=FIVE, metavar="NAME", help="models to measure")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 1], metavar="N", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds")
    parser.add_argument("--skip-compile", action="store_true", help="skip torch.compile, which takes minutes")
    parser.add_argument(
        "--tune-seconds", type=float, default=SECONDS, help="time limit of `tessella tune` before each model"
    )
    parser.add_argument("--int8", action="store_true", help="measure int8, too, which takes minutes to convert")
    parser.add_argument(
        "--all", action="store_true", help="measure bfloat16 even if the CPU has no instructions for it"
    )
    parser.add_argument("--plot", "--picture", type=Path, help="plot speed against published accuracy (.png or .svg)")
    args = parser.parse_args()
    if not timm_importable():
        print("timm cannot be imported: the rows of its candidates give the reason", file=sys.stderr)
    precisions = ["float32", *(["bfloat16"] if args.all or has_native_bfloat16("cpu") else [])]
    rows: list[BenchmarkRow] = []
    path = None
    with Exports() as exports, tempfile.TemporaryDirectory(prefix="tessella-tuned-") as cache:
        os.environ["TESSELLA_CACHE"] = (
            cache  # models with random weights are tuned, which must not be recorded in the user's cache
        )
        candidates = [
            *stock(exports, precisions, compile=not args.skip_compile),
            *tessella_candidates([*precisions, *(["int8"] if args.int8 else [])]),
        ]
        for name in args.models:
            case = load_case(name)
            tune(case.model, seconds=args.tune_seconds, check_precision=case.weights == "trained")
            for group in measure(case, candidates, args.batches, args.rounds):
                rows += group
                path = path or result_path(rows)
                path.write_bytes(csv_bytes(rows))  # after each group, so that an interrupt loses one at most
                for row in group:
                    print(f"{row.model} batch {row.batch} {row.candidate}, {row.precision}: {cell(row)} {row.note}",
                          file=sys.stderr)  # fmt: skip
            exports.remove_exports()
    print(*conditions(rows), sep="\n")
    print(*tables(rows), sep="\n")
    print(f"\nall figures: {path}", file=sys.stderr)
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
