"""Images out of a request: multipart/form-data, a raw body, or JSON with base64, data URIs or addresses.

Bodies are kept in memory: the gate bounds each of them and all together, and nothing is written to disk. An image that
cannot be taken out of the request is an ImageError in its place, so that the other images are answered.
"""

from __future__ import annotations

import asyncio
import binascii
import re
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ..errors import ImageError, public_text
from .disconnects import run_unless_disconnected
from .fetch import fetch_image
from .problems import RequestError
from .security import ClientGoneError
from .settings import ServeSettings
from .strict_json import parse_json

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

Fetch = Callable[[str], Awaitable[bytes]]
MAX_TEXT = 64 * 1024  # bytes of a text field of a form
MAX_NAME = 1024  # characters of an image's name
MAX_PARTS_BESIDE_IMAGES = 16
_PIECE = 64 * 1024  # bytes that are given to the multipart parser at once, however small the packets were
_BLOCKING = 1024 * 1024  # bytes from which on a body is parsed in a thread
_DATA_URI = re.compile(r"data:[a-z0-9.+-]*(?:/[a-z0-9.+-]*)?(?:;[a-z0-9.+=\"-]*)*?;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"https?:", re.IGNORECASE)
_IMAGE_TYPE = re.compile(r"image/[a-z0-9.+-]{1,100}")
OTHER_TYPE = "Send multipart/form-data, application/json, or the bytes of one image as image/* or octet-stream."


@dataclass(frozen=True)
class RequestImage:
    """One image of a request. data: its encoded bytes, or why there are none."""

    name: str
    data: bytes | ImageError


@dataclass(frozen=True)
class _JsonImage:
    """An image of a JSON body: its text, or its address if `text` is None."""

    name: str
    text: str | None
    url: str


@dataclass(frozen=True)
class AskedImages:
    """A request for a model's results.

    images: in the order of the request, with distinct positions but not necessarily distinct names. options: those
    besides `model` and `top`, which are text or values of JSON. is_single: the body was one raw image, so that its
    error is that of the request. seconds: that fetching images took.
    """

    images: list[RequestImage]
    model: str | None = None
    top: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    is_single: bool = False
    seconds: float = 0.0


@dataclass
class Form:
    """A form that was sent as multipart/form-data: its files in order, and its text fields."""

    files: list[RequestImage] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


PARAMETERS = ("model", "top")


async def read_images(
    request: Request, deadline: float | None = None, parameters: Sequence[str] = PARAMETERS
) -> AskedImages:
    """Read the images of a request, and the parameters with these names, which the body or the query may have.

    Addresses of images are fetched if the settings allow it. deadline: seconds for that, at most those of the settings.
    Raises RequestError `bad_request`, `unsupported_media_type`, `too_many_images` and those of the gate;
    ClientGoneError.
    """
    kind, settings = content_type(request), settings_of(request)
    query = _single_values(request)
    name = _checked_name(query.get("name", "0"))
    _parse_top(query.get("top"))
    if kind == "multipart/form-data":
        form = await read_form(request, parameters)
        return _complete(form.files, form.fields, query, parameters)
    if kind == "application/json":
        fields = await read_json_object(request, {"images", *parameters})
        entries = _json_entries(fields.pop("images", None), settings)
        start = time.monotonic()
        images = await _load_all(request, entries, deadline)
        return replace(_complete(images, fields, query, parameters), seconds=time.monotonic() - start)
    if _IMAGE_TYPE.fullmatch(kind) or kind == "application/octet-stream":
        image = RequestImage(name, _checked(await read_body(request), settings))
        return replace(_complete([image], {}, query, parameters), is_single=True)
    raise RequestError("unsupported_media_type", OTHER_TYPE)


def settings_of(request: Request) -> ServeSettings:
    """Return the settings of the server that handles a request."""
    settings = request.app.state.settings
    assert isinstance(settings, ServeSettings)
    return settings


def content_type(request: Request) -> str:
    """Return the media type of the body in lower case, without parameters; "" if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request) -> bytes:
    """Return the whole body, which the gate bounds. Raises ClientGoneError if the client left."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise ClientGoneError from None


# --- JSON -------------------------------------------------------------------------------------------------------------


async def read_json(request: Request) -> object:
    """Return the body as JSON. Raises RequestError `bad_request` for anything that is not strict JSON."""
    body = await read_body(request)
    return await asyncio.to_thread(parse_json, body) if len(body) > _BLOCKING else parse_json(body)


async def read_json_object(request: Request, known: Collection[str]) -> dict[str, object]:
    """Return the body, which must be a JSON object with no other keys than `known`. Raises RequestError."""
    value = await read_json(request)
    if not isinstance(value, dict):
        raise RequestError("bad_request", "The body is not a JSON object.")
    if not value.keys() <= set(known):
        raise RequestError("bad_request", "The JSON object has a key that is not known.")
    return value


def _json_entries(value: object, settings: ServeSettings) -> list[_JsonImage]:
    if not isinstance(value, list):
        raise RequestError("bad_request", 'The key "images" needs a list of images.')
    _check_count(len(value), settings)
    return [_json_entry(index, entry) for index, entry in enumerate(value)]


def _json_entry(index: int, entry: object) -> _JsonImage:
    if isinstance(entry, str):
        entry = {"data": entry}
    if not isinstance(entry, dict) or not entry.keys() <= {"data", "url", "name"}:
        raise RequestError("bad_request", 'An image is a string, or an object with "data" or "url", and "name".')
    values = {key: value for key, value in entry.items() if value is not None}
    if not all(isinstance(value, str) for value in values.values()) or len(values.keys() & {"data", "url"}) != 1:
        raise RequestError("bad_request", 'An image is a string, or an object with "data" or "url", and "name".')
    return _JsonImage(_checked_name(values.get("name", str(index))), values.get("data"), values.get("url", ""))


async def load_texts(request: Request, texts: Sequence[str], deadline: float | None = None) -> list[bytes | ImageError]:
    """Return images that were sent as base64, as data URIs or by their addresses, which begin with http: or https:.

    deadline: as in `read_images`. Raises ClientGoneError.
    """
    entries = [
        _JsonImage(str(index), *((None, text) if _ADDRESS.match(text) else (text, "")))
        for index, text in enumerate(texts)
    ]
    return [image.data for image in await _load_all(request, entries, deadline)]


async def _load_all(request: Request, entries: Sequence[_JsonImage], deadline: float | None) -> list[RequestImage]:
    settings = settings_of(request)
    timeout = min(deadline or settings.deadline, settings.deadline)
    fetch = _fetcher(request, settings, timeout) if settings.allow_urls else None
    loads = [_load(entry, settings, fetch) for entry in entries]
    return await run_unless_disconnected(request, _gather_or_cancel(loads))


async def _gather_or_cancel(loads: Sequence[Coroutine[None, None, RequestImage]]) -> list[RequestImage]:
    """Return the results of coroutines. If one raises an error, the others end before it is raised.

    A fetch that went on would count its bytes after those of the request were released, and they would never be
    released again.
    """
    tasks = [asyncio.create_task(load) for load in loads]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _load(entry: _JsonImage, settings: ServeSettings, fetch: Fetch | None) -> RequestImage:
    """Decode an image that was sent as text, or fetch it. fetch: None if addresses are refused."""
    if (text := entry.text) is not None:
        if len(text) > _BLOCKING:
            return RequestImage(entry.name, await asyncio.to_thread(decode_text, text, settings))
        return RequestImage(entry.name, decode_text(text, settings))
    if fetch is None:
        return RequestImage(entry.name, ImageError("url_refused", public_text("url_refused")))
    try:
        return RequestImage(entry.name, _checked(await fetch(entry.url), settings))
    except ImageError as error:
        return RequestImage(entry.name, error)


def _fetcher(request: Request, settings: ServeSettings, timeout: float) -> Fetch:
    """Return a function that fetches an image, all of which together may have as many bytes as a body."""
    fetched = 0

    async def fetch(url: str) -> bytes:
        nonlocal fetched
        data = await fetch_image(url, limits=settings.limits, timeout=timeout)
        fetched += len(data)
        request.state.count_bytes(len(data))
        if fetched > settings.max_body_bytes:
            most = settings.max_body_bytes
            message = f"the images of the request have more than {most:,} bytes, which is the limit"
            raise ImageError("too_many_bytes", message)
        return data

    return fetch


def decode_text(text: str, settings: ServeSettings) -> bytes | ImageError:
    """Return the bytes of an image that was sent as base64, with or without `data:...;base64,` before it."""
    if text[:5].lower() == "data:":
        prefix = _DATA_URI.match(text, 0, 1024)
        if prefix is None:
            return _unreadable("the data URI is not in base64")
        text = text[prefix.end() :]
    size, most = len(text) // 4 * 3 - text.count("=", -2), settings.limits.bytes
    if size > most:
        return _too_many_bytes(size, most)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return _unreadable("the image is not valid base64")
    return _checked(data, settings)


def _unreadable(message: str) -> ImageError:
    return ImageError("unreadable", message)


def _checked(data: bytes, settings: ServeSettings) -> bytes | ImageError:
    if not data:
        return ImageError("empty", public_text("empty"))
    if len(data) > (most := settings.limits.bytes):
        return _too_many_bytes(len(data), most)
    return data


def _too_many_bytes(size: int, limit: int) -> ImageError:
    return ImageError("too_many_bytes", f"the image has {size:,} bytes, the limit is {limit:,}")


# --- forms ------------------------------------------------------------------------------------------------------------


async def read_form(request: Request, known: Collection[str]) -> Form:
    """Read a multipart form with any number of files and the text fields `known`, while it arrives.

    Raises RequestError `bad_request` for a malformed form or another field, `too_many_images`.
    """
    reader = _FormReader(settings_of(request), known)
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    pending = bytearray()
    try:
        if not 0 < len(boundary) <= 200:
            raise RequestError("bad_request", "The boundary of the form is missing or too long.")
        parser = MultipartParser(boundary, reader.callbacks(), max_header_count=16, max_header_size=8192)
        async for chunk in request.stream():
            pending += chunk
            if len(pending) >= _PIECE:
                parser.write(bytes(pending))
                pending.clear()
        parser.write(bytes(pending))
        parser.finalize()
    except FormParserError:
        raise RequestError("bad_request", "The body is not a valid multipart form.") from None
    except ClientDisconnect:
        raise ClientGoneError from None
    if not reader.is_complete:
        raise RequestError("bad_request", "The multipart form has no end.")
    return reader.form


class _FormReader:
    """Collects the fields and files of a form from the callbacks of the parser. Parts with a file name are files."""

    def __init__(self, settings: ServeSettings, known: Collection[str]) -> None:
        self.form, self.is_complete = Form(), False
        self._settings, self._known = settings, known
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value = bytearray(), bytearray()
        self._data = bytearray()
        self._size, self._limit, self._texts = 0, 0, 0
        self._name, self._file_name = "", None  # type: str, str | None

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._take,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._headers = {}
        self._data, self._size = bytearray(), 0

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise RequestError("bad_request", "A part of the form has no name.")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise RequestError("bad_request", "A part of the form has a transfer encoding.")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._file_name = None
        if b"filename" in options:
            self._file_name = _checked_name(options[b"filename"].decode("utf-8", "backslashreplace"))
            _check_count(len(self.form.files) + 1, self._settings)
            self._limit = self._settings.limits.bytes
            return
        self._limit, self._texts = MAX_TEXT, self._texts + 1
        if self._texts > MAX_PARTS_BESIDE_IMAGES:
            raise RequestError("bad_request", "The form has too many fields.")
        if self._name not in self._known or self._name in self.form.fields:
            raise RequestError("bad_request", "The form has a field that is not known, or has a field twice.")

    def _take(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size <= self._limit:
            self._data += memoryview(data)[start:end]
        elif self._file_name is None:
            raise RequestError("body_too_large", f"A field of the form has more than {MAX_TEXT:,} bytes.")
        else:
            self._data.clear()  # the image is refused, the others are not

    def _end(self) -> None:
        if self._file_name is None:
            try:
                self.form.fields[self._name] = self._data.decode()
            except UnicodeDecodeError:
                raise RequestError("bad_request", "A field of the form is not in UTF-8.") from None
            return
        if self._size > self._limit:
            data: bytes | ImageError = _too_many_bytes(self._size, self._limit)
        else:
            data = _checked(bytes(self._data), self._settings)
        self.form.files.append(RequestImage(self._file_name or str(len(self.form.files)), data))
        self._data = bytearray()

    def _finish(self) -> None:
        self.is_complete = True


# --- parameters -------------------------------------------------------------------------------------------------------


def _complete(
    images: list[RequestImage], fields: Mapping[str, object], query: Mapping[str, str], parameters: Sequence[str]
) -> AskedImages:
    if not images:
        raise RequestError("bad_request", "The request has no images.")
    given = {key: query.get(key) if fields.get(key) is None else fields[key] for key in parameters}
    model, top = given.pop("model"), given.pop("top", None)
    if model is not None and not isinstance(model, str):
        raise RequestError("bad_request", '"model" is not a string.')
    return AskedImages(images, model, _parse_top(top), given)


def _parse_top(value: object) -> int | None:
    """Return the number of classes that a request asks for."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # JSON has no integers, only numbers
        value = int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000_000):
        return value
    raise RequestError("bad_request", '"top" is not a positive integer.')


def _check_count(count: int, settings: ServeSettings) -> None:
    if count > (limit := settings.max_images):
        raise RequestError(
            "too_many_images",
            f"The request has at least {count:,} images, the limit is {limit:,}: divide them among several requests.",
        )


def _checked_name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise RequestError("bad_request", "The name of an image is too long.")
    return name


def _single_values(request: Request) -> dict[str, str]:
    """Return the query parameters, none of which may be given twice."""
    items = request.query_params.multi_items()
    if len({key for key, _ in items}) < len(items):
        raise RequestError("bad_request", "A query parameter is given twice.")
    return dict(items)
