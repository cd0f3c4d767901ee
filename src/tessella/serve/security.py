"""The gate around the whole application: no request reaches a route, a mount or a 404 without passing it.

It checks, in this order, the host name, the origin, the token, and the form and size of the body. A body is counted
while it arrives, must be complete within a fixed time, and all bodies together are bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import TessellaError
from ..text import printable
from .problems import Headers, Problem, RequestError, has_body, header_values, problem_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .settings import ServeSettings

logger = logging.getLogger(__name__)
access_logger = logging.getLogger(f"{__name__}.access")

HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/health"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
LINGER = 2.0  # seconds in which the rest of a refused body is read, so that the client sees the answer before a reset
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"(https?)://(.+)")
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_DEFAULT_HEADERS = [  # unless the route has set them
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class ClientGoneError(Exception):
    """The client closed the connection; nobody is left to answer."""


class BodyBudget:
    """Bytes of request bodies that are in memory, over all requests."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    def take(self, count: int) -> None:
        """Count bytes that have arrived. Raises RequestError `overloaded` if all bodies together exceed the limit."""
        self.held += count
        if self.held > self.limit:
            raise RequestError("overloaded", "Other requests are being received; repeat this one later.")

    def release(self, count: int) -> None:
        """Count bytes of a request that is finished."""
        self.held -= count


@dataclass(frozen=True)
class GateHooks:
    """What a gate asks and tells the service behind it.

    refusal: why a request cannot be accepted now, asked before its body is read and before it reaches a route, which
    would cost more than the refusal itself; None to accept it. is_draining: whether connections should be closed after
    their answer. exchange: a context in which a request is read and answered. retry_after: seconds after which a
    refused request may succeed. on_answer: called with every answered request and its status. on_error: called with the
    code of every error that the gate answers with.
    """

    refusal: Callable[[Scope], TessellaError | None] = lambda scope: None
    is_draining: Callable[[], bool] = lambda: False
    exchange: Callable[[], AbstractContextManager[None]] = nullcontext
    retry_after: Callable[[], float] = lambda: 1.0
    on_answer: Callable[[Scope, int], None] = lambda scope, status: None
    on_error: Callable[[str], None] = lambda code: None


class Gate:
    """Pure ASGI middleware around `app`.

    open_paths: exact paths that need no token besides the health routes: the static files of the page. hooks: the
    service behind the application. log_requests: write one JSON object per request to the log
    `tessella.serve.security.access`.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        *,
        open_paths: Collection[str] = (),
        hooks: GateHooks = GateHooks(),
        log_requests: bool = False,
    ) -> None:
        self.app = app
        self.open_paths = HEALTH_PATHS | frozenset(open_paths)
        self.hooks, self.log_requests = hooks, log_requests
        self.max_body_bytes, self.body_timeout = settings.max_body_bytes, settings.body_timeout
        self.budget = BodyBudget(max(settings.queue_bytes, settings.max_body_bytes))
        self._token = None if settings.token is None else _digest(settings.token.encode())
        self._hosts = LOOPBACK_NAMES | {name.lower().strip("[]") for name in (settings.host, *settings.allowed_hosts)}
        self._allowed_hosts = frozenset(name.lower().strip("[]") for name in settings.allowed_hosts)
        self._accepts_addresses = settings.host.strip("[]") not in LOOPBACK_NAMES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on, or answer it with an error."""
        if scope["type"] == "websocket":  # there are none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(self, scope, receive, send)
        scope.setdefault("state", {}).update(request_id=exchange.request_id, count_bytes=exchange.count_bytes)
        with self.hooks.exchange(), self._counted(exchange):
            await self._answer(scope, exchange)

    @contextmanager
    def _counted(self, exchange: Exchange) -> Iterator[None]:
        """Release the bytes of a request at its end, and log it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.budget.release(exchange.received)
            self.hooks.on_answer(exchange.scope, exchange.status)
            if self.log_requests:
                exchange.log(time.perf_counter() - start)

    def refuse_at_once(self, scope: Scope) -> Problem | None:
        """Return the answer to a request that the service has no room for; None for every other request.

        The connection asks this as soon as it has the headers, because an overloaded server would otherwise spend its
        time on refusals: a task and the layers of ASGI cost several times as much as this. scope: needs the keys
        "method", "path" and "headers" only.
        """
        if self.hooks.is_draining() or (refusal := self.hooks.refusal(scope)) is None:
            return None
        try:
            self.check(scope)
        except RequestError:
            return None  # another error comes first
        start = time.perf_counter()
        self.hooks.on_error(refusal.code)
        request_id = _request_id(scope["headers"])
        problem = problem_of(refusal, scope["path"], request_id, retry_after=self.hooks.retry_after())
        self.hooks.on_answer(scope, problem.status)
        if self.log_requests:
            _log(scope, request_id, problem.status, time.perf_counter() - start, 0, len(problem.body))
        return replace(problem, headers=complete_headers(problem.headers, request_id))

    async def _answer(self, scope: Scope, exchange: Exchange) -> None:
        try:
            self.check(scope)
            if (refusal := self.hooks.refusal(scope)) is not None:
                raise refusal
            await self.app(scope, exchange.receive, exchange.send)
        except TessellaError as error:
            await exchange.fail(error)
        except Exception:  # a defect of ours: the client learns nothing but the request id
            logger.exception("request %s failed", exchange.request_id)
            if not exchange.is_complete:
                await exchange.fail(RequestError("internal_error", ""))

    def check(self, scope: Scope) -> None:
        """Check all that is known before the body arrives. Raises RequestError."""
        headers: Headers = scope["headers"]
        self.check_origin(scope["method"], headers, self.check_host(headers))
        if self._token is not None and scope["path"] not in self.open_paths:
            self.check_token(headers)
        encodings = header_values(headers, b"content-encoding")
        if any(value.strip().lower() not in (b"", b"identity") for value in encodings):
            raise RequestError("unsupported_media_type", "The body must not be compressed.")
        for value in header_values(headers, b"content-length"):
            if not value.isdigit() or len(value) > 18:
                raise RequestError("bad_request", "The header Content-Length is not a number.")
            if (size := int(value)) > (limit := self.max_body_bytes):
                raise RequestError("body_too_large", f"The body has {size:,} bytes, the limit is {limit:,}.")

    def check_host(self, headers: Headers) -> tuple[str, str]:
        """Return the name and port of the header Host.

        A page of another site whose name was made to resolve to this machine sends its own name. Addresses cannot be
        made to resolve to anything, so a server that is open to a network accepts every address.
        Raises RequestError `bad_request` without exactly one header, `forbidden_host` for a foreign name.
        """
        values = header_values(headers, b"host")
        if len(values) != 1:
            raise RequestError("bad_request", "The request needs exactly one header Host.")
        authority = _parse_authority(values[0].decode("latin-1"))
        if authority is None:
            raise RequestError("forbidden_host", "")
        name, _ = authority
        if name in self._hosts or (self._accepts_addresses and _is_address(name)):
            return authority
        raise RequestError("forbidden_host", "")

    def check_origin(self, method: str, headers: Headers, host: tuple[str, str]) -> None:
        """Check the headers that browsers add to requests of pages, whatever the method.

        host: name and port of this server, as the client knows it.
        Raises RequestError `forbidden_origin` unless the page is one of this server.
        """
        values = header_values(headers, b"origin")
        if values and (len(values) > 1 or not self._is_own_origin(values[0].decode("latin-1").lower(), host)):
            raise RequestError("forbidden_origin", "")
        site = header_values(headers, b"sec-fetch-site")
        is_foreign = any(value not in (b"same-origin", b"none") for value in site)
        follows_link = method == "GET" and header_values(headers, b"sec-fetch-mode") == [b"navigate"]
        if is_foreign and not follows_link:  # a link to the page of this server is allowed
            raise RequestError("forbidden_origin", "")

    def _is_own_origin(self, origin: str, host: tuple[str, str]) -> bool:
        match = _ORIGIN.fullmatch(origin)
        authority = match and _parse_authority(match[2])
        if not match or not authority:
            return False
        default = "443" if match[1] == "https" else "80"
        name, port = authority[0], authority[1] or default
        return (name, port) == (host[0], host[1] or default) or (name in self._allowed_hosts and port == default)

    def check_token(self, headers: Headers) -> None:
        """Check the token, in a time that does not depend on it. Raises RequestError `unauthorized`."""
        assert self._token is not None
        given = header_values(headers, b"authorization")
        keys = header_values(headers, b"x-api-key")
        if len(given) > 1 or len(keys) > 1:
            raise RequestError("unauthorized", "")
        for value in given:
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                keys = [*keys, token.strip()]
        if not any(hmac.compare_digest(_digest(key), self._token) for key in keys):
            raise RequestError("unauthorized", "")


class Exchange:
    """One request and its answer: counts the body while it arrives, and adds headers to the answer."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate, self.scope = gate, scope
        self.request_id = _request_id(scope["headers"])
        self.status = self.received = self.sent = 0
        self._receive, self._send = receive, send
        self._deadline = asyncio.get_running_loop().time() + gate.body_timeout
        self._is_body_complete = not has_body(scope["headers"])
        self._must_linger = self.is_complete = False

    async def receive(self) -> Message:
        """Return the next part of the body; raises RequestError `body_too_large`, `slow_body` or `overloaded`."""
        if self._is_body_complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise RequestError("slow_body", "The body must arrive faster.") from None
        if message["type"] != "http.request":
            return message
        self.count_bytes(len(message.get("body", b"")))
        if self.received > (limit := self.gate.max_body_bytes):
            raise RequestError("body_too_large", f"The body has more than {limit:,} bytes, which is the limit.")
        self._is_body_complete = not message.get("more_body", False)
        return message

    def count_bytes(self, count: int) -> None:
        """Count bytes that the request holds until its end. Raises RequestError `overloaded`."""
        self.received += count
        self.gate.budget.take(count)

    async def send(self, message: Message) -> None:
        """Send a part of the answer.

        If the body of the request has not been read to its end, the connection is closed after the answer.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._must_linger = not self._is_body_complete
            message = {**message, "headers": self._complete(list(message.get("headers", [])))}
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            if self._must_linger and not message.get("more_body", False):
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    def _complete(self, headers: Headers) -> Headers:
        """Add the headers of every answer."""
        headers = complete_headers(headers, self.request_id)
        if self._must_linger or self.gate.hooks.is_draining():
            headers.append((b"connection", b"close"))
        return headers

    async def _linger(self) -> None:
        """Read and drop the rest of the body for a moment: closing at once would reset the connection."""
        try:
            async with asyncio.timeout(LINGER):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body", False):
                    pass
        except TimeoutError:
            pass

    async def fail(self, error: TessellaError) -> None:
        """Answer with an error, unless the answer has begun: then the server cuts the connection."""
        if self.status:
            raise error
        self.gate.hooks.on_error(error.code)
        seconds = self.gate.hooks.retry_after()
        problem = problem_of(error, self.scope["path"], self.request_id, retry_after=seconds)
        await self.send({"type": "http.response.start", "status": problem.status, "headers": problem.headers})
        await self.send({"type": "http.response.body", "body": problem.body})

    def log(self, seconds: float) -> None:
        """Write a line of JSON about a finished request."""
        _log(self.scope, self.request_id, self.status, seconds, self.received, self.sent)


def complete_headers(headers: Headers, request_id: str) -> Headers:
    """Return the headers of an answer with those that every answer has."""
    names = {name.lower() for name, _ in headers}
    defaults = [(name, value) for name, value in _DEFAULT_HEADERS if name not in names]
    return [*headers, (b"x-request-id", request_id.encode()), *_SECURITY_HEADERS, *defaults]


def _log(scope: Scope, request_id: str, status: int, seconds: float, bytes_in: int, bytes_out: int) -> None:
    client = scope.get("client")
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": request_id,
        "client": client[0] if client else "",
        "method": scope["method"],
        "path": printable(scope["path"]),
        "status": status,
        "ms": round(1000 * seconds, 1),
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
    }
    access_logger.info(json.dumps(row))


def _request_id(headers: Headers) -> str:
    """Return the client's own id if it is harmless, else a new one."""
    values = header_values(headers, b"x-request-id")
    if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]):
        return values[0].decode()
    return secrets.token_hex(8)


def _parse_authority(text: str) -> tuple[str, str] | None:
    """Return host name and port ("" if it is not given), or None if the text is something else."""
    match = _AUTHORITY.fullmatch(text.lower())
    return (match[1] or match[2], match[3] or "") if match else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(token: bytes) -> bytes:
    """Return a hash of fixed length, so that the comparison does not reveal the length of the token either."""
    return hashlib.sha256(token).digest()
