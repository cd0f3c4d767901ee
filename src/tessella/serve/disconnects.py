"""Stop the work of a request when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from .security import ClientGoneError

T = TypeVar("T")


async def run_unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, and cancel it if the client leaves; the body of the request must have been read.

    Raises ClientGoneError if the client left, and what `work` raises.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        raise ClientGoneError
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})  # its places in the queue are free before the request ends
            if not task.cancelled():
                task.exception()  # retrieved, so that it is not reported as lost


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
