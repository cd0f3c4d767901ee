"""The logs of a run: metrics.jsonl (a row per epoch and per 50 steps) and skipped.jsonl (images that were not read)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data.datasets import LabelledImages
from ..data.loader import Batch
from ..data.unlabelled import ImagePool
from ..errors import OutputError
from ..storage import read_regular, write_bytes
from .distributed import DistributedContext
from .events import MetricsEvent, TrainingEvent, TrainingRemark

METRICS, SKIPPED = "metrics.jsonl", "skipped.jsonl"
KINDS = ("step", "epoch", "probe")
ParsedRow = dict[str, Any]  # a row as JSON has it; earlier versions may have written other fields


class MetricsLog:
    """Write the logs of a run in the first process, and pass events on to `on_event`."""

    def __init__(self, folder: Path, context: DistributedContext, on_event: Callable[[TrainingEvent], None]):
        self.folder, self.is_first, self.on_event = folder, context.rank == 0, on_event

    def remark(self, text: str) -> None:
        """Report a sentence, once for all processes."""
        if self.is_first:
            self.on_event(TrainingRemark(text=text))

    def write(self, event: MetricsEvent) -> None:
        """Append the event to metrics.jsonl; raises OutputError `output_failed`."""
        if self.is_first:
            self._append(METRICS, event.as_row())

    def write_skipped(self, images: LabelledImages | ImagePool, batch: Batch, epoch: int, step: int) -> None:
        """Append the images of a batch that could not be read to skipped.jsonl, in every process.

        step: steps done, with that of the batch. Raises OutputError `output_failed`.
        """
        for index, error in batch.skipped:
            self._append(SKIPPED, dict(epoch=epoch, step=step, key=images.key(index), code=error.code))

    def _append(self, name: str, row: Mapping[str, str | int | float]) -> None:
        try:
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OutputError(
                "output_failed",
                f"{self.folder / name} could not be written: {error.strerror}",
                hint="free some space and run the same command again: it resumes from the last checkpoint",
            ) from error

    def trim(self, step: int, epochs: int) -> None:
        """Drop the rows that a killed run wrote after its last checkpoint; they will be written again.

        step: steps done at the checkpoint; epochs: epochs validated. Raises OutputError `output_failed`.
        """
        if not self.is_first:
            return
        rows = self.rows()
        self._replace(
            METRICS,
            [row for row in rows if row["step"] <= step and row["epoch"] < epochs + (row["kind"] == "step")],
        )
        skipped = self._rows(SKIPPED)  # earlier versions wrote no steps
        self._replace(SKIPPED, [row for row in skipped if row["epoch"] <= epochs and row.get("step", step) <= step])

    def _replace(self, name: str, rows: list[ParsedRow]) -> None:
        path = self.folder / name
        if path.exists():
            write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def rows(self) -> list[ParsedRow]:
        """Return the rows of metrics.jsonl; damaged lines are skipped, and their number is reported.

        Raises OutputError `output_failed` if the file exists and cannot be read.
        """
        return self._rows(METRICS)

    def _rows(self, name: str) -> list[ParsedRow]:
        path = self.folder / name
        try:
            lines = read_regular(path).split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:  # not an empty list: `trim` would overwrite the file with it
            raise OutputError("output_failed", f"{path} could not be read: {error.strerror}") from error
        parsed = [(line, _parse(name, line)) for line in lines]
        damaged = sum(bool(line) and row is None for line, row in parsed[:-1])  # the last line may be cut off
        if damaged:
            self.remark(f"skipped {damaged} damaged lines in {path}")
        return [row for _, row in parsed if row is not None]


def _parse(name: str, line: bytes) -> ParsedRow | None:
    """Return a row of the log with that name; None if the line is damaged."""
    try:
        row: ParsedRow = json.loads(line)
        if name == METRICS:
            valid = type(row["step"]) is int and type(row["epoch"]) is int and row["kind"] in KINDS
        else:
            valid = type(row["epoch"]) is int and type(row.get("step", 0)) is int
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return row if valid else None
