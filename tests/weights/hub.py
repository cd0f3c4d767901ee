"""A small model hub on loopback for the real huggingface_hub client, with configurable faults.

Like the real Hub, it redirects requests for large files (.safetensors, .bin) with X-Linked-* headers to a second
server, the "CDN", on another port. Small files are sent directly, with git's blob id as their ETag.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

from .card_rules import problems

os.environ["NO_PROXY"] = "127.0.0.1"  # read when the client is created, which happens once, as it takes 0.1 s
close_session()

LARGE = (".safetensors", ".bin", ".png", ".npz")
BREAKS = ("reset", "truncate", "stall", "status")
PIECE = 64 * 1024  # bytes written at once


@dataclass
class Repo:
    """refs: branch or tag -> commit. commits: commit -> path -> content. token: required to read, if not None."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    private: bool = False  # as requested at its creation


@dataclass
class Fault:
    """A fault for the next `times` requests of `method` with a path that ends in `name` (or its file name).

    at: bytes sent before a reset, truncation or stall.
    """

    kind: str  # one of BREAKS, or ignore_range, gzip, corrupt, headers
    name: str = ""
    method: str = "GET"
    times: int = 1
    at: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)  # added; an empty value removes one


class FakeHub:
    """`with FakeHub() as hub:` serves at hub.url; hub.requests lists (method, path, headers) in order of arrival."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # uploaded large files by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.released = threading.Event()  # releases stalled requests
        self.servers = [self._serve(), self._serve()]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def _serve(self) -> ThreadingHTTPServer:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def __enter__(self) -> FakeHub:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.released.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Commit `files` on top of `revision` and return the commit."""
        entry = self.repos.setdefault(repo, Repo())
        merged = {**entry.commits.get(entry.refs.get(revision, ""), {}), **files}
        history = f"{repo} {revision} {len(entry.commits)} {sorted((k, sha256(v)) for k, v in merged.items())}"
        commit = hashlib.sha1(history.encode()).hexdigest()
        entry.commits[commit] = merged
        entry.refs[revision] = commit
        return commit

    def fault(self, kind: str, name: str = "", **how: Any) -> Fault:
        self.faults.append(Fault(kind, name, **how))
        return self.faults[-1]

    def take_faults(self, method: str, name: str) -> dict[str, Fault]:
        """Return and consume the faults for this request: one that aborts it, and one of each other kind."""
        used: dict[str, Fault] = {}
        with self.lock:
            for fault in self.faults:
                slot = "break" if fault.kind in BREAKS else fault.kind
                if fault.times and fault.method == method and name.endswith(fault.name) and slot not in used:
                    used[slot] = fault
                    fault.times -= 1
        return used

    def count(self, method: str, name: str) -> int:
        return sum(1 for verb, path, _ in self.requests if verb == method and path.endswith(name))


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    # --- downloads ---

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.noted()
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":  # /cdn/<sha256>/<name>
            return self.send_file(self.hub.objects[parts[1]], parts[-1], {"ETag": f'"{parts[1]}"'})
        if parts[0] == "api" and len(parts) >= 4:  # /api/models/<org>/<name>[/revision/<rev>]
            return self.send_info(f"{parts[2]}/{parts[3]}", unquote(parts[5]) if len(parts) > 5 else "main")
        if "resolve" in parts:  # /<org>/<name>/resolve/<revision>/<file>
            at = parts.index("resolve")
            return self.send_resolved("/".join(parts[:at]), unquote(parts[at + 1]), "/".join(parts[at + 2 :]))
        return self.refuse(404, "EntryNotFound")

    def send_resolved(self, name: str, revision: str, file: str) -> None:
        repo = self.allowed(name)
        if repo is None:
            return None
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        if file not in repo.commits[commit]:
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content = repo.commits[commit][file]
        headers = {"X-Repo-Commit": commit}
        if not file.endswith(LARGE):
            return self.send_file(content, file, {**headers, "ETag": f'"{blob_id(content)}"'})
        digest = sha256(content)
        self.hub.objects[digest] = content
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return self.send_file(b"", file, {**headers, "Location": f"{self.hub.cdn}/cdn/{digest}/{file}"}, status=302)

    def send_info(self, name: str, revision: str) -> None:
        repo = self.allowed(name)
        if repo is None:
            return None
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        files = [{"rfilename": file} for file in repo.commits[commit]]
        return self.send_json({"id": name, "modelId": name, "sha": commit, "siblings": files, "private": False})

    def allowed(self, name: str) -> Repo | None:
        """Return the repository if this request may read it; otherwise send the refusal of the Hub."""
        repo = self.hub.repos.get(name)
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None:
            self.refuse(404 if sent else 401, "RepoNotFound")
        elif repo.token and sent != repo.token:
            self.refuse(401, "RepoNotFound")
        elif repo.gated:
            self.refuse(403, "GatedRepo")
        else:
            return repo
        return None

    def send_file(self, content: bytes, name: str, headers: dict[str, str], status: int = 200) -> None:
        faults = self.hub.take_faults(self.command, name)
        start = 0
        if (span := self.headers.get("Range")) and status == 200 and "ignore_range" not in faults:
            start = int(span.removeprefix("bytes=").partition("-")[0])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            status = 206
        body = content[start:]
        if "corrupt" in faults and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if "gzip" in faults and self.command == "GET":
            body = gzip.compress(body)
            headers = {**headers, "Content-Encoding": "gzip"}
        if "headers" in faults:
            headers = {key: value for key, value in {**headers, **faults["headers"].headers}.items() if value}
        self.reply(status, body, headers, faults.get("break"))

    # --- uploads ---

    def do_POST(self) -> None:
        path = self.noted()
        body = self.read_body()
        if faults := self.hub.take_faults("POST", path):
            return self.reply(200, b"", {}, faults["break"])
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            errors = [{"message": text} for text in problems(json.loads(body)["content"])]
            return self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if not self.headers.get("Authorization"):
            return self.refuse(401, "")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            status = 409 if name in self.hub.repos else 200
            if status == 200:
                self.hub.repos[name] = Repo(
                    {"main": "0" * 40}, {"0" * 40: {}}, private=wanted.get("visibility") == "private"
                )
            return self.send_json({"url": f"{self.hub.url}/{name}", "name": name, "id": name}, status)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.send_json({"objects": [self.upload_action(item) for item in json.loads(body)["objects"]]})
        if parts[0] == "api" and parts[4] == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
                for file in json.loads(body)["files"]
            ]
            return self.send_json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if parts[0] == "api" and parts[4] == "branch":
            repo = self.hub.repos[f"{parts[2]}/{parts[3]}"]
            repo.refs[unquote(parts[5])] = repo.refs["main"]
            return self.send_json({})
        if parts[0] == "api" and parts[4] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            return self.commit(f"{parts[2]}/{parts[3]}", unquote(parts[5]), lines)
        return self.refuse(404, "EntryNotFound")

    def do_PUT(self) -> None:
        path = self.noted()
        body = self.read_body()
        if faults := self.hub.take_faults("PUT", path):
            return self.reply(200, b"", {}, faults["break"])
        digest = path.rpartition("/")[2]
        if sha256(body) != digest:
            return self.refuse(400, "")
        self.hub.objects[digest] = body
        return self.reply(200, b"", {"ETag": digest})

    def upload_action(self, item: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.cdn}/upload/{item['oid']}"
        return {**item, "actions": {"upload": {"href": href, "header": {}}}}

    def commit(self, name: str, revision: str, lines: Iterable[dict[str, Any]]) -> None:
        query = parse_qs(urlsplit(self.path).query)
        revision = "refs/pr/1" if "create_pr" in query else revision
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.add(name, files, revision)
        url = f"{self.hub.url}/{name}"
        self.send_json(
            {"commitUrl": f"{url}/commit/{commit}", "commitOid": commit, "pullRequestUrl": f"{url}/discussions/1"}
        )

    # --- both ---

    def noted(self) -> str:
        """Record the request and return its path."""
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path, dict(self.headers.items())))
        return urlsplit(self.path).path

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.reply(status, b"", {**(headers or {}), "X-Error-Code": code, "X-Error-Message": code or "no"})

    def send_json(self, value: object, status: int = 200) -> None:
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        if fault and fault.kind == "status":
            status, body, headers = fault.status, b"", fault.headers
        if fault and fault.kind == "stall" and not fault.at:
            self.hub.released.wait(60)
            self.close_connection = True
            return
        try:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                end = fault.at if fault and fault.kind != "status" else len(body)
                for start in range(0, end, PIECE):
                    self.wfile.write(body[start : min(start + PIECE, end)])
            if fault and fault.kind != "status":
                self.break_off(fault)
        except OSError:  # the client has disconnected
            self.close_connection = True

    def break_off(self, fault: Fault) -> None:
        self.wfile.flush()
        self.close_connection = True
        if fault.kind == "stall":
            self.hub.released.wait(60)
        if fault.kind == "reset":  # without lingering the kernel sends RST, not FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def online(patch: pytest.MonkeyPatch, home: Path) -> list[float]:
    """Put the client of this process online, without credentials; the list receives the seconds of requested waits."""
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_TOKEN_PATH": str(home / "no-token"),
    }.items():
        patch.setattr(constants, name, value)
    patch.delenv("HF_TOKEN", raising=False)
    waits: list[float] = []
    patch.setattr(time, "sleep", waits.append)
    return waits


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    """Return the blob id of git for the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
