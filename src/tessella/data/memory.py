"""The memory that a decoding process may use: what asks for more gets a MemoryError."""

from __future__ import annotations

import sys
from pathlib import Path

_headroom = 0  # bytes above what the process uses; 0: it has no limit from here
_ceiling = 0  # bytes that the system or the user allows; 0: no such limit


def set_limit(headroom: int) -> None:
    """Let this process use `headroom` bytes more than it has now (Linux)."""
    global _headroom, _ceiling
    if sys.platform != "linux":
        return
    import resource

    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    _headroom, _ceiling = headroom, min(limits, default=0)
    make_room(0)


def make_room(needed: int) -> None:
    """Raise the limit of `set_limit` by `needed` bytes for one known purpose, or (0) lower it again."""
    if not _headroom:
        return
    import resource

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    wanted = in_use + _headroom + needed
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (min(wanted, _ceiling or wanted), hard))
