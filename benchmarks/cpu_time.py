"""CPU time of this process and of all processes that it starts.

On a machine that other work shares, the rate of two programs depends on how many threads each of them has. Their CPU
time per image does not, and where neither waits for anything, its ratio is the ratio of their rates.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_SECONDS = 0.1  # between looks at the processes; what one uses after the last look before it ends is missed


def cpu_seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Call a function; return the seconds that it took, and the CPU seconds of this process and its descendants."""
    seen: dict[int, float] = {}
    watching = [0.0]  # CPU seconds of watching itself, which do not count
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SECONDS):
            seen.update(_descendants())
        watching[0] = time.thread_time()

    before = _descendants()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start, own = time.perf_counter(), time.process_time()
    function()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    own = time.process_time() - own - watching[0]
    return seconds, own + sum(used - before.get(pid, 0.0) for pid, used in seen.items())


def _descendants() -> dict[int, float]:
    """Return the CPU seconds of all processes below this one."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # after the name, which may hold spaces
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found: dict[int, float] = {}
    todo = children.get(os.getpid(), [])
    while todo:
        pid = todo.pop()
        found[pid] = used[pid]
        todo += children.get(pid, [])
    return found
