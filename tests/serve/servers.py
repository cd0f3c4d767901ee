"""Servers in processes of their own, started through the command line, and raw HTTP to talk to them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 120  # generous: other tests may use the processors
ANSWER_SECONDS = 150  # the first explanation waits for PyTorch; HTTPX waits 5 seconds by default
READY = re.compile(r"serving .* at http://(.+):(\d+)\n")


class ServerProcess:
    """`tessella serve --port 0 OPTIONS...`; the address is known once it is ready."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None, wait: bool = True) -> None:
        command = [sys.executable, "-m", "tessella", "serve", "--port", "0", *options]
        inherited = {key: value for key, value in os.environ.items() if key != "TESSELLA_TOKEN"}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, **(environment or {})},
            start_new_session=True,  # a signal to the tests is not one to the server
        )
        self.port = 0
        self.errors: list[str] = []
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self.errors.extend, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Read the line with the address."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], START_SECONDS)[0]:
            self.process.kill()
            raise AssertionError("the server did not start")
        line = self.process.stdout.readline()
        match = READY.fullmatch(line)
        if match is None:
            self.process.wait(START_SECONDS)
            raise AssertionError(f"the server said {line!r} and {''.join(self.errors)}")
        self.port = int(match[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def memory(self) -> int:
        """Resident bytes of the server's process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def children(self) -> list[int]:
        """The processes that the server has started, directly or not."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found[1:]

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Wait for the end of the server and of its messages, and return its status."""
        status = self.process.wait(seconds)
        self._reader.join(seconds)
        return status

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Reply:
    """An HTTP answer as it was read from a socket; status 0 if the connection was closed without one."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    closed: bool = False

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> object:
        return json.loads(self.body)


def connect(port: int, seconds: float = 20) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), seconds)


def exchange(port: int, data: bytes | Iterable[bytes], *, seconds: float = 20, method: str = "GET") -> Reply:
    """Send bytes as they are and read one answer; the connection stays open until then."""
    with connect(port, seconds) as connection:
        with contextlib.suppress(ConnectionError):  # an early answer may come with a reset
            for part in [data] if isinstance(data, bytes) else data:
                connection.sendall(part)
        return read_reply(connection, method)


def read_reply(connection: socket.socket, method: str = "GET") -> Reply:
    """Read one answer. Raises TimeoutError if there is none."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return Reply(closed=True)
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        reply = Reply(int(first.split()[1]), headers)
        if reply.status == 100:
            return read_reply(connection, method)
        length = 0 if method == "HEAD" else int(reply.header("content-length") or 0)
        while len(body) < length:
            part = connection.recv(65536)
            if not part:
                break
            body += part
        reply.body = body
        return reply
    return Reply(closed=True)


def request_bytes(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A correct request. headers: names with _ for -."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def multipart(*files: tuple[str, bytes], fields: dict[str, str] | None = None, boundary: str = "b0undary") -> bytes:
    """A form with files, each under the name `file`, and text fields."""
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (boundary.encode(), name.encode(), value.encode())
        for name, value in (fields or {}).items()
    ]
    parts += [
        b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\nContent-Type: image/jpeg\r\n\r\n%s\r\n'
        % (boundary.encode(), name.encode(), data)
        for name, data in files
    ]
    return b"".join(parts) + b"--%s--\r\n" % boundary.encode()


FORM = "multipart/form-data; boundary=b0undary"


def wait_for(condition: object, seconds: float = 60) -> None:
    """Wait until a condition, a function without arguments, is true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)


def free_port() -> int:
    """A port on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lines_of(replies: Iterable[Reply]) -> Iterator[str]:
    """The statuses and bodies of answers, for messages of assertions."""
    for reply in replies:
        yield f"{reply.status} {reply.body[:200]!r}"
