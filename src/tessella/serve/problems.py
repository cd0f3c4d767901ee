"""Turn errors into HTTP answers, in the dialect that the clients of a path read.

Every text is fixed: that of the code, and for some errors one more fixed sentence that says what to change. Messages of
errors, which may contain paths, addresses or texts of libraries, are for the log only. The exception are messages about
a limit: they are sent if they contain nothing but known words and numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import CODES, ServeError, TessellaError, public_text

Headers = list[tuple[bytes, bytes]]

DETAILS = {  # what to do about an error, where the text of the code does not say it
    "unauthorized": "Send the token of the server as 'Authorization: Bearer TOKEN' or as 'X-API-Key: TOKEN'.",
    "forbidden_host": "Use an address that the server was started with; --allow-host adds a host name.",
    "forbidden_origin": "Only pages of this server may call it from a browser.",
    "overloaded": "Repeat the request after the number of seconds in the header Retry-After.",
    "draining": "Repeat the request after the number of seconds in the header Retry-After.",
    "not_ready": "Repeat the request after the number of seconds in the header Retry-After.",
    "explain_off": "Repeat the request after the number of seconds in the header Retry-After.",
    "unknown_model": "GET /v1/models lists the models of this server.",
    "url_refused": "Send the bytes of the image instead of an address.",
    "internal_error": "The log of the server has more details under this request_id.",
}
Dialect = Literal["problem", "open_inference", "openai", "cohere"]
_NUMBER = "[0-9,]{1,24}"
_SIZE = rf"{_NUMBER} x {_NUMBER}"
_LIMIT_MESSAGE = re.compile(
    rf"the (?:image|request) has {_NUMBER} (?:bytes|images), the limit is {_NUMBER}"
    rf"|the (?:image has|images of the request have) more than {_NUMBER} bytes, which is the limit"
    rf"|the image has {_SIZE} pixels \(width x height\)(?: and would be resized to {_SIZE})?, "
    rf"(?:the limit is {_NUMBER} pixels|the longest side allowed is {_NUMBER})"
)
_OPENAI_PATHS = {"/v1/embeddings", "/embeddings", "/embeddings_image", "/models"}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(TessellaError):
    """A request was refused. The message is one fixed sentence, which the client gets as the detail."""


class RetryLaterError(ServeError):
    """A request that may succeed after `retry_after` seconds."""

    def __init__(self, code: str, message: str, retry_after: float) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Problem:
    """The HTTP answer to a request that failed."""

    status: int
    headers: Headers
    body: bytes


def make_problem(
    code: str, path: str, request_id: str, *, detail: str = "", retry_after: float = 1.0, allow: str = ""
) -> Problem:
    """Return the answer for an error code.

    path: of the request; it determines the form of the body. detail: one fixed sentence. retry_after: seconds after
    which another attempt is useful, for 429 and 503. allow: the allowed methods, for 405.
    """
    status = CODES[code].http_status
    content_type, body = _body(code, status, path, request_id, detail or DETAILS.get(code, ""))
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"x-tessella-error", code.encode()),
    ]
    if status in (429, 503):
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after))).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if allow:
        headers.append((b"allow", allow.encode()))
    return Problem(status, headers, body)


def problem_of(error: TessellaError, path: str, request_id: str, *, retry_after: float = 1.0) -> Problem:
    """Return the answer for an error; of its message only the fixed sentence of a `RequestError`, or a limit, is used.

    retry_after: as in `make_problem`, unless the error itself says it.
    """
    if isinstance(error, RetryLaterError):
        retry_after = error.retry_after
    detail = error.message if isinstance(error, RequestError) else _sentence(limit_message(error))
    return make_problem(error.code, path, request_id, detail=detail, retry_after=retry_after)


def limit_message(error: TessellaError) -> str:
    """Return the message of an error that states a limit and what exceeds it, which clients may see; "" for others."""
    return error.message if _LIMIT_MESSAGE.fullmatch(error.message) else ""


def public_message(error: TessellaError) -> str:
    """Return the text of an error for clients: that of its code, or the limit that was exceeded."""
    return limit_message(error) or public_text(error.code)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def dialect_of(path: str) -> Dialect:
    """Return the form of errors that the clients of a path read; "problem" is RFC 9457."""
    if path == "/v2/embed":
        return "cohere"
    if path == "/v2" or path.startswith("/v2/"):
        return "open_inference"
    return "openai" if path in _OPENAI_PATHS or path.startswith("/v1/models/") else "problem"


def _body(code: str, status: int, path: str, request_id: str, detail: str) -> tuple[bytes, bytes]:
    """Return the content type and the body of an error."""
    text, dialect = public_text(code), dialect_of(path)
    sentence = f"{text}. {detail}" if detail else text
    if dialect == "cohere":
        return _json({"id": request_id, "message": sentence})
    if dialect == "open_inference":
        return _json({"error": sentence})
    if dialect == "openai":
        kind = "server_error" if status >= 500 else _OPENAI_TYPES.get(status, "invalid_request_error")
        return _json({"error": {"message": sentence, "type": kind, "param": None, "code": code}})
    fields = {
        "type": "about:blank",
        "title": text,
        "status": status,
        "detail": detail or text,
        "code": code,
        "error": text,
        "request_id": request_id,
    }
    return b"application/problem+json", _json(fields)[1]


def _json(fields: dict[str, object]) -> tuple[bytes, bytes]:
    return b"application/json", json.dumps(fields).encode()


def header_values(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return the values of all headers of a name, which is in lower case."""
    return [value for key, value in headers if key == name]


def has_body(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Return whether a request with these headers, whose names are in lower case, has a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0") for name, value in headers
    )
