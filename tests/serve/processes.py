"""Look at processes, threads and memory in /proc."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tessella.serve.decoding import DecodePool


def children(pid: int) -> list[int]:
    """Return the ids of the processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def descendants(pid: int | None = None) -> list[int]:
    """Return the ids of all processes below `pid`, by default below this one."""
    found: list[int] = []
    for child in children(os.getpid() if pid is None else pid):
        found += [child, *descendants(child)]
    return found


def decoders(pool: DecodePool) -> list[int]:
    """Return the ids of the processes of a pool that are ready."""
    return [worker.pid for worker in [*pool._supervisor._workers] if worker.ready]


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """Return the number of open files of this process."""
    return len([*Path("/proc/self/fd").iterdir()])


class Snapshot:
    """The threads, processes and open files of this process at one moment.

    Whatever earlier tests held may still be released afterwards; only what was added counts as left over.
    """

    def __init__(self) -> None:
        self._threads = {*threading.enumerate()}
        self._processes = {*descendants()}
        self._descriptors = descriptors()

    def left_over(self) -> list[str]:
        """Return the names of what exists now and did not exist then."""
        added = descriptors() - self._descriptors
        return [
            *(thread.name for thread in threading.enumerate() if thread not in self._threads),
            *(f"process {pid}" for pid in descendants() if pid not in self._processes),
            *([f"{added} open files"] if added > 0 else []),
        ]
