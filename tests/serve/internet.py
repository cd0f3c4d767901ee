"""A small internet on loopback: names, addresses and hosts as a test sets them up, and a canary at every other address.

`SmallInternet.network` replaces the network of `tessella.serve.fetch`. Its sockets are connected to loopback and report
the address that was asked for as their peer; parsing, checks, TLS and HTTP are those of the product.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from tessella.serve.fetch import FetchNetwork

CERTIFICATES = Path(__file__).parent / "certificates"
PUBLIC = "93.184.215.14"
PUBLIC_6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
Handler: TypeAlias = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class SocketTo(socket.socket):
    """A socket that reports `peer` as the address that it is connected to, and `own` as its own."""

    peer = ""
    own = "127.0.0.1"

    def getpeername(self) -> tuple[str, int]:
        return self.peer, 443

    def getsockname(self) -> tuple[str, int]:
        return self.own, 50_000


class SmallInternet:
    """Hosts on loopback, and what a fetch did with them.

    names: the answers of the DNS by name, one per lookup; the last one is repeated. lookups, connected: what was asked
    for and connected to. canary_connections, canary_bytes: what reached an address without a host. peers, own: what a
    socket that is connected to an address reports as its peer, and as its own address.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.lookups: list[str] = []
        self.connected: list[str] = []
        self.canary_connections = 0
        self.canary_bytes = b""
        self.peers: dict[str, str] = {}
        self.own: dict[str, str] = {}
        self._ports: dict[tuple[str, int], int] = {}
        self._canary_port = 0
        self._sockets: list[SocketTo] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SmallInternet:
        self._canary_port = await self._listen(self._canary, None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def network(self) -> FetchNetwork:
        return FetchNetwork(resolve=self._resolve, connect=self._connect, tls=trusted_authority)

    async def add_host(self, handler: Handler, *addresses: str, tls: bool = False) -> None:
        """Serve an address at the usual port of https or http. handler: gets the head of the request."""
        certificate = None
        if tls:
            certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.load_cert_chain(CERTIFICATES / "host.pem")

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(await reader.readuntil(b"\r\n\r\n"), writer)
                await writer.drain()
            writer.close()

        port = await self._listen(answer, certificate)
        for address in addresses or (PUBLIC, PUBLIC_6):
            self._ports[address, 443 if tls else 80] = port

    async def open_sockets(self) -> int:
        """Return how many connections of the fetches are still open, once the event loop has had time to close them."""
        for _ in range(100):
            await asyncio.sleep(0)
        return sum(connection.fileno() != -1 for connection in self._sockets)

    async def _listen(
        self,
        answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        certificate: ssl.SSLContext | None,
    ) -> int:
        server = await self._stack.enter_async_context(listening(answer, certificate))
        return int(server.sockets[0].getsockname()[1])

    async def _canary(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.canary_connections += 1
        with suppress(ConnectionError):
            self.canary_bytes += await reader.read()
        writer.close()

    async def _resolve(self, host: str, port: int) -> list[str]:
        self.lookups.append(host)
        answers = self.names.get(host)
        if answers:
            return answers.pop(0) if len(answers) > 1 else answers[0]
        # what the C library makes of numbers in any notation, without asking a name server
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(entry[4][0]) for entry in entries]

    async def _connect(self, address: str, port: int) -> socket.socket:
        self.connected.append(address)
        local = self._ports.get((address, port), self._canary_port)
        connection = SocketTo(socket.AF_INET, socket.SOCK_STREAM)
        connection.peer = self.peers.get(address, address)
        connection.own = self.own.get(address, "127.0.0.1")
        self._sockets.append(connection)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", local))
        except BaseException:  # the fetch was cancelled
            connection.close()
            raise
        return connection


_AUDITS: list[list[str]] = []  # lists that record events; a hook cannot be removed


@contextmanager
def socket_events() -> Iterator[list[str]]:
    """Record the creation, connection and binding of sockets and all lookups in this process, as they happen."""
    _install_hook()
    events: list[str] = []
    _AUDITS.append(events)
    try:
        yield events
    finally:
        _AUDITS.remove(events)


@functools.cache
def _install_hook() -> None:
    sys.addaudithook(_record)


def _record(event: str, arguments: object) -> None:
    if event.startswith("socket.") and _AUDITS:
        for events in _AUDITS:
            events.append(event)


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], certificate: ssl.SSLContext | None
) -> AsyncIterator[asyncio.Server]:
    """Listen on loopback; when the block ends, all connections are closed."""
    tasks: set[asyncio.Task[None]] = set()

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await answer(reader, writer)
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(follow, "127.0.0.1", 0, ssl=certificate)
    try:
        yield server
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def trusted_authority() -> ssl.SSLContext:
    """Return settings of TLS that trust the authority of the tests only."""
    return ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")


def response(body: bytes = b"image", status: int = 200, *headers: str) -> bytes:
    """Return an HTTP answer with a Content-Length."""
    head = [f"HTTP/1.1 {status} Any", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def always(answer: bytes) -> Handler:
    """Return a handler that gives the same answer to every request."""

    async def handler(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return handler
