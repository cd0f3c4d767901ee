"""Benchmarks of engines that run the same model on the same images, in alternating rounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..checks import check_fields, checked
from ..engine import ENGINES, PRECISIONS, make_plan
from ..errors import UsageError
from ..storage import check_output, write_bytes
from ..text import any_of
from ..weights.catalogue import resolve
from .candidates import Candidate, engine_candidate, import_timm, load_case, timm_candidate
from .figure import SUFFIXES, check_figure, draw
from .measuring import BenchmarkRow, measure
from .table import csv_bytes

DEFAULT_ENGINES = ("eager", "rewritten", "openvino", "onnxruntime")  # not `compile`, which takes minutes to start


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """The candidates and conditions of `bench`.

    engines: keys of ENGINES or "auto"; ratios are relative to the first one that runs. against: "timm" adds timm's
    models as the first candidates. pretrained: load trained weights, which do not change the speed. rounds: number of
    timed rounds per candidate.

    Raises UsageError `bad_argument`.
    """

    batch_sizes: Sequence[int] = (8, 1)
    precisions: Sequence[str] = ("float32",)
    engines: Sequence[str] = DEFAULT_ENGINES
    against: Literal["timm"] | None = None
    pretrained: bool = False
    device: str = "auto"
    rounds: int = 7

    def __post_init__(self) -> None:
        check_fields(self)
        for what, names, known in (("engine", self.engines, ENGINES), ("precision", self.precisions, PRECISIONS)):
            for name in names:
                if name not in known and name != "auto":
                    raise UsageError("bad_argument", f"{what} is {name!r}, expected {any_of(('auto', *known))}")
        if not self.batch_sizes or any(batch < 1 for batch in self.batch_sizes):
            raise UsageError(
                "bad_argument", f"batch sizes are {list(self.batch_sizes)}, expected positive numbers of images"
            )
        if self.rounds < 1:
            raise UsageError("bad_argument", f"rounds is {self.rounds}, expected at least 1")


@checked
def bench(
    models: Sequence[str],
    settings: BenchmarkSettings | None = None,
    *,
    csv_path: str | Path | None = None,
    plot_path: str | Path | None = None,
) -> Iterator[list[BenchmarkRow]]:
    """Benchmark engines against each other; yield the rows of one model and batch size at a time.

    models: names for `create_model`. csv_path: .csv file with all rows so far, rewritten after each batch size, so
    that no results are lost if the benchmark is interrupted. plot_path: .png or .svg file for a plot of speed against
    published accuracy, drawn at the end.

    A candidate that fails gives a row with the reason. Raises UsageError for invalid arguments before anything is
    measured, and OutputError `output_failed`.
    """
    settings = settings or BenchmarkSettings()
    csv_file = None if csv_path is None else check_output(csv_path, [".csv"])
    plot_file = None if plot_path is None else check_output(plot_path, SUFFIXES)
    if plot_file:
        check_figure(models)
    for name in models:
        if ":" not in name:
            resolve(name)
    device = make_plan(device=settings.device, precision="float32").device
    return _measure_all(models, settings, device, _candidates(settings), (csv_file, plot_file))


def _candidates(settings: BenchmarkSettings) -> list[Candidate]:
    pairs = itertools.product(settings.precisions, settings.engines)
    candidates = [engine_candidate(engine, precision) for precision, engine in pairs]
    if not settings.against:
        return candidates
    import_timm()
    precisions = [name for name in settings.precisions if name in ("float32", "bfloat16")] or ["float32"]
    return [*(timm_candidate(name) for name in precisions), *candidates]


def _measure_all(
    models: Sequence[str],
    settings: BenchmarkSettings,
    device: str,
    candidates: Sequence[Candidate],
    outputs: tuple[Path | None, Path | None],
) -> Iterator[list[BenchmarkRow]]:
    csv_file, plot_file = outputs
    rows: list[BenchmarkRow] = []
    for name in models:
        case = load_case(name, pretrained=settings.pretrained, device=device)
        for group in measure(case, candidates, settings.batch_sizes, settings.rounds):
            rows += group
            if csv_file:
                write_bytes(csv_file, csv_bytes(rows))
            yield group
    if plot_file:
        draw(rows, plot_file)
