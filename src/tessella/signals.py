"""Handle the signals that ask a long run to stop, so that it can finish the current step and save its state."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from types import FrameType

# SIGUSR1 is what schedulers of clusters send before a job ends; Windows does not have it
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class GracefulStop:
    """Record the signals that ask a run to stop while the block runs; a second signal raises KeyboardInterrupt.

    requested: whether a signal has arrived. name: its name, such as SIGTERM; "" before.
    """

    def __init__(self) -> None:
        self.requested, self.name = False, ""
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> GracefulStop:
        with contextlib.suppress(ValueError):  # only the main thread can set handlers
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self.name = True, signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
