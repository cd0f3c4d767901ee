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

from .loops import garbage_frozen

MAX_CONNECTIONS = 2000  # at once; a request that finds none free counts as failed
NOT_SENT, LOST = 0, -1  # instead of a status


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
_NO_ANSWER: _Answer = LOST, {}, b""
Judge: TypeAlias = Callable[[TimedReply], None]  # looks at a reply, whose body is not kept afterwards


@dataclass
class LoadResult:
    """The replies of one trial, without their bodies.

    duration: seconds from the first request to the last reply. cores: how many CPU cores the load generator kept busy.
    """

    replies: list[TimedReply] = field(default_factory=list)
    duration: float = 0.0
    cores: float = 0.0

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


class _Connection(asyncio.Protocol):
    """A connection that carries one request at a time, with little work per answer: the server needs the machine."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._head: tuple[int, Mapping[str, str], int] | None = None  # status, headers, length of the whole answer
        self._answered: asyncio.Future[_Answer] | None = None
        self._transport: asyncio.Transport | None = None

    async def exchange(self, wire: bytes) -> _Answer:
        """Send a request and return its answer; LOST if the connection is closed first, or for no HTTP answer."""
        if self._transport is None or self._transport.is_closing():
            return _NO_ANSWER
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(wire)
        return await self._answered

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the transport."""
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """End a request that is not answered."""
        self._finish(_NO_ANSWER)

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        self._received += data
        try:
            if self._head is None and (end := self._received.find(b"\r\n\r\n") + 4) >= 4:
                self._head = _parse_head(self._received[: end - 4].decode("latin-1"), end)
        except (ValueError, IndexError):
            self._finish(_NO_ANSWER)
            self.close()
            return
        if self._head is not None and len(self._received) >= self._head[2]:
            status, headers, length = self._head
            size = int(headers["content-length"])
            body = bytes(self._received[length - size : length])
            del self._received[:length]
            self._head = None
            self._finish((status, headers, body))

    def _finish(self, answer: _Answer) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(answer)


def _parse_head(text: str, size: int) -> tuple[int, Mapping[str, str], int]:
    """Return status, headers and length of an answer. Raises ValueError or IndexError for another one."""
    first, *lines = text.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "content-length" not in headers:
        raise ValueError("an answer without Content-Length")
    return int(first.split(" ", 2)[1]), headers, size + int(headers["content-length"])


class _Connections:
    """Connections to one server, each used by one request at a time and kept open between requests."""

    def __init__(self, address: Address, timeout: float):
        self._address, self._timeout = address, timeout
        self._idle: list[_Connection] = []
        self._open = 0

    async def send(self, request: Request, scheduled: float) -> TimedReply:
        """Send a request on a free or a new connection, and return the answer or how it failed.

        A server may close a connection between two requests, so a request that fails on a used one is sent again.
        """
        started = time.perf_counter()
        answer = _NO_ANSWER
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while self._idle and answer[0] == LOST:
                    answer = await self._exchange(request.wire, self._idle.pop())
                if answer[0] == LOST:
                    answer = await self._connect_and_exchange(request.wire)
        status, headers, body = answer
        now = time.perf_counter()
        return TimedReply(request.key, status, headers, body, now - scheduled, now - started, started)

    async def _connect_and_exchange(self, wire: bytes) -> _Answer:
        if self._open >= MAX_CONNECTIONS:
            return NOT_SENT, {}, b""
        self._open += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, *self._address)
        except OSError:
            self._open -= 1
            return NOT_SENT, {}, b""
        except BaseException:
            self._open -= 1
            raise
        return await self._exchange(wire, connection)

    async def _exchange(self, wire: bytes, connection: _Connection) -> _Answer:
        keep = False
        try:
            answer = await connection.exchange(wire)
            keep = answer[0] != LOST and answer[1].get("connection", "").lower() != "close"
            return answer
        finally:
            if keep:
                self._idle.append(connection)
            else:
                self._open -= 1
                connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()
            self._open -= 1


@contextlib.contextmanager
def _measured() -> Iterator[LoadResult]:
    """Measure a trial, without delays by garbage collections."""
    result = LoadResult()
    origin, used = time.perf_counter(), time.process_time()
    try:
        with garbage_frozen():
            yield result
    finally:
        result.duration = time.perf_counter() - origin
        result.cores = (time.process_time() - used) / result.duration


async def closed_loop(
    address: Address, requests: Iterable[Request], clients: int, *, judge: Judge | None = None, timeout: float = 60.0
) -> LoadResult:
    """Send all requests from `clients` clients, each of which waits for an answer before it sends the next request.

    judge: called with every reply. timeout: seconds per request.
    """
    connections, remaining = _Connections(address, timeout), iter(requests)

    async def client(result: LoadResult) -> None:
        for request in remaining:
            reply = await connections.send(request, time.perf_counter())
            if judge is not None:
                judge(reply)
            result.replies.append(reply._replace(body=b""))

    with contextlib.closing(connections), _measured() as result:
        await asyncio.gather(*(client(result) for _ in range(clients)))
    return result


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

    requests: enough for `rate` x `seconds`; an iterator that ends earlier ends the trial. judge: called with every
    reply after the last one, since its time would delay the requests. timeout: seconds per request.
    """
    connections = _Connections(address, timeout)
    running: set[asyncio.Task[None]] = set()
    replies: list[TimedReply] = []

    async def send(request: Request, scheduled: float) -> None:
        replies.append(await connections.send(request, scheduled))

    with contextlib.closing(connections), _measured() as result:
        origin = time.perf_counter()
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
    for reply in replies:
        if judge is not None:
            judge(reply)
        result.replies.append(reply._replace(body=b""))
    return result


def _schedule(origin: float, rate: float, seconds: float) -> Iterator[float]:
    for position in itertools.count():
        offset = position / rate
        if offset >= seconds:
            return
        yield origin + offset
