"""The web page: static files of this package from a fixed table, each under its own path.

The path of a file contains a hash of all files, so browsers may keep it forever, and a page never mixes files of
different versions. No path has a parameter, so no request can name a file. The files contain no data, so they need no
token.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
INDEX = "index.html"
LOCAL = ("gallery.html", "local.js", "local_main.js")  # parts of the page without a server (`tessella gallery`)
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


class StaticFile(NamedTuple):
    """A file of the page: its contents, media type, and how long browsers may keep it."""

    body: bytes
    media_type: str
    cache_control: str

    @property
    def tag(self) -> str:
        """The entity tag, from the contents."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


def read_page() -> dict[str, bytes]:
    """Return the files of the folder `page` of this package, by name."""
    folder = resources.files("tessella.serve") / "page"
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir(), key=lambda file: file.name)}


def static_files() -> dict[str, StaticFile]:
    """Return the files of the page that the server offers, by path."""
    contents = {name: body for name, body in read_page().items() if name not in LOCAL}
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + body for name, body in contents.items())).hexdigest()[:16]
    index = contents.pop(INDEX).replace(b'"page/', f'"/page/{digest}/'.encode())
    files = {"/": StaticFile(index, _media_type(INDEX), "no-cache")}
    for name, body in contents.items():
        files[f"/page/{digest}/{name}"] = StaticFile(body, _media_type(name), "public, max-age=31536000, immutable")
    return files


def _media_type(name: str) -> str:
    return f"{TYPES[name[name.rindex('.') :]]}; charset=utf-8"


def has_version(known: str | None, tag: str) -> bool:
    """Return whether a client has the version with an entity tag. known: the header If-None-Match."""
    return known is not None and bool({tag, "*"} & {one.strip().removeprefix("W/") for one in known.split(",")})


def answer(file: StaticFile, known: str | None) -> Response:
    """Return a file, or status 304 without a body if the browser has it. known: the header If-None-Match."""
    headers = {"etag": file.tag, "cache-control": file.cache_control, "content-security-policy": POLICY}
    if has_version(known, file.tag):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


FILES = static_files()
OPEN_PATHS = frozenset(FILES)
router = APIRouter()


async def serve_file(request: Request) -> Response:
    """Answer with the file whose path the request has."""
    return answer(FILES[request.scope["route"].path], request.headers.get("if-none-match"))


for path in FILES:
    router.add_api_route(path, serve_file, methods=["GET", "HEAD"], include_in_schema=False, response_class=Response)
