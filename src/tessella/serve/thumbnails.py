"""Thumbnails of the images of a collection: decoded in the isolated processes, encoded again, kept in a bounded cache.

Clients never get the bytes of a file, and so none of its metadata; its orientation is applied.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from ..data.limits import DEFAULT_LIMITS
from ..data.source import Source
from ..data.spec import InputSpec
from ..data.turbo import encode_jpeg
from ..errors import ImageError
from .service import Service

SIZES = (0, 96, 256)  # of the longer side in pixels; 0: that of the image, at most LONGEST
LONGEST = 4_000
CACHE_BYTES = 64 << 20
_LARGEST_CACHED = CACHE_BYTES // 16


class ByteCache:
    """Values of type bytes, of which the least recently used are forgotten. Used in the event loop."""

    def __init__(self, limit: int = CACHE_BYTES):
        self.limit, self.size = limit, 0
        self._values: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """Return a value and mark it as used; None if it is not known."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a value, unless it is so large that it would replace many others."""
        if len(value) > min(_LARGEST_CACHED, self.limit) or key in self._values:
            return
        self._values[key] = value
        self.size += len(value)
        while self.size > self.limit:
            _, oldest = self._values.popitem(last=False)
            self.size -= len(oldest)


def thumbnail_spec(width: int, height: int, size: int) -> InputSpec:
    """Return the spec that fits an image into a square of `size` pixels without enlarging it; 0 keeps its size."""
    scale = min(1.0, (size or LONGEST) / max(width, height))
    wanted_width, wanted_height = (max(round(side * scale), 1) for side in (width, height))
    assert wanted_width * wanted_height <= DEFAULT_LIMITS.intermediate
    return InputSpec(width=wanted_width, height=wanted_height, crop_pct=1.0, crop_mode="squash")


async def make_thumbnail(service: Service, source: Source, sha256: str, spec: InputSpec) -> bytes:
    """Return a JPEG file of an image.

    sha256: of the file when it was indexed. Raises ImageError: `changed_input` if it is another one now, `not_found`,
    and others for an image that cannot be decoded; ServeError as `Service.decode`.
    """
    decoded = await service.decode(source, spec)
    if decoded.sha256 and decoded.sha256 != sha256:
        raise ImageError("changed_input", f"{source.key!r} has changed since it was indexed")
    if decoded.pixels is None:
        assert decoded.error is not None
        raise decoded.error
    return await asyncio.to_thread(encode_jpeg, decoded.pixels)
