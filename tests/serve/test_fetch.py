"""Image URLs lead to public hosts only (no SSRF), and hostile answers end in time; all connections are to loopback."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from tessella.data.limits import Limits
from tessella.errors import ImageError
from tessella.serve import fetch, public_urls
from tessella.serve.fetch import INTERNET, FetchNetwork, connect_to, fetch_image, resolve_host
from tests.serve.internet import PUBLIC, PUBLIC_6, Handler, SmallInternet, always, listening, response, socket_events

URL = "https://images.example.com/a.jpg"
LIMIT = Limits(bytes=100_000)

# One or two addresses of every class that is not public.
PRIVATE_4 = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.1", "192.168.1.1"),
    *("169.254.169.254", "169.254.1.1", "100.64.0.1", "100.100.100.200", "198.18.0.1", "198.19.255.1", "192.0.0.192"),
    *("192.0.0.9", "192.0.2.1", "192.88.99.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250"),
    *("240.0.0.1", "255.255.255.255", "168.63.129.16"),
]
PRIVATE_6 = [
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "100::1", "2001::1", "2001:0:7f00:1::1", "2001:db8::1", "2001:10::1"),
    *("2001:20::1", "2002:7f00:1::1", "2002:a9fe:a9fe::1", "2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:a00:1"),
    *("3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1"),
]


# Names that only the DNS shows to be private; `run` knows their addresses.
NAMES = {
    "a.localhost": ["127.0.0.1"],
    "localhost.localdomain": ["::1", "127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "instance-data.ec2.internal": ["169.254.169.254", "fd00:ec2::254"],
    "kubernetes.default.svc": ["10.0.0.1"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
}


def notations(address: str) -> list[str]:
    """Return the ways to write an IPv4 address that some library accepts."""
    number = int(IPv4Address(address))
    a, b, c, d = IPv4Address(address).packed
    fullwidth = address.translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789"})
    return [
        address,
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"{a:03}.{b:03}.{c:03}.{d:03}",
        f"{address}.",
        f"[::ffff:{address}]",
        f"[::{address}]",
        fullwidth,
        address.replace(".", "\u3002"),
        "".join(f"%{ord(digit):02x}" for digit in address),
        f"images.example.com@{address}",
        f"{address}\\.example.com",
        f"images.example.com\\@{address}",
    ]


def hosts() -> list[str]:
    """Return hosts of URLs, none of which may be fetched."""
    return [
        *(text for address in PRIVATE_4 for text in notations(address)),
        *(f"[{address}]" for address in PRIVATE_6),
        *("[fe80::1%25lo]", "[::1%25lo]", "[fe80::1%lo]", "[0:0:0:0:0:0:0:1]", "[0000:0000::0001]", "[::FFFF:7F00:1]"),
        *(
            "localhost",
            "localhost.",
            "LOCALHOST",
            "ｌｏｃａｌｈｏｓｔ",
            "localhost.localdomain",
            "metadata",
            "a.localhost",
        ),
        *NAMES,
    ]


VECTORS = hosts()


LOOPS: list[Callable[[], asyncio.AbstractEventLoop] | None] = [None]  # the last one is used; None is Python's own


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def event_loop_kind(request: pytest.FixtureRequest) -> Iterator[None]:
    """The server runs on uvloop where it is installed."""
    if request.param == "uvloop":
        LOOPS.append(pytest.importorskip("uvloop").new_event_loop)
    yield
    del LOOPS[1:]


async def outcome(
    internet: SmallInternet, url: str, *, timeout: float = 5.0, network: FetchNetwork | None = None
) -> str:
    """Return the body that was fetched as text, or the code of the error."""
    try:
        body = await fetch_image(
            url, limits=LIMIT, timeout=timeout, allow_http=True, network=network or internet.network
        )
    except ImageError as error:
        return error.code
    return body.decode()


def run(test: Callable[[SmallInternet], Awaitable[None]]) -> None:
    async def with_internet() -> None:
        async with SmallInternet() as internet:
            internet.names = {name: [addresses] for name, addresses in NAMES.items()}
            internet.names |= {f"{name}.example.com": [[PUBLIC]] for name in ("images", "redirect")}
            await test(internet)
            assert await internet.open_sockets() == 0  # whatever happened

    with asyncio.Runner(loop_factory=LOOPS[-1]) as runner:
        runner.run(with_internet())


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_there_are_enough_vectors() -> None:
    assert len(set(VECTORS)) >= 300


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_direct_urls_are_refused(scheme: str) -> None:
    async def test(internet: SmallInternet) -> None:
        wrong = {
            host: code for host in VECTORS if (code := await outcome(internet, f"{scheme}://{host}/")) != "url_refused"
        }
        assert wrong == {}
        assert (internet.connected, internet.canary_connections) == ([], 0)

    run(test)


@pytest.mark.parametrize("status", sorted(fetch.REDIRECTS))
def test_redirects_are_refused(status: int) -> None:
    """From a public host to each of the vectors, in the absolute and the scheme-relative form."""

    async def test(internet: SmallInternet) -> None:
        location = ""

        async def redirect(request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(response(b"", status, f"Location: {location}"))

        await internet.add_host(redirect)
        wrong = {}
        vectors = [host for host in VECTORS if host.isascii()]
        for position, host in enumerate(vectors):
            location = f"//{host}/" if position % 2 else f"http://{host}/"
            code = await outcome(internet, "http://redirect.example.com/")
            if code != "url_refused":
                wrong[location] = code
        assert wrong == {}
        assert internet.connected == [PUBLIC] * len(vectors)  # only the host that redirects
        assert internet.canary_connections == 0

    run(test)


def test_answers_of_the_dns_are_refused() -> None:
    """Alone, and beside a public address in either order: every address is checked."""

    async def test(internet: SmallInternet) -> None:
        await internet.add_host(always(response()))
        wrong = {}
        for address in PRIVATE_4 + PRIVATE_6 + ["fe80::1%lo", "::ffff:127.0.0.1%lo", "no address", ""]:
            for answer in ([address], [PUBLIC, address], [address, PUBLIC], [PUBLIC, PUBLIC_6, address]):
                internet.names["mixed.example.com"] = [answer]
                code = await outcome(internet, "http://mixed.example.com/")
                if code != "url_refused":
                    wrong[", ".join(answer)] = code
        assert wrong == {}
        assert (internet.connected, internet.canary_connections) == ([], 0)

    run(test)


def test_a_second_lookup_is_never_made() -> None:
    """DNS rebinding: a name that is public when it is checked, and private whenever it is asked for again."""

    async def test(internet: SmallInternet) -> None:
        await internet.add_host(always(response(b"public")))
        for address in PRIVATE_4 + PRIVATE_6:
            internet.names["rebind.example.com"] = [[PUBLIC], [address]]
            internet.lookups.clear()
            assert await outcome(internet, "http://rebind.example.com/") == "public"
            assert internet.lookups == ["rebind.example.com"]
        assert set(internet.connected) == {PUBLIC}
        assert internet.canary_connections == 0

    run(test)


def test_a_redirect_to_the_same_name_is_resolved_and_checked_again() -> None:
    async def test(internet: SmallInternet) -> None:
        await internet.add_host(always(response(b"", 302, "Location: /again")))
        internet.names["rebind.example.com"] = [[PUBLIC], ["127.0.0.1"]]
        assert await outcome(internet, "http://rebind.example.com/") == "url_refused"
        assert internet.lookups == ["rebind.example.com"] * 2
        assert (internet.connected, internet.canary_connections) == ([PUBLIC], 0)

    run(test)


def test_the_connected_peer_is_checked_before_a_byte_is_sent() -> None:
    """Whatever lies between the check and the connection (address translation, a proxy, a race)."""

    async def test(internet: SmallInternet) -> None:
        internet.names["images.example.com"] = [[PUBLIC]]
        wrong = {}
        for scheme in ("http", "https"):
            for address in PRIVATE_4 + PRIVATE_6:
                internet.peers[PUBLIC] = address
                code = await outcome(internet, f"{scheme}://images.example.com/")
                if code != "url_refused":
                    wrong[address] = code
        assert wrong == {}
        assert internet.connected != []
        assert internet.canary_bytes == b""

    run(test)


def test_the_peer_is_that_of_the_socket() -> None:
    """With a real socket: the name resolves to a public address, the connection arrives at loopback."""

    async def test(internet: SmallInternet) -> None:
        received = []

        async def canary(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.append(await reader.read())
            arrived.set()

        async def connect(address: str, port: int) -> socket.socket:
            return await connect_to("127.0.0.1", server.sockets[0].getsockname()[1])

        arrived = asyncio.Event()
        async with listening(canary, None) as server:
            network = replace(internet.network, connect=connect)
            assert await outcome(internet, URL, network=network) == "url_refused"
            await arrived.wait()
            assert received == [b""]

    run(test)


def test_a_public_address_of_this_machine_is_refused() -> None:
    """Its private services may listen on all of its addresses."""

    async def test(internet: SmallInternet) -> None:
        await internet.add_host(always(response(b"own")))
        assert await outcome(internet, "http://images.example.com/") == "own"
        internet.own[PUBLIC] = PUBLIC
        assert await outcome(internet, "http://images.example.com/") == "url_refused"

    run(test)


def test_the_canary_would_be_reached_without_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: with any address allowed, the same vectors arrive."""
    monkeypatch.setattr(public_urls, "is_public", lambda address: True)
    monkeypatch.setattr(fetch, "is_public", lambda address: True)

    async def test(internet: SmallInternet) -> None:
        for host in VECTORS:
            await outcome(internet, f"http://{host}/", timeout=0.02)
        assert internet.canary_connections > len(PRIVATE_4) + len(PRIVATE_6)

    run(test)


def test_refused_urls_open_no_socket() -> None:
    """With the real network: neither a lookup nor a socket."""

    async def test(internet: SmallInternet) -> None:
        with socket_events() as events:
            for host in set(VECTORS) - set(NAMES):
                assert await outcome(internet, f"https://{host}/", network=INTERNET) == "url_refused"
            for url in ("file:///etc/passwd", "data:image/png;base64,AAAA", "ftp://example.com/a.jpg", "/etc/passwd"):
                assert await outcome(internet, url, network=INTERNET) == "url_refused"
            assert events == []
            with pytest.raises(OSError):
                await resolve_host("[::1", 80)
            assert events == ["socket.getaddrinfo"]  # the recorder works

    run(test)


# --- images that are fetched ------------------------------------------------------------------------------------------

LEGITIMATE = [
    *(
        f"{scheme}://{host}{rest}"
        for scheme in ("https", "http")
        for host in (
            "example.com",
            "EXAMPLE.com",
            "www.example.com",
            "a-b.example.com",
            "1.example.com",
            "example.org",
            "images.example.org.",
            "bücher.example",
            "xn--bcher-kva.example",
            PUBLIC,
            f"[{PUBLIC_6}]",
        )
        for rest in ("", "/a.jpg", "/a/b%20c.jpg?size=1&x=[2]#top")
    ),
    "https://example.com:443/a.jpg",
    "http://example.com:80/a.jpg",
    "https://example.com?size=1",
    "https://example.com/größe.jpg",
    "http://a_b.example.com/a.jpg",
    "https://example.com//a/../b",
    "https://example.com/a@b:c",
]


def test_public_images_are_fetched() -> None:
    """With TLS that is verified for the name or the address in the URL; the host sees the name in ASCII."""

    async def test(internet: SmallInternet) -> None:
        heads: list[bytes] = []

        async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
            heads.append(request)
            writer.write(response())

        await internet.add_host(answer, tls=True)
        await internet.add_host(answer)
        for prefix in ("", "www.", "a-b.", "a_b.", "1."):
            internet.names[f"{prefix}example.com"] = [[PUBLIC]]
        internet.names.update({name: [[PUBLIC_6, PUBLIC]] for name in ("example.org", "images.example.org")})
        internet.names["xn--bcher-kva.example"] = [[PUBLIC]]
        assert len(LEGITIMATE) >= 50
        assert {url: text for url in LEGITIMATE if (text := await outcome(internet, url)) != "image"} == {}
        assert heads[-1].startswith(b"GET /a@b:c HTTP/1.1\r\nHost: example.com\r\n")
        for head in heads:
            assert b"Accept-Encoding: identity" in head
            assert b"Cookie" not in head
            assert b"Authorization" not in head

    run(test)


def test_a_certificate_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(internet: SmallInternet) -> None:
        await internet.add_host(always(response()), tls=True)
        internet.names |= {"example.com": [[PUBLIC]], "example.net": [[PUBLIC]], "a.b.example.com": [[PUBLIC]]}
        assert await outcome(internet, "https://example.com/") == "image"
        assert await outcome(internet, "https://example.net/") == "url_failed"  # the name is not in the certificate
        assert await outcome(internet, "https://a.b.example.com/") == "url_failed"
        strict = replace(internet.network, tls=INTERNET.tls)
        assert await outcome(internet, "https://example.com/", network=strict) == "url_failed"  # unknown authority
        await internet.add_host(always(response()), PUBLIC)  # plain HTTP

        async def connect(address: str, port: int) -> socket.socket:
            return await internet.network.connect(address, 80)

        plain = replace(internet.network, connect=connect)
        assert await outcome(internet, "https://example.com/", network=plain, timeout=0.3) == "url_failed"

    run(test)


def test_the_default_settings_of_tls_verify_the_host() -> None:
    context = INTERNET.tls()
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def test(internet: SmallInternet) -> None:
        await internet.add_host(always(response()))
        assert await outcome(internet, "http://images.example.com/") == "image"

    run(test)


def test_the_next_address_is_tried_if_one_does_not_answer() -> None:
    async def test(internet: SmallInternet) -> None:
        async def connect(address: str, port: int) -> socket.socket:
            if address == PUBLIC_6:
                raise ConnectionRefusedError
            return await internet.network.connect(address, port)

        await internet.add_host(always(response()))
        internet.names["images.example.com"] = [[PUBLIC_6, PUBLIC]]
        network = replace(internet.network, connect=connect)
        assert await outcome(internet, "http://images.example.com/", network=network) == "image"

    run(test)


def test_a_dead_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.05)

    async def test(internet: SmallInternet) -> None:
        async def connect(address: str, port: int) -> socket.socket:
            if address == PUBLIC_6:
                await asyncio.Event().wait()
            return await internet.network.connect(address, port)

        await internet.add_host(always(response()))
        internet.names["images.example.com"] = [[PUBLIC_6, PUBLIC]]
        network = replace(internet.network, connect=connect)
        assert await outcome(internet, "http://images.example.com/", network=network) == "image"

    run(test)


@pytest.mark.parametrize(
    "locations",
    [
        ["/b"],
        ["b", "../c", "?d"],
        ["http://redirect.example.com/b", "//images.example.com/c"],
        ["/1", "/2", "/3", "/4", "/5"],
    ],
)
def test_redirects_are_followed(locations: list[str]) -> None:
    async def test(internet: SmallInternet) -> None:
        remaining = list(locations)

        async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(response(b"", 302, f"Location: {remaining.pop(0)}") if remaining else response())

        await internet.add_host(answer)
        assert await outcome(internet, "http://images.example.com/a/b") == "image"
        assert remaining == []

    run(test)


def test_a_redirect_from_http_to_https_is_followed_but_not_back() -> None:
    async def test(internet: SmallInternet) -> None:
        internet.names["example.com"] = [[PUBLIC]]
        await internet.add_host(always(response(b"", 301, "Location: https://example.com/secure")))
        await internet.add_host(always(response(b"secure")), tls=True)
        assert await outcome(internet, "http://example.com/") == "secure"
        await internet.add_host(always(response(b"", 301, "Location: http://example.com/plain")), tls=True)
        await internet.add_host(always(response(b"plain")))
        assert await outcome(internet, "http://example.com/") == "plain"
        assert await outcome(internet, "https://example.com/") == "url_refused"

    run(test)


def test_chunks_and_a_body_without_length_are_read() -> None:
    async def test(internet: SmallInternet) -> None:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nim\r\n3\r\nage\r\n0\r\n\r\n"
        early = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3
        for answer in (chunked, early + chunked, b"HTTP/1.0 200 OK\r\n\r\nimage"):
            await internet.add_host(always(answer))
            assert await outcome(internet, "http://images.example.com/") == "image"

    run(test)


# --- hostile answers --------------------------------------------------------------------------------------------------


async def endless(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(65_536))
        await writer.drain()


async def endless_header(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def endless_hints(request: bytes, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
        await writer.drain()


async def tiny_chunks(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n" * 1000)
        await writer.drain()


async def dripping(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def silent(request: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def resetting(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxxx")
    await writer.drain()
    writer.transport.abort()


BOMB = gzip.compress(bytes(10_000_000))
HOSTILE: dict[str, tuple[Handler, str]] = {
    "endless body": (endless, "too_many_bytes"),
    "declared length": (always(b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n"), "too_many_bytes"),
    "huge declared length": (always(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999\r\n\r\n"), "too_many_bytes"),
    "endless header": (endless_header, "url_failed"),
    "endless hints": (endless_hints, "url_failed"),
    "tiny chunks": (tiny_chunks, "url_failed"),
    "dripping body": (dripping, "url_failed"),
    "no answer": (silent, "url_failed"),
    "reset": (resetting, "url_failed"),
    "gzip": (always(response(BOMB, 200, "Content-Encoding: gzip")), "url_failed"),
    "x-gzip": (always(response(BOMB, 200, "Content-Encoding: X-GZIP")), "url_failed"),
    "br": (always(response(b"x", 200, "Content-Encoding: br")), "url_failed"),
    "two encodings": (always(response(b"x", 200, "Content-Encoding: identity, gzip")), "url_failed"),
    "two headers": (always(response(b"x", 200, "Content-Encoding: identity", "Content-Encoding: gzip")), "url_failed"),
    "gzip as transfer": (always(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), "url_failed"),
    "empty": (always(b""), "url_failed"),
    "not HTTP": (always(b"SSH-2.0-OpenSSH_9.6\r\n"), "url_failed"),
    "HTTP/2": (always(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"), "url_failed"),
    "truncated": (always(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nxxx"), "url_failed"),
    "truncated chunk": (always(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nxxx"), "url_failed"),
    "bad length": (always(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nxxx"), "url_failed"),
    "two lengths": (always(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), "url_failed"),
    "bad chunk": (always(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "url_failed"),
    "upgrade": (always(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"), "url_failed"),
    "no location": (always(response(b"", 302)), "url_failed"),
    "two locations": (always(response(b"", 302, "Location: /a", "Location: /b")), "url_failed"),
    "endless redirects": (always(response(b"", 302, "Location: /a")), "url_failed"),
    "redirect to a file": (always(response(b"", 302, "Location: file:///etc/passwd")), "url_refused"),
    "redirect to data": (always(response(b"", 302, "Location: data:image/png;base64,AAAA")), "url_refused"),
    "redirect to ftp": (always(response(b"", 302, "Location: ftp://example.com/a.jpg")), "url_refused"),
    "redirect to a port": (always(response(b"", 302, "Location: http://images.example.com:22/")), "url_refused"),
    "redirect to a login": (always(response(b"", 302, "Location: http://a:b@images.example.com/")), "url_refused"),
    "redirect to latin-1": (
        always(response(b"", 302).replace(b"\r\n\r\n", b"\r\nLocation: //\xff/\r\n\r\n")),
        "url_refused",
    ),
    **{
        f"status {status}": (always(response(b"image", status)), "url_failed")
        for status in (201, 204, 206, 300, 304, 305, 400, 401, 403, 404, 407, 429, 500, 503, 999)
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers(name: str) -> None:
    handler, expected = HOSTILE[name]

    async def test(internet: SmallInternet) -> None:
        await internet.add_host(handler)
        quick = name not in ("dripping body", "no answer")
        start = time.monotonic()
        assert await outcome(internet, "http://images.example.com/", timeout=30 if quick else 0.3) == expected
        assert time.monotonic() - start < 20  # a hundred times what it needs, but less than the timeout
        assert internet.canary_connections == 0

    run(test)


def test_twenty_redirects_end_after_five() -> None:
    async def test(internet: SmallInternet) -> None:
        await internet.add_host(always(response(b"", 302, "Location: /again")))
        assert await outcome(internet, "http://images.example.com/") == "url_failed"
        assert len(internet.connected) == 1 + fetch.MAX_REDIRECTS == 6

    run(test)


def test_at_most_20_mb_are_read_whatever_the_limits_allow() -> None:
    async def test(internet: SmallInternet) -> None:
        await internet.add_host(always(b"HTTP/1.1 200 OK\r\nContent-Length: 20000001\r\n\r\n"))
        with pytest.raises(ImageError) as caught:
            await fetch_image("http://images.example.com/", allow_http=True, network=internet.network)
        assert caught.value.code == "too_many_bytes"

    run(test)


def test_a_body_of_exactly_the_limit_is_read() -> None:
    async def test(internet: SmallInternet) -> None:
        for size, expected in ((100_000, "x" * 100_000), (100_001, "too_many_bytes")):
            await internet.add_host(always(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * size))
            assert await outcome(internet, "http://images.example.com/") == expected

    run(test)


# --- time and numbers -------------------------------------------------------------------------------------------------


def test_a_slow_name_server_is_cut_off() -> None:
    async def test(internet: SmallInternet) -> None:
        async def resolve(host: str, port: int) -> list[str]:
            await asyncio.Event().wait()
            raise AssertionError

        network = replace(internet.network, resolve=resolve)
        assert await outcome(internet, URL, timeout=0.05, network=network) == "url_failed"

    run(test)


def test_a_lookup_that_hangs_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the fetch nor the end of the event loop, which waits for its own threads."""
    hanging, release = threading.Event(), threading.Event()

    def getaddrinfo(*arguments: object, **settings: object) -> list[object]:
        hanging.set()
        release.wait(60)
        return []

    async def test() -> None:
        with pytest.raises(ImageError) as caught:
            await fetch_image(URL, timeout=0.05)
        assert caught.value.code == "url_failed"

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    asyncio.run(test())
    assert hanging.is_set()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "tessella-dns"]
    assert thread.daemon
    release.set()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("failure", [socket.gaierror(-2, "not known"), UnicodeError("label too long")])
def test_a_failed_lookup(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*arguments: object, **settings: object) -> list[object]:
        raise failure

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ImageError) as caught:
        asyncio.run(fetch_image(URL))
    assert caught.value.code == "url_failed"


def test_lookups_return_each_address_once() -> None:
    assert "127.0.0.1" in asyncio.run(resolve_host("127.0.0.1", 80))
    addresses = asyncio.run(resolve_host("localhost", 80))
    assert {ip_address(address).is_loopback for address in addresses} == {True}
    assert len(addresses) == len(set(addresses))


def test_a_refused_connection() -> None:
    async def test(internet: SmallInternet) -> None:
        async def connect(address: str, port: int) -> socket.socket:
            with socket.socket() as unused:  # a port where nothing listens
                unused.bind(("127.0.0.1", 0))
                return await connect_to("127.0.0.1", unused.getsockname()[1])

        assert await outcome(internet, URL, network=replace(internet.network, connect=connect)) == "url_failed"

    run(test)


def test_the_number_of_simultaneous_fetches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(internet: SmallInternet) -> None:
        busy = most = 0
        full, release = asyncio.Event(), asyncio.Event()

        async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            if busy == fetch.MAX_FETCHES:
                full.set()
            await release.wait()
            busy -= 1
            writer.write(response())

        await internet.add_host(answer)
        tasks = [asyncio.ensure_future(outcome(internet, "http://images.example.com/")) for _ in range(80)]
        await full.wait()
        assert await outcome(internet, "http://images.example.com/", timeout=0.05) == "url_failed"  # waits in vain
        release.set()
        assert set(await asyncio.gather(*tasks)) == {"image"}
        assert most == fetch.MAX_FETCHES

    run(test)


def test_error_messages_name_no_address() -> None:
    async def test(internet: SmallInternet) -> None:
        internet.names["images.example.com"] = [["10.1.2.3"]]
        with pytest.raises(ImageError) as caught:
            await fetch_image(URL, network=internet.network)
        assert "10.1.2.3" not in str(caught.value)

    run(test)
