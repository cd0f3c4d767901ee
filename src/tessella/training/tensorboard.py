"""TensorBoard logs of a training run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from ..extras import require
from .events import EmbeddingEvent, TrainingEvent, TrainingRemark

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardWriter:
    """Write the numbers of training events as TensorBoard scalars: pass it to `train` as `on_event`.

    The scalars are called `step/loss`, `epoch/val_top1`, `probe/val_top1` and so on. Only the first of several
    processes (RANK 0) writes. Raises UsageError `missing_dependency` if TensorBoard is not installed, and OutputError
    `output_failed`, also by the methods.
    """

    def __init__(self, folder: str | Path):
        self._folder = folder
        self._writer: SummaryWriter | None = None
        if os.environ.get("RANK", "0") == "0":
            require("tensorboard", "TensorBoard logging")
            from torch.utils.tensorboard import SummaryWriter

            with self._translate_errors():
                self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: TrainingEvent) -> None:
        """Write the event's fields that are floats, at its step."""
        if self._writer is None or isinstance(event, TrainingRemark | EmbeddingEvent):
            return
        with self._translate_errors():
            for name, value in vars(event).items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{event.kind}/{name}", value, event.step)

    def close(self) -> None:
        """Write what is buffered and close the log file."""
        if self._writer is not None:
            with self._translate_errors():
                self._writer.close()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                "output_failed",
                f"the TensorBoard logs in {str(self._folder)!r} could not be written: {error.strerror or error}",
                hint="free some space, or run the same command without TensorBoard: it resumes",
            ) from error
