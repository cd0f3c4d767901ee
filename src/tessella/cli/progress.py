"""What long work shows as it goes on: a bar with rate and time left; of training, a line an epoch and TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..extras import require
from ..text import printable


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
            self.console.print(printable(event["text"]), markup=False, soft_wrap=True)
        elif event["kind"] == "step":
            fields = dict(epoch=event["epoch"], loss=event["loss"], rate=event["images_per_second"])
            if self.task is None:
                self.task = self.bar.add_task("", total=event["steps"], **fields)
            self.bar.update(self.task, completed=event["step"], **fields)
        elif event["kind"] == "probe":
            self.console.print(
                f"linear probe on frozen embeddings: top-1 {100 * event['val_top1']:.2f} % on "
                f"{event['val_images']:,} held-out images, {event['seconds']:.0f} s"
            )
        else:
            skipped = f", {event['skipped']:,} images skipped" if event["skipped"] else ""
            self.console.print(
                f"epoch {event['epoch']}: loss {event['loss']:.4f}, validation loss {event['val_loss']:.4f}, "
                f"top-1 {100 * event['val_top1']:.2f} %, {event['seconds']:.0f} s{skipped}"
            )
        if self.board is not None and event["kind"] != "remark":
            for name, value in event.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{event['kind']}/{name}", value, event["step"])


def _board(run: Path) -> Any:
    require("tensorboard", "TensorBoard logging")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"))
