"""Stopping long jobs with a signal: they finish the current step, save, and tell how to resume."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
Handler = Callable[[int, FrameType | None], object] | int | None  # as `signal.signal` returns it


class StopRequest:
    """Remembers a signal that asks a job to stop; a second signal stops it at once. A context manager.

    requested: whether a signal has come. signal_name: its name, "" if none has come.
    """

    def __init__(self) -> None:
        self.requested, self.signal_name = False, ""
        self._previous: dict[int, Handler] = {}

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # only the main thread can handle signals
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self.signal_name = True, signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
