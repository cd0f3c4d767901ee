"""A small real HTTP server that answers as `tessella serve` does, or misbehaves as a test tells it to.

The result of an image is made from the hash of its bytes, so that a result at the wrong place is noticed.
"""

from __future__ import annotations

import email.parser
import email.policy
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = {"model": "fake", "fingerprint": "0123456789abcdef"}
CLASSES = 6


def label_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def vector_of(data: bytes) -> list[float]:
    return [byte / 256 + 0.001 for byte in hashlib.sha256(data).digest()[:4]]


@dataclass
class Request:
    """A request as it arrived. files: (name, bytes) of a multipart body, in order."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    files: list[tuple[str, bytes]] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


@dataclass
class Reply:
    """An answer. Without a status the connection is reset, after as many bytes of the answer as `cut` says."""

    status: int | None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


def results(request: Request) -> list[dict[str, Any]]:
    """Return the results that the server's own API gives for the files of a request."""
    rows = []
    for name, data in request.files:
        row: dict[str, Any] = dict(key=name, status="ok", width=1, height=1)
        if data.startswith(b"bad"):
            rows.append(dict(key=name, status="corrupt_image", message="the image is damaged or truncated"))
            continue
        if request.path != "/v1/embed":
            count = min(int(request.fields.get("top", "5")), CLASSES)
            row["top"] = [dict(index=i, label=f"{label_of(data)} {i}", probability=2.0**-i / 2) for i in range(count)]
        if request.path != "/v1/classify":
            row["embedding"] = vector_of(data)
        rows.append(row)
    return rows


def ordinary(request: Request) -> Reply:
    """Answer as the server does."""
    if request.path == "/v1/models":
        models = [dict(id="fake", state="ready", num_classes=CLASSES, width=4, default_for=["classify"], extra=1)]
        return json_reply({"object": "list", "data": [*models, dict(id="other", state="unloaded")]})
    if request.path == "/readyz":
        return json_reply({"ready": True, "reason": ""})
    return json_reply({**MODEL, "results": results(request), "timing_ms": {}})


def json_reply(body: object, status: int = 200, **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **names})


def problem(code: str, status: int, **headers: str) -> Reply:
    return json_reply({"code": code, "detail": f"more about {code}", "status": status}, status, **headers)


class FakeServer:
    """Listens on loopback while a `with` block runs.

    behave: turns a request into an answer, in one thread per connection. requests: everything that arrived. busiest:
    the largest number of requests at once.
    """

    def __init__(self, behave: Callable[[Request], Reply] = ordinary) -> None:
        self.behave = behave
        self.requests: list[Request] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def do_GET(self) -> None:
                with suppress(ConnectionError):
                    fake.handle(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        request = Request(handler.command, handler.path, dict(handler.headers.items()), body)
        kind = handler.headers.get("Content-Type", "")
        if kind.startswith("multipart/"):
            read_form(request, kind)
        with self.lock:
            self.requests.append(request)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            reply = self.behave(request)
        finally:
            with self.lock:
                self.busy -= 1
        if reply.status is not None:
            handler.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
            handler.wfile.flush()
        if reply.status is None or reply.cut is not None:  # reset rather than close
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True


def read_form(request: Request, content_type: str) -> None:
    """Take the files and fields out of a multipart body with Python's own parser."""
    head = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    for part in message.iter_parts():
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        if (name := part.get_filename()) is not None:
            request.files.append((name, data))
        else:
            request.fields[str(part.get_param("name", header="content-disposition"))] = data.decode()
