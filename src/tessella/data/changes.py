"""Whether images have changed since something was computed from them and stored, in parts of consecutive images."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable

from .isolated import IsolatedDecoder
from .remote import is_url
from .source import Source

MODEL_STATUS = "non_finite"  # of an image that was decoded, but for which the model gave no finite numbers


def modification_marks(sources: Iterable[Source], size: int) -> list[str]:
    """Return 16 hexadecimal digits for each `size` consecutive images: they depend on when the files were modified.

    Names and sizes of files stay the same if other images of the same format and size replace them.
    """
    modified = functools.lru_cache(1024)(_modified)  # rows and members follow those of the same file
    marks = []
    digest, count = hashlib.sha256(), 0
    for source in sources:
        digest.update(f"{modified(source.path)} ".encode())
        count += 1
        if count == size:
            marks.append(digest.hexdigest()[:16])
            digest, count = hashlib.sha256(), 0
    return [*marks, digest.hexdigest()[:16]] if count else marks


def _modified(path: str) -> int:
    """Return when a file was modified, in nanoseconds; -1 if that is unknown."""
    if is_url(path):
        return -1
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - a million Path objects cost seconds
    except (OSError, ValueError):
        return -1


def is_any_readable(decoder: IsolatedDecoder, sources: Iterable[Source]) -> bool:
    """Return whether one of some images can be decoded.

    Images that could not be read are tried again, because the time of modification does not tell that permissions were
    repaired, or that decoding took too long on a busy machine.
    """
    return any(image.pixels is not None for image in decoder.decoded(sources))
