"""Handle the signals that ask a command to stop, so that it can save its state and remove its temporary files."""

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


def interrupt_on_sigterm() -> None:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that a command removes its temporary files.

    A signal that has a handler already, or that the caller of the process ignores, stays as it is.
    """
    with contextlib.suppress(ValueError):  # only the main thread can set handlers
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)


def raise_interrupt_behind(error: BaseException) -> None:
    """Raise KeyboardInterrupt if an interrupt led to this error.

    An extension module that is interrupted while it is imported raises an ImportError instead, "initialization failed".
    """
    behind: BaseException | None = error
    seen: set[int] = set()
    while behind is not None and id(behind) not in seen:  # errors that were raised again can lead to each other
        if isinstance(behind, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        seen.add(id(behind))
        behind = behind.__cause__ or behind.__context__
