"""Whether a file is still the one that was listed: what identifies it, and sources that check it when they are read."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from ..errors import ImageError
from ..text import escape
from .limits import DEFAULT_LIMITS, Limits
from .remote import coded, is_url, store_of
from .sources import Source, iter_sources

_MOST_FOOTER = 1 << 30  # bytes
_MEMBER = [("offset", np.int64), ("size", np.int64), ("length", np.int32), ("hash", np.int64)]
_TOKENS = ("ETag", "etag", "generation", "LastModified", "last_modified", "mtime", "created")  # as stores name them


class Identity(NamedTuple):
    """What a file was when it was listed. digest: of a Parquet file's footer, or what an object store gives.

    ctime: of an archive or table; it also changes where a backup makes a link, so that alone is only a suspicion.
    """

    size: int | None = None  # bytes
    mtime: int | None = None  # nanoseconds since 1970
    digest: str | None = None
    ctime: int | None = None  # nanoseconds


UNKNOWN = Identity()


def identity_of(path: str, *, container: bool = False) -> Identity:
    """`UNKNOWN` where the file is not there, and for single objects of a store, which would cost a request each."""
    if is_url(path):
        return _identity_of_object(path) if container else UNKNOWN
    found = _status_of(path)
    if not container or found == UNKNOWN:
        return found._replace(ctime=None)
    try:
        return found._replace(digest=_footer_hash(path) if path.lower().endswith(".parquet") else None)
    except OSError:
        return UNKNOWN


def _status_of(path: str) -> Identity:
    """What the file system says of a file by itself; `UNKNOWN` where it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - ten million Path objects cost minutes
    except (OSError, ValueError):
        return UNKNOWN
    return Identity(found.st_size, found.st_mtime_ns, None, found.st_ctime_ns)


def _identity_of_object(url: str) -> Identity:
    try:
        with coded(url):
            store, path = store_of(url)
            info = store.info(path)
    except ImageError:
        return UNKNOWN
    token = next((str(info[name]) for name in _TOKENS if info.get(name)), None)
    return Identity(info.get("size"), None, token)


def _footer_hash(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - names need not be text
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 8))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, end - 8 - min(length, _MOST_FOOTER)))
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


@functools.lru_cache(maxsize=4)
def _footer_at(path: str, ctime: int) -> str | None:
    """The digest of a table as it is since `ctime`."""
    return identity_of(path, container=True).digest


@functools.lru_cache(maxsize=2)
def _members_at(path: str, ctime: int) -> Any:
    """The members of a tar archive as it is since `ctime`, by offset; 28 bytes each, as there may be millions.

    length, hash: of the end of a key that follows the path, which may have been given as a relative one.
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
    """An input that a run has listed; `read` raises ImageError `changed_input` if its file has changed since."""

    inner: Source | None = None
    identity: Identity = UNKNOWN

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        assert self.inner is not None
        if self.identity.size is None or is_url(self.path):
            return self.inner.read(limits)
        self._compare()
        try:
            return self.inner.read(limits)
        finally:
            self._compare()  # what was changed meanwhile may have given anything, also an error

    def _compare(self) -> None:
        now = _status_of(self.path)
        if now.size is None:  # it is gone, as reading it says
            return
        what = difference(self.identity, now._replace(digest=self.identity.digest))
        if not what and self.identity.ctime not in (None, now.ctime):
            assert now.ctime is not None
            what = self._other_place(now.ctime)
        if what:
            raise ImageError("changed_input", f"{self.path!r} is not the file that was listed: {what}")

    def _other_place(self, ctime: int) -> str:
        """How a container that was touched since it was listed differs for this input, in words, or ""."""
        if self.offset is None:
            same = _footer_at(self.path, ctime) == self.identity.digest
            return "" if same else "its footer is another one"
        found = _members_at(self.path, ctime)
        at = int(np.searchsorted(found["offset"], self.offset))
        if at < len(found):
            offset, size, length, name = found[at].tolist()
            if (offset, size) == (self.offset, self.size) and hash(self.key[-length:]) == name:
                return ""
        return f"{self.key!r} is no longer where it was"


def listed_source(source: Source, identity: Identity) -> Source:
    """Wrap `source` with the check if there is something to compare."""
    if identity == UNKNOWN or source.error is not None:
        return source
    return ListedSource(source.key, source.path, source.offset, source.size, inner=source, identity=identity)


def difference(before: Identity, now: Identity) -> str:
    """Describe how a file has changed; "" if it has not."""
    if now == UNKNOWN:
        return "it is gone"
    if now.size != before.size:
        return f"it had {before.size:,} bytes, and has {now.size:,}"
    if now.mtime != before.mtime:
        return f"it was last modified {_time(before.mtime)}, and now {_time(now.mtime)}"
    if now.digest != before.digest:
        return "its footer or its entity tag is another one"
    return ""


def container_difference(path: str, identity: Identity, members: Iterable[tuple[str, int, int]]) -> str:
    """Describe how a container has changed since it was listed; "" if it has not.

    members: of a tar archive those that are needed, as (key, offset, size). They are compared with the archive's
    headers, as another order of equal members changes neither its size nor, where that was preserved, its time.
    """
    if changed := difference(identity, identity_of(path, container=True)):
        return changed
    wanted = {offset: (key, size) for key, offset, size in members}
    if not wanted or (is_url(path) and identity.digest):
        return ""
    prefix = len(escape(path))  # a key begins with the path as it was given, which may be a relative one
    for source in iter_sources([path]):
        if source.offset in wanted:
            key, size = wanted.pop(source.offset)
            if source.size != size or not key.endswith(escape(source.key)[prefix:]):
                return f"{source.key[len(path) + 2 :]!r} is where {key!r} was"
    return f"{len(wanted):,} members have moved or are missing, such as {_first(wanted)!r}" if wanted else ""


def _first(wanted: dict[Any, tuple[str, int]]) -> str:
    return next(iter(wanted.values()))[0]


def _time(nanoseconds: int | None) -> str:
    if nanoseconds is None:
        return "at an unknown time"
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(" ", "microseconds")
    except (ValueError, OverflowError, OSError):
        return f"{nanoseconds} ns after 1970"
