"""The event loop of the server and of its load generator: uvloop if installed, without long garbage collections."""

from __future__ import annotations

import asyncio
import gc
import importlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib import util
from typing import Any, TypeVar

T = TypeVar("T")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the faster event loop if it is installed; it is not available for Windows."""
    if util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


@contextmanager
def garbage_frozen() -> Iterator[None]:
    """Exclude all existing objects from garbage collection in the block; what the caller has frozen stays frozen.

    A collection that visits the modules and routes of a server stops its event loop for about 0.1 s.
    """
    had_frozen = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not had_frozen:
            gc.unfreeze()
