"""What a bulk run reports while it works: each call of `on_event` gets one of these.

`RunRemark` is a line of text, `RunProgress` comes at most twice per second and `ShardFinished` once per shard.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

from .ledger import Shard

REPORT_SECONDS = 0.5  # between two reports of progress


@dataclass(frozen=True, kw_only=True)
class RunRemark:
    """A line of text for people."""

    text: str


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is.

    rows_done and errors count the rows of all calls, errors by code; seconds and images_per_second are those of this
    call. speed_fraction: images_per_second as a fraction of the speed of the model alone. images_per_second is None
    before the first row, speed_fraction if the model alone was not measured.
    """

    rows_done: int
    rows_total: int
    seconds: float
    errors: Mapping[str, int]
    images_per_second: float | None
    speed_fraction: float | None


@dataclass(frozen=True, kw_only=True)
class ShardFinished(RunProgress):
    """A shard is durable and recorded."""

    shard: Shard

    def log_entry(self) -> dict[str, object]:
        """Return the event as a line of log.jsonl holds it."""
        return dict(
            kind="shard",
            rows_done=self.rows_done,
            of=self.rows_total,
            seconds=self.seconds,
            errors_so_far=dict(self.errors),
            images_per_second=self.images_per_second,
            share=self.speed_fraction,
        ) | asdict(self.shard)


RunEvent: TypeAlias = RunRemark | RunProgress | ShardFinished
OnEvent: TypeAlias = Callable[[RunEvent], object]


def ignore_event(event: RunEvent) -> None:
    """Do nothing: the default for `on_event`."""


class ProgressTracker:
    """Counts the rows of a run and reports them to `on_event`.

    finished: shards of earlier calls. model_speed: images per second of the model alone, None if not measured.
    """

    def __init__(self, rows_total: int, finished: Iterable[Shard], model_speed: float | None, on_event: OnEvent):
        self._rows_total, self._model_speed, self._on_event = rows_total, model_speed, on_event
        self._rows_before = self._rows_done = 0
        self._errors: Counter[str] = Counter()
        for shard in finished:
            self._rows_before += shard.rows
            self._errors.update(shard.errors)
        self._started = self._reported = time.monotonic()
        on_event(self.progress())

    def add(self, status: str, rows: int = 1) -> None:
        """Count rows with this status."""
        self._rows_done += rows
        if status != "ok":
            self._errors[status] += rows
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            self._on_event(self.progress())

    def progress(self) -> RunProgress:
        """Return how far the run is."""
        seconds = time.monotonic() - self._started
        speed = round(self._rows_done / seconds, 2) if self._rows_done else None
        return RunProgress(
            rows_done=self._rows_before + self._rows_done,
            rows_total=self._rows_total,
            seconds=round(seconds, 2),
            errors=dict(sorted(self._errors.items())),
            images_per_second=speed,
            speed_fraction=round(speed / self._model_speed, 3) if speed and self._model_speed else None,
        )

    def shard_finished(self, shard: Shard) -> ShardFinished:
        """Return the event of a shard; the caller reports it."""
        return ShardFinished(**vars(self.progress()), shard=shard)
