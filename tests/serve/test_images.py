"""Images out of requests: forms, raw bodies and JSON, good and malformed."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
import tracemalloc
from collections import deque
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Message

from tessella.errors import ImageError
from tessella.serve import ServeSettings, images
from tessella.serve.images import MAX_NAME, MAX_TEXT, AskedImages, decode_text, read_images
from tessella.serve.problems import RequestError
from tessella.serve.security import ClientGoneError
from tessella.serve.strict_json import MAX_VALUES, parse_json

from .servers import FORM, multipart

PIXELS = b"not an image, but bytes"
ENCODED = base64.b64encode(PIXELS).decode()


def read(body: bytes | list[bytes], content_type: str, query: str = "", **settings: Any) -> AskedImages:
    """Read the images of a request whose body arrives in the given parts."""
    pieces = body if isinstance(body, list) else [body]
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    return asyncio.run(read_images(new_request(messages, content_type, query, **settings)))


def new_request(messages: list[Message], content_type: str, query: str = "", **settings: Any) -> Request:
    waiting = deque(messages)

    async def receive() -> Message:
        if waiting:
            return waiting.popleft()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    app = Starlette()
    app.state.settings = ServeSettings(**settings)
    headers = [(b"content-type", content_type.encode("latin-1"))] if content_type else []
    scope = dict(type="http", method="POST", path="/", headers=headers, query_string=query.encode(), app=app)
    return Request(scope, receive)


def refusal(body: bytes | list[bytes], content_type: str, query: str = "", **settings: Any) -> tuple[str, str]:
    """Return code and sentence of the refusal of a request."""
    with pytest.raises(RequestError) as caught:
        read(body, content_type, query, **settings)
    return caught.value.code, caught.value.message


def contents(request: AskedImages) -> list[tuple[str, bytes | str]]:
    return [(i.name, i.data.code if isinstance(i.data, ImageError) else i.data) for i in request.images]


# --- raw bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "IMAGE/PNG", "image/webp; q=1", "image/x-icon", "image/svg+xml", "application/octet-stream"]
)
def test_a_raw_body_is_one_image(kind: str) -> None:
    request = read(PIXELS, kind, "model=m&top=3")
    assert contents(request) == [("0", PIXELS)]
    assert (request.model, request.top, request.is_single) == ("m", 3, True)
    assert contents(read([PIXELS[:3], PIXELS[3:]], kind, "name=a%2Fb.jpg")) == [("a/b.jpg", PIXELS)]


@pytest.mark.parametrize(
    "kind",
    [
        *("", "text/plain", "text/html", "application/x-www-form-urlencoded", "application/xml", "application/pickle"),
        *("image", "image/", "image/*", "imagejpeg", "multipart/mixed", "multipart/form", "application/json5", "a\xff"),
        *("application/x-tar", "application/zip", "image/" + "a" * 101, "application/python-pickle", ";", "/"),
    ],
)
def test_other_types_are_refused(kind: str) -> None:
    assert refusal(PIXELS, kind)[0] == "unsupported_media_type"


def test_an_empty_body_is_an_empty_image() -> None:
    assert contents(read(b"", "image/png")) == [("0", "empty")]


def test_a_raw_image_over_the_limit_is_too_large() -> None:
    assert contents(read(b"x" * 1001, "image/png", max_body_bytes=1000)) == [("0", "too_many_bytes")]


@pytest.mark.parametrize("top", ["0", "-1", "1.5", "x", "", "1e3", " 1", "+1", "\u0661", "9" * 10, "9" * 11, "0x1"])
def test_the_number_of_classes_is_a_positive_integer(top: str) -> None:
    assert refusal(PIXELS, "image/png", f"top={top}")[0] == "bad_request"


def test_a_parameter_may_be_given_once() -> None:
    assert refusal(PIXELS, "image/png", "top=1&top=2")[0] == "bad_request"
    assert refusal(PIXELS, "image/png", "model=a&model=a")[0] == "bad_request"


def test_a_long_name_is_refused() -> None:
    assert contents(read(PIXELS, "image/png", "name=" + "x" * MAX_NAME))[0][0] == "x" * MAX_NAME
    assert refusal(PIXELS, "image/png", "name=" + "x" * (MAX_NAME + 1))[0] == "bad_request"


# --- JSON -------------------------------------------------------------------------------------------------------------


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def test_json_has_images_in_three_forms() -> None:
    images = [ENCODED, {"data": f"data:image/png;base64,{ENCODED}", "name": "b.png"}, {"data": ENCODED, "name": None}]
    request = read(as_json({"images": images, "model": "m", "top": 2}), "application/json; charset=utf-8")
    assert contents(request) == [("0", PIXELS), ("b.png", PIXELS), ("2", PIXELS)]
    assert (request.model, request.top, request.is_single) == ("m", 2, False)


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:;base64,",
        "data:image/svg+xml;charset=utf-8;base64,",
        'data:image/png;name="a.png";base64,',
    ],
)
def test_data_uris(uri: str) -> None:
    assert contents(read(as_json({"images": [uri + ENCODED]}), "application/json")) == [("0", PIXELS)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *(("", "empty"), ("=", "unreadable"), ("A", "unreadable"), ("AA", "unreadable"), ("AA=", "unreadable")),
        *(("AAA", "unreadable"), ("AA==A", "unreadable"), ("AAAA\n", "unreadable"), (" AAAA", "unreadable")),
        *(("AA-_", "unreadable"), ("\u00e9\u00e9\u00e9\u00e9", "unreadable"), ("AAAA\x00", "unreadable")),
        *(("data:", "unreadable"), ("data:,abc", "unreadable"), ("data:image/png,abc", "unreadable")),
        *(
            ("data:image/png;base64", "unreadable"),
            ("data:image/png;base64,", "empty"),
            ("file:///etc/passwd", "unreadable"),
        ),
        *(
            ("data:" + ";a" * 5000 + ";base64,AAAA", "unreadable"),
            ("http://localhost/", "unreadable"),
            ("../x", "unreadable"),
        ),
        *(("data:image/png;base64,data:image/png;base64,AAAA", "unreadable"), ("QUJD" * 400, "too_many_bytes")),
    ],
)
def test_bad_texts_are_errors_of_their_image_alone(text: str, code: str) -> None:
    request = read(as_json({"images": [ENCODED, text, ENCODED]}), "application/json", max_body_bytes=1000)
    assert contents(request) == [("0", PIXELS), ("1", code), ("2", PIXELS)]


def test_long_texts_that_begin_like_data_uris_are_refused_at_once() -> None:
    for text in ("data:" + "a" * 2000, "data:" + "a/" * 1000, "data:a/" + "a;" * 1000):
        start = time.process_time()  # other processes do not count
        for _ in range(100):
            assert isinstance(decode_text(text, ServeSettings()), ImageError)
        assert time.process_time() - start < 1


def test_a_request_that_fails_ends_its_fetches_and_counts_no_bytes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    counted = []

    async def fetch(url: str, **_: object) -> bytes:
        try:
            await asyncio.sleep(0 if url.endswith("first") else 0.05)
        finally:
            ended.append(url)
        return PIXELS

    def count(size: int) -> None:
        counted.append(size)
        raise RequestError("overloaded", "")

    async def scenario() -> None:
        body = as_json({"images": [{"url": f"https://example.com/{name}"} for name in ("first", "second", "third")]})
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        request = new_request(messages, "application/json", allow_urls=True)
        request.state.count_bytes = count
        with pytest.raises(RequestError):
            await read_images(request)
        assert len(ended) == 3
        await asyncio.sleep(0.1)
        assert counted == [len(PIXELS)]

    monkeypatch.setattr(images, "fetch_image", fetch)
    asyncio.run(scenario())


def test_urls_are_refused_by_default() -> None:
    for url in ("https://example.com/a.jpg", "file:///etc/passwd", "", "x"):
        request = read(as_json({"images": [{"url": url, "name": "n"}]}), "application/json")
        assert contents(request) == [("n", "url_refused")]


BAD_JSON = [
    *(b"", b" ", b"{", b"}", b"[", b"nul", b"{'images': []}", b'{"images": [NaN]}', b'{"images": [Infinity]}'),
    *(
        b'{"images": ["\\ud800"]}',
        b'{"images": ["\xed\xa0\x80"]}',
        b'{"images": ["\x00"]}',
        b'{"images": [],}',
        b"{}{}",
    ),
    *(b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"-", b'{"images": [-Infinity]}'),
    *(b'{"images" ["a"]}', b'{"images": ["a" "b"]}', b'{"images": ["a"]} x', b"/**/{}", b'{images: ["a"]}', b'"\\x41"'),
    *(b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00"),
]
BAD_TOPS: list[object] = [0, -1, 0.0, 1.5, "x", "", True, False, [], {}, 10**10, -(10**30)]
BAD_SHAPES: list[object] = [
    *(None, True, 1, "x", [], ["a"], {}, {"images": None}, {"images": "a"}, {"images": {}}, {"images": 1}),
    *({"images": []}, {"images": [1]}, {"images": [None]}, {"images": [["a"]]}, {"images": [{}]}, {"images": [True]}),
    *({"images": [{"data": 1}]}, {"images": [{"data": "a", "url": "b"}]}, {"images": [{"data": "a", "x": 1}]}),
    *({"images": [{"url": 5}]}, {"images": [{"data": None}]}, {"images": [{"data": "a", "name": 1}]}),
    *({"images": ["a"], "x": 1}, {"images": ["a"], "model": 1}, {"images": ["a"], "model": []}, {"Images": ["a"]}),
    *({"images": ["a"], "top": top} for top in BAD_TOPS),
    *({"images": [{"data": "a", "name": "x" * (MAX_NAME + 1)}]}, {"images": [{"name": "a"}]}),
]


@pytest.mark.parametrize("body", BAD_JSON)
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    assert refusal(body, "application/json")[0] == "bad_request"


@pytest.mark.parametrize("value", BAD_SHAPES)
def test_json_of_another_shape_is_refused(value: object) -> None:
    assert refusal(as_json(value), "application/json")[0] == "bad_request"


def test_a_number_beyond_the_range_is_no_number_of_classes() -> None:
    assert refusal(b'{"images": ["QQ=="], "top": 1e999}', "application/json")[0] == "bad_request"


def test_null_is_the_same_as_nothing() -> None:
    body = as_json({"images": [ENCODED], "model": None, "top": None})
    request = read(body, "application/json")
    assert (request.model, request.top) == (None, None)
    request = read(body, "application/json", "model=m&top=3")
    assert (request.model, request.top) == ("m", 3)
    assert read(as_json({"images": [ENCODED], "top": 3.0}), "application/json").top == 3


def test_too_many_images() -> None:
    assert len(read(as_json({"images": [ENCODED] * 64}), "application/json").images) == 64
    sentence = "The request has at least 65 images, the limit is 64: divide them among several requests."
    assert refusal(as_json({"images": [ENCODED] * 65}), "application/json") == ("too_many_images", sentence)
    assert refusal(as_json({"images": ["x"] * 3}), "application/json", max_images=2)[0] == "too_many_images"


def test_json_that_is_large_is_parsed_too() -> None:
    data = bytes(3_000_000)
    request = read(as_json({"images": [base64.b64encode(data).decode()]}), "application/json")
    assert contents(request) == [("0", data)]


@pytest.mark.parametrize("text", [b"[1, 2.5, null, true]", b'"\\u00e9"', b'"\xc3\xa9"', b'{"a": {"b": []}}', b"1e-400"])
def test_strict_json_is_read_as_the_standard_library_does(text: bytes) -> None:
    assert parse_json(text) == json.loads(text)


def test_many_values_are_refused_before_they_take_memory() -> None:
    most = b"[" + b"0," * (MAX_VALUES - 2) + b"0]"
    assert parse_json(most) == [0] * (MAX_VALUES - 1)
    body = b"[" + b"[]," * MAX_VALUES + b"[]]"
    tracemalloc.start()
    with pytest.raises(RequestError, match="too many values"):
        parse_json(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


# --- forms ------------------------------------------------------------------------------------------------------------


def test_a_form_has_files_and_fields() -> None:
    body = multipart(("a.jpg", PIXELS), ("b/c.jpg", b"2"), fields={"model": "m", "top": "4"})
    request = read(body, FORM)
    assert contents(request) == [("a.jpg", PIXELS), ("b/c.jpg", b"2")]
    assert (request.model, request.top, request.is_single) == ("m", 4, False)


def test_fields_win_over_the_query() -> None:
    request = read(multipart(("a", PIXELS), fields={"top": "4"}), FORM, "top=1&model=q")
    assert (request.model, request.top) == ("q", 4)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 65535, 65536, 65537])
def test_the_packets_of_a_form_do_not_matter(size: int) -> None:
    data = bytes(range(256)) * 600 + b"\r\n--b0undar"
    body = multipart(("a.jpg", data), ("b.jpg", b"\r\n--"), fields={"top": "4"})
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    assert contents(read(pieces, FORM)) == [("a.jpg", data), ("b.jpg", b"\r\n--")]


def test_a_form_in_single_bytes_is_not_slow() -> None:
    body = multipart(("a.jpg", bytes(1_000_000)))
    start = time.process_time()
    assert contents(read([bytes([byte]) for byte in body], FORM)) == [("a.jpg", bytes(1_000_000))]
    assert time.process_time() - start < 10


def test_file_names() -> None:
    for name in ("\u00e9.jpg", "\u732b.png", "a b.jpg", "<script>.jpg", "../../etc/passwd", "x" * MAX_NAME):
        assert contents(read(multipart((name, PIXELS)), FORM))[0][0] == name
    assert contents(read(multipart(("", PIXELS), ("", PIXELS)), FORM)) == [("0", PIXELS), ("1", PIXELS)]
    raw = multipart(("NAME", PIXELS)).replace(b"NAME", b"\xff.jpg")
    assert contents(read(raw, FORM))[0][0] == "\\xff.jpg"
    assert refusal(multipart(("x" * (MAX_NAME + 1), PIXELS)), FORM)[0] == "bad_request"


def test_an_image_over_the_limit_does_not_affect_the_others() -> None:
    body = multipart(("a", b"1"), ("b", bytes(21_000_000)), ("c", b"3"))
    assert contents(read(body, FORM)) == [("a", b"1"), ("b", "too_many_bytes"), ("c", b"3")]


def test_a_file_that_is_too_large_is_refused_with_its_size_and_the_limit() -> None:
    expected = "the image has 1,200 bytes, the limit is 1,000"
    form = multipart(("a", bytes(1200)))
    text = as_json({"images": [base64.b64encode(bytes(1200)).decode(), base64.b64encode(bytes(1000)).decode()]})
    found = [
        *read(form, FORM, max_body_bytes=1000).images,
        *read(bytes(1200), "image/png", max_body_bytes=1000).images,
        *read(text, "application/json", max_body_bytes=1000).images,
    ]
    assert [str(image.data) for image in found[:3]] == [expected] * 3
    assert found[3].data == bytes(1000)


def test_the_number_of_files_is_limited() -> None:
    files = [("a", b"1")] * 64
    assert len(read(multipart(*files), FORM).images) == 64
    assert refusal(multipart(*files, ("b", b"2")), FORM)[0] == "too_many_images"


def part(headers: str, data: bytes = b"x") -> bytes:
    return b"--b0undary\r\n" + headers.encode("latin-1") + b"\r\n\r\n" + data + b"\r\n"


END = b"--b0undary--\r\n"
FILE = part('Content-Disposition: form-data; name="file"; filename="a"')
BAD_FORMS: dict[str, bytes] = {
    "nothing": b"",
    "no boundary in the body": b"abc",
    "end only": END,
    "no end": FILE,
    "half an end": FILE + b"--b0undary-",
    "another boundary": multipart(("a", b"x"), boundary="other"),
    "no headers": b"--b0undary\r\n\r\nx\r\n" + END,
    "no disposition": part("Content-Type: image/png") + END,
    "no name": part('Content-Disposition: form-data; filename="a"') + END,
    "attachment": part('Content-Disposition: attachment; name="a"; filename="a"') + END,
    "base64": part('Content-Disposition: form-data; name="a"; filename="a"\r\nContent-Transfer-Encoding: base64') + END,
    "unknown field": FILE + part('Content-Disposition: form-data; name="other"') + END,
    "field twice": FILE + part('Content-Disposition: form-data; name="top"', b"1") * 2 + END,
    "bad top": FILE + part('Content-Disposition: form-data; name="top"', b"one") + END,
    "top not UTF-8": FILE + part('Content-Disposition: form-data; name="top"', b"\xff") + END,
    "long field name": FILE + part(f'Content-Disposition: form-data; name="{"n" * 5000}"') + END,
    "long header": part(f'Content-Disposition: form-data; name="file"; filename="a"\r\nX: {"x" * 9000}') + END,
    "many headers": part('Content-Disposition: form-data; name="file"\r\n' + "\r\n".join(["X: y"] * 30)) + END,
    "many fields": FILE + part('Content-Disposition: form-data; name="x"') * 10_000 + END,
    "fields only": part('Content-Disposition: form-data; name="top"', b"1") + END,
    "bad header": part("Content Disposition") + END,
    "line feeds only": FILE.replace(b"\r\n", b"\n") + b"--b0undary--\n",
    "a part in a header": b'--b0undary\r\nContent-Disposition: form-data; name="a\r\n--b0undary--\r\n',
    "no disposition type": part('Content-Disposition: ; name="a"; filename="a"') + END,
    "empty disposition": part("Content-Disposition:") + END,
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_malformed_forms_are_refused(name: str) -> None:
    assert refusal(BAD_FORMS[name], FORM)[0] == "bad_request"


def test_a_field_of_a_form_that_is_too_long_is_refused_with_the_limit() -> None:
    body = FILE + part('Content-Disposition: form-data; name="model"', b"x" * (MAX_TEXT + 1)) + END
    assert refusal(body, FORM) == ("body_too_large", "A field of the form has more than 65,536 bytes.")


@pytest.mark.parametrize("boundary", ["", '""', "x" * 201, "x" * 1_000_000, ";", " "])
def test_bad_boundaries_are_refused(boundary: str) -> None:
    assert refusal(multipart(("a", b"x")), f"multipart/form-data; boundary={boundary}")[0] == "bad_request"
    assert refusal(multipart(("a", b"x")), "multipart/form-data")[0] == "bad_request"


def test_a_client_that_leaves_while_it_sends() -> None:
    for kind in (FORM, "application/json", "image/png"):
        messages: list[Message] = [
            {"type": "http.request", "body": b"--b0und", "more_body": True},
            {"type": "http.disconnect"},
        ]
        with pytest.raises(ClientGoneError):
            asyncio.run(read_images(new_request(messages, kind)))


def test_parts_of_a_form_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    assert len(read(multipart(("a", bytes(5_000_000))), FORM).images) == 1
