"""The gate: who may ask, from where, with what; on every route and for every method."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import inspect
import json
import logging
import re
import socket
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from tessella.errors import ServeError, UsageError
from tessella.serve import ServeSettings, Service
from tessella.serve.app import ModelRoutes, create_app
from tessella.serve.connection import LimitedConnection
from tessella.serve.problems import RequestError
from tessella.serve.routes import page
from tessella.serve.runner import _Run
from tessella.serve.security import HEALTH_PATHS, Gate

from .conftest import TOKEN
from .leaks import find_leaks

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
UNKNOWN = (
    "/",
    "/v1",
    "/v1/",
    "/nothing",
    "/healthz/",
    "//healthz",
    "/HEALTHZ",
    "/v1/classify/",
    "/static/x.js",
    "*",
    "",
)
Headers = list[tuple[bytes, bytes]]


class Call:
    """One call of an ASGI application with a scope of our own, and what it answered."""

    def __init__(self, app: Any, method: str, path: str, headers: Headers, body: list[Message] | None = None) -> None:
        self.messages = body if body is not None else [{"type": "http.request", "body": b"", "more_body": False}]
        self.sent: list[Message] = []
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path.partition("?")[0],
            "raw_path": path.encode(),
            "query_string": path.partition("?")[2].encode(),
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 5000),
            "server": ("127.0.0.1", 8000),
        }
        self.app = app

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self) -> Call:
        await self.app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def code(self) -> str:
        return self.headers.get(b"x-tessella-error", b"").decode()


def call(app: Any, method: str, path: str, headers: Headers, body: list[Message] | None = None) -> Call:
    return asyncio.run(Call(app, method, path, headers, body).run())


HOST = (b"host", b"localhost:8000")


def new_app(**settings: Any) -> Gate:
    """The whole application around a service that has loaded nothing."""
    checked = ServeSettings(**settings)
    return create_app(Service(checked), checked)


@pytest.fixture(scope="module")
def guarded() -> Gate:
    return new_app(token=TOKEN)


@pytest.fixture(scope="module")
def paths(guarded: Gate) -> list[str]:
    """Every path of the application, with the parameters of its template filled in."""
    routes = guarded.app.app.state.routes  # type: ignore[attr-defined]
    return sorted({re.sub(r"\{[^}]*\}", "1", route.path) for route in routes})


# --- token ------------------------------------------------------------------------------------------------------------

CREDENTIALS: dict[str, Headers] = {
    "none": [],
    "wrong": [(b"authorization", b"Bearer wrong")],
    "empty": [(b"authorization", b"")],
    "empty bearer": [(b"authorization", b"Bearer ")],
    "prefix": [(b"authorization", b"Bearer " + TOKEN[:-1].encode())],
    "longer": [(b"authorization", b"Bearer " + TOKEN.encode() + b"x")],
    "case": [(b"authorization", b"Bearer " + TOKEN.upper().encode())],
    "other scheme": [(b"authorization", b"Basic " + TOKEN.encode())],
    "no scheme": [(b"authorization", TOKEN.encode())],
    "twice": [(b"authorization", b"Bearer " + TOKEN.encode())] * 2,
    "wrong key": [(b"x-api-key", b"wrong")],
    "empty key": [(b"x-api-key", b"")],
    "key twice": [(b"x-api-key", TOKEN.encode())] * 2,
    "cookie": [(b"cookie", b"token=" + TOKEN.encode())],
    "not ASCII": [(b"authorization", b"Bearer \xff\xfe")],
}
QUERIES = (
    "",
    f"?token={TOKEN}",
    f"?access_token={TOKEN}&api_key={TOKEN}&X-API-Key={TOKEN}&authorization=Bearer+{TOKEN}",
)


def test_no_request_without_the_token_passes(guarded: Gate, paths: list[str]) -> None:
    """Every route and every unknown path, with every method and every kind of wrong credential."""
    assert guarded.open_paths == HEALTH_PATHS | page.OPEN_PATHS
    assert {"/v1/classify", "/v1/embed", "/v1/predict", "/v1/models", "/metrics", "/openapi.json"} <= set(paths)

    async def walk() -> int:
        count = 0
        for path in [*paths, *UNKNOWN]:
            if path in guarded.open_paths:
                continue
            for method in METHODS:
                for name, headers in CREDENTIALS.items():
                    for query in QUERIES:
                        done = await Call(guarded, method, path + query, [HOST, *headers]).run()
                        assert (done.status, done.code) == (401, "unauthorized"), (method, path, name, query)
                        assert done.headers[b"www-authenticate"] == b"Bearer"
                        assert find_leaks(done.body) == []
                        count += 1
        return count

    assert asyncio.run(walk()) > 5_000


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + TOKEN.encode())],
        [(b"authorization", b"bearer  " + TOKEN.encode())],
        [(b"x-api-key", TOKEN.encode())],
        [(b"x-api-key", TOKEN.encode()), (b"authorization", b"Basic abc")],
        [(b"x-api-key", b"unused"), (b"authorization", b"Bearer " + TOKEN.encode())],
    ],
)
def test_the_token_opens_every_route(guarded: Gate, paths: list[str], headers: Headers) -> None:
    for path in [*paths, "/nothing"]:
        assert call(guarded, "DELETE", path, [HOST, *headers]).status in (404, 405)
    assert call(guarded, "GET", "/v1/models", [HOST, *headers]).status == 200


@pytest.mark.parametrize("path", sorted(HEALTH_PATHS))
@pytest.mark.parametrize("method", METHODS)
def test_health_needs_no_token(guarded: Gate, method: str, path: str) -> None:
    assert call(guarded, method, path, [HOST]).status in (200, 404, 405, 503)


def test_open_paths_are_exact() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gate = Gate(inner, ServeSettings(token=TOKEN), open_paths=["/page.js"])
    assert call(gate, "GET", "/page.js", [HOST]).status == 204
    for path in ("/page.js/", "/page.jsx", "/Page.js", "//page.js", "/page.js/../v1/models", "/page", "/./page.js"):
        assert call(gate, "GET", path, [HOST]).status == 401, path


def test_tokens_are_compared_in_constant_time(guarded: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    compare_digest = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return compare_digest(first, second)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (b"a", b"b" * 5000, TOKEN.encode()):
        call(guarded, "GET", "/v1/models", [HOST, (b"authorization", b"Bearer " + given)])
    assert len(compared) == 3
    assert {len(value) for pair in compared for value in pair} == {32}  # hashes: the length of a token has no effect


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "10.0.0.1"])
def test_a_server_that_others_can_reach_needs_a_token(host: str) -> None:
    with pytest.raises(UsageError, match="token"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, token=TOKEN).host == host


# --- host and origin --------------------------------------------------------------------------------------------------

FOREIGN_HOSTS = [
    *(
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "localhost@evil.example",
        "evil.example#localhost",
    ),
    *(
        "127.0.0.1.nip.io",
        "127.0.0.2",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "192.168.1.5",
        "0.0.0.0",
        "[::]",
    ),
    *("[::ffff:127.0.0.1]", "localhost.", "localhost:", "localhost:x", "localhost:99999999", "localhost:8000:8000"),
    *("", " ", "localhost ", " localhost", "localhost/", "localhost\\", "localhost,evil.example", "local host"),
    *("[::1", "::1", "[::1]x", "[localhost]", "localhost\x00", "l\xf6calhost", "xn--lcalhost-n4a", "*", "null"),
]
OWN_HOSTS = [
    "localhost",
    "LOCALHOST",
    "localhost:8000",
    "localhost:1",
    "127.0.0.1",
    "127.0.0.1:8000",
    "[::1]",
    "[::1]:80",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/nothing"])
def test_other_host_names_are_refused(host: str, path: str) -> None:
    done = call(new_app(), "GET", path, [(b"host", host.encode("latin-1"))])
    assert (done.status, done.code) == (403, "forbidden_host")


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_own_host_names_are_accepted(host: str) -> None:
    assert call(new_app(), "GET", "/healthz", [(b"host", host.encode())]).status == 200


def test_exactly_one_host_is_needed() -> None:
    for headers in ([], [HOST, HOST], [HOST, (b"host", b"evil.example")]):
        assert call(new_app(), "GET", "/healthz", headers).code == "bad_request"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("images.example", 200),
        ("IMAGES.example:443", 200),
        ("10.1.2.3", 200),
        ("[2001:db8::1]:80", 200),
        ("x.example", 403),
    ],
)
def test_an_open_server_accepts_its_names_and_every_address(host: str, status: int) -> None:
    app = new_app(host="0.0.0.0", token=TOKEN, allowed_hosts=("images.example",))
    assert call(app, "GET", "/healthz", [(b"host", host.encode())]).status == status


FOREIGN_ORIGINS = [
    *(
        "null",
        "http://evil.example",
        "https://localhost:8000.evil.example",
        "http://localhost:3000",
        "http://localhost",
    ),
    *("https://localhost", "file://", "", "localhost:8000", "http://localhost:8000/", "http://user@localhost:8000"),
    *("chrome-extension://abc", "http://127.0.0.1:8000", "http://[::1]:8000", "http://", "://localhost:8000", "*"),
    *("http://localhost:8000 http://evil.example", "http://localhost:8000,null", "ftp://localhost:8000"),
]


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_pages_of_other_sites_are_refused_with_every_method(origin: str) -> None:
    app = new_app()
    for method in METHODS:
        for path in ("/healthz", "/v1/classify", "/nothing"):
            done = call(app, method, path, [HOST, (b"origin", origin.encode())])
            assert (done.status, done.code) == (403, "forbidden_origin"), (method, path)
            assert not any(name.startswith(b"access-control") for name in done.headers)


def test_preflights_are_refused() -> None:
    asked = [(b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"authorization")]
    done = call(new_app(), "OPTIONS", "/v1/classify", [HOST, (b"origin", b"http://evil.example"), *asked])
    assert done.status == 403
    done = call(new_app(), "OPTIONS", "/v1/classify", [HOST, *asked])
    assert done.status == 405
    assert not any(name.startswith(b"access-control") for name in done.headers)


def test_pages_of_this_server_are_accepted() -> None:
    app = new_app(host="0.0.0.0", token=TOKEN, allowed_hosts=("images.example",))
    for host, origin in [
        ("localhost:8000", "http://localhost:8000"),
        ("localhost:8000", "HTTP://LOCALHOST:8000"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:80"),
        ("images.example", "https://images.example"),
        ("localhost:8000", "https://images.example"),  # a proxy that replaces the host
    ]:
        headers = [(b"host", host.encode()), (b"origin", origin.encode())]
        assert call(app, "GET", "/healthz", headers).status == 200, (host, origin)
    assert call(app, "GET", "/healthz", [HOST, (b"origin", b"https://images.example:8443")]).status == 403


@pytest.mark.parametrize(
    ("method", "site", "mode", "status"),
    [
        ("GET", b"cross-site", b"no-cors", 403),
        ("GET", b"same-site", b"cors", 403),
        ("GET", b"cross-site", b"navigate", 200),  # a link
        ("POST", b"cross-site", b"navigate", 403),  # a form
        ("GET", b"same-origin", b"cors", 200),
        ("GET", b"none", b"navigate", 200),
    ],
)
def test_what_a_browser_says_about_a_request_is_respected(method: str, site: bytes, mode: bytes, status: int) -> None:
    done = call(new_app(), method, "/healthz", [HOST, (b"sec-fetch-site", site), (b"sec-fetch-mode", mode)])
    assert done.status == status


# --- request ids and headers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [b"a", b"A-b_c.9", b"x" * 64])
def test_the_request_id_of_the_client_is_echoed(given: bytes) -> None:
    assert call(new_app(), "GET", "/healthz", [HOST, (b"x-request-id", given)]).headers[b"x-request-id"] == given


@pytest.mark.parametrize("given", [b"", b"x" * 65, b"a b", b"a\r\nb", b"<b>", b"\xff", b"a;b", b"a\nx: y"])
def test_other_request_ids_are_replaced(given: bytes) -> None:
    done = call(new_app(), "GET", "/nothing", [HOST, (b"x-request-id", given)])
    assert done.headers[b"x-request-id"] != given
    assert json.loads(done.body)["request_id"].encode() == done.headers[b"x-request-id"]


def test_request_ids_are_distinct() -> None:
    app = new_app()
    assert len({call(app, "GET", "/healthz", [HOST]).headers[b"x-request-id"] for _ in range(100)}) == 100


def test_every_answer_has_the_security_headers(guarded: Gate, paths: list[str]) -> None:
    authorized = (b"x-api-key", TOKEN.encode())
    for path in [*paths, "/nothing"]:
        for headers in ([HOST], [HOST, authorized], [(b"host", b"evil.example")]):
            done = call(guarded, "GET", path, headers)
            assert done.headers[b"x-content-type-options"] == b"nosniff"
            assert done.headers[b"referrer-policy"] == b"no-referrer"
            assert done.headers[b"x-frame-options"] == b"DENY"
            assert b"default-src 'none'" in done.headers[b"content-security-policy"]
            assert not any(name.startswith(b"access-control") for name in done.headers)


def test_a_route_keeps_its_own_policy() -> None:
    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        own = [(b"content-security-policy", b"default-src 'self'"), (b"cache-control", b"private")]
        await send({"type": "http.response.start", "status": 200, "headers": own})
        await send({"type": "http.response.body", "body": b"x"})

    done = call(Gate(page, ServeSettings()), "GET", "/", [HOST])
    assert done.headers[b"content-security-policy"] == b"default-src 'self'"
    assert done.headers[b"cache-control"] == b"private"


@pytest.mark.parametrize("path", ["/", "/v1/models", "/openapi.json", "/v2", "/readyz", "/v1/index", "/x"])
def test_head_is_answered_as_get_without_the_body(path: str) -> None:
    app, name = new_app(), (b"x-request-id", b"same")
    expected, done = call(app, "GET", path, [HOST, name]), call(app, "HEAD", path, [HOST, name])
    assert expected.body
    assert done.body == b""
    assert done.status == expected.status
    assert int(done.headers[b"content-length"]) == len(expected.body)
    assert done.headers == expected.headers


def test_the_methods_of_a_path_include_head_with_get() -> None:
    app = new_app()
    assert call(app, "DELETE", "/v1/models", [HOST]).headers[b"allow"] == b"GET, HEAD"
    done = call(app, "HEAD", "/v1/classify", [HOST])
    assert (done.status, done.headers[b"allow"], done.body) == (405, b"POST", b"")


# --- bodies -----------------------------------------------------------------------------------------------------------


def parts(*bodies: bytes, end: bool = True) -> list[Message]:
    last = len(bodies) - 1
    return [{"type": "http.request", "body": body, "more_body": not end or i < last} for i, body in enumerate(bodies)]


async def drain(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body to its end and answer with its length."""
    count, more = 0, True
    while more:
        message = await receive()
        count, more = count + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(count).encode()})


def small(inner: Any = drain, **settings: Any) -> Gate:
    return Gate(inner, ServeSettings(max_body_bytes=1000, queue_bytes=1500, **settings))


CHUNKED = [HOST, (b"transfer-encoding", b"chunked")]


def test_a_body_may_have_the_whole_limit() -> None:
    assert call(small(), "POST", "/", CHUNKED, parts(b"x" * 999, b"y")).body == b"1000"
    assert call(small(), "POST", "/", [HOST, (b"content-length", b"1000")], parts(b"x" * 1000)).body == b"1000"


def test_a_long_body_is_refused_before_it_is_read() -> None:
    body = parts(b"x" * 1001, end=False)
    done = call(small(), "POST", "/", [HOST, (b"content-length", b"1001")], [*body, *parts(b"")])
    assert (done.status, done.code) == (413, "body_too_large")
    assert done.headers[b"connection"] == b"close"
    assert json.loads(done.body)["detail"] == "The body has 1,001 bytes, the limit is 1,000."


@pytest.mark.parametrize("declared", [[], [(b"content-length", b"10")]])
def test_what_arrives_is_counted_whatever_was_declared(declared: Headers) -> None:
    headers = [*CHUNKED, *declared]
    done = call(small(), "POST", "/", headers, [*parts(*[b"x" * 100] * 20, end=False), *parts(b"")])
    assert (done.status, done.code) == (413, "body_too_large")
    assert json.loads(done.body)["detail"] == "The body has more than 1,000 bytes, which is the limit."


@pytest.mark.parametrize("value", [b"-1", b"1e3", b"0x10", b"", b" ", b"1 000", b"9" * 19, b"\xb2", b"+5", b"1,1"])
def test_lengths_that_are_no_numbers_are_refused(value: bytes) -> None:
    done = call(small(), "POST", "/", [HOST, (b"content-length", value)])
    assert (done.status, done.code) == (400, "bad_request")


@pytest.mark.parametrize(
    "value", [b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip", b"GZIP", b"x-gzip", b"compress"]
)
def test_compressed_bodies_are_refused(value: bytes) -> None:
    done = call(small(), "POST", "/", [HOST, (b"content-encoding", value)])
    assert (done.status, done.code) == (415, "unsupported_media_type")
    assert call(small(), "POST", "/", [HOST, (b"content-encoding", b"identity")]).status == 200


def test_a_body_that_does_not_arrive_in_time_is_refused() -> None:
    done = call(small(body_timeout=0.05), "POST", "/", CHUNKED, parts(b"x", end=False))
    assert (done.status, done.code) == (408, "slow_body")
    assert done.headers[b"connection"] == b"close"


def test_the_time_is_for_the_whole_body() -> None:
    class Trickle(Call):
        async def receive(self) -> Message:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

    done = asyncio.run(Trickle(small(body_timeout=0.2), "POST", "/", CHUNKED).run())
    assert (done.status, done.code) == (408, "slow_body")


def test_waiting_for_the_client_to_leave_has_no_time_limit() -> None:
    """After the body, `receive` is how a route learns that the client left."""

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.3)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    done = call(small(wait, body_timeout=0.05), "POST", "/", CHUNKED, parts(b"x"))
    assert done.status == 204


def test_all_bodies_together_are_bounded() -> None:
    async def walk() -> list[Call]:
        gate, arrived, go_on = small(), asyncio.Event(), asyncio.Event()

        class Held(Call):
            async def receive(self) -> Message:
                if len(self.messages) == 1:
                    arrived.set()
                    await go_on.wait()
                return self.messages.pop(0)

        first = asyncio.create_task(Held(gate, "POST", "/", CHUNKED, parts(b"x" * 800, b"")).run())
        await arrived.wait()
        assert gate.budget.held == 800
        second = await Call(gate, "POST", "/", CHUNKED, parts(b"x" * 800)).run()
        third = await Call(gate, "POST", "/", CHUNKED, parts(b"x" * 700)).run()
        go_on.set()
        done = [await first, second, third]
        assert gate.budget.held == 0
        return done

    first, second, third = asyncio.run(walk())
    assert (first.status, first.body) == (200, b"800")
    assert (second.status, second.code) == (429, "overloaded")
    assert int(second.headers[b"retry-after"]) >= 1
    assert third.status == 200


def test_the_rest_of_a_body_is_dropped_before_the_connection_is_closed() -> None:
    """Otherwise the client gets a reset instead of the answer."""

    async def answer_early(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"early"})

    body = parts(*[b"x" * 100] * 5)
    done = call(small(answer_early), "POST", "/", CHUNKED, body)
    assert done.headers[b"connection"] == b"close"
    assert body == []
    assert [message.get("more_body", False) for message in done.sent[1:]] == [True, False]
    assert done.body == b"early"


# --- defects ----------------------------------------------------------------------------------------------------------


def test_a_defect_is_a_coded_error_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret of /home/user")

    done = call(Gate(fail, ServeSettings()), "GET", "/", [HOST, (b"x-request-id", b"abc")])
    assert (done.status, done.code) == (500, "internal_error")
    assert find_leaks(done.body) == []
    assert b"secret" not in done.body
    assert "abc" in caplog.text
    assert "secret" in caplog.text


def test_a_defect_after_the_answer_has_begun_cuts_the_connection() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("late")

    with pytest.raises(RequestError) as caught:
        call(Gate(fail, ServeSettings()), "GET", "/", [HOST])
    assert caught.value.code == "internal_error"


def test_errors_of_the_service_keep_their_code() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ServeError("overloaded", "64 images of /home/user are waiting")

    done = call(Gate(fail, ServeSettings()), "GET", "/", [HOST])
    assert (done.status, done.code) == (429, "overloaded")
    assert find_leaks(done.body) == []


def test_a_defect_in_a_route_is_answered_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = new_app()
    monkeypatch.setattr(Service, "models", lambda self: 1 / 0)
    done = call(app, "GET", "/v1/models", [HOST])
    assert (done.status, done.code) == (500, "internal_error")
    assert find_leaks(done.body) == []
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_websockets_are_refused() -> None:
    async def walk() -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await new_app()({"type": "websocket", "path": "/", "headers": []}, receive, send)
        return sent

    assert asyncio.run(walk()) == [{"type": "websocket.close", "code": 1008}]


# --- log --------------------------------------------------------------------------------------------------------------


def test_requests_are_logged_as_json_on_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tessella.serve.security.access")
    settings = ServeSettings(token=TOKEN)
    app = create_app(Service(settings), settings, log_requests=True)
    call(app, "POST", "/v1/\x1b[31mred\nline?token=secret", [HOST, (b"authorization", b"Bearer wrong")])
    (record,) = [item for item in caplog.records if item.name.endswith("access")]
    row = json.loads(record.getMessage())
    assert (row["method"], row["status"], row["client"]) == ("POST", 401, "127.0.0.1")
    assert row["path"] == "/v1/\\x1b[31mred\\x0aline"
    assert "wrong" not in record.getMessage()
    assert "secret" not in record.getMessage()
    assert row["request_id"]


def test_statuses_are_counted_by_route(guarded: Gate) -> None:
    settings = ServeSettings()
    service = Service(settings)
    app = create_app(service, settings)
    call(app, "GET", "/v1/models", [HOST])
    call(app, "GET", "/anything/at/all", [HOST])
    text = service.metrics.render().decode()
    assert 'tessella_requests_total{method="GET",route="/v1/models",status="200"} 1.0' in text
    assert 'tessella_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert "anything" not in text


# --- requests that cannot be accepted now -----------------------------------------------------------------------------

RUN_MODELS = [
    *("/v1/classify", "/v1/embed", "/v1/predict", "/v1/explain"),
    *("/v1/embeddings", "/embeddings", "/embeddings_image", "/v2/embed"),
]


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the request has passed the gate")


@pytest.mark.parametrize("path", RUN_MODELS)
def test_a_request_that_runs_a_model_is_refused_before_it_reaches_a_route(path: str) -> None:
    settings = ServeSettings()
    service = Service(settings)  # it has loaded nothing
    gate = create_app(service, settings)
    gate.app = unreachable
    done = call(gate, "POST", path, [HOST, (b"content-length", b"5")], parts(b"image"))
    assert (done.status, done.headers[b"x-tessella-error"]) == (503, b"not_ready")
    assert int(done.headers[b"retry-after"]) >= 1
    metrics = service.metrics.render().decode()
    assert 'tessella_errors_total{code="not_ready"} 1.0' in metrics
    assert f'tessella_requests_total{{method="POST",route="{path}",status="503"}} 1.0' in metrics


def test_a_request_that_runs_no_model_is_never_refused_for_lack_of_room() -> None:
    assert call(new_app(), "GET", "/v1/models", [HOST]).status == 200
    assert call(new_app(), "POST", "/v2/repository/index", [HOST]).status == 200


def test_requests_that_run_a_model_do_not_pass_through_the_layers_of_the_framework() -> None:
    routes = new_app().app
    assert isinstance(routes, ModelRoutes)
    assert routes._routes.keys() == {*RUN_MODELS}


def test_errors_are_answered_without_a_thread() -> None:
    """Starlette runs handlers that are not coroutines in a thread pool, which delays refusals under load."""
    handlers = new_app().app.app.exception_handlers.values()  # type: ignore[attr-defined]
    assert all(map(inspect.iscoroutinefunction, handlers))


def test_the_server_refuses_on_the_connection() -> None:
    gate = new_app()
    run = _Run(ServeSettings(), socket.socket(), lambda started: None, lambda seconds: None)
    with contextlib.closing(run.listener):
        connection = run._config(gate).http
    assert isinstance(connection, type)
    assert issubclass(connection, LimitedConnection)
    assert connection.refuse == gate.refuse_at_once
