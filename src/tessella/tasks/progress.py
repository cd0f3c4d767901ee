"""What long work shows as it goes on: a bar with rate and time left; of training, a line an epoch and TensorBoard."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import UsageError


class Watcher:
    """Takes the events of `train`; of several processes the first one shows them."""

    def __init__(self, tensorboard: str | Path | None = None):
        first = os.environ.get("RANK", "0") == "0"
        self.console = Console(stderr=True, highlight=False, quiet=not first)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} images/s"), TimeRemainingColumn(),
            console=self.console, disable=not (first and self.console.is_terminal), transient=True,
        )  # fmt: skip
        self.task: Any = None
        self.board = _board(Path(tensorboard)) if tensorboard and first else None

    def __enter__(self) -> Watcher:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.close()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "remark":
            self.console.print(event["text"], markup=False, soft_wrap=True)
        elif event["kind"] == "step":
            fields = dict(epoch=event["epoch"], loss=event["loss"], rate=event["images_per_second"])
            if self.task is None:
                self.task = self.bar.add_task("", total=event["steps"], **fields)
            self.bar.update(self.task, completed=event["step"], **fields)
        else:
            skipped = f", {event['skipped']:,} images skipped" if event["skipped"] else ""
            self.console.print(
                f"epoch {event['epoch']}: loss {event['loss']:.4f}, held out {event['val_loss']:.4f}, "
                f"top-1 {100 * event['val_top1']:.2f} %, {event['seconds']:.0f} s{skipped}"
            )
        if self.board is not None and event["kind"] != "remark":
            for name, value in event.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{event['kind']}/{name}", value, event["step"])


class RunWatcher:
    """Takes the events of a bulk run; on no terminal, a line every ten seconds at most."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}  {task.fields[errors]}"),
            TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal, transient=True,
        )  # fmt: skip
        self.task: Any = None
        self.began, self.told, self.here, self.errors = 0.0, 0.0, 0, ""

    def __enter__(self) -> RunWatcher:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if event["kind"] == "remark":
            self.console.print(event["text"], markup=False, soft_wrap=True)
            return
        if self.task is None:
            self.began = self.told = now
            self.task = self.bar.add_task("", total=event["of"], completed=event["rows_done"], rate="", errors="")
            self.here = event["rows_done"]
            return
        rate = (event["rows_done"] - self.here) / max(now - self.began, 1e-9)
        errors = ", ".join(f"{count:,} {code}" for code, count in event["errors_so_far"].items())
        self.bar.update(self.task, completed=event["rows_done"], rate=f"{rate:.1f} images/s", errors=errors)
        if not self.console.is_terminal and now - self.told >= 10:
            self.told = now
            left = (event["of"] - event["rows_done"]) / max(rate, 1e-9)
            shown = f"{event['rows_done']:,} of {event['of']:,}, {rate:.1f} images/s, {left:.0f} s left"
            self.console.print(f"{shown}; {errors}" if errors else shown, markup=False, soft_wrap=True)


def _board(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "missing_dependency", "TensorBoard is not installed", hint='pip install "tessella[train]"'
        ) from None
    return SummaryWriter(str(run / "tensorboard"))
