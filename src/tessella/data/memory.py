"""Limit the memory of a decoding process, so that it gets a MemoryError, and raise the limit for known large reads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ..machine import available_memory

_headroom = 0  # bytes above the memory in use; 0: `set_limit` was not called
_ceiling = 0  # bytes, the limit of the system or the user; 0: there is none


def _announce_nothing() -> None: ...


_announce: Callable[[], object] = _announce_nothing


def set_limit(headroom: int, announce: Callable[[], object] = _announce_nothing) -> None:
    """Limit this process to `headroom` bytes more than it uses now (Linux; elsewhere, there is no limit).

    announce: called before a read that takes more memory and more time than an image does.
    """
    global _headroom, _ceiling, _announce
    _announce = announce
    if sys.platform != "linux":
        return
    import resource

    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    _headroom, _ceiling = headroom, min(limits, default=0)
    make_room(0)


def make_room(needed: int) -> bool:
    """Raise the limit of `set_limit` by `needed` bytes for one large read; 0 restores it.

    Returns False, and does nothing, if the machine does not have that much memory available.
    """
    if needed and 0 < available_memory() < needed:
        return False
    if needed:
        _announce()
    if not _headroom:
        return True
    import resource

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + _headroom + needed
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (min(limit, _ceiling or limit), hard))
    return True
