"""Compare Tessella with the usual ways to run the same models on this machine's CPU: `scripts/bench cpu`.

For each model and batch size, the candidates take turns in one process: the unchanged model in PyTorch (its modules
and operations are timm's), stock OpenVINO, ONNX Runtime and torch.compile, and Tessella as `load` opens it without
`tune`, in float32, bfloat16 and int8. Lossy precisions are measured whether or not they pass the gate, whose verdict is
recorded. Then the starts of commands are timed. Everything is written to one CSV file and one picture. The file is
written after each model, so that an interrupted benchmark can be resumed. `scripts/bench report FILE.csv --readme`
writes the README's section on speed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import report
from end_to_end import FIVE
from starts import time_starts
from stock import stock
from table import RESULTS, unused_path

from tessella import machine
from tessella.engine.plan import has_native_bfloat16
from tessella.performance.candidates import Candidate, engine_candidate, load_case
from tessella.performance.measuring import BenchmarkRow, measure
from tessella.records import slug

SECONDS, ROUNDS, JUDGING = 840.0, 7, 0.75  # time limit, rounds, fraction of the time in which the gate is evaluated


@functools.cache
def conditions() -> dict[str, str]:
    """Return what the figures depend on, by column."""
    installed = {**machine.versions(), "python": platform.python_version()}
    return dict(
        cpu=f"{machine.cpu_name()}, {machine.available_cores()} cores",
        cpu_class=machine.cpu_class(),
        features=" ".join(sorted(machine.vector_features())),
        versions=", ".join(f"{name} {version}" for name, version in installed.items()),
        date=time.strftime("%Y-%m-%d"),
    )


@dataclass(kw_only=True)
class Row:
    """A row of the CSV file: a figure, or the reason why there is none, with its conditions."""

    kind: str  # speed, product (of two matrices), start (of a command), size (of an installation)
    model: str = ""
    candidate: str = ""  # or command, or what is installed
    precision: str = ""
    batch: int | None = None
    value: float | None = None  # median
    unit: str = "images/s"
    n: int = 0
    lowest: float | None = None
    highest: float | None = None
    ratio_to_eager: float | None = None  # of medians
    share_of_product: float | None = None  # 2 x MACs per second, as a fraction of the matrix product's rate
    product_gflops: float | None = None  # of a large matrix product in the same rounds and precision, median
    gate: str = ""  # verdict about a lossy precision: "passed: ..." or "refused: ..."
    status: str = "ok"
    note: str = ""
    difference: float | None = None  # of the logits from those of the reference, relative to their norm
    ready_seconds: float | None = None
    peak_mb: float | None = None
    gmacs: float | None = None
    weights: str = ""
    threads: int | None = None
    cpu: str = field(default_factory=lambda: conditions()["cpu"])
    cpu_class: str = field(default_factory=lambda: conditions()["cpu_class"])
    features: str = field(default_factory=lambda: conditions()["features"])
    versions: str = field(default_factory=lambda: conditions()["versions"])
    date: str = field(default_factory=lambda: conditions()["date"])


COLUMNS = tuple(one.name for one in dataclasses.fields(Row))


class Budget:
    """Divides the time limit among the models and batch sizes that are left, by their expected durations."""

    def __init__(self, seconds: float, groups: Sequence[tuple[str, int]], cost: Callable[[str], float]):
        self.started = self.group_started = time.perf_counter()
        self.seconds = seconds
        self.left = {(name, batch): 90 + 0.6 * batch * cost(name) for name, batch in groups}

    def is_early(self) -> bool:
        """Return whether there is time to evaluate the gate."""
        return time.perf_counter() < self.started + JUDGING * self.seconds

    def until(self, name: str, batch: int) -> float:
        """Return the time of time.perf_counter at which the measurement of this group should end."""
        remaining = max(self.started + self.seconds - self.group_started, 0.0)
        return self.group_started + remaining * self.left[name, batch] / sum(self.left.values())

    def finish(self, name: str, batch: int) -> None:
        """Note that a group is done, and that the next one starts now."""
        del self.left[name, batch]
        self.group_started = time.perf_counter()


def tessella_candidates(precisions: Sequence[str], judged: Callable[[int], bool]) -> list[Candidate]:
    """Return what `load` opens without `tune`, in each precision; lossy ones are measured whatever the gate says.

    They share caches, because the gate compares all precisions with the same answers of the eager model.
    """
    found = [engine_candidate("auto", "auto"), *(engine_candidate("auto", one, judged) for one in precisions)]
    return [dataclasses.replace(one, name=report.TESSELLA, caches=report.TESSELLA) for one in found]


def lossy_precisions(int8: bool) -> list[str]:
    """Return the lossy precisions that the CPU has instructions for."""
    products = {"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"} & machine.vector_features()
    return [*(["bfloat16"] if has_native_bfloat16("cpu") else []), *(["int8"] if int8 and products else [])]


def measure_models(args: argparse.Namespace, done: list[Row], save: Callable[[], None]) -> None:
    """Append the rows of every model and batch size that `done` does not have, and save after each."""
    known = {(row.model, row.batch) for row in done if row.kind == "speed"}
    groups = [(name, batch) for name in args.models for batch in args.batches if (name, batch) not in known]
    budget = Budget(args.seconds, groups, report.gmacs_of)
    lossy = lossy_precisions(not args.skip_int8)
    native = ["float32", *(["bfloat16"] if "bfloat16" in lossy else [])]
    compiled = [] if args.skip_compile else native if args.compile_bfloat16 else ["float32"]

    def judged(batch: int) -> bool:  # at one batch size: the verdict does not depend on it
        return not args.skip_gate and batch == args.batches[0] and budget.is_early()

    candidates = [*stock(native, compiled), *tessella_candidates(lossy, judged)]
    for name in args.models:
        batches = [batch for model, batch in groups if model == name]
        if not batches:
            continue
        until = functools.partial(budget.until, name)
        case = dataclasses.replace(load_case(name), name=name)
        rounds = measure(case, candidates, batches, args.rounds, turn_seconds=args.turn_seconds, until=until)
        for rows in rounds:
            done += [*as_rows(rows)]
            share_verdicts(done)
            save()
            budget.finish(name, rows[0].batch)
            print(*progress(rows), sep="\n", file=sys.stderr, flush=True)
        del case


def as_rows(rows: Sequence[BenchmarkRow]) -> Iterator[Row]:
    """Yield the rows of one model and batch size for the file, with ratios to the eager model."""
    base = next((row.images_per_second for row in rows if row.candidate == report.EAGER), None)
    for row in rows:
        speed = row.images_per_second
        yield Row(
            kind="speed", model=row.model.partition(".")[0], candidate=row.candidate, precision=row.precision,
            batch=row.batch, value=speed, n=row.rounds, lowest=row.slowest, highest=row.fastest,
            ratio_to_eager=speed / base if speed and base else None, share_of_product=row.share_of_gemm,
            product_gflops=row.gemm_gflops, gate=row.gate, status=row.status, note=row.note,
            difference=row.difference, ready_seconds=row.ready_seconds, peak_mb=row.peak_mb, gmacs=row.gmacs,
            weights=row.weights, threads=row.threads,
        )  # fmt: skip


def share_verdicts(rows: Sequence[Row]) -> None:
    """Give rows of the same model and precision the verdict of the batch size at which it was made."""
    known = {(row.model, row.precision): row.gate for row in rows if row.gate}
    for row in rows:
        if row.candidate == report.TESSELLA:
            row.gate = known.get((row.model, row.precision), "")


def products(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rate of the matrix product in each precision: the median over all models and batch sizes."""
    for precision in ("float32", "bfloat16", "int8"):
        rates = {(row.model, row.batch): row.product_gflops for row in rows if row.precision == precision}
        if found := [rate for rate in rates.values() if rate]:
            yield Row(
                kind="product", candidate="product of two 2048 x 2048 matrices", precision=precision, unit="GFLOP/s",
                value=statistics.median(found), n=len(found), lowest=min(found), highest=max(found),
            )  # fmt: skip


def start_rows(rounds: int) -> Iterator[Row]:
    """Yield the seconds of each command: the first time with an empty cache, and later ones."""
    for command, seconds, error in time_starts(rounds):
        for which, values in (("first", seconds[:1]), ("later", seconds[1:])):
            if error or values:
                yield Row(
                    kind="start", candidate=command, unit="s", status="failed" if error else "ok",
                    note=error or which, n=len(values), value=statistics.median(values) if values else None,
                    lowest=min(values, default=None), highest=max(values, default=None),
                )  # fmt: skip


def given_rows(given: Sequence[str]) -> Iterator[Row]:
    """Yield rows of figures that were measured elsewhere, such as "size: base install=431 MB"."""
    for text in given:
        what, _, figure = text.rpartition("=")
        kind, _, name = what.partition(":")
        value, _, unit = figure.strip().partition(" ")
        yield Row(kind=kind.strip(), candidate=name.strip(), value=float(value), unit=unit, n=1, note="given")


def progress(rows: Sequence[BenchmarkRow]) -> Iterator[str]:
    for row in rows:
        speed = row.status if row.images_per_second is None else f"{row.images_per_second:.3g} images/s"
        verdict = f"; gate {row.gate}" if row.gate else ""
        yield f"{row.model}, batch {row.batch}, {row.candidate} {row.precision}: {speed} {row.note[:100]}{verdict}"


def read_rows(path: Path) -> list[Row]:
    """Read a file that `write_rows` wrote."""
    kinds = {one.name: str(one.type).partition(" ")[0] for one in dataclasses.fields(Row)}
    convert: dict[str, Callable[[str], object]] = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [
            Row(**{key: convert[kinds[key]](value) for key, value in row.items() if value or kinds[key] == "str"})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, with figures of four significant digits; an interrupt leaves the previous file."""
    draft = path.with_suffix(".part")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = dataclasses.asdict(row)
            writer.writerow({key: f"{v:.4g}" if isinstance(v, float) else v for key, v in cells.items()})
    draft.replace(path)


def result_path() -> Path:
    """Return cpu_<hardware>_<date>.csv, with a number if the file exists."""
    stem = f"cpu_{slug(conditions()['cpu'])}-{conditions()['cpu_class'].replace('_', '-')}_{conditions()['date']}"
    return unused_path(RESULTS / f"{stem}.csv")


def parse() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/bench cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=FIVE, metavar="NAME", help="models to measure")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 1], metavar="N", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="number of timed rounds, if the time limit allows")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit, which decides the rounds")
    parser.add_argument("--turn-seconds", type=float, default=None, help="shortest duration of a turn")
    parser.add_argument("--quick", action="store_true", help="3 short rounds, without torch.compile and the gate")
    parser.add_argument("--skip-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument(
        "--compile-bfloat16", action="store_true", help="measure torch.compile in bfloat16, too, which takes minutes"
    )
    parser.add_argument("--skip-int8", action="store_true", help="leave out int8")
    parser.add_argument("--skip-gate", action="store_true", help="do not compare lossy precisions with float32")
    parser.add_argument("--skip-starts", action="store_true", help="do not time the starts of commands")
    parser.add_argument(
        "--given", nargs="+", default=[], metavar="KIND:NAME=VALUE UNIT",
        help="figures measured elsewhere, such as 'size: base install=431 MB'",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="CSV file  [default: a new one in benchmarks/results]")
    parser.add_argument("--resume", action="store_true", help="keep what --out already has, and measure the rest")
    parser.add_argument("--picture", type=Path, help=".png or .svg file  [default: next to the CSV file]")
    args = parser.parse_args()
    if args.resume and args.out is None:
        parser.error("--resume needs --out")
    if args.out and args.out.exists() and not args.resume:
        parser.error(f"{args.out} exists; give another --out, or --resume to measure what it lacks")
    if args.quick:
        args.rounds, args.turn_seconds, args.seconds = 3, args.turn_seconds or 0.05, min(args.seconds, 180.0)
        args.skip_compile = args.skip_gate = True
    return args


def main() -> int:
    args = parse()
    path = args.out or result_path()
    rows = read_rows(path) if args.resume and path.exists() else []
    rows = [row for row in rows if row.kind != "product"]
    with tempfile.TemporaryDirectory(prefix="tessella-untuned-") as cache:
        os.environ["TESSELLA_CACHE"] = cache  # tuned settings are in the user's cache: the default is measured
        measure_models(args, rows, lambda: write_rows(path, rows))
    if not args.skip_starts and not any(row.kind == "start" for row in rows):
        rows += start_rows(2 if args.quick else 6)
    rows += [*products(rows), *given_rows(args.given)]
    write_rows(path, rows)
    picture = args.picture or path.with_suffix(".png")
    table = report.read(path)
    print(*report.summary(table), sep="\n")
    report.draw(table, picture)
    print(f"\nall figures: {path}\npicture: {picture}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
