"""Images in object stores, by URL, through fsspec: s3://, gs://, az://, hf://, memory:// and what else it knows.

Which store needs which package fsspec says itself (s3:// s3fs, gs:// gcsfs); credentials and retries are theirs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from ..errors import ImageError, UsageError
from ..extras import require
from ..storage import open_regular
from .files import unreadable_file
from .limits import Limits


def is_url(name: str) -> bool:
    """Whether it has a scheme; a file of such a name can be had as ./s3://..."""
    scheme, found, _ = name.partition("://")
    return bool(found) and scheme.isidentifier()


def store_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. UsageError where fsspec or a package of the store is missing."""
    fsspec = require("fsspec", f"reading {url!r}")
    try:
        store, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UsageError("missing_dependency", f"{url!r} cannot be read: {error}") from None
    except ValueError:
        raise UsageError(
            "bad_argument", f"{url!r} is of no store that fsspec knows", hint="such as s3://bucket/folder"
        ) from None
    return store, path


def read_url(url: str, limits: Limits, offset: int | None = None, size: int | None = None) -> bytes:
    """The bytes of an object, at most `limits.bytes` + 1 of them, or a member's of an archive."""
    begin = offset or 0
    end = begin + (limits.bytes + 1 if size is None else size)
    with coded(url):
        store, path = store_of(url)
        try:
            return bytes(store.cat_file(path, start=begin, end=end))
        except FileNotFoundError:
            raise
        except Exception:  # some stores refuse a range of an object with no byte in it, or one that ends behind it
            known = store.size(path)
            if known is None or known >= end:
                raise
            return bytes(store.cat_file(path, start=begin, end=known))


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """A file or an object, with seek; ImageError `not_found`, `unreadable` or `special_file`."""
    if is_url(name):
        with coded(name):
            store, path = store_of(name)
            with store.open(path, "rb") as file:
                yield file
        return
    with coded(name):
        file = open_regular(name)
    with file:
        yield file


def listed(url: str) -> list[tuple[str, str]]:
    """(URL, path from the folder) of all objects below a folder, or that match a pattern; none where there is none."""
    with coded(url):
        store, path = store_of(url)
        fixed = re.split(r"[*?[]", path, maxsplit=1)[0]
        found = store.find(path) if fixed == path else store.glob(path)
        start = fixed.rfind("/") + 1 if fixed != path else len(fixed.rstrip("/")) + 1
        return [(store.unstrip_protocol(one), one[start:]) for one in found]


def is_object(url: str) -> bool:
    """Whether it is one object rather than a folder, a pattern, or nothing."""
    with coded(url):
        store, path = store_of(url)
        return bool(store.isfile(path))


@contextmanager
def coded(name: str) -> Iterator[None]:
    """Whatever a store's package raises, as an ImageError."""
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
    except Exception as error:  # of a store's own package
        if not is_url(name):
            raise
        raise _unreadable_object(name, error) from None


def _unreadable_object(url: str, error: Exception) -> ImageError:
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
    return ImageError("unreadable", f"{url!r} could not be read: {reason}")
