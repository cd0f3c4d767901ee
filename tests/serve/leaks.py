"""Find what no answer to a client may contain: paths, addresses, representations, tracebacks, texts of libraries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_PATTERNS = [
    r"(?<![\w])/(?:usr|home|tmp|work|opt|var|proc|root|etc|lib|dev|mnt)\b",
    r"[A-Za-z]:\\",
    r"\.py\b",
    r"0x[0-9a-fA-F]{6,}",
    r"Traceback|object at|most recent call",
    r"line \d+, in",
    r"\b\w*(?:Error|Exception)\b\(?",
    r"\b(?:PIL|Pillow|libjpeg|libpng|numpy|torch|openvino|pydantic|starlette|fastapi|uvicorn|multipart\.|asyncio)\b",
    r"cannot identify|out of range|NoneType|not callable|expected str",
    r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b",
]
LEAK = re.compile("|".join(_PATTERNS))
_OURS = {"X-Tessella-Error"}


def find_leaks(body: bytes) -> list[str]:
    """Return what a body of an error reveals; the texts of JSON are searched without its escapes."""
    try:
        texts = list(_texts(json.loads(body)))
    except ValueError:
        texts = [body.decode("latin-1")]
    return [match[0] for text in texts for match in LEAK.finditer(text) if text not in _OURS]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield key
            yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)
