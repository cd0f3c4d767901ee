"""What a decoding process may use: memory (more is a MemoryError), and time for one long piece of work at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

_headroom = 0  # bytes above what the process uses; 0: it has no limit from here
_ceiling = 0  # bytes that the system or the user allows; 0: no such limit


_announce: Callable[[], object] = lambda: None  # noqa: E731 - replaced by set_limit


def set_limit(headroom: int, announce: Callable[[], object] = lambda: None) -> None:
    """Let this process use `headroom` bytes more than it has now (Linux).

    announce: called before work that takes more memory and more time than an image does.
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
    """Raise the limit of `set_limit` by `needed` bytes for one known purpose, or (0) lower it again.

    Returns False, and does nothing, if the machine does not have that much memory left.
    """
    if needed and needed > _available():
        return False
    if needed:
        _announce()
    if not _headroom:
        return True
    import resource

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    wanted = in_use + _headroom + needed
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (min(wanted, _ceiling or wanted), hard))
    return True


def _available() -> int:
    """Bytes of memory available to processes; infinite if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return sys.maxsize
