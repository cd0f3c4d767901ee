"""Progress of long commands on standard error: a bar with rate and remaining time, and a line per epoch."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..text import count_of, printable
from ..training.events import EmbeddingEvent, EpochEvent, ProbeEvent, StepEvent, TrainingEvent, TrainingRemark

LINE_SECONDS = 10.0  # between two lines about the linear probe if standard error is not a terminal


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
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (is_first and self.console.is_terminal),
            transient=True,
        )
        self.task: TaskID | None = None
        self.probe_task: TaskID | None = None
        self.last_line = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: TrainingEvent) -> None:
        match event:
            case TrainingRemark(text=text):
                self._print(printable(text))
            case EmbeddingEvent():
                self._show_embeddings(event)
            case StepEvent():
                self._show_step(event)
            case ProbeEvent():
                if self.probe_task is not None:
                    self.bar.update(self.probe_task, visible=False)
                self._print(
                    f"linear probe on frozen embeddings: top-1 {100 * event.val_top1:.2f} % on "
                    f"{event.val_images:,} held-out images, {event.seconds:.0f} s"
                )
            case EpochEvent():
                skipped = f", {count_of(event.skipped, 'image')} skipped" if event.skipped else ""
                self._print(
                    f"epoch {event.epoch}: loss {event.loss:.4f}, validation loss {event.val_loss:.4f}, "
                    f"{event.score}, {event.seconds:.0f} s{skipped}"
                )

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _show_embeddings(self, event: EmbeddingEvent) -> None:
        text = "images embedded" if event.done < event.images else "images embedded, fitting the classifier"
        if self.probe_task is None:
            self.probe_task = self.bar.add_task("linear probe", total=event.images, text=text)
        self.bar.update(self.probe_task, completed=event.done, text=text)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            self._print(f"linear probe: {event.done:,} of {event.images:,} {text}")

    def _show_step(self, event: StepEvent) -> None:
        if self.task is None:
            self.task = self.bar.add_task("", total=event.steps, text="")
        text = f"loss {event.loss:.3f}  {event.images_per_second:.0f} images/s"
        self.bar.update(self.task, description=f"epoch {event.epoch}", completed=event.step, text=text)
