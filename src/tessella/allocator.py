"""Freed memory: kept for the next training step, or returned to the system (glibc only)."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import threading
from types import TracebackType

from .machine import available_memory, total_memory

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # <malloc.h>
_MIB = 1 << 20
_KEEP = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 * _MIB))
# what glibc reaches by itself after a block of 32 MiB was freed, the largest one that it may still keep
_USUAL = (
    (_M_MMAP_MAX, 1 << 16),
    (_M_MMAP_THRESHOLD, 32 * _MIB),
    (_M_TRIM_THRESHOLD, 64 * _MIB),
    (_M_TOP_PAD, 128 << 10),
)
# shares of all memory: freed memory is kept once the first share is available, until less than the second one is
_ENOUGH, _TOO_LITTLE = 0.5, 0.25

_lock = threading.Lock()
_keepers = 0  # instances in this process that keep freed memory


class FreedMemory:
    """Decides after every step of a long computation whether the process keeps the memory that the step freed.

    glibc returns every block of more than 32 MiB to the system when it is freed, such as the activations of a training
    step, and the system clears new pages for the next step, which can take as long as the computation itself.
    Kept memory is divided into pieces that do not always fit the next blocks, so a process can grow to about twice its
    size. So memory is kept only if at least half of the machine's memory is available, and returned for good as
    soon as less than a quarter is. Other C libraries are left alone, and so are processes whose environment
    configures glibc's allocator (MALLOC_*_, GLIBC_TUNABLES). A context manager: at the end, the memory is returned.
    """

    def __init__(self) -> None:
        self._library = None if _is_configured() else _glibc()
        self._keeps = False
        self._total = total_memory()

    def __enter__(self) -> FreedMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._return()

    def adjust(self) -> None:
        """Keep freed memory from now on, or return it, depending on how much the machine has available."""
        if self._library is None:
            return
        available = available_memory()
        if self._keeps and available < _TOO_LITTLE * self._total:
            log.info("freed memory is returned to the system: only %.1f GB are available", available / 1e9)
            self._return()
            self._library = None  # it would soon be the same again
        elif not self._keeps and available >= _ENOUGH * self._total > 0:
            log.info("freed memory is kept for the next step: %.1f GB are available", available / 1e9)
            self._keep(self._library)

    def _keep(self, library: ctypes.CDLL) -> None:
        global _keepers
        with _lock:
            self._keeps = True
            _keepers += 1
            if _keepers == 1:
                _configure(library, _KEEP)

    def _return(self) -> None:
        global _keepers
        if not self._keeps or self._library is None:
            return
        with _lock:
            self._keeps = False
            _keepers -= 1
            last = _keepers == 0
            if last:
                _configure(self._library, _USUAL)
        if last:
            return_freed_memory()


def return_freed_memory() -> None:
    """Free what is not referenced any more, and let the C library return it to the system."""
    gc.collect()
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _configure(library: ctypes.CDLL, options: tuple[tuple[int, int], ...]) -> None:
    for option, value in options:
        library.mallopt(option, value)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def _is_configured() -> bool:
    """Return whether the environment configures glibc's allocator."""
    return "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") and name.endswith("_") for name in os.environ
    )
