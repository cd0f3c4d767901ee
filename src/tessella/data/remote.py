"""Inputs in object stores, by URL: s3://, gs://, az://, hf://, memory:// and every other scheme that fsspec knows.

fsspec reports which package a store needs (s3fs for s3://, gcsfs for gs://). Those packages handle credentials and
retries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol

from ..errors import ImageError, UsageError
from ..extras import require
from ..storage import open_regular
from .files import unreadable_file
from .limits import Limits


class ObjectStore(Protocol):
    """The methods of an fsspec file system that this package calls; paths are without the scheme of the URL."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes of an object from `start` up to, but not including, `end`."""

    def find(self, path: str) -> list[str]:
        """Return the paths of all objects below a folder."""

    def glob(self, path: str) -> list[str]:
        """Return the paths of the objects that match a pattern."""

    def info(self, path: str) -> Mapping[str, Any]:
        """Return what the store knows about an object, such as its size and version."""

    def isfile(self, path: str) -> bool:
        """Return whether there is an object of this path."""

    def open(self, path: str, mode: str) -> IO[bytes]:
        """Open an object as a seekable stream."""

    def size(self, path: str) -> int | None:
        """Return the size of an object in bytes; None if the store does not know it."""

    def unstrip_protocol(self, name: str) -> str:
        """Return a path with the scheme of its URL."""


def is_url(name: str) -> bool:
    """Return whether a name has a scheme. A local file of such a name can be written as ./s3://..."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.isidentifier()


def open_store(url: str) -> tuple[ObjectStore, str]:
    """Return the file system of a URL and the path in it.

    Raises UsageError `missing_dependency` if fsspec or the store's package is missing, `bad_argument` for an unknown
    scheme.
    """
    fsspec = require("fsspec", f"reading {url!r}")
    try:
        store, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UsageError("missing_dependency", f"{url!r} cannot be read: {error}") from None
    except ValueError:
        raise UsageError(
            "bad_argument",
            f"{url!r} belongs to no store that fsspec knows",
            hint="write a URL such as s3://bucket/folder",
        ) from None
    return store, path


def read_url(url: str, limits: Limits, offset: int | None = None, size: int | None = None) -> bytes:
    """Return the bytes of an object, or `size` bytes of it from `offset` on.

    Without `size`, at most `limits.bytes` + 1 bytes are read. Raises ImageError `not_found` or `unreadable`.
    """
    start = offset or 0
    end = start + (limits.bytes + 1 if size is None else size)
    with translate_errors(url):
        store, path = open_store(url)
        try:
            return bytes(store.cat_file(path, start=start, end=end))
        except FileNotFoundError:
            raise
        except Exception:  # some stores refuse any range of an empty object, or a range that exceeds the object
            total = store.size(path)
            if total is None or total >= end:
                raise
            return bytes(store.cat_file(path, start=start, end=total))


@contextmanager
def open_input(name: str) -> Iterator[IO[bytes]]:
    """Open a file or an object as a seekable binary stream.

    Raises ImageError `not_found`, `unreadable` or `special_file`.
    """
    if is_url(name):
        with translate_errors(name):
            store, path = open_store(name)
            with store.open(path, "rb") as file:
                yield file
        return
    with translate_errors(name):
        file = open_regular(name)
    with file:
        yield file


def list_objects(url: str) -> list[tuple[str, str]]:
    """Return (URL, path relative to the folder) of every object below a folder, or of every match of a pattern."""
    with translate_errors(url):
        store, path = open_store(url)
        prefix = re.split(r"[*?[]", path, maxsplit=1)[0]
        is_pattern = prefix != path
        objects = store.glob(path) if is_pattern else store.find(path)
        start = prefix.rfind("/") + 1 if is_pattern else len(prefix.rstrip("/")) + 1
        return [(store.unstrip_protocol(name), name[start:]) for name in objects]


def is_object(url: str) -> bool:
    """Return whether a URL is that of one object; False for a folder, a pattern, or if nothing exists there."""
    with translate_errors(url):
        store, path = open_store(url)
        return bool(store.isfile(path))


@contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Translate whatever the package of a store raises into an ImageError."""
    try:
        yield
    except (ImageError, UsageError):
        raise
    except (OSError, ValueError) as error:
        if not is_url(name):
            raise unreadable_file(name, error) from None
        if isinstance(error, FileNotFoundError):
            raise ImageError("not_found", f"there is no object {name!r}") from None
        raise _unreadable_object(name, error) from None
    except Exception as error:  # of a type defined by the package of the store
        if not is_url(name):
            raise
        raise _unreadable_object(name, error) from None


def _unreadable_object(url: str, error: Exception) -> ImageError:
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
    return ImageError("unreadable", f"{url!r} could not be read: {reason}")
