"""Handle the signals that ask long work to stop: it finishes the current step, saves, and tells how to resume."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Record the signals that ask the run to stop; a second signal raises KeyboardInterrupt.

    asked: whether a signal has arrived. name: its name.
    """

    def __init__(self) -> None:
        self.asked, self.name = False, ""
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Stop:
        with contextlib.suppress(ValueError):  # only the main thread can set handlers
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.name = True, signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
