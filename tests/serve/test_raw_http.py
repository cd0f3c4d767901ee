"""Malformed and hostile HTTP on a real socket: a refusal or a closed connection, soon, and nothing else is affected."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from .leaks import find_leaks
from .servers import FORM, Reply, ServerProcess, connect, exchange, multipart, read_reply, request_bytes
from .test_images import BAD_FORMS, BAD_JSON, BAD_SHAPES

SECONDS = 10  # each refusal takes milliseconds; more only if other processes use the processors


@pytest.fixture(scope="module", autouse=True)
def unharmed(server: ServerProcess, cat: bytes) -> Iterator[None]:
    """After all tests of this module: correct answers, little more memory, no defect in the log."""
    before = classify(server, cat)
    memory = server.memory
    yield
    assert classify(server, cat)["results"] == before["results"]
    assert server.memory - memory < 100_000_000
    assert server.process.poll() is None
    assert "Traceback" not in "".join(server.errors)


def classify(server: ServerProcess, image: bytes) -> dict[str, object]:
    body = multipart(("cat.jpg", image))
    reply = exchange(server.port, request_bytes("POST", "/v1/classify", body, Content_Type=FORM))
    assert reply.status == 200, reply
    answer = reply.json
    assert isinstance(answer, dict)
    return answer


def refused(reply: Reply) -> None:
    """A 4xx with a coded body that reveals nothing, or a closed connection."""
    if reply.status == 0:
        assert reply.closed
        return
    assert 400 <= reply.status < 500, reply
    assert reply.header("x-tessella-error"), reply
    assert reply.header("x-request-id"), reply
    assert find_leaks(reply.body) == []
    if reply.body:
        json.loads(reply.body)


def get(line: str, *headers: str) -> bytes:
    """A request with any request line and headers, as bytes of Latin-1."""
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1")


H = "Host: localhost"
TARGETS = ("/healthz", "/v1/models")

# --- request lines and headers ----------------------------------------------------------------------------------------

BAD_LINES = [
    *("", "GET", "GET /healthz", "GET\t/healthz\tHTTP/1.1", " GET /healthz HTTP/1.1"),
    *(
        "GET /healthz HTTP/9.9",
        "GET /healthz HTTP/2.0",
        "GET /healthz HTTP/1.",
        "GET /healthz HTTP",
        "GET /healthz http/1.1",
    ),
    *("GET /healthz HTTP/1.1 x", "GET /healthz HTPP/1.1", "GET /healthz HTTP/11", "GET /healthz HTTP/-1.1", "/healthz"),
    *("G\x00T /healthz HTTP/1.1", "GET /heal\x00thz HTTP/1.1", "GET /heal\xffthz HTTP/1.1", "GET /\r/healthz HTTP/1.1"),
    *("get /healthz HTTP/1.1", "FROB /healthz HTTP/1.1", "\xff\xfe /healthz HTTP/1.1", "GETGET /healthz HTTP/1.1"),
    *("GET healthz HTTP/1.1", "GET ?x HTTP/1.1", "GET #x HTTP/1.1", "GET \\ HTTP/1.1", "GET http:// HTTP/1.1"),
    *("CONNECT localhost:80 HTTP/1.1", "CONNECT /healthz HTTP/1.1", "CONNECT x HTTP/1.1", "OPTIONS * HTTP/1.1"),
    *("GET * HTTP/1.1", "PRI * HTTP/2.0", "GET /" + "a" * 40_000 + " HTTP/1.1", "GET /?" + "a" * 40_000 + " HTTP/1.1"),
    *("A" * 40_000 + " / HTTP/1.1", "GET / HTTP/1.1\x00", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x00" * 100),
    *(
        "SSH-2.0-OpenSSH_9.0",
        "HELO example.com",
        "*1\r\n$4\r\nPING",
        "GET /%00 HTTP/1.1",
        "TRACE / HTTP/1.1",
        "GET / HTTP/0.9",
    ),
    *("GET //evil.example/ HTTP/1.1", "GET http://evil.example/ HTTP/1.1", "GET /;x=1 HTTP/1.1", "SOURCE / HTTP/1.1"),
    *(
        "GET http://[::1/ HTTP/1.1",
        "GET http://a:b/ HTTP/1.1",
        "GET http://localhost:99999/ HTTP/1.1",
        "M-SEARCH * HTTP/1.1",
    ),
]
BAD_HEADERS: list[tuple[str, ...]] = [
    *((), (H, H), (H, "Host: evil"), ("Host:",), ("Host: evil.example",), ("Host : localhost",), (" Host: localhost",)),
    *(
        (H, "X"),
        (H, ": x"),
        (H, "X y: z"),
        (H, "X\x00: y"),
        (H, "X: y\x00z"),
        (H, "X\xff: y"),
        (H, "(x): y"),
        (H, "X\ty: z"),
    ),
    *(
        (H, "X: a\nY: b\x01"),
        (H, "X: \x01"),
        (H, "X: \x7f"),
        (H, "X: a\r b"),
        (H, " folded"),
        (H, '"x": y'),
        (H, "X:\x0by"),
    ),
    *(
        (H, "Origin: null"),
        (H, "Origin: http://evil.example"),
        (H, "Content-Encoding: gzip"),
        (H, "Content-Encoding: br"),
    ),
    *(
        (H, "X: " + "a" * 100_000),
        (H, "a" * 100_000 + ": x"),
        (H, *["X: y"] * 10_000),
        (H, *[f"X{i}: {i}" for i in range(200)]),
    ),
    *(
        (H, "Cookie: " + "a=b; " * 20_000),
        (H, "X: " + "a" * 33_000),
        (H, *["X: " + "a" * 1000] * 40),
        (H, ":"),
        (H, "=:"),
    ),
    *((H, "Sec-Fetch-Site: cross-site"), (H, "Sec-Fetch-Site: same-site"), (H, "X@: y"), (H, "X{}: y"), (H, "X/: y")),
]


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: repr(line[:40]))
def test_request_lines(server: ServerProcess, line: str) -> None:
    refused(exchange(server.port, get(line, H), seconds=SECONDS))


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=lambda headers: repr(headers)[:60])
@pytest.mark.parametrize("target", TARGETS)
def test_headers(server: ServerProcess, target: str, headers: tuple[str, ...]) -> None:
    refused(exchange(server.port, get(f"GET {target} HTTP/1.1", *headers), seconds=SECONDS))


def test_a_header_that_never_ends(server: ServerProcess) -> None:
    """It is refused while it arrives, whatever the size of the packets."""
    for size in (10, 1000, 20_000):
        parts = [get("GET /healthz HTTP/1.1", H)[:-2], b"X: ", *[b"a" * size] * (60_000 // size)]
        reply = exchange(server.port, parts, seconds=SECONDS)
        refused(reply)
        assert reply.status in (431, 0)


def test_headers_of_an_ordinary_size_pass(server: ServerProcess) -> None:
    headers = [f"X{i}: {'a' * 200}" for i in range(100)]
    assert exchange(server.port, get("GET /healthz HTTP/1.1", H, *headers)).status == 200


# --- length and chunks ------------------------------------------------------------------------------------------------

BODY = b'{"images": ["AAAA"]}'
JSON = "Content-Type: application/json"
BAD_LENGTHS: list[tuple[str, ...]] = [
    *(("Content-Length: -1",), ("Content-Length: +20",), ("Content-Length: 0x14",), ("Content-Length: 20.0",)),
    *(
        ("Content-Length: twenty",),
        ("Content-Length: 2 0",),
        ("Content-Length: " + "9" * 30,),
        ("Content-Length: 1e1",),
    ),
    *(
        ("Content-Length: 20", "Content-Length: 21"),
        ("Content-Length: 20", "Content-Length: 20"),
        ("Content-Length: 20, 20",),
    ),
    *(("Content-Length: 20,21",), ("Content-Length: \xb2",), ("Content-Length: 18446744073709551616",)),
    *(
        ("Content-Length: 99999999999",),
        ("Content-Length: 67108865",),
        ("Content-Length: 20\x00",),
        ("Content-Length: '20'",),
    ),
    *(("Content-Length: 20", "Transfer-Encoding: chunked"), ("Transfer-Encoding: chunked", "Content-Length: 20")),
    *(
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: identity",),
    ),
    *(("Transfer-Encoding: chunked, gzip",), ("Transfer-Encoding: gzip", "Transfer-Encoding: deflate")),
    *(("Transfer-Encoding: x",), ("Transfer-Encoding: chunked, identity",), ("Transfer-Encoding: \x0bchunked",)),
    *(("Transfer-Encoding: 'chunked'",), ("Transfer-Encoding: chunked;q=1",), ("Transfer-Encoding:\x00chunked",)),
    *(("Transfer-Encoding : chunked",), ("Transfer-Encoding: xchunked",), ("Transfer-Encoding: chunkedx",)),
    *(
        ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: ,",),
        ("Content-Length : 20",),
        ("Content Length: 20",),
    ),
    *(("Content-Length: 20", "Transfer-Encoding: identity"), ("Content-Length: 20", "Transfer-Encoding: x")),
]
BAD_CHUNKS = [
    *(b"x\r\n", b"-1\r\nx", b"0x5\r\nhello\r\n0\r\n\r\n", b"5 \x00\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n"),
    *(
        b"5\r\nhelloo\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"ffffffffffffffffff\r\n",
        b"10000000000000000\r\nx",
        b"5\nhello\n0\n\n",
    ),
    *(
        b"\r\n5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"e" * 200_000,
        b"5;\x00\r\nhello\r\n0\r\n\r\n",
    ),
    *(
        b"g\r\nhello\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"0\r\nX: " + b"y" * 300_000,
        b"\xff\r\n",
        b"5_0\r\nhello",
        b"\r\n\r\n\r\n",
    ),
    *(
        b"1;a=b\r\nx\r\n" * 20_000,
        b"00000000000000000000000000000005\r\nhel\r\n0\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 30_000,
    ),
]


@pytest.mark.parametrize("headers", BAD_LENGTHS, ids=repr)
@pytest.mark.parametrize("path", ["/v1/classify", "/healthz"])
def test_lengths(server: ServerProcess, path: str, headers: tuple[str, ...]) -> None:
    refused(exchange(server.port, get(f"POST {path} HTTP/1.1", H, JSON, *headers) + BODY, seconds=SECONDS))


@pytest.mark.parametrize("body", BAD_CHUNKS, ids=lambda body: repr(body[:40]))
@pytest.mark.parametrize("path", ["/v1/classify", "/healthz"])
def test_chunks(server: ServerProcess, path: str, body: bytes) -> None:
    head = get(f"POST {path} HTTP/1.1", H, JSON, "Transfer-Encoding: chunked")
    refused(exchange(server.port, head + body, seconds=SECONDS))


def test_a_second_request_cannot_be_smuggled(server: ServerProcess) -> None:
    """What follows a body of a disputed length is never answered."""
    inner = get("GET /v1/models HTTP/1.1", H)
    for headers in (("Content-Length: 4", "Transfer-Encoding: chunked"), ("Content-Length: 4", "Content-Length: 60")):
        data = get("POST /v1/classify HTTP/1.1", H, JSON, *headers) + b"0\r\n\r\n" + inner
        with connect(server.port, SECONDS) as connection:
            connection.sendall(data)
            answers = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    answers += part
            assert b'"object"' not in answers
            assert answers.count(b"HTTP/1.1 ") <= 1


def chunked(data: bytes, size: int) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(data[i : i + size]), data[i : i + size]) for i in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 6, 4096])
def test_three_megabytes_in_small_chunks(server: ServerProcess, cat: bytes, size: int) -> None:
    body = multipart(("cat.jpg", cat + bytes(3_000_000 - len(cat))))  # decoders ignore what follows an image
    head = get("POST /v1/classify HTTP/1.1", H, f"Content-Type: {FORM}", "Transfer-Encoding: chunked")
    memory = server.memory
    reply = exchange(server.port, head + chunked(body, size) + b"0\r\n\r\n", seconds=60)
    assert reply.status in (200, 408), reply  # with single bytes, sending them may take longer than the server waits
    if size > 1:
        assert reply.status == 200
    assert server.memory - memory < 100_000_000


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_FORMS)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/embed"])
def test_forms(server: ServerProcess, path: str, name: str) -> None:
    reply = exchange(server.port, request_bytes("POST", path, BAD_FORMS[name], Content_Type=FORM), seconds=SECONDS)
    refused(reply)
    assert reply.status == 400


@pytest.mark.parametrize("body", BAD_JSON, ids=lambda body: repr(body[:30]))
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/predict"])
def test_json(server: ServerProcess, path: str, body: bytes) -> None:
    request = request_bytes("POST", path, body, Content_Type="application/json")
    reply = exchange(server.port, request, seconds=SECONDS)
    refused(reply)
    assert reply.status == 400


@pytest.mark.parametrize("value", BAD_SHAPES, ids=lambda value: repr(value)[:40])
def test_json_of_another_shape(server: ServerProcess, value: object) -> None:
    request = request_bytes("POST", "/v1/embed", json.dumps(value).encode(), Content_Type="application/json")
    reply = exchange(server.port, request, seconds=SECONDS)
    refused(reply)
    assert reply.status == 400


CUT = [0, 1, 5, 19]


@pytest.mark.parametrize("kept", CUT)
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("leave", [True, False])
def test_bodies_that_stop(server: ServerProcess, kept: int, framing: str, leave: bool) -> None:
    """A client that leaves, or that waits until the time for the body is over."""
    header = f"Content-Length: {len(BODY)}" if framing == "length" else "Transfer-Encoding: chunked"
    body = BODY[:kept] if framing == "length" else b"14\r\n" + BODY[:kept]
    with connect(server.port) as connection:
        connection.sendall(get("POST /v1/classify HTTP/1.1", H, JSON, header) + body)
        if leave:
            return
        reply = read_reply(connection)
    refused(reply)
    assert reply.status == 408


@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "compress", "x-gzip", "gzip, gzip", "identity, gzip"]
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/embed", "/v1/predict", "/healthz"])
def test_compressed_bodies(server: ServerProcess, path: str, encoding: str) -> None:
    request = request_bytes("POST", path, BODY, Content_Type="application/json", Content_Encoding=encoding)
    reply = exchange(server.port, request, seconds=SECONDS)
    refused(reply)
    assert reply.status == 415


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/xml",
            "application/octet",
            "application/zip",
        ),
        *(
            "application/python-pickle",
            "application/vnd.bentoml+pickle",
            "multipart/mixed; boundary=b0undary",
            "image/*",
        ),
        *(
            "application/x-tar",
            "text/html",
            "*/*",
            "a" * 5000,
            "multipart/form-data\xff",
            "application/json5",
            ";;;",
            "\xff",
        ),
    ],
)
def test_other_media_types(server: ServerProcess, kind: str) -> None:
    reply = exchange(server.port, request_bytes("POST", "/v1/classify", BODY, Content_Type=kind), seconds=SECONDS)
    refused(reply)
    assert reply.status == 415


def test_a_long_boundary(server: ServerProcess) -> None:
    for size in (201, 30_000, 1_000_000):
        request = request_bytes(
            "POST", "/v1/classify", b"x", Content_Type=f"multipart/form-data; boundary={'b' * size}"
        )
        refused(exchange(server.port, request, seconds=SECONDS))


@pytest.mark.parametrize("path", ["/v1/classify", "/healthz"])
def test_a_body_without_end(server: ServerProcess, path: str) -> None:
    """A part without a file name, far larger than the limit on bodies."""
    memory = server.memory
    start = b'--b0undary\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    head = get(f"POST {path} HTTP/1.1", H, f"Content-Type: {FORM}", "Transfer-Encoding: chunked")
    block = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    parts = [head, b"%x\r\n%s\r\n" % (len(start), start), *[block] * 100]
    refused(exchange(server.port, parts, seconds=30))
    assert server.memory - memory < 150_000_000


def test_ranges_have_no_effect(server: ServerProcess) -> None:
    ranges = "Range: bytes=" + ",".join(f"{i}-" for i in range(4000))
    for path in ("/healthz", "/openapi.json"):
        assert exchange(server.port, get(f"GET {path} HTTP/1.1", H, ranges), seconds=SECONDS).status == 200


# --- connections ------------------------------------------------------------------------------------------------------


def test_slow_headers_do_not_block_others(server: ServerProcess) -> None:
    """500 clients that send the beginning of a request and then nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            connection = stack.enter_context(connect(server.port))
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: loc")
        for _ in range(20):
            start = time.monotonic()
            assert exchange(server.port, request_bytes("GET", "/v1/models")).status == 200
            assert time.monotonic() - start < 5


def test_slow_bodies_do_not_block_others(server: ServerProcess, cat: bytes) -> None:
    head = get("POST /v1/classify HTTP/1.1", H, "Content-Type: image/jpeg", "Content-Length: 10000")
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(server.port)).sendall(head + b"x")
        classify(server, cat)


def test_nothing_follows_the_headers_of_an_answer_to_head(server: ServerProcess) -> None:
    with connect(server.port) as connection:
        for path in ("/v1/models", "/", "/v1/nothing"):
            connection.sendall(request_bytes("HEAD", path))
            assert int(read_reply(connection, "HEAD").header("content-length") or 0) > 50
        connection.sendall(request_bytes("GET", "/healthz"))
        assert read_reply(connection).json == {"status": "ok"}  # a body would be taken for the beginning of this


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    requests = [request_bytes("GET", "/v1/models", X_Request_ID=f"id-{i}") for i in range(8)]
    with connect(server.port) as connection:
        connection.sendall(b"".join(requests))
        received = b""
        while received.count(b"HTTP/1.1 200") < 8:
            received += connection.recv(65536)
    positions = [received.index(b"id-%d\r\n" % i) for i in range(8)]
    assert positions == sorted(positions)


def test_a_flood_of_pipelined_requests_is_cut(server: ServerProcess) -> None:
    with connect(server.port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request_bytes("GET", "/v1/models") * 5000)
        while connection.recv(65536):
            pass


@pytest.mark.parametrize("length", [("Content-Length: 60",), ("Transfer-Encoding: chunked",)])
@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_the_body_of_an_upgrade_is_no_request(server: ServerProcess, length: tuple[str], delay: float) -> None:
    """The parser would take it for the next request, which a proxy in front has not seen."""
    head = get("POST /v1/embed HTTP/1.1", H, "Connection: Upgrade", "Upgrade: h2c", *length)
    smuggled = get("GET /healthz HTTP/1.1", H)
    with connect(server.port) as connection:
        connection.sendall(head)
        time.sleep(delay)
        with contextlib.suppress(ConnectionError):
            connection.sendall(smuggled)
        first = read_reply(connection)
        assert (first.status, first.closed) in ((400, True), (400, False))
        assert read_reply(connection).status == 0


def test_an_upgrade_is_an_ordinary_request(server: ServerProcess) -> None:
    for upgrade in ("websocket", "h2c", "TLS/1.0"):
        key = ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "HTTP2-Settings: AAMAAABk")
        request = get("GET /v1/models HTTP/1.1", H, "Connection: Upgrade", f"Upgrade: {upgrade}", *key)
        assert exchange(server.port, request, seconds=SECONDS).status in (200, 400)


def test_expect_continue(server: ServerProcess, cat: bytes) -> None:
    """A refusal comes before the body is sent; an accepted request is asked for its body."""
    headers = ("Content-Type: image/jpeg", "Expect: 100-continue")
    with connect(server.port) as connection:
        connection.sendall(get("POST /v1/classify HTTP/1.1", H, *headers, "Content-Length: 99999999"))
        assert read_reply(connection).status == 413
    with connect(server.port) as connection:
        connection.sendall(get("POST /v1/classify HTTP/1.1", H, *headers, f"Content-Length: {len(cat)}"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(cat)
        assert read_reply(connection).status == 200


def test_a_refusal_arrives_although_the_body_is_still_being_sent(server: ServerProcess) -> None:
    body = bytes(80_000_000)
    with connect(server.port) as connection:
        connection.sendall(get("POST /v1/classify HTTP/1.1", H, JSON, f"Content-Length: {len(body)}"))
        with contextlib.suppress(ConnectionError):
            connection.sendall(body[:20_000_000])
        assert read_reply(connection).status == 413


def test_http_1_0(server: ServerProcess) -> None:
    reply = exchange(server.port, get("GET /healthz HTTP/1.0", H))
    assert reply.status == 200
    assert reply.header("connection") == "close"


def test_a_half_closed_connection_is_closed(server: ServerProcess) -> None:
    with connect(server.port) as connection:
        connection.sendall(b"GET /healthz HTT")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""
