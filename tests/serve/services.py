"""Run a Service in a test, with a fake engine or a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tessella.errors import TessellaError
from tessella.results import Output
from tessella.serve.service import Answer, Service
from tessella.serve.settings import ServeSettings

from .engines import FakeEngine, encoded

MODEL = "mixer_ti_p4_32.cifar10"
Scenario = Callable[[Service], Awaitable[None]]


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[Service]:
    """A started service, which is closed in the end."""
    chosen: dict[str, object] = dict(models=(MODEL,), decode_processes=2, drain_delay=0.0) | settings
    service = Service(ServeSettings(**chosen))  # type: ignore[arg-type]
    try:
        await service.start()
        yield service
    finally:
        await service.close()


def run(scenario: Scenario, **settings: object) -> None:
    """Run a scenario, after which the service must hold nothing."""

    async def main() -> None:
        async with running(**settings) as service:
            await scenario(service)
            assert_nothing_left(service)

    asyncio.run(main())


def assert_nothing_left(service: Service) -> None:
    """Every path gives its places back."""
    assert (service._admission.images, service._admission.bytes, service._in_flight) == (0, 0, 0)
    assert abs(service._admission.seconds) < 1e-6
    assert service._stages is not None
    assert service._stages.batcher.waiting == 0
    assert not service._requests
    assert all(entry.hosted is None or not entry.hosted.users for entry in service._host._entries.values())


def numbers_in(answer: Answer) -> list[int | str]:
    """Return the number that each outcome has, or its code."""
    found: list[int | str] = []
    for outcome in answer.outcomes:
        if isinstance(outcome, Output):
            assert outcome.embedding[0] == -outcome.logits[0]
            found.append(int(outcome.logits[0]))
        else:
            found.append(outcome.code)
    return found


async def hold(service: Service, engine: FakeEngine, count: int) -> list[asyncio.Task[Answer]]:
    """Return requests of one image each, which wait inside of the model: number i is the image of request i."""
    engine.gate.clear()
    requests = []
    for i in range(count):  # one after another, or they could share a batch
        requests.append(asyncio.create_task(service.infer([encoded(i)])))
        await until(lambda i=i: engine.held == i + 1)  # type: ignore[misc]
    return requests


async def code_of(awaitable: Awaitable[object]) -> str:
    """Return the code of the error that it raises, or "ok"."""
    try:
        await awaitable
    except TessellaError as error:
        return error.code
    return "ok"


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)
