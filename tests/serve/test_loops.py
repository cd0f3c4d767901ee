"""The event loop of the server, and the garbage collector beside it."""

from __future__ import annotations

import gc

from tessella.serve.loops import garbage_frozen, run


async def answer() -> int:
    return 42


def test_a_coroutine_is_run() -> None:
    assert run(answer()) == 42


def test_objects_are_frozen_and_what_the_caller_has_frozen_stays_so() -> None:
    gc.unfreeze()
    try:
        with garbage_frozen():
            assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() == 0
        gc.freeze()
        with garbage_frozen():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.freeze()  # as in conftest.py
