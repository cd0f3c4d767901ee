"""Progress of long commands on standard error: a bar with rate and remaining time, and a line per epoch."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..errors import OutputError
from ..extras import require
from ..storage import write_atomic
from ..text import printable
from ..training.events import EpochEvent, ProbeEvent, StepEvent, TrainingEvent, TrainingRemark


class ProgressBars:
    """Shows one bar per task on standard error, if that is a terminal; called with (task, items done, all items)."""

    def __init__(self) -> None:
        self.bars = Progress(
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # rich would send the results to standard error, too
            redirect_stderr=False,
            disable=not sys.stderr.isatty(),
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, task: str, done: int, total: int) -> None:
        if task not in self.tasks:
            self.tasks[task] = self.bars.add_task(task, total=total)
        self.bars.update(self.tasks[task], completed=done)


class TrainingProgress:
    """Shows the events of `train`: a progress bar, and a line per epoch; of several processes, only the first shows."""

    def __init__(self) -> None:
        is_first = os.environ.get("RANK", "0") == "0"
        self.console = Console(stderr=True, highlight=False, quiet=not is_first)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} images/s"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (is_first and self.console.is_terminal),
            transient=True,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: TrainingEvent) -> None:
        match event:
            case TrainingRemark(text=text):
                self._print(printable(text))
            case StepEvent():
                self._show_step(event)
            case ProbeEvent():
                self._print(
                    f"linear probe on frozen embeddings: top-1 {100 * event.val_top1:.2f} % on "
                    f"{event.val_images:,} held-out images, {event.seconds:.0f} s"
                )
            case EpochEvent():
                skipped = f", {event.skipped:,} images skipped" if event.skipped else ""
                self._print(
                    f"epoch {event.epoch}: loss {event.loss:.4f}, validation loss {event.val_loss:.4f}, "
                    f"top-1 {100 * event.val_top1:.2f} %, {event.seconds:.0f} s{skipped}"
                )

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _show_step(self, event: StepEvent) -> None:
        if self.task is None:
            self.task = self.bar.add_task("", total=event.steps, epoch=event.epoch, loss=0.0, rate=0.0)
        self.bar.update(
            self.task, completed=event.step, epoch=event.epoch, loss=event.loss, rate=event.images_per_second
        )


class RunWatcher:
    """Takes the events of a bulk run; on no terminal, a line every ten seconds at most. metrics: see PrometheusFile."""

    def __init__(self, metrics: str | None = None) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn(),
            console=self.console, disable=not self.console.is_terminal, transient=True,
        )  # fmt: skip
        self.task: Any = None
        self.told = 0.0
        self.metrics = PrometheusFile(Path(metrics)) if metrics else None

    def __enter__(self) -> RunWatcher:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.metrics is not None:
            self.metrics.write()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "remark":
            self.console.print(printable(event["text"]), markup=False, soft_wrap=True)
            return
        rate, share = event["images_per_second"] or 0.0, event["share"]
        told = f"{rate:.1f} images/s" + (f", {100 * share:.0f} % of the model's own speed" if share else "")
        errors = ", ".join(f"{count:,} {code}" for code, count in event["errors_so_far"].items())
        told = f"{told}; {errors}" if errors else told
        now = time.monotonic()
        if self.task is None:
            self.told = now
            self.task = self.bar.add_task("", total=event["of"], completed=event["rows_done"], told="")
        self.bar.update(self.task, completed=event["rows_done"], told=told)
        if not self.console.is_terminal and now - self.told >= 10:
            self.told = now
            rows = event["of"] - event["rows_done"]
            left = f"{timedelta(seconds=round(rows / rate))} left, " if rate else ""
            shown = f"{event['rows_done']:,} of {event['of']:,}, {left}{told}"
            self.console.print(shown, markup=False, soft_wrap=True)
        if self.metrics is not None:
            self.metrics(event)


class PrometheusFile:
    """The last event of a bulk run as text that Prometheus reads through the node exporter's textfile collector.

    Replaced at once, every five seconds at most and at the end.
    """

    def __init__(self, path: Path):
        prometheus = require("prometheus_client", "--prometheus")
        self.path, self.written = path, 0.0
        self.registry = prometheus.CollectorRegistry()

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Any:
            return prometheus.Gauge(f"tessella_run_{name}", text, labels, registry=self.registry)

        self.rows = gauge("rows", "Inputs of the run.")
        self.done = gauge("rows_done", "Rows of all calls so far.")
        self.rate = gauge("images_per_second", "Of this call.")
        self.share = gauge("model_share", "The rate, of that of the model with nothing beside it; 0 if not measured.")
        self.errors = gauge("errors", "Rows with an error code.", ("code",))
        self.write()  # a path that cannot be written is said now

    def __call__(self, event: dict[str, Any]) -> None:
        self.rows.set(event["of"])
        self.done.set(event["rows_done"])
        self.rate.set(event["images_per_second"] or 0.0)
        self.share.set(event["share"] or 0.0)
        for code, count in event["errors_so_far"].items():
            self.errors.labels(code).set(count)
        if time.monotonic() - self.written >= 5:
            self.write()

    def write(self) -> None:
        from prometheus_client import generate_latest

        self.written = time.monotonic()
        try:
            write_atomic(self.path, generate_latest(self.registry))
        except OSError as error:
            reason = error.strerror or error
            raise OutputError("output_failed", f"{str(self.path)!r} could not be written: {reason}") from None
