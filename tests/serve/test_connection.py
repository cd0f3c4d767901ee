"""Limits of connections: their number, clients that send no request, clients that do not read their answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from tessella.serve import connection
from tessella.serve.connection import LimitedConnection, limited_connections, refusing_connection
from tessella.serve.problems import Problem
from tessella.serve.runner import check_connections

from .servers import request_bytes

GET = request_bytes("GET", "/")
LONG = 40_000_000  # bytes of an answer, far more than the buffers of a connection


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    body = b"x" * (LONG if scope["path"] == "/long" else 5)
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


class Clients:
    """Connections to a server, which are closed at the end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def running(app: Any = answer, keep_alive: int = 60) -> AsyncIterator[tuple[uvicorn.Server, Clients]]:
    """Serve in this process, with the connections checked very often."""
    config = uvicorn.Config(
        app,
        port=0,
        lifespan="off",
        log_config=None,
        http=refusing_connection(app.refuse_at_once) if isinstance(app, Busy) else LimitedConnection,
        ws="none",
        timeout_keep_alive=keep_alive,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    checking = asyncio.create_task(check_connections(server, every=0.02))
    clients = Clients(server.servers[0].sockets[0].getsockname()[1])
    try:
        yield server, clients
    finally:
        await clients.close()
        checking.cancel()
        server.should_exit = server.force_exit = True
        await serving


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the server closes a connection, and return whether it does."""
    try:
        await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"G", b"\r\n\r\n", GET[:-2], b"POST / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_client_without_a_request_is_disconnected(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_WAIT", 0.1)

    async def run() -> None:
        async with running() as (_, clients):
            reader, writer = await clients.open()
            writer.write(sent)
            assert await is_closed(reader)

    asyncio.run(run())


def test_bytes_that_begin_no_request_do_not_keep_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither empty lines nor a header that grows by one byte at a time."""
    monkeypatch.setattr(connection, "REQUEST_WAIT", 0.3)

    async def run() -> None:
        async with running() as (_, clients):
            for start, drip in ((b"", b"\r\n"), (GET[:-2], b"x")):
                reader, writer = await clients.open()
                writer.write(start)
                closed = asyncio.create_task(is_closed(reader))
                while not closed.done():
                    writer.write(drip)
                    await asyncio.sleep(0.02)
                assert await closed

    asyncio.run(run())


def test_an_idle_connection_is_disconnected_and_a_busy_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_WAIT", 0.3)
    go_on = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await go_on.wait()
        await answer(scope, receive, send)

    async def run() -> None:
        async with running(wait) as (_, clients):
            busy, writer = await clients.open()
            writer.write(request_bytes("GET", "/wait"))
            idle, writer = await clients.open()
            writer.write(GET)
            assert (await idle.readuntil(b"xxxxx")).endswith(b"xxxxx")
            assert await is_closed(idle)
            go_on.set()
            assert (await busy.readuntil(b"xxxxx")).startswith(b"HTTP/1.1 200")

    asyncio.run(run())


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_WAIT", 0.2)
    monkeypatch.setattr(connection, "REQUEST_WAIT", 0.1)

    async def run() -> None:
        async with running() as (server, clients):
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", clients.port))
                await loop.sock_sendall(client, request_bytes("GET", "/long"))
                while not limited_connections(server.server_state.connections):
                    await asyncio.sleep(0.01)
                async with asyncio.timeout(60):
                    while server.server_state.connections:
                        await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_client_that_reads_slowly_gets_its_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far longer than the waiting times, but at more than the least rate."""
    monkeypatch.setattr(connection, "READ_WAIT", 0.1)
    monkeypatch.setattr(connection, "REQUEST_WAIT", 0.1)

    async def run() -> int:
        async with running() as (_, clients):
            reader, writer = await clients.open()
            writer.write(request_bytes("GET", "/long"))
            await reader.readuntil(b"\r\n\r\n")
            received = 0
            while received < LONG:
                received += len(await reader.read(1_000_000))
                await asyncio.sleep(0.01)
            return received

    assert asyncio.run(run()) == LONG


def test_beyond_the_limit_the_longest_waiting_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)

    async def run() -> None:
        async with running() as (_, clients):
            idle = [await clients.open() for _ in range(3)]
            await asyncio.sleep(0.05)
            reader, writer = await clients.open()
            writer.write(GET)
            assert (await reader.readuntil(b"xxxxx")).startswith(b"HTTP/1.1 200")
            assert await is_closed(idle[0][0])
            idle[1][1].write(GET)
            assert (await idle[1][0].readuntil(b"xxxxx")).startswith(b"HTTP/1.1 200")

    asyncio.run(run())


def test_requests_in_work_are_not_closed_for_new_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 2)
    go_on = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await answer(scope, receive, send)

    async def run() -> None:
        async with running(wait) as (_, clients):
            busy = [await clients.open() for _ in range(2)]
            for _, writer in busy:
                writer.write(GET)
            await asyncio.sleep(0.1)
            reader, _ = await clients.open()
            assert await is_closed(reader)
            go_on.set()
            for reader, _ in busy:
                assert (await reader.readuntil(b"xxxxx")).startswith(b"HTTP/1.1 200")

    asyncio.run(run())


def test_headers_after_a_body_are_dropped() -> None:
    """They could change headers that the gate has checked."""
    seen: list[list[tuple[bytes, bytes]]] = []

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        seen.append(list(scope["headers"]))
        await answer(scope, receive, send)

    async def run() -> None:
        async with running(read) as (_, clients):
            reader, writer = await clients.open()
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"1\r\nx\r\n0\r\nHost: evil.example\r\nAuthorization: Bearer x\r\n\r\n")
            assert (await reader.readuntil(b"xxxxx")).startswith(b"HTTP/1.1 200")

    asyncio.run(run())
    assert seen == [[(b"host", b"localhost"), (b"transfer-encoding", b"chunked")]]


@pytest.mark.parametrize("size", [40_000, 200_000])
def test_a_long_header_is_refused_although_it_has_no_end(size: int) -> None:
    """It arrives in one packet, or in few of them, and the parser has not reported it yet."""

    async def run() -> bytes:
        async with running() as (_, clients):
            reader, writer = await clients.open()
            writer.write(GET[:-2] + b"X: " + b"a" * size)
            return await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)

    assert asyncio.run(run()).startswith(b"HTTP/1.1 431 ")


def test_a_pipelined_request_after_a_long_body_is_not_refused() -> None:
    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        await answer(scope, receive, send)

    async def run() -> None:
        async with running(read) as (_, clients):
            reader, writer = await clients.open()
            body = b"x" * 60_000
            head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
            writer.write((head + body) * 3 + GET[:-2])
            await asyncio.sleep(0.1)
            writer.write(b"\r\n")
            for _ in range(4):
                assert (await asyncio.wait_for(reader.readuntil(b"xxxxx"), 60)).startswith(b"HTTP/1.1 200")

    asyncio.run(run())


# --- refused requests -------------------------------------------------------------------------------------------------

POST = request_bytes("POST", "/", b"x" * 100)
REFUSED = Problem(429, [(b"content-length", b"4")], b"full")


class Busy:
    """An application that refuses requests at once while it is full; otherwise it answers with the body."""

    def __init__(self, *, is_full: bool = True, seconds: float = 0.0) -> None:
        self.is_full, self.seconds = is_full, seconds
        self.refused, self.bodies = 0, list[bytes]()

    def refuse_at_once(self, scope: Scope) -> Problem | None:
        if not self.is_full or scope["path"] != "/":
            return None
        self.refused += 1
        return REFUSED

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        await asyncio.sleep(self.seconds)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})


async def statuses(reader: asyncio.StreamReader, count: int) -> list[int]:
    """Read answers, whose bodies must be complete, and return their statuses."""
    found = []
    for _ in range(count):
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode()
        status = int(head.split()[1])
        assert await reader.readexactly(4 if status == 429 else 5) == (b"full" if status == 429 else b"hello")
        assert "connection: close" not in head.lower()
        found.append(status)
    return found


@pytest.mark.parametrize("size", [0, 1, 100, 60_000, 1024 * 1024])
@pytest.mark.parametrize("piece", [7_000, 1 << 30])
def test_refused_requests_keep_the_connection(size: int, piece: int) -> None:
    async def run() -> None:
        app = Busy()
        async with running(app) as (_, clients):
            reader, writer = await clients.open()
            request = request_bytes("POST", "/", b"x" * size)
            wire = request * 3 + request_bytes("POST", "/other", b"y" * 50_000) + request * 2
            for start in range(0, len(wire), piece):
                writer.write(wire[start : start + piece])
                await writer.drain()
            # those behind the one that is being answered wait for it in the application's queue
            assert (await statuses(reader, 4)) == [429, 429, 429, 200]
            app.is_full = False
            rest = await statuses(reader, 2)
            assert set(rest) <= {200, 429}
            writer.write(request)
            assert await statuses(reader, 1) == [200]
            assert app.bodies[0] == b"y" * 50_000
            assert app.bodies[-1] == b"x" * size

    asyncio.run(run())


def test_headers_of_a_request_after_a_refused_one_are_still_bounded() -> None:
    async def run() -> None:
        async with running(Busy()) as (_, clients):
            reader, writer = await clients.open()
            writer.write(POST)
            assert await statuses(reader, 1) == [429]
            writer.write(POST.partition(b"\r\n\r\n")[0] + b"\r\nA: " + b"x" * 40_000)
            assert (await reader.readline()).startswith(b"HTTP/1.1 431")

    asyncio.run(run())


@pytest.mark.parametrize("rest", [b"", b"x"])
def test_a_refused_body_must_arrive_in_time(rest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_WAIT", 0.2)

    async def run() -> None:
        async with running(Busy()) as (_, clients):
            reader, writer = await clients.open()
            writer.write(POST[:-50])
            assert await statuses(reader, 1) == [429]
            writer.write(rest)
            assert await is_closed(reader)

    asyncio.run(run())


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": str(1024 * 1024 + 1)},
        {"Content-Length": "1", "Expect": "100-continue"},
        {"Content-Length": "1", "Connection": "close"},
        {"Transfer-Encoding": "chunked"},
    ],
    ids=["long", "expect", "close", "chunked"],
)
def test_bodies_that_may_not_be_dropped_reach_the_application(headers: dict[str, str]) -> None:
    async def run() -> None:
        app = Busy()
        async with running(app) as (_, clients):
            _, writer = await clients.open()
            lines = [f"{name}: {value}" for name, value in headers.items()]
            writer.write("\r\n".join(["POST / HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
            if "Transfer-Encoding" in headers:
                writer.write(b"1\r\nx\r\n0\r\n\r\n")
            else:
                writer.write(b"x" * int(headers["Content-Length"]))
            async with asyncio.timeout(60):
                while not app.bodies:
                    await asyncio.sleep(0.01)
            assert app.refused == 0

    asyncio.run(run())


def test_a_slow_request_behind_a_refused_one_is_answered() -> None:
    """The wait for the next request ends with its first byte, even if that is in the same packet."""

    async def run() -> None:
        async with running(Busy(seconds=1.5), keep_alive=1) as (_, clients):
            reader, writer = await clients.open()
            writer.write(POST + request_bytes("POST", "/other", b"x"))
            assert await statuses(reader, 2) == [429, 200]
            assert await is_closed(reader)  # nothing more comes

    asyncio.run(run())


def test_a_packet_full_of_requests_does_not_stop_the_server() -> None:
    async def run() -> None:
        app = Busy()
        async with running(app) as (_, clients):
            reader, writer = await clients.open()
            writer.write(request_bytes("POST", "/") * 1000)
            assert await is_closed(reader)
            assert app.refused <= 2 * connection.MAX_PIPELINED

    asyncio.run(run())


def test_old_clients_are_refused_by_the_application() -> None:
    async def run() -> None:
        app = Busy()
        async with running(app) as (_, clients):
            reader, writer = await clients.open()
            writer.write(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx")
            assert b"hello" in await asyncio.wait_for(reader.read(), 60)
            assert app.refused == 0

    asyncio.run(run())


def test_a_defect_in_refusing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Defective(Busy):
        def refuse_at_once(self, scope: Scope) -> Problem | None:
            raise ZeroDivisionError

    async def run() -> None:
        async with running(Defective()) as (_, clients):
            reader, writer = await clients.open()
            writer.write(POST)
            assert await statuses(reader, 1) == [200]

    asyncio.run(run())
    assert "a request could not be refused" in caplog.text


def test_a_client_that_reads_no_refusals_is_not_sent_more() -> None:
    async def run() -> None:
        app = Busy()
        async with running(app) as (server, clients):
            _, writer = await clients.open()
            (made,) = [item async for item in _connected(server)]
            with suppress(TimeoutError, ConnectionError):  # it may also be disconnected
                async with asyncio.timeout(3):
                    while True:
                        writer.write(POST * 100)
                        await writer.drain()
                        assert made.transport.get_write_buffer_size() < 1 << 18
            assert app.refused > 0

    asyncio.run(run())


async def _connected(server: uvicorn.Server) -> AsyncIterator[LimitedConnection]:
    while not (found := limited_connections(server.server_state.connections)):
        await asyncio.sleep(0.01)
    for item in found:
        yield item
