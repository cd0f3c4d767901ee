"""Benchmark results as dictionaries, CSV, and the cells of the printed table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ..records import csv_table, short_name
from .measuring import COLUMNS, BenchmarkRow

HEADER = (
    "model",
    "candidate",
    "batch",
    "images/s",
    "slowest..fastest",
    "ratio",
    "of GEMM rate",
    "peak MB",
    "start-up s",
    "",
)


def as_dict(row: BenchmarkRow) -> dict[str, object]:
    """Return a row with COLUMNS; measured figures are rounded to four significant digits."""
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in dataclasses.asdict(row).items()
    }


def csv_bytes(rows: Sequence[BenchmarkRow]) -> bytes:
    """Return a CSV file with COLUMNS and one line per row."""
    return csv_table(COLUMNS, map(as_dict, rows))


def cells(row: BenchmarkRow) -> tuple[str, ...]:
    """Return the cells of a row for the printed table, under HEADER."""
    precision = "" if row.precision in row.candidate else f", {row.precision}"
    name = (short_name(row.model), row.candidate + precision, str(row.batch))
    if row.images_per_second is None:
        return (*name, row.status, "", "", "", "", "", row.note)
    return (
        *name,
        _figure(row.images_per_second),
        f"{_figure(row.slowest)}..{_figure(row.fastest)}",
        f"{row.ratio:.2f} ({row.ratio_lowest:.2f}..{row.ratio_highest:.2f})",
        "" if row.share_of_gemm is None else f"{100 * row.share_of_gemm:.0f} %",
        "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        f"{_figure(row.ready_seconds)}{'' if row.cold else ' (cached)'}",
        row.note.partition(":")[0],
    )


def _figure(value: float | None) -> str:
    """Format a number with three significant digits and no exponent."""
    assert value is not None
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def conditions(rows: Sequence[BenchmarkRow]) -> Iterator[str]:
    """Yield sentences about the conditions of the measurement."""
    first = rows[0]
    rounds = max(row.rounds for row in rows)
    limits = {row.precision: row.gemm_gflops for row in rows if row.gemm_gflops}
    torch = f"torch {first.torch}, " if first.torch else ""
    yield f"{first.hardware}, {first.threads} threads, {torch}{rounds} alternating rounds"
    if limits:
        rates = ", ".join(f"{rate:.0f} GFLOP/s in {precision}" for precision, rate in limits.items())
        yield f"GEMM rate: products of large matrices in the same rounds, {rates}"
    yield "ratio: median speed relative to the first candidate that ran; lowest and highest round in parentheses"
    if any(row.weights == "random" for row in rows):
        yield "weights are random unless they are built in (--pretrained loads them): speed does not depend on them"
