"""Both clients against a real HTTP server that answers, refuses, resets, lies and hangs."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tessella
from tessella import AsyncClient, Client
from tessella.client import Match, ServerModel, retries
from tessella.client.images import make_requests
from tessella.data.decode import decode
from tessella.errors import ImageError, ServeError, TessellaError, UsageError, WeightsError
from tessella.results import Prediction, Record

from .fake_server import (
    CLASSES,
    MODEL,
    FakeServer,
    Reply,
    Request,
    json_reply,
    label_of,
    ordinary,
    problem,
    results,
    vector_of,
)

CAT = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"
Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """A function (server, method, *arguments, settings={...}, **keywords) that makes one call with either client."""

    def ask_sync(server: FakeServer | str, method: str, *arguments: Any, settings: Any = None, **keywords: Any) -> Any:
        with Client(url_of(server), **(settings or {})) as client:
            result = getattr(client, method)(*arguments, **keywords)
            return list(result) if method == "records" else result

    def ask_async(server: FakeServer | str, method: str, *arguments: Any, settings: Any = None, **keywords: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(url_of(server), **(settings or {})) as client:
                result = getattr(client, method)(*arguments, **keywords)
                return [record async for record in result] if method == "records" else await result

        return asyncio.run(run())

    return ask_sync if request.param == "sync" else ask_async


def url_of(server: FakeServer | str) -> str:
    return server if isinstance(server, str) else server.url


def image(number: int) -> bytes:
    """Bytes that are different for each number; the fake server decodes nothing."""
    return b"image %d " % number + bytes(random.Random(number).randrange(256) for _ in range(number % 50))


def refusing(times: int, *replies: Reply) -> Callable[[Request], Reply]:
    """Give these answers in turn to the first requests, then answer."""
    remaining = [replies[index % len(replies)] for index in range(times)]
    lock = threading.Lock()

    def behave(request: Request) -> Reply:
        with lock:
            return remaining.pop(0) if remaining else ordinary(request)

    return behave


def code_of(ask: Ask, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(TessellaError) as caught:
        ask(*arguments, **keywords)
    return caught.value.code


# --- results ----------------------------------------------------------------------------------------------------------


def test_classify_one_image(ask: Ask) -> None:
    with FakeServer() as server:
        predictions = ask(server, "classify", image(1), 2)
    label = label_of(image(1))
    assert predictions == [Prediction(0, f"{label} 0", 0.5), Prediction(1, f"{label} 1", 0.25)]


def test_results_have_the_types_of_a_predictor(ask: Ask) -> None:
    images = [image(1), image(2)]
    with FakeServer() as server:
        classes = ask(server, "classify", images)
        vectors, vector = ask(server, "embed", images), ask(server, "embed", image(1))
        scores = ask(server, "predict", images)
        records = ask(server, "records", images, top=1, keys=["a", "b"])
    assert [[best.label for best in row] for row in classes] == [
        [f"{label_of(data)} {i}" for i in range(5)] for data in images
    ]
    expected = np.array([vector_of(data) for data in images], np.float32)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected)
    np.testing.assert_array_equal(vector, expected[0])
    assert scores.probabilities.dtype == np.float32
    np.testing.assert_array_equal(scores.probabilities, [[2.0**-i / 2 for i in range(CLASSES)]] * 2)
    np.testing.assert_array_equal(scores.embeddings, expected)
    assert [(type(record), record.key, record.status) for record in records] == [
        (Record, "a", "ok"),
        (Record, "b", "ok"),
    ]
    assert records[1].top == (Prediction(0, f"{label_of(images[1])} 0", 0.5),)
    np.testing.assert_array_equal(records[1].embedding, expected[1])


def test_no_images_give_no_results(ask: Ask) -> None:
    with FakeServer() as server:
        assert ask(server, "classify", []) == []
        assert ask(server, "embed", []).shape == (0, 0)
        assert ask(server, "predict", []).probabilities.shape == (0, 0)
        assert ask(server, "records", []) == []
    assert server.requests == []


def test_records_without_classes_and_embedding(ask: Ask) -> None:
    with FakeServer() as server:
        (record,) = ask(server, "records", image(1), top=0, embed=False)
    assert record == Record("0", "ok")


@pytest.mark.parametrize(
    ("arguments", "path", "fields"),
    [
        (dict(top=3, embed=False), "/v1/classify", {"top": "3"}),
        (dict(top=0), "/v1/embed", {}),
        (dict(top=3), "/v1/predict", {"top": "3"}),
    ],
)
def test_the_route_follows_from_what_is_asked_for(ask: Ask, arguments: Any, path: str, fields: Any) -> None:
    with FakeServer() as server:
        ask(server, "records", [image(1)], **arguments)
        ask(server, "records", [image(1)], **arguments, settings=dict(model="other"))
    assert [request.path for request in server.requests] == [path] * 2
    assert [request.fields for request in server.requests] == [fields, {**fields, "model": "other"}]


def test_images_of_every_kind_are_sent_without_loss(ask: Ask, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    picture = Image.fromarray(pixels)
    with CAT.open("rb") as file, FakeServer() as server:
        images = [CAT, str(CAT), file, CAT.read_bytes(), bytearray(CAT.read_bytes()), picture, pixels, pixels / 255.0]
        records = ask(server, "records", images, settings=dict(max_images=100))
    assert [record.key for record in records] == [str(CAT), str(CAT), str(CAT), *"34567"]
    (request,) = server.requests
    assert [data for _, data in request.files[:5]] == [CAT.read_bytes()] * 5
    for _, data in request.files[5:]:
        assert data.startswith(b"\x89PNG")
        np.testing.assert_array_equal(decode(data), pixels)


def test_names_of_files_are_not_sent(ask: Ask) -> None:
    with FakeServer() as server:
        ask(server, "classify", CAT)
    (request,) = server.requests
    assert [name for name, _ in request.files] == ["0"]
    assert b"cat.jpg" not in request.body


def test_many_images_are_divided_into_requests(ask: Ask) -> None:
    images = [image(number) for number in range(100)]
    with FakeServer() as server:
        records = ask(server, "records", images, settings=dict(max_images=7))
    assert [record.key for record in records] == [str(number) for number in range(100)]
    assert [record.top[0].label for record in records] == [f"{label_of(data)} 0" for data in images]
    assert sorted(len(request.files) for request in server.requests) == [2, *[7] * 14]


def test_requests_are_limited_in_bytes() -> None:
    sizes = [1000, 3000, 100, 5000, 2500, 2500, 100_000, 10, 10]
    images = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
    requests = list(make_requests(((str(index), data) for index, data in enumerate(images)), 3, 8192))
    assert [len(request.keys) for request in requests] == [3, 1, 3, 2]
    assert [request.first for request in requests] == [0, 3, 4, 7]
    assert all(len(request.body({"top": "5"})[0]) <= 8192 for request in requests)
    assert [(position, error.code) for request in requests for position, error in request.errors.items()] == [
        (6, "too_many_bytes")
    ]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_number_of_simultaneous_requests_is_bounded(ask: Ask, concurrency: int) -> None:
    barrier = threading.Barrier(concurrency)

    def behave(request: Request) -> Reply:
        barrier.wait(60)  # as many requests are there at the same time
        return ordinary(request)

    with FakeServer(behave) as server:
        images = [image(number) for number in range(12)]
        ask(server, "classify", images, settings=dict(concurrency=concurrency, max_images=1))
    assert server.busiest == concurrency


def test_results_come_while_later_images_are_still_unread() -> None:
    read = []

    def images() -> Iterator[bytes]:
        for number in range(1000):
            read.append(number)
            yield image(number)

    with FakeServer() as server, Client(server.url, max_images=1, concurrency=2) as client:
        records = client.records(images())
        assert next(records).key == "0"
        assert len(read) < 20
        records.close()
    assert len(server.requests) < 20


def test_an_async_call_yields_results_while_the_iterable_is_slow() -> None:
    read = []

    def images() -> Iterator[bytes]:
        for number in range(6):
            read.append(number)
            yield image(number)
            end = time.monotonic() + 30
            while len(server.requests) < number and time.monotonic() < end:  # one request is made when the next is read
                time.sleep(0.01)
            time.sleep(0.2)

    async def run() -> None:
        async with (
            AsyncClient(server.url, max_images=1, concurrency=8) as client,
            aclosing(client.records(images())) as records,
        ):
            assert (await anext(records)).key == "0"
            assert len(read) < 6

    with FakeServer() as server:
        asyncio.run(run())


def test_an_exception_of_the_callers_iterable_comes_after_earlier_results(ask: Ask) -> None:
    def images() -> Iterator[bytes]:
        yield from (image(number) for number in range(5))
        raise ZeroDivisionError

    keys: list[str] = []
    with FakeServer() as server, Client(server.url, max_images=2) as client:
        with pytest.raises(ZeroDivisionError):
            keys.extend(record.key for record in client.records(images()))
        assert keys == list("01234")
        with pytest.raises(ZeroDivisionError):
            ask(server, "classify", images())
    assert sum(len(request.files) for request in server.requests) == 10


def test_wrong_keys(ask: Ask) -> None:
    with FakeServer() as server:
        assert code_of(ask, server, "records", [image(1)], keys="a") == "bad_argument"
        assert code_of(ask, server, "records", [image(1)], keys=["a", "b"]) == "bad_argument"


@pytest.mark.parametrize("top", [-1, 1.5, True, "5"])
def test_wrong_top(ask: Ask, top: Any) -> None:
    with FakeServer() as server:
        assert code_of(ask, server, "classify", image(1), top) == "bad_argument"
        assert code_of(ask, server, "records", image(1), top=top) == "bad_argument"
    assert server.requests == []


def test_the_fingerprint_of_the_answers() -> None:
    with FakeServer() as server, Client(server.url) as client:
        assert (client.fingerprint, client.served_model) == ("", "")
        client.classify(image(1))
        assert (client.fingerprint, client.served_model) == (MODEL["fingerprint"], MODEL["model"])


# --- bad images -------------------------------------------------------------------------------------------------------


def test_a_bad_image_is_an_error_or_a_record(ask: Ask) -> None:
    images = [image(0), b"bad", image(2), "no such file", None, image(5)]
    with FakeServer() as server:
        records = ask(server, "records", images, settings=dict(max_images=2))
        assert [record.status for record in records] == ["ok", "corrupt_image", "ok", "not_found", "bad_argument", "ok"]
        assert [record.top[0].label[:64] for record in records if record.top] == [
            label_of(image(number)) for number in (0, 2, 5)
        ]
        for method in ("classify", "embed", "predict"):
            for given, code, message in (
                ([image(0), b"bad"], "corrupt_image", "image 1: the image is damaged or truncated"),
                (b"bad", "corrupt_image", "the image is damaged or truncated"),
                ([image(0), image(1), "nowhere.jpg"], "not_found", "image 2: there is no file 'nowhere.jpg'"),
            ):
                with pytest.raises(ImageError) as caught:
                    ask(server, method, given)
                assert (caught.value.code, caught.value.message) == (code, message)


def test_images_that_cannot_be_read_are_not_sent(ask: Ask) -> None:
    with FakeServer() as server:
        records = ask(server, "records", ["nowhere.jpg", 5, [1]])
    assert [record.status for record in records] == ["not_found", "bad_argument", "bad_argument"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "expected", "kind"),
    [
        ("non_finite", "non_finite", WeightsError),
        ("worker_failed", "worker_failed", ServeError),
        ("something new", "server_failed", ServeError),
    ],
)
def test_other_states_of_an_image(ask: Ask, status: str, expected: str, kind: type[TessellaError]) -> None:
    def behave(request: Request) -> Reply:
        return json_reply({**MODEL, "results": [dict(key="0", status=status, message="a\x1b[31mtext")]})

    with FakeServer(behave) as server:
        with pytest.raises(kind) as caught:
            ask(server, "classify", image(1))
        assert caught.value.code == expected
        (record,) = ask(server, "records", image(1))
    assert record.status == expected
    assert "\x1b" not in record.message


# --- retries ----------------------------------------------------------------------------------------------------------

RESET = Reply(None)
TRANSIENT = {
    "429": problem("overloaded", 429, Retry_After="0"),
    "503": problem("not_ready", 503, Retry_After="0"),
    "draining": problem("draining", 503, Retry_After="0"),
    "503 of a proxy": Reply(503, b"<html>", {"Retry-After": "0"}),
    "502 of a proxy": Reply(502, b"<html>"),
    "429 without Retry-After": problem("overloaded", 429),
    "reset before the answer": RESET,
    "reset within the answer": Reply(200, b'{"model": "fake"}', cut=5),
}


@pytest.mark.parametrize("name", TRANSIENT)
@pytest.mark.parametrize("method", ["classify", "models"])
def test_transient_failures_are_retried(ask: Ask, name: str, method: str) -> None:
    arguments = [image(1)] if method == "classify" else []
    with FakeServer(refusing(2, TRANSIENT[name])) as server:
        assert len(ask(server, method, *arguments)) > 0
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("429", "overloaded"),
        ("503", "not_ready"),
        ("502 of a proxy", "server_failed"),
        ("reset before the answer", "server_unavailable"),
        ("reset within the answer", "server_unavailable"),
    ],
)
def test_retries_are_limited(ask: Ask, name: str, code: str) -> None:
    with FakeServer(lambda request: TRANSIENT[name]) as server:
        assert code_of(ask, server, "classify", image(1), settings=dict(retries=2)) == code
        assert len(server.requests) == 3
        assert code_of(ask, server, "classify", image(1), settings=dict(retries=0)) == code
        assert len(server.requests) == 4


def test_retry_after_is_honored(ask: Ask) -> None:
    times = []

    def behave(request: Request) -> Reply:
        times.append(time.monotonic())
        return problem("overloaded", 429, Retry_After="1") if len(times) == 1 else ordinary(request)

    with FakeServer(behave) as server:
        ask(server, "classify", image(1))
    assert times[1] - times[0] >= 1


def test_a_wait_beyond_the_deadline_is_not_begun(ask: Ask) -> None:
    start = time.monotonic()
    with FakeServer(lambda request: problem("overloaded", 429, Retry_After="3600")) as server:
        assert code_of(ask, server, "classify", image(1)) == "overloaded"
    assert len(server.requests) == 1
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", UsageError),
        (401, "unauthorized", UsageError),
        (403, "forbidden_host", UsageError),
        (404, "unknown_model", UsageError),
        (413, "too_many_images", UsageError),
        (422, "corrupt_image", ImageError),
        (500, "internal_error", ServeError),
        (500, "non_finite", WeightsError),
        (504, "deadline_exceeded", ServeError),
    ],
)
def test_other_errors_are_raised_at_once(ask: Ask, status: int, code: str, kind: type[TessellaError]) -> None:
    with FakeServer(lambda request: problem(code, status)) as server:
        for method, arguments in (("classify", [image(1)]), ("models", []), ("search", [3])):
            with pytest.raises(kind) as caught:
                ask(server, method, *arguments)
            assert caught.value.code == code
            assert caught.value.message == f"the server at {server.url}: {tessella.errors.public_text(code)}"
            assert caught.value.hint == f"more about {code}"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, b"Internal Server Error"),
        Reply(404, b"<html>not a Tessella server</html>"),
        Reply(301, b"", {"Location": "http://127.0.0.1:1/"}),
        Reply(204),
        problem("a code of a later version", 418),
        json_reply({"code": 5}, 400),
        json_reply([], 400),
        Reply(400, b"[" * 100_000),
        Reply(400, b"\xff\xfe"),
    ],
)
def test_errors_without_a_known_code(ask: Ask, reply: Reply) -> None:
    with FakeServer(lambda request: reply) as server, pytest.raises(ServeError) as caught:
        ask(server, "classify", image(1))
    assert (caught.value.code, caught.value.exit_code) == ("server_failed", 9)
    assert str(reply.status) in caught.value.message
    assert len(server.requests) == 1


def test_nobody_listens(ask: Ask) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert code_of(ask, url, "classify", image(1), settings=dict(retries=1)) == "server_unavailable"
        assert ask(url, "ready") is False


def test_a_server_that_comes_back_is_found(ask: Ask) -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()

    def start() -> None:
        server.server.server_bind()
        server.server.server_activate()
        server._thread.start()

    server = FakeServer()
    server.server.server_close()
    server.server.socket = socket.socket()
    server.server.server_address = address
    timer = threading.Timer(0.5, start)
    timer.start()
    try:
        assert len(ask(f"http://127.0.0.1:{address[1]}", "classify", image(1))) == 5
    finally:
        timer.join()
        server.__exit__()


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["answer", "body"])
def test_a_server_that_hangs_is_given_up(ask: Ask, where: str) -> None:
    release = threading.Event()

    def behave(request: Request) -> Reply:
        if where == "answer":
            release.wait(60)
            return ordinary(request)
        return Reply(200, b"{", {"Content-Length": "1000"})

    start = time.monotonic()
    with FakeServer(behave) as server:
        assert code_of(ask, server, "classify", image(1), settings=dict(timeout=0.3)) == "server_unavailable"
        release.set()
    assert time.monotonic() - start < 20


def test_an_answer_that_drips_is_given_up(ask: Ask) -> None:
    """Every read succeeds, but the whole takes too long."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not stop.wait(0.02):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    start = time.monotonic()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert code_of(ask, url, "models", settings=dict(timeout=0.5, retries=0)) == "server_unavailable"
        assert 0.5 <= time.monotonic() - start < 20
    finally:
        stop.set()
        thread.join()
        listener.close()


def test_a_body_that_is_read_slowly_is_given_up(ask: Ask) -> None:
    """Every write succeeds in time, but all of them would take half a minute."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while not stop.wait(0.1):
                if not connection.recv(65_536):
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    start = time.monotonic()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = dict(timeout=0.5, retries=0)
        assert code_of(ask, url, "classify", bytes(20_000_000), settings=settings) == "server_unavailable"
        assert 0.5 <= time.monotonic() - start < 15
    finally:
        stop.set()
        thread.join()
        listener.close()


def test_the_server_is_told_the_deadline(ask: Ask) -> None:
    with FakeServer() as server:
        ask(server, "classify", image(1), settings=dict(timeout=20))
    (request,) = server.requests
    assert 0 < int(request.headers["X-Tessella-Deadline-Ms"]) <= 20_000


def busy_reply(retry_after: str) -> retries.Reply:
    return retries.Reply(429, {"retry-after": retry_after}, b"")


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_delays_double_up_to_a_limit_and_vary() -> None:
    error = ServeError("server_unavailable", "no")
    for seed in range(20):
        random.seed(seed)
        clock = Clock()
        attempts = retries.Attempts(1000.0, 12, clock)
        delays = [attempts.delay_after(error, None) for _ in range(12)]
        for number, delay in enumerate(delays):
            longest = min(retries.FIRST_DELAY * 2**number, retries.LONGEST_DELAY)
            assert longest / 2 <= delay <= longest
        with pytest.raises(ServeError):
            attempts.delay_after(error, None)


def test_the_deadline_bounds_all_attempts() -> None:
    clock = Clock()
    attempts = retries.Attempts(10.0, 1000, clock)
    error = ServeError("overloaded", "no")
    reply = busy_reply("4")
    assert 4 <= attempts.delay_after(error, reply) <= 5.1
    clock.now = 7.0
    assert attempts.remaining == 3
    with pytest.raises(ServeError):
        attempts.delay_after(error, reply)
    clock.now = 11.0
    assert attempts.remaining == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("7", 7), (" 7 ", 7), ("", None), ("-1", None), ("soon", None), ("1.5", None), ("٣", None)],
)
def test_the_header_retry_after(text: str, seconds: float | None) -> None:
    assert retries.retry_after({"retry-after": text}) == seconds


@pytest.mark.parametrize(
    "text", ["Mon, 01 Jan 2024 00:00:00 +{}", "Mon, 01 Jan 2024 {}:00:00 GMT", "Mon, 01 Jan {} 00:00:00 GMT"]
)
def test_retry_after_with_a_number_of_many_digits_is_no_date(text: str) -> None:
    assert retries.retry_after({"retry-after": text.format("9" * 30)}) is None


def test_retry_after_may_be_a_date() -> None:
    seconds = retries.retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True)})
    assert seconds is not None
    assert 90 < seconds <= 100
    assert retries.retry_after({"retry-after": formatdate(time.time() - 100, usegmt=True)}) == 0
    assert retries.retry_after({"retry-after": formatdate(time.time() - 100)}) == 0  # "-0000"


# --- answers that lie -------------------------------------------------------------------------------------------------


def tampered(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Request], Reply]:
    def behave(request: Request) -> Reply:
        rows = results(request)
        changed = change(rows)
        return json_reply({**MODEL, "results": rows if changed is None else changed})

    return behave


LIES: dict[str, Callable[[Request], Reply]] = {
    "not JSON": lambda request: Reply(200, b"{"),
    "empty": lambda request: Reply(200),
    "HTML": lambda request: Reply(200, b"<html>"),
    "other JSON": lambda request: json_reply([]),
    "no results": lambda request: json_reply(MODEL),
    "not UTF-8": lambda request: Reply(200, b'{"model": "\xff", "fingerprint": "", "results": []}'),
    "deep": lambda request: Reply(200, b"[" * 1_000_000),
    "one too few": tampered(lambda rows: rows[:-1]),
    "one too many": tampered(lambda rows: [*rows, rows[-1]]),
    "none": tampered(lambda rows: []),
    "other order": tampered(lambda rows: rows[::-1]),
    "twice the same": tampered(lambda rows: [rows[0], rows[0]]),
    "of another request": tampered(lambda rows: [{**row, "key": str(int(row["key"]) + 2)} for row in rows]),
    "without classes": tampered(lambda rows: [{**row, "top": []} for row in rows]),
    "without embedding": tampered(lambda rows: [{**row, "embedding": None} for row in rows]),
    "empty embedding": tampered(lambda rows: [{**row, "embedding": []} for row in rows]),
    "text for numbers": tampered(lambda rows: [{**row, "embedding": ["a"]} for row in rows]),
    "null probability": tampered(
        lambda rows: [{**row, "top": [{**row["top"][0], "probability": None}]} for row in rows]
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_an_answer_that_does_not_fit_is_never_a_result(ask: Ask, name: str) -> None:
    with FakeServer(LIES[name]) as server:
        for method in ("predict", "records"):
            with pytest.raises(ServeError) as caught:
                ask(server, method, [image(0), image(1)])
            assert caught.value.code == "server_failed"
    assert len(server.requests) == 2


def test_embeddings_of_different_length(ask: Ask) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[0]["embedding"] = [1.0]

    with FakeServer(tampered(change)) as server:
        assert code_of(ask, server, "embed", [image(0), image(1)]) == "server_failed"


def test_classes_that_are_missing(ask: Ask) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[1]["top"].pop()

    with FakeServer(tampered(change)) as server:
        assert code_of(ask, server, "predict", [image(0), image(1)]) == "server_failed"


def test_a_model_that_changes_during_a_call(ask: Ask) -> None:
    def behave(request: Request) -> Reply:
        late = int(request.files[0][0]) >= 20
        return json_reply({"model": "fake", "fingerprint": "b" if late else "a", "results": results(request)})

    images = [image(number) for number in range(40)]
    with FakeServer(behave) as server:
        with pytest.raises(ServeError) as caught:
            ask(server, "classify", images, settings=dict(max_images=5))
        assert caught.value.code == "server_failed"
        assert "changed its model" in caught.value.message
        assert len(ask(server, "classify", images[:20], settings=dict(max_images=5))) == 20


def test_no_rows_are_swapped_whatever_fails(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 images; two thirds of the requests are refused, reset or cut, and answers come in any order."""
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(retries, "LONGEST_DELAY", 0.02)
    rng = random.Random(3)
    lock = threading.Lock()
    failures: dict[str, int] = {}

    def behave(request: Request) -> Reply:
        with lock:
            choice = rng.choice(["ok", "ok", "429", "503", "reset", "cut"])
            delay = rng.random() * 0.01
            failures[choice] = failures.get(choice, 0) + 1
        time.sleep(delay)  # the order of answers is not that of requests
        if choice == "cut":
            reply = ordinary(request)
            return Reply(reply.status, reply.body, reply.headers, cut=len(reply.body) // 2)
        return {"429": TRANSIENT["429"], "503": TRANSIENT["503"], "reset": RESET}.get(choice) or ordinary(request)

    images = [image(number) for number in range(2000)]
    images[::97] = [b"bad %d" % number for number in range(0, 2000, 97)]
    with FakeServer(behave) as server:
        settings = dict(max_images=9, concurrency=8, retries=100, timeout=250)
        records = ask(server, "records", images, top=1, keys=[f"k{n}" for n in range(2000)], settings=settings)
    assert [record.key for record in records] == [f"k{number}" for number in range(2000)]
    for record, data in zip(records, images, strict=True):
        if data.startswith(b"bad"):
            assert record.status == "corrupt_image"
            continue
        assert record.top[0].label == f"{label_of(data)} 0"
        assert record.embedding is not None
        assert record.embedding.tolist() == np.array(vector_of(data), np.float32).tolist()
    assert min(failures.values()) >= 10
    assert len(failures) == 5


# --- other calls ------------------------------------------------------------------------------------------------------


def test_models(ask: Ask) -> None:
    with FakeServer() as server:
        assert ask(server, "models") == [
            ServerModel("fake", "ready", None, CLASSES, 4, None, ("classify",)),
            ServerModel("other", "unloaded"),
        ]


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False)])
def test_ready(ask: Ask, status: int, expected: bool) -> None:
    with FakeServer(lambda request: json_reply({"ready": expected, "reason": "x"}, status)) as server:
        assert ask(server, "ready") is expected
    assert [request.path for request in server.requests] == ["/readyz"]


def test_ready_is_not_asked_of_another_kind_of_server(ask: Ask) -> None:
    with FakeServer(lambda request: Reply(404)) as server:
        assert code_of(ask, server, "ready") == "server_failed"


def test_search(ask: Ask) -> None:
    neighbor = dict(row=3, key="a.jpg", score=0.5, label="cat", probability=0.9, width=10, height=20, duplicates=[4, 5])

    def behave(request: Request) -> Reply:
        return json_reply({"neighbors": [neighbor, dict(row=1, key="b", score=0.25)], "matching": 7, "rows": 9, "x": 1})

    with FakeServer(behave) as server:
        matches = ask(server, "search", [2, b"image"], negative=[np.int64(5)], filter={"label": ["cat"]}, min_score=0.1)
        ask(server, "search", 4, top=3, group_duplicates=True)
    assert matches.neighbors == (Match(3, "a.jpg", 0.5, "cat", 0.9, 10, 20, (4, 5)), Match(1, "b", 0.25))
    assert (matches.matching, matches.rows) == (7, 9)
    assert [json.loads(request.body) for request in server.requests] == [
        {
            "queries": [{"row": 2}, {"data": "aW1hZ2U="}],
            "negative": [{"row": 5}],
            "top": 20,
            "min_score": 0.1,
            "filter": {"label": ["cat"]},
            "group_duplicates": False,
        },
        {"queries": [{"row": 4}], "top": 3, "group_duplicates": True},
    ]


def test_a_search_for_a_bad_image(ask: Ask) -> None:
    with FakeServer() as server:
        assert code_of(ask, server, "search", "nowhere.jpg") == "not_found"
        assert code_of(ask, server, "search", 1, filter={"a": object()}) == "bad_argument"
    assert server.requests == []


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://a",
        "http://",
        "http://a b",
        "http://u:p@host",
        "http://host?x",
        "http://host#x",
        "http://host:99999",
        "http://host:x",
        "http://host:0",
        "http://hö.st",
        "http://host\\x",
        5,
        None,
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_refused_urls_of_servers(kind: Any, url: Any) -> None:
    with pytest.raises(UsageError) as caught:
        kind(url)
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(
    "settings",
    [
        dict(timeout=0),
        dict(timeout=float("nan")),
        dict(retries=-1),
        dict(concurrency=0),
        dict(max_images=0),
        dict(max_body=10),
        dict(token=""),
        dict(token="a\nb"),
        dict(token=" secret"),
        dict(token="secret "),
        dict(token="ü"),
        dict(token=5),
        dict(timeouts=3),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_refused_settings(kind: Any, settings: Any) -> None:
    with pytest.raises(UsageError) as caught:
        kind("http://127.0.0.1", **settings)
    assert caught.value.code == "bad_argument"


def test_the_token_is_sent_and_never_shown(ask: Ask) -> None:
    with FakeServer() as server:
        ask(server, "classify", image(1), settings=dict(token="secret-token"))
        ask(server, "classify", image(1))
        client = Client(server.url, token="secret-token")
    assert server.requests[0].headers["Authorization"] == "Bearer secret-token"
    assert "Authorization" not in server.requests[1].headers
    assert repr(client) == f"<Client of {server.url}>"


def test_a_token_may_contain_spaces_as_that_of_a_server_may(ask: Ask) -> None:
    with FakeServer() as server:
        ask(server, "classify", image(1), settings=dict(token="two words"))
    assert server.requests[0].headers["Authorization"] == "Bearer two words"


def test_a_path_in_the_url_is_kept(ask: Ask) -> None:
    with FakeServer() as server:
        ask(f"{server.url}/prefix/", "ready")
    assert [request.path for request in server.requests] == ["/prefix/readyz"]


def test_proxies_are_not_used_for_this_machine(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with FakeServer() as server:
        assert len(ask(server, "classify", image(1))) == 5


def test_threads_share_a_client() -> None:
    with FakeServer() as server, Client(server.url, max_images=3) as client:
        failures = []

        def work(start: int) -> None:
            images = [image(number) for number in range(start, start + 20)]
            labels = [row[0].label[:64] for row in client.classify(images)]
            if labels != [label_of(data) for data in images]:
                failures.append(start)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 200, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_client_can_be_used_after_it_was_closed() -> None:
    with FakeServer() as server:
        client = Client(server.url)
        client.close()
        assert client.ready()
        client.close()
        client.close()


def test_an_error_ends_the_other_requests_of_the_call(ask: Ask) -> None:
    """A request that waits for its next attempt must not hold up the error of another one."""

    def behave(request: Request) -> Reply:
        first = request.files[0][0] == "0"
        return problem("unknown_model", 404) if first else problem("overloaded", 429, Retry_After="30")

    start = time.monotonic()
    with FakeServer(behave) as server:
        images = [image(number) for number in range(4)]
        assert code_of(ask, server, "classify", images, settings=dict(max_images=1)) == "unknown_model"
    assert time.monotonic() - start < 20


def test_leaving_an_async_call_cancels_its_requests() -> None:
    release = threading.Event()

    def behave(request: Request) -> Reply:
        if request.files[0][0] != "0":
            release.wait(60)
        return ordinary(request)

    async def run() -> None:
        async with AsyncClient(server.url, max_images=1) as client:
            records = client.records([image(number) for number in range(10)])
            assert (await anext(records)).key == "0"
            await records.aclose()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert others == set()

    with FakeServer(behave) as server:
        asyncio.run(run())
        release.set()


def test_importing_the_client_is_cheap() -> None:
    code = (
        "import sys, tessella; tessella.Client; "
        "print([m for m in ('torch', 'openvino', 'httpx', 'httpx2', 'fastapi', 'pyarrow') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.strip() == "[]"


def test_an_image_file_in_memory(ask: Ask) -> None:
    with FakeServer() as server:
        assert len(ask(server, "classify", io.BytesIO(image(3)))) == 5
    assert server.requests[0].files == [("0", image(3))]
