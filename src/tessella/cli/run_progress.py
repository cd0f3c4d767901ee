"""Progress of `tessella run` on standard error."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..bulk.events import RunEvent, RunProgress, RunRemark
from ..text import printable

LINE_SECONDS = 10.0  # between two lines if standard error is not a terminal


class RunProgressBar:
    """Shows the events of a bulk run as a progress bar, or as lines if standard error is not a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._last_line = 0.0

    def __enter__(self) -> RunProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: RunEvent) -> None:
        if isinstance(event, RunRemark):
            self._console.print(printable(event.text), markup=False, soft_wrap=True)
        else:
            self._show(event)

    def _show(self, event: RunProgress) -> None:
        speed = event.images_per_second or 0.0
        text = f"{speed:.1f} images/s"
        if event.speed_fraction:
            text += f", {100 * event.speed_fraction:.0f} % of the model's own speed"
        if event.errors:
            text += "; " + ", ".join(f"{count:,} {code}" for code, count in event.errors.items())
        now = time.monotonic()
        if self._task is None:
            self._last_line = now
            self._task = self._bar.add_task("", total=event.rows_total, completed=event.rows_done, text="")
        self._bar.update(self._task, completed=event.rows_done, text=text)
        if not self._console.is_terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            rows_left = event.rows_total - event.rows_done
            time_left = f"{timedelta(seconds=round(rows_left / speed))} left, " if speed else ""
            line = f"{event.rows_done:,} of {event.rows_total:,}, {time_left}{text}"
            self._console.print(line, markup=False, soft_wrap=True)
