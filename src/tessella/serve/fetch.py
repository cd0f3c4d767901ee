"""Fetch an image from a public URL without becoming a proxy into the private network (SSRF).

The server uses this module only if image URLs are enabled. The rules, each of which every redirect has to pass again:

1. The URL is parsed once and checked (`public_urls.parse_url`): https, its usual port, a full host name or a public
   address.
2. The host is resolved once. Every address of the answer has to be public, since a name that also has a private address
   is either an attack or a mistake.
3. The connection goes to one of these addresses, and before a byte is sent the address of the connected peer is checked
   again, so it does not matter what a later lookup, a route or an address translation would answer.
4. TLS is verified for the host of the URL. No cookies, credentials or proxies are used.
5. The body is counted while it arrives and is never decompressed.

The number of simultaneous fetches is bounded, because each may keep a thread waiting for the DNS.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn
from weakref import WeakKeyDictionary

import h11

from .._version import __version__
from ..data.limits import DEFAULT_LIMITS, Limits
from ..errors import ImageError
from .public_urls import PublicUrl, is_public, parse_url

MAX_BYTES = 20_000_000  # of an image, whatever the limits allow
MAX_REDIRECTS = 5
MAX_FETCHES = 32  # at once in an event loop; others wait, within their own time
CONNECT_SECONDS = 3.0  # per address, so that a dead one leaves time for the others
READ_BYTES = 16_384  # at once; the parser holds up the event loop for each of them
HEADER_BYTES = 16_384
# A body may arrive in pieces that are smaller than their framing, which costs the parser time: so many bytes, besides
# twice those of the body, end the fetch.
FRAMING_BYTES = 65_536
REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, kw_only=True)
class FetchNetwork:
    """How hosts are found and connected to; tests replace it.

    resolve: the addresses of a host name, as text. connect: a connected, non-blocking socket to an address and port.
    tls: the settings under which the certificate of a host is verified.
    """

    resolve: Callable[[str, int], Awaitable[Iterable[str]]]
    connect: Callable[[str, int], Awaitable[socket.socket]]
    tls: Callable[[], ssl.SSLContext]


async def resolve_host(host: str, port: int) -> list[str]:
    """Return the addresses of a host as the operating system finds them.

    A lookup cannot be interrupted. Each has its own thread, which ends with the process, so that a slow name server
    delays neither other work of the event loop's threads nor the end of the program. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def deliver(addresses: list[str] | None, error: OSError | None) -> None:
        if answer.done():  # nobody waits any more
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(addresses or [])

    def look_up() -> None:
        addresses, failure = None, None
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that Python's own codec refuses
            failure = error if isinstance(error, OSError) else OSError(str(error))
        with suppress(RuntimeError):  # the event loop has been closed
            loop.call_soon_threadsafe(deliver, addresses, failure)

    threading.Thread(target=look_up, name="tessella-dns", daemon=True).start()
    return await answer


async def connect_to(address: str, port: int) -> socket.socket:
    """Return a non-blocking socket that is connected to an address; no name is resolved. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection


@functools.cache
def _verified_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()  # verifies the certificate and the host name
    context.set_alpn_protocols(["http/1.1"])
    return context


INTERNET = FetchNetwork(resolve=resolve_host, connect=connect_to, tls=_verified_tls)


async def fetch_image(
    url: str,
    *,
    limits: Limits = DEFAULT_LIMITS,
    timeout: float = 10.0,
    allow_http: bool = False,
    network: FetchNetwork = INTERNET,
) -> bytes:
    """Return the bytes of an image on the public internet, as the server of the URL sends them.

    limits: at most `limits.bytes` and 20 MB are read. timeout: seconds for everything, redirects and waiting for other
    fetches included. allow_http: accept the scheme http as well, though never after a redirect from https.

    Raises ImageError: `url_refused` if the URL or one that it redirects to is not allowed or leads to an address that
    is not public; `url_failed` if there is no answer in time, the certificate is not valid, or the answer is not a
    plain image (a status other than 200, a compressed body, more than 5 redirects); `too_many_bytes`.
    """
    most = min(limits.bytes, MAX_BYTES)
    try:
        async with asyncio.timeout(timeout), _places():
            target = parse_url(url, allow_http=allow_http)
            for _ in range(MAX_REDIRECTS + 1):
                body, location = await _request(target, most, network)
                if location is None:
                    return body
                target = parse_url(target.join(location), allow_http=allow_http and target.scheme == "http")
    except TimeoutError:
        raise _failed(f"the image did not arrive within {timeout:g} seconds") from None
    raise _failed(f"the URL was redirected more than {MAX_REDIRECTS} times")


_PLACES: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def _places() -> asyncio.Semaphore:
    return _PLACES.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(MAX_FETCHES))


async def _request(target: PublicUrl, most: int, network: FetchNetwork) -> tuple[bytes, str | None]:
    """Return the body of the answer or, for a redirect, an empty body and the location."""
    connection = await _open_checked(target, network)
    secure = target.scheme == "https"
    try:
        reader, writer = await asyncio.open_connection(
            sock=connection,
            ssl=network.tls() if secure else None,
            server_hostname=target.host if secure else None,
            limit=READ_BYTES,
        )
    except OSError as error:  # includes all errors of TLS
        connection.close()
        reason = "the certificate of the host is not valid" if isinstance(error, ssl.SSLError) else "it was closed"
        raise _failed(f"no connection to the host of the URL: {reason}") from None
    except BaseException:
        connection.close()
        raise
    try:
        return await _exchange(target, most, reader, writer)
    except h11.RemoteProtocolError:
        raise _failed("the host of the URL does not answer with valid HTTP") from None
    except OSError:
        raise _failed("the host of the URL closed the connection") from None
    finally:
        writer.transport.abort()  # waits for nothing: the peer may not be interested in an orderly end


async def _open_checked(target: PublicUrl, network: FetchNetwork) -> socket.socket:
    """Return a connection to the host of a URL whose peer is public; nothing has been sent on it."""
    if target.address is not None:
        addresses = [target.host]
    else:
        try:
            addresses = list(await network.resolve(target.host, target.port))
        except OSError:
            raise _failed("the host of the URL was not found") from None
    if not all(map(is_public, addresses)):
        raise _refused("the host of the URL has an address that is not public")
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await network.connect(address, target.port)
        except OSError:  # includes TimeoutError: the next address may answer
            continue
        try:
            _check_peer(connection)
        except BaseException:
            connection.close()
            raise
        return connection
    raise _failed("no connection to the host of the URL")


def _check_peer(connection: socket.socket) -> None:
    """Raise ImageError `url_refused` if a socket is connected to a private address, or to this machine itself."""
    try:
        peer, own = str(connection.getpeername()[0]), str(connection.getsockname()[0])
    except OSError:
        raise _failed("the host of the URL closed the connection") from None
    if not is_public(peer) or peer == own:  # a public address of this machine reaches its private services, too
        raise _refused("the host of the URL has an address that is not public")


async def _exchange(
    target: PublicUrl, most: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[bytes, str | None]:
    """Send the request and return the answer, as `_request` does."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_BYTES)
    headers = [
        ("Host", target.authority),
        ("User-Agent", f"tessella/{__version__}"),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    writer.write(parser.send(h11.Request(method="GET", target=target.target, headers=headers)) or b"")
    writer.write(parser.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    body = bytearray()
    received = 0
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(READ_BYTES)
            received += len(data)
            if received > 2 * len(body) + FRAMING_BYTES:
                raise _failed("the answer is framed in too many pieces")
            parser.receive_data(data)
        elif isinstance(event, h11.Response):
            if event.status_code in REDIRECTS:
                return b"", _location(event)
            _check_answer(event, most)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most:
                raise _too_many_bytes(most)
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body), None
        elif not isinstance(event, h11.InformationalResponse):
            raise _failed("the host of the URL closed the connection")


def _values(answer: h11.Response, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in answer.headers if key == name]


def _location(answer: h11.Response) -> str:
    locations = _values(answer, b"location")
    if len(locations) != 1:
        raise _failed("the URL was redirected without a location")
    return locations[0]


def _check_answer(answer: h11.Response, most: int) -> None:
    """Refuse an answer that is not a plain body, before any of it is read."""
    if answer.status_code != 200:
        raise _failed(f"the host of the URL answered with status {answer.status_code}")
    if any(value.lower() != "identity" for value in _values(answer, b"content-encoding")):
        raise _failed("the host of the URL sent a compressed body, which was not asked for")
    if any(int(value) > most for value in _values(answer, b"content-length")):  # h11 has checked that it is a number
        raise _too_many_bytes(most)


def _refused(message: str) -> ImageError:
    return ImageError("url_refused", message, hint="give the https URL of an image on a public host")


def _failed(message: str) -> ImageError:
    return ImageError("url_failed", message)


def _too_many_bytes(most: int) -> NoReturn:
    raise ImageError("too_many_bytes", f"the image has more than {most:,} bytes, which is the limit")
