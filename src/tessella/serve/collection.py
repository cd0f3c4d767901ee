"""The collection that a server searches: a run with its index, opened again whenever the index was updated.

`tessella index` may update an index while a server uses it. Every request looks at the time of change of its seal, and
opens the index again if it is another one; requests in work finish with what they began with. While an update has
removed old files and not yet written its seal, requests that need these files fail with `not_ready`.
Embeddings are held in memory up to a limit, else read from the disk for each search.

Work is done in a few threads; requests that find too many others waiting are refused, as those for models are.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ..bulk.manifest import MANIFEST, Manifest
from ..bulk.run_folder import INDEX, INDEX_SEAL
from ..data.source import Source
from ..errors import ServeError, UsageError
from ..machine import total_memory
from ..search import Index
from ..search.columns import NO_LABEL
from ..search.duplicates import SimilarityThreshold
from ..search.polygon import PointSet
from ..search.projection import Projection
from ..storage import read_regular
from .models import public_name
from .selection import Mask, Selection

Value = TypeVar("Value")
THREADS = 2
MAX_WAITING = 64  # requests for these threads
MAX_MEMORY = 4 << 30  # bytes of embeddings, at most an eighth of the machine's memory
RETRY_SECONDS = 5.0
CACHED_SHARDS = 8  # of the listing


class _Stamp(NamedTuple):
    """What changes when the seal of an index is replaced."""

    inode: int
    size: int
    mtime: int


class _Failed(NamedTuple):
    """A state of an index that cannot be used: whether it could be opened, and until when it is not tried again."""

    stamp: _Stamp | None
    opened: bool
    until: float


class OpenedIndex:
    """One state of an index, with what requests need of it in memory. Threads may share it.

    version: changes with the state. classes: of the model. model: its public name. threshold: cosine from which two
    images are near-duplicates.
    """

    def __init__(self, folder: Path, memory: int):
        """Open the index of the run in a folder. Raises UsageError as `Index`."""
        seal = folder / INDEX / INDEX_SEAL
        for _ in range(2):
            self.stamp = stamp_of(folder)
            try:
                data = read_regular(seal)
            except OSError:
                data = b""
            self.index = Index(folder, memory=memory)
            if self.stamp == stamp_of(folder):  # else it was updated meanwhile
                break
        self.version = hashlib.sha256(data).hexdigest()[:16]
        self.facts = self.index.facts
        self.columns = self.index.columns
        self.map: Projection | None = self.index.map()
        self.points = None if self.map is None else PointSet(self.map.points)
        self.model = public_name(self.facts["model"])
        self.classes = frozenset(self.facts["labels"])
        self.threshold = SimilarityThreshold.of(self.facts["model"]).value
        self._manifest_lock = threading.Lock()

    def mask(self, selection: Selection) -> Mask:
        """Return whether each row (N,) of the index matches. Raises UsageError as `Selection.mask`."""
        return selection.mask(self.columns, self.points, self.classes)

    @functools.cached_property
    def map_bytes(self) -> bytes | None:
        """The map as little-endian float32 (L,2), NaN for inputs of the listing that are not in the index."""
        if self.map is None:
            return None
        return self.columns.spread(self.map.points, np.nan).astype("<f4").tobytes()

    @functools.cached_property
    def label_bytes(self) -> bytes:
        """The code of the predicted class of each row of the listing as little-endian uint16 (L,)."""
        return self.columns.spread(self.columns.labels, NO_LABEL).astype("<u2").tobytes()

    def source(self, row: int) -> Source:
        """Return where the image of a row is stored. Raises UsageError `not_found`, `damaged_run`."""
        self.columns.positions([row])
        shard, place = divmod(row, self.facts["shard_rows"])
        with self._manifest_lock:
            return self._sources(shard)[place]

    def sources(self, shard: int) -> list[Source]:
        """Return the inputs of a shard of the listing, in order. Raises UsageError `damaged_run`."""
        with self._manifest_lock:
            return self._sources(shard)

    @functools.cached_property
    def _sources(self) -> Callable[[int], list[Source]]:
        manifest = Manifest(self.index.out / MANIFEST, self.facts["manifest"])
        return functools.lru_cache(CACHED_SHARDS)(manifest.sources)


def stamp_of(folder: Path) -> _Stamp | None:
    """Return what identifies the seal of an index without reading it; None if there is none."""
    try:
        status = (folder / INDEX / INDEX_SEAL).stat()
    except OSError:
        return None
    return _Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


class Collection:
    """The run that a server searches. `run` is called in the event loop, the rest in any thread."""

    def __init__(self, folder: Path, *, memory: int | None = None, clock: Callable[[], float] = time.monotonic):
        """Open the index of the run in a folder.

        memory: bytes of embeddings that may be held in memory. Raises UsageError: `not_found` without a run or an
        index, `damaged_run`, `missing_dependency`.
        """
        self.folder = folder
        self._memory = min(MAX_MEMORY, total_memory() // 8) if memory is None else memory
        self._clock = clock
        self._opened = OpenedIndex(folder, self._memory)
        self._lock = threading.Lock()
        self._failed: _Failed | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tessella-collection")
        self._waiting = 0

    @property
    def model(self) -> str:
        """The public name of the model of the run."""
        return self._opened.model

    def use(self, work: Callable[[OpenedIndex], Value]) -> Value:
        """Call `work` with the index, and once more if it was updated meanwhile.

        Raises what `work` raises; ServeError `not_ready` if the files of the index are being replaced.
        """
        opened = self._current()
        try:
            return work(opened)
        except UsageError as error:
            if error.code != "damaged_run" or (again := self._reopened(opened)) is None:
                raise
            opened = again
        try:
            return work(opened)
        except UsageError as error:
            if error.code == "damaged_run":
                self._mark_failed(opened.stamp, opened=True)
            raise

    def _current(self) -> OpenedIndex:
        """Return the index in its present state; the last one while it is being written or is damaged."""
        opened, stamp = self._opened, stamp_of(self.folder)
        if stamp == opened.stamp or self._has_failed(stamp):
            return opened
        with suppress(ServeError):
            opened = self._reopened(opened) or opened
        return opened

    def _reopened(self, opened: OpenedIndex) -> OpenedIndex | None:
        """Return the index opened again, unless another thread has done it; None if that was of no use just now.

        Raises ServeError `not_ready` if it cannot be opened.
        """
        with self._lock:
            if self._opened is not opened:
                return self._opened
            stamp = stamp_of(self.folder)
            if self._has_failed(stamp):
                if self._failed is not None and not self._failed.opened:
                    raise ServeError("not_ready", f"the index of {self.folder} cannot be opened")
                return None
            try:
                self._opened = OpenedIndex(self.folder, self._memory)
            except UsageError as error:
                self._mark_failed(stamp, opened=False)
                raise ServeError("not_ready", f"the index of {self.folder} cannot be opened: {error}") from error
            return self._opened

    def _mark_failed(self, stamp: _Stamp | None, *, opened: bool) -> None:
        self._failed = _Failed(stamp, opened, self._clock() + RETRY_SECONDS)

    def _has_failed(self, stamp: _Stamp | None) -> bool:
        """Return whether this state failed a moment ago: every attempt to open it reads all files of the index."""
        failed = self._failed
        return failed is not None and failed.stamp == stamp and self._clock() < failed.until

    async def run(self, work: Callable[[OpenedIndex], Value], seconds: float) -> Value:
        """Call `work` with the index in a thread.

        Raises as `use`; ServeError `overloaded` if too many requests wait for a thread, `deadline_exceeded` after that
        many seconds.
        """
        if self._waiting >= MAX_WAITING:
            raise ServeError("overloaded", f"{self._waiting} requests are waiting for the index")
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, self.use, work)
        future.add_done_callback(self._done)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(future)
        except TimeoutError:
            raise ServeError("deadline_exceeded", f"the index gave no answer within {seconds:g} s") from None
        finally:
            future.cancel()  # if it has not begun; a thread that works on it goes on

    def _done(self, future: asyncio.Future[Value]) -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # retrieved, so that it is not reported as lost
