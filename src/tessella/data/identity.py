"""Detect whether a file has changed since it was listed: file identities, and sources that compare them when read."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..text import escape
from .limits import DEFAULT_LIMITS, Limits
from .remote import is_url, open_store, translate_errors
from .source import Source
from .sources import iter_sources

_MAX_FOOTER = 1 << 30  # bytes
_MEMBER = [("offset", np.int64), ("size", np.int64), ("length", np.int64), ("hash", np.int64)]
_VERSION_FIELDS = ("ETag", "etag", "generation", "LastModified", "last_modified", "mtime", "created")  # of stores


class Identity(NamedTuple):
    """What identifies the content of a file at the time it was listed; None where unknown.

    digest: the hash of a Parquet file's footer, or the version that an object store reports. ctime: only of archives
    and tables. It also changes when a backup program creates a hard link, so a new ctime alone is only a suspicion.
    """

    size: int | None = None  # bytes
    mtime: int | None = None  # nanoseconds since 1970
    digest: str | None = None
    ctime: int | None = None  # nanoseconds since 1970


UNKNOWN = Identity()


def identity_of(path: str, *, container: bool = False) -> Identity:
    """Return the identity of a file; container: it is an archive or a table.

    `UNKNOWN` if the file does not exist, and for single objects of a store, which would cost one request each.
    """
    if is_url(path):
        return _identity_of_object(path) if container else UNKNOWN
    identity = _stat_identity(path)
    if not container or identity == UNKNOWN:
        return identity._replace(ctime=None)
    try:
        return identity._replace(digest=_footer_hash(path) if path.lower().endswith(".parquet") else None)
    except OSError:
        return UNKNOWN


def _stat_identity(path: str) -> Identity:
    """Return what the file system knows about a file; `UNKNOWN` if it does not exist."""
    try:
        status = os.stat(path)  # noqa: PTH116 - ten million Path objects cost minutes
    except (OSError, ValueError):
        return UNKNOWN
    return Identity(status.st_size, status.st_mtime_ns, None, status.st_ctime_ns)


def _identity_of_object(url: str) -> Identity:
    try:
        with translate_errors(url):
            store, path = open_store(url)
            info = store.info(path)
    except ImageError:
        return UNKNOWN
    version = next((str(info[name]) for name in _VERSION_FIELDS if info.get(name)), None)
    return Identity(info.get("size"), None, version)


def _footer_hash(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - names need not be text
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 8))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, end - 8 - min(length, _MAX_FOOTER)))
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


@functools.lru_cache(maxsize=4)
def _footer_at(path: str, ctime: int) -> str | None:
    """Return the digest of a table; the ctime is part of the cache key."""
    return identity_of(path, container=True).digest


@functools.lru_cache(maxsize=2)
def _members_at(path: str, ctime: int) -> NDArray[np.void]:
    """Return the members of a tar archive, sorted by offset; the ctime is part of the cache key.

    32 bytes each, as there may be millions; if the fields were not aligned, each search would copy one. length, hash:
    of the part of the key that follows the path, as the path may have been relative when the archive was listed.
    """
    prefix = len(escape(path))
    rows = (
        (source.offset, source.size, len(name), hash(name))
        for source in iter_sources([path])
        if source.offset is not None and (name := escape(source.key)[prefix:])
    )
    return np.sort(np.fromiter(rows, _MEMBER), order="offset")


@dataclass(frozen=True)
class ListedSource(Source):
    """An input listed by a run; `read` raises ImageError `changed_input` if its file has changed since then."""

    inner: Source | None = None
    identity: Identity = UNKNOWN

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the encoded bytes, after checking that the file is the one that was listed.

        Raises ImageError `changed_input` if it is not, or whatever reading the inner source raises.
        """
        assert self.inner is not None
        if self.identity.size is None or is_url(self.path):
            return self.inner.read(limits)
        self._compare()
        try:
            return self.inner.read(limits)
        finally:
            self._compare()  # if the file changed meanwhile, neither the bytes nor an error can be trusted

    def _compare(self) -> None:
        now = _stat_identity(self.path)
        if now.size is None:  # it no longer exists, which reading it reports
            return
        change = difference(self.identity, now._replace(digest=self.identity.digest))
        if not change and self.identity.ctime not in (None, now.ctime):
            assert now.ctime is not None
            change = self._container_change(now.ctime)
        if change:
            raise ImageError("changed_input", f"{self.path!r} is not the file that was listed: {change}")

    def _container_change(self, ctime: int) -> str:
        """Describe how a container with a new ctime differs for this input; "" if it does not."""
        if self.offset is None:
            return "" if _footer_at(self.path, ctime) == self.identity.digest else "its footer has changed"
        members = _members_at(self.path, ctime)
        i = int(np.searchsorted(members["offset"], self.offset))
        if i < len(members):
            offset, size, length, name_hash = members[i].tolist()
            if (offset, size) == (self.offset, self.size) and hash(self.key[-length:]) == name_hash:
                return ""
        return f"{self.key!r} is no longer at its place"


def listed_source(source: Source, identity: Identity) -> Source:
    """Return `source` wrapped in a `ListedSource`, or unchanged if there is nothing to compare."""
    if identity == UNKNOWN or source.error is not None:
        return source
    return ListedSource(source.key, source.path, source.offset, source.size, inner=source, identity=identity)


def difference(before: Identity, now: Identity) -> str:
    """Describe how a file has changed; "" if it has not."""
    if now == UNKNOWN:
        return "it no longer exists"
    if now.size != before.size:
        return f"it had {before.size:,} bytes, and has {now.size:,}"
    if now.mtime != before.mtime:
        return f"it was last modified {_format_time(before.mtime)}, and now {_format_time(now.mtime)}"
    if now.digest != before.digest:
        return "its footer or its entity tag has changed"
    return ""


def container_difference(path: str, identity: Identity, members: Iterable[tuple[str, int, int]]) -> str:
    """Describe how an archive or table has changed since it was listed; "" if it has not.

    members: (key, offset, size) of the required members of a tar archive. They are compared with the headers, as a
    reordered archive may have the same size and, if it was preserved, the same modification time.
    """
    if change := difference(identity, identity_of(path, container=True)):
        return change
    missing = {offset: (key, size) for key, offset, size in members}
    total = len(missing)
    if not missing or (is_url(path) and identity.digest):
        return ""
    prefix = len(escape(path))  # a key begins with the path at the time of listing, which may have been relative
    for source in iter_sources([path]):
        if source.offset in missing:
            key, size = missing.pop(source.offset)
            if source.size != size or not key.endswith(escape(source.key)[prefix:]):
                return f"{source.key[len(path) + 2 :]!r} is now where {key!r} was"
    if not missing:
        return ""
    first_key = next(iter(missing.values()))[0]
    return f"{len(missing):,} of {total:,} members have moved or are missing, such as {first_key!r}"


def _format_time(nanoseconds: int | None) -> str:
    if nanoseconds is None:
        return "at an unknown time"
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(" ", "microseconds")
    except (ValueError, OverflowError, OSError):
        return f"{nanoseconds} ns after 1970"
