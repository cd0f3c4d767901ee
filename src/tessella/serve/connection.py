"""HTTP connections with limits that uvicorn does not have: on headers, on waiting, on reading, and on their number.

The limits hold before a request exists, so the gate around the application cannot enforce them.
"""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .problems import make_problem

MAX_HEADERS = 128
MAX_HEADER_BYTES = 32 * 1024  # request line and headers
BYTES_PER_CHUNK = 8  # a byte of the body may come with seven of framing, as in "1\r\nx\r\n"
MAX_FRAMING_BYTES = 128 * 1024  # beyond that: sizes and extensions of chunks, and headers after the body
MAX_CONNECTIONS = 1000
MAX_PIPELINED = 16  # requests that wait on one connection for the answer to an earlier one
REQUEST_WAIT = 15.0  # seconds to the end of the headers, from the connection's begin or the answer before
READ_WAIT = 10.0  # seconds in which a client must read READ_BYTES of an answer
READ_BYTES = 64 * 1024


class RefusedRequestError(Exception):
    """What arrives is not a request that this server answers; ends the parser."""


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's connection with limits; `check` is to be called about once per second."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection. If there are too many, one that has not sent a request is closed, or else this one."""
        super().connection_made(transport)
        self._is_in_headers = False
        self._header_bytes = self._header_count = 0
        self._packet = self._framing = 0  # bytes of the last packet; bytes of the request that are not its body
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
        self._packet = len(data)
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
        # the packet belongs to this request, unless it may begin with the end of another one
        self._framing = 0 if self._waiting_since is not None else -self._packet

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
        self._is_in_headers, self._waiting_since = False, None
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, which may be one byte in a chunk of its own."""
        self._framing -= BYTES_PER_CHUNK * len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has arrived already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._waiting_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not a request; an answer to an earlier request that is still being sent is not mixed up."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        code = "headers_too_large" if self._has_too_large_headers() else "bad_request"
        request_id = secrets.token_hex(8)
        problem = make_problem(code, "", request_id)
        lines = [b"HTTP/1.1 %d %s\r\n" % (problem.status, HTTPStatus(problem.status).phrase.encode())]
        extra = [(b"x-request-id", request_id.encode()), (b"connection", b"close")]
        lines += [b"%s: %s\r\n" % header for header in (*problem.headers, *extra)]
        self.transport.write(b"".join([*lines, b"\r\n", problem.body]))
        self.transport.close()


def limited_connections(connections: object) -> list[LimitedConnection]:
    """Return the open connections of a server, from uvicorn's set."""
    assert isinstance(connections, set)
    return [item for item in connections if isinstance(item, LimitedConnection)]
