"""A server with a planted fault, for `tessella serve --prove`: `python -m tests.serve.faulty_server FAULT`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tessella.data.isolated.supervisor import Supervisor
from tessella.results import Output
from tessella.serve.process import run_from_stdin
from tessella.serve.service import Answer, Service

infer = Service.infer
kept: list[bytes] = []
previous: list[Answer] = []
count = 0


async def swapped(self: Service, *arguments: Any, **options: Any) -> Answer:
    """Give every 40th request the answer of the one before."""
    global count
    answer = await infer(self, *arguments, **options)
    count += 1
    result = previous[0] if previous and count % 40 == 0 else answer
    previous[:] = [answer]
    return result


async def wrong(self: Service, *arguments: Any, **options: Any) -> Answer:
    """Damage one value of every 40th embedding."""
    global count
    answer = await infer(self, *arguments, **options)
    count += 1
    if count % 40 or not isinstance(output := answer.outcomes[0], Output):
        return answer
    embedding = output.embedding + np.eye(1, len(output.embedding), 3, dtype=np.float32)[0]
    return dataclasses.replace(answer, outcomes=[Output(output.logits, embedding)])


async def leaking(self: Service, *arguments: Any, **options: Any) -> Answer:
    """Keep two megabytes of every request."""
    kept.append(np.random.default_rng(0).bytes(1 << 21))
    return await infer(self, *arguments, **options)


async def failing(self: Service, *arguments: Any, **options: Any) -> Answer:
    """Fail every 40th request."""
    global count
    count += 1
    if count % 40 == 0:
        raise RuntimeError("planted")
    return await infer(self, *arguments, **options)


def plant_dead_worker() -> None:
    """Never replace a decoding process that has ended."""
    start = Supervisor._start

    def start_once(self: Supervisor) -> None:
        started = getattr(self, "planted", 0)
        if started < self._count:
            self.planted = started + 1  # type: ignore[attr-defined]
            start(self)
        else:
            self._next_start = float("inf")

    Supervisor._start = start_once  # type: ignore[method-assign]


def plant(function: Callable[..., Any]) -> Callable[[], None]:
    """Return a function that replaces `Service.infer`."""
    return lambda: setattr(Service, "infer", function)


FAULTS = {
    "none": lambda: None,
    "swapped": plant(swapped),
    "wrong": plant(wrong),
    "leak": plant(leaking),
    "failing": plant(failing),
    "dead_worker": plant_dead_worker,
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    run_from_stdin()
