"""Long work that is asked to stop from outside: it ends what it is at, saves, and says how to go on."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # save, stop, and say how to go on


class Stop:
    """Remembers the signals that ask the run to stop; a second one stops it at once."""

    def __init__(self) -> None:
        self.asked, self.name = False, ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        with contextlib.suppress(ValueError):  # not the main thread: signals go elsewhere
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
