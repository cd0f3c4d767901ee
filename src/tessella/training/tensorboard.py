"""TensorBoard logs of a training run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..extras import require
from .events import EmbeddingEvent, TrainingEvent, TrainingRemark

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardWriter:
    """Write the numbers of training events as TensorBoard scalars: pass it to `train` as `on_event`.

    The scalars are called `step/loss`, `epoch/val_top1`, `probe/val_top1` and so on. Only the first of several
    processes (RANK 0) writes. Raises UsageError `missing_dependency` if TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path):
        self._writer: SummaryWriter | None = None
        if os.environ.get("RANK", "0") == "0":
            require("tensorboard", "TensorBoard logging")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: TrainingEvent) -> None:
        """Write the event's fields that are floats, at its step."""
        if self._writer is None or isinstance(event, TrainingRemark | EmbeddingEvent):
            return
        for name, value in vars(event).items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{event.kind}/{name}", value, event.step)

    def close(self) -> None:
        """Write what is buffered and close the log file."""
        if self._writer is not None:
            self._writer.close()
