"""Generate load for a server and record what comes back: a closed loop of clients, or requests at a constant rate.

At a constant rate ("open loop"), requests are sent on schedule whether or not earlier ones were answered, as those of
independent users are, and latency counts from the scheduled time. A closed loop waits for its answers, so it slows down
with the server and hides queueing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

MAX_CONNECTIONS = 2000  # at once; a request that finds none free counts as failed
NOT_SENT, LOST = 0, -1  # instead of a status
_MAX_HEADER = 1 << 16  # bytes of the head of an answer


class Request(NamedTuple):
    """A request as bytes. key: identifies it in its TimedReply."""

    key: int
    wire: bytes


class TimedReply(NamedTuple):
    """The answer to one request.

    status: of HTTP; NOT_SENT if no connection was made, LOST if there was no complete answer in time. seconds: latency,
    from the scheduled time in an open loop. since_sent: the same from the time at which it was sent, which does not
    count the delays of a busy load generator.
    """

    key: int
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    since_sent: float
    sent: float


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


_Answer: TypeAlias = tuple[int, Mapping[str, str], bytes]  # status, headers, body
Judge: TypeAlias = Callable[[TimedReply], None]  # looks at a reply, whose body is not kept afterwards


@dataclass
class LoadResult:
    """The replies of one trial, without their bodies. duration: seconds from the first request to the last reply."""

    replies: list[TimedReply] = field(default_factory=list)
    duration: float = 0.0

    def count(self, *statuses: int) -> int:
        """Return how many replies have one of these statuses."""
        return sum(reply.status in statuses for reply in self.replies)

    def latencies(self, *statuses: int) -> list[float]:
        """Return the sorted latencies in seconds of the replies with one of these statuses."""
        return sorted(reply.seconds for reply in self.replies if reply.status in statuses)


def make_request(
    key: int, address: Address, path: str, body: bytes = b"", *, content_type: str = "", headers: Iterable[str] = ()
) -> Request:
    """Return a request: POST if there is a body, else GET. headers: complete lines such as "Accept: */*"."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", f"Host: {address.host}:{address.port}", *headers]
    if body:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return Request(key, "\r\n".join([*lines, "", ""]).encode("ascii") + body)


def percentile(sorted_values: Sequence[float], fraction: float) -> float:
    """Return the value below which this fraction of sorted values lies (nearest rank); NaN if there are none."""
    if not sorted_values:
        return float("nan")
    return sorted_values[min(len(sorted_values) - 1, int(fraction * len(sorted_values)))]


class _Connections:
    """Connections to one server, each used by one request at a time and kept open between requests."""

    def __init__(self, address: Address, timeout: float):
        self._address, self._timeout = address, timeout
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.open = 0

    async def send(self, request: Request, scheduled: float) -> TimedReply:
        """Send a request on a free or a new connection, and return the answer or how it failed.

        A server may close a connection between two requests, so a request that fails on a used one is sent again.
        """
        started = time.perf_counter()
        answer: _Answer = LOST, {}, b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while self._idle and answer[0] == LOST:
                    answer = await self._exchange(request.wire, *self._idle.pop())
                if answer[0] == LOST:
                    answer = await self._connect_and_exchange(request.wire)
        status, headers, body = answer
        now = time.perf_counter()
        return TimedReply(request.key, status, headers, body, now - scheduled, now - started, started)

    async def _connect_and_exchange(self, wire: bytes) -> _Answer:
        if self.open >= MAX_CONNECTIONS:
            return NOT_SENT, {}, b""
        try:
            reader, writer = await asyncio.open_connection(*self._address, limit=_MAX_HEADER)
        except OSError:
            return NOT_SENT, {}, b""
        self.open += 1
        return await self._exchange(wire, reader, writer)

    async def _exchange(self, wire: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Answer:
        keep = False
        try:
            writer.write(wire)
            status, headers, body = await _read_reply(reader)
            keep = headers.get("connection", "").lower() != "close"
            return status, headers, body
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            return LOST, {}, b""
        finally:
            if keep:
                self._idle.append((reader, writer))
            else:
                self.open -= 1
                writer.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[1].close()
            self.open -= 1


async def _read_reply(reader: asyncio.StreamReader) -> _Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if "content-length" not in headers:
        raise ValueError("an answer without Content-Length")
    return int(head[0].split(" ", 2)[1]), headers, await reader.readexactly(int(headers["content-length"]))


class _Recorder:
    """Collect replies after a judge has seen their bodies."""

    def __init__(self, judge: Judge | None):
        self._judge, self.result = judge, LoadResult()

    def add(self, reply: TimedReply) -> None:
        """Record a reply."""
        if self._judge is not None:
            self._judge(reply)
        self.result.replies.append(reply._replace(body=b""))


async def closed_loop(
    address: Address, requests: Iterable[Request], clients: int, *, judge: Judge | None = None, timeout: float = 60.0
) -> LoadResult:
    """Send all requests from `clients` clients, each of which waits for an answer before it sends the next request.

    judge: called with every reply. timeout: seconds per request.
    """
    recorder, connections = _Recorder(judge), _Connections(address, timeout)
    remaining = iter(requests)
    origin = time.perf_counter()

    async def client() -> None:
        for request in remaining:
            recorder.add(await connections.send(request, time.perf_counter()))

    try:
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        connections.close()
    recorder.result.duration = time.perf_counter() - origin
    return recorder.result


async def open_loop(
    address: Address,
    requests: Iterable[Request],
    rate: float,
    seconds: float,
    *,
    judge: Judge | None = None,
    timeout: float = 60.0,
) -> LoadResult:
    """Send requests at a constant rate per second for a time, then wait for their answers.

    requests: enough for `rate` x `seconds`; an iterator that ends earlier ends the trial. judge, timeout: as in
    `closed_loop`.
    """
    recorder, connections = _Recorder(judge), _Connections(address, timeout)
    origin = time.perf_counter()
    running: set[asyncio.Task[None]] = set()

    async def send(request: Request, scheduled: float) -> None:
        recorder.add(await connections.send(request, scheduled))

    try:
        for scheduled, request in zip(_schedule(origin, rate, seconds), requests, strict=False):
            if (delay := scheduled - time.perf_counter()) > 0:
                await asyncio.sleep(delay)
            task = asyncio.create_task(send(request, scheduled))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        connections.close()
    recorder.result.duration = time.perf_counter() - origin
    return recorder.result


def _schedule(origin: float, rate: float, seconds: float) -> Iterator[float]:
    for position in itertools.count():
        offset = position / rate
        if offset >= seconds:
            return
        yield origin + offset
