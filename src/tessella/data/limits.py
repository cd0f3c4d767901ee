"""Limits on the size of one image, checked before the work that they bound is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on one image; a larger image is refused with an ImageError. A server should lower `bytes`."""

    bytes: int = 256 * 1024 * 1024  # size of the file: enough for any 50 MP image, uncompressed 16-bit ones included
    pixels: int = 50_000_000  # width x height; decoding takes about 7 bytes of memory per pixel
    side: int = 65_535  # pixels
    intermediate: int = 16_000_000  # pixels after the resize, before the crop: 1x20,000 would grow to a gigapixel


DEFAULT_LIMITS = Limits()
