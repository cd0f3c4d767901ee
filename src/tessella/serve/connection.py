"""HTTP connections with limits that uvicorn does not have: on headers, on waiting, on reading, and on their number.

The limits hold before a request exists, so the gate around the application cannot enforce them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .problems import Headers, Problem, has_body, header_values, make_problem

if TYPE_CHECKING:
    from starlette.types import Scope

logger = logging.getLogger(__name__)

MAX_HEADERS = 128
MAX_HEADER_BYTES = 32 * 1024  # request line and headers
BYTES_PER_CHUNK = 8  # a byte of the body may come with seven of framing, as in "1\r\nx\r\n"
MAX_FRAMING_BYTES = 128 * 1024  # beyond that: sizes and extensions of chunks, and headers after the body
MAX_CONNECTIONS = 1000
MAX_PIPELINED = 16  # requests on one connection that wait for the answer to an earlier one, or are refused in a packet
REQUEST_WAIT = 15.0  # seconds to the end of the headers, from the connection's begin or the answer before
READ_WAIT = 10.0  # seconds in which a client must read READ_BYTES of an answer
READ_BYTES = 64 * 1024
MAX_DROPPED_BYTES = 1024 * 1024  # of a refused request's body; the connection of a larger one is closed


class RefusedRequestError(Exception):
    """What arrives is not a request that this server answers; ends the parser."""


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's connection with limits; `check` is to be called about once per second.

    refuse: returns the answer to a request that must be refused before its body arrives, None for others. It is sent
    without the application, and the connection stays open: clients that connect again for each attempt add to the load.
    """

    refuse: Callable[[Scope], Problem | None] | None = None  # see `refusing_connection`

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection. If there are too many, one that has not sent a request is closed, or else this one."""
        super().connection_made(transport)
        self._is_in_headers = False
        self._header_bytes = self._header_count = 0
        self._packet = self._framing = 0  # bytes of the last packet; bytes of the request that are not its body
        self._starts_request = True  # the packet is the first one of the next request
        self._is_dropping = False  # what arrives is the body of a refused request
        self._refused = 0  # requests in the last packet that were refused here
        self._waiting_since: float | None = self.loop.time()
        self._unread: tuple[float, int] | None = None  # when the answer was last found to be read, and what was left
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [item for item in limited_connections(self.connections) if item.waiting_since is not None]
            oldest = min(waiting, key=lambda item: item.waiting_since or 0.0)
            oldest.transport.abort()

    @property
    def waiting_since(self) -> float | None:
        """The loop's time since when a request is awaited; None while one is handled."""
        return self._waiting_since

    def check(self, now: float) -> None:
        """Close the connection if the client has sent no request, or has read too little, for too long."""
        size = self.transport.get_write_buffer_size()
        if size:
            if self._waiting_since is not None:
                self._waiting_since = now
            if self._unread is None:
                self._unread = (now, size)
            elif now - self._unread[0] > READ_WAIT:
                if size > max(0, self._unread[1] - READ_BYTES):
                    self.transport.abort()
                self._unread = (now, size)
            return
        self._unread = None
        if self._waiting_since is not None and now - self._waiting_since > REQUEST_WAIT:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take a packet. The parser reports a header when it is complete, so its length is bounded here."""
        self._packet, self._refused = len(data), 0
        self._starts_request = not (self._is_in_headers or self._is_dropping or self._waiting_since is None)
        super().data_received(data)
        self._framing += len(data)
        if self._framing <= MAX_HEADER_BYTES or self.transport.is_closing():
            return
        if self._is_in_headers:
            self._header_bytes = self._framing
            self.send_400_response("")
        elif self._framing > MAX_FRAMING_BYTES:
            self.transport.abort()

    # --- callbacks of the parser ---

    def on_message_begin(self) -> None:
        """Begin to count the headers of a request."""
        super().on_message_begin()
        self._is_in_headers = True
        self._header_bytes = self._header_count = 0
        # the packet belongs to this request, unless it begins with another one
        self._framing = 0 if self._starts_request else -self._packet
        self._starts_request = False

    def on_url(self, url: bytes) -> None:
        """Take a part of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those after a chunked body are dropped, because the request was checked without them."""
        self._header_count += 1
        self._count(len(name) + len(value))
        if self._is_in_headers:
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._has_too_large_headers():
            raise RefusedRequestError

    def _has_too_large_headers(self) -> bool:
        return self._header_bytes > MAX_HEADER_BYTES or self._header_count > MAX_HEADERS

    def on_headers_complete(self) -> None:
        """Start to handle the request."""
        if self.parser.get_http_version() not in ("1.0", "1.1"):  # the parser accepts 0.9 and 2.0, too
            raise RefusedRequestError
        if not self.url.startswith(b"/") and self.url != b"*":  # for a proxy, with a host beside that of the header
            raise RefusedRequestError
        if self.parser.should_upgrade() and has_body(self.headers):  # the parser would take the body for a request
            raise RefusedRequestError
        self._is_in_headers = False
        self._unset_keepalive_if_required()  # a refused request in the same packet has started this timer
        if (answer := self._refusal()) is not None:
            self._refuse(answer)
            return
        self._waiting_since = None
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, which may be one byte in a chunk of its own."""
        self._framing -= BYTES_PER_CHUNK * len(body)
        if not self._is_dropping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        if not self._is_dropping:
            super().on_message_complete()
            return
        self._is_dropping = False
        super().on_response_complete()  # uvicorn's part only: it waits for the next request
        self._waiting_since = self.loop.time()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has arrived already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._waiting_since = self.loop.time()

    # --- answers without the application ---

    def _refusal(self) -> Problem | None:
        """Return the application's refusal if it can be sent at once: nothing else is being sent or asked for."""
        if self.refuse is None or not (self.cycle is None or self.cycle.response_complete):
            return None
        if self.expect_100_continue or self.parser.should_upgrade() or not self.parser.should_keep_alive():
            return None
        if self.parser.get_http_version() == "1.0" or self._refused == MAX_PIPELINED:
            return None
        if self.transport.get_write_buffer_size() or not _is_short(self.headers):
            return None
        path = self.url.partition(b"?")[0].decode("latin-1")
        scope: Scope = {**self.scope, "method": self.parser.get_method().decode("ascii"), "path": path}
        try:
            return self.refuse(scope)
        except Exception:  # a defect of ours: the gate meets it again, and answers
            logger.exception("a request could not be refused")
            return None

    def _refuse(self, answer: Problem) -> None:
        """Send an answer, and drop the body of the request, which must arrive in the time of a request's headers."""
        self._refused += 1
        self.transport.write(_response(answer, [*self.server_state.default_headers, *answer.headers]))
        self._is_dropping = True
        self._waiting_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not a request; an answer to an earlier request that is still being sent is not mixed up."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        code = "headers_too_large" if self._has_too_large_headers() else "bad_request"
        request_id = secrets.token_hex(8)
        problem = make_problem(code, "", request_id)
        extra = [(b"x-request-id", request_id.encode()), (b"connection", b"close")]
        self.transport.write(_response(problem, [*problem.headers, *extra]))
        self.transport.close()


def refusing_connection(refuse: Callable[[Scope], Problem | None]) -> type[LimitedConnection]:
    """Return the class of connections that ask this function about every request that they could refuse."""
    return type("RefusingConnection", (LimitedConnection,), {"refuse": staticmethod(refuse)})


def _response(answer: Problem, headers: Headers) -> bytes:
    lines = [b"HTTP/1.1 %d %s\r\n" % (answer.status, HTTPStatus(answer.status).phrase.encode())]
    lines += [b"%s: %s\r\n" % header for header in headers]
    return b"".join([*lines, b"\r\n", answer.body])


def _is_short(headers: Headers) -> bool:
    """Return whether a request has no body, or one that is short enough to be dropped."""
    lengths = header_values(headers, b"content-length")
    if header_values(headers, b"transfer-encoding") or len(lengths) > 1:
        return False
    return not lengths or (lengths[0].isdigit() and len(lengths[0]) < 18 and int(lengths[0]) <= MAX_DROPPED_BYTES)


def limited_connections(connections: object) -> list[LimitedConnection]:
    """Return the open connections of a server, from uvicorn's set."""
    assert isinstance(connections, set)
    return [item for item in connections if isinstance(item, LimitedConnection)]
