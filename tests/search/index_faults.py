"""Kill the builder of an index at each of its calls, by name, and let the next builder finish.

`scripts/soak index --rows 20000 --out FILE` goes through one of each name, in four states of the folder; the tests go
through a subset. LanceDB's calls are kill points before and after, because
what happens inside them cannot be intercepted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tessella.search import index
from tessella.search.index import build_index, check_index

from ..bulk.bulk_kills import CONTEXT
from ..bulk.faults import Points, reaching
from ..bulk.runs import SHARD_ROWS, drop_shard, expected_rows, indexed, numbered, random_vectors, write_run, write_shard
from ..soak import write_figures

STATES = ("no index", "changed shards", "killed after rows were added", "killed before its seal")
TABLE_CALLS = ("add", "delete", "restore", "optimize", "create_index", "drop_index")


class IndexPoints(Points):
    """Kills the process at the nth call of `name`; calls that differ only in a number or a random part share a name."""

    def __init__(self, folder: Path, name: str = "", nth: int = 0):
        super().__init__(folder)
        self.name, self.nth = name, nth

    def reach(self, call: str, path: Any) -> bool:
        known = len(self.names)
        super().reach(call, path)
        if len(self.names) > known:
            name = re.sub(r"[0-9a-f-]{8,}|\d+", "*", self.names[-1])
            self.names[-1] = name
            if name == self.name and self.names.count(name) == self.nth:
                os.kill(os.getpid(), signal.SIGKILL)
        return False


@contextmanager
def reaching_lance(points: Points, home: Path) -> Iterator[None]:
    """Report LanceDB's calls that change a table to `points`, before and after."""
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

    def reported(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            name = home / ("cleanup" if "cleanup_older_than" in kwargs else call)
            points.reach("before", name)
            result = real(*args, **kwargs)
            points.reach("after", name)
            return result

        return wrapper

    with ExitStack() as stack:
        for owner, names in ((LanceTable, TABLE_CALLS), (LanceDBConnection, ("create_table",))):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, reported(name, getattr(owner, name))))
        yield


def build(out: Path, points: IndexPoints) -> list[str]:
    """Build an approximate index in ten steps."""
    rows = SHARD_ROWS * len(list((out / "shards").iterdir()))
    with mock.patch.object(index, "STEP_ROWS", rows // 10), reaching(points), reaching_lance(points, out / "index"):
        build_index(out, approximate_from=rows // 2)
    return points.names


def _killed(out: Path, name: str, nth: int) -> None:
    process = CONTEXT.Process(target=build, args=(out, IndexPoints(out, name, nth)))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL, (name, nth, process.exitcode)


def prepare(folder: Path, rows: int) -> dict[str, Path]:
    """Return a run in each state, by name."""
    states = {state: folder / state for state in STATES}
    first, changed, added, unsealed = states.values()
    write_run(first, numbered(random_vectors(rows, 0)))
    shutil.copytree(first, changed)
    build(changed, IndexPoints(changed))
    count = rows // SHARD_ROWS
    for shard in range(count * 4 // 5, count):
        drop_shard(changed, shard)
    for shard in range(0, count * 4 // 5, 4):
        write_shard(changed, shard, numbered(random_vectors(SHARD_ROWS, 1 + shard), shard * SHARD_ROWS))
    for state, name, nth in ((added, "after add", 1), (unsealed, "replace index.json", 1)):
        shutil.copytree(changed, state)
        _killed(state, name, nth)
    return states


def names_of(state: Path, folder: Path) -> dict[str, int]:
    """Return the calls of an undisturbed builder and how often each is made."""
    out = folder / "names"
    shutil.copytree(state, out)
    names = build(out, IndexPoints(out))
    shutil.rmtree(out)
    return {name: names.count(name) for name in dict.fromkeys(names)}


def trial(state: Path, folder: Path, name: str, nth: int) -> str:
    """Kill a builder and run another one; check its index against the shards. Returns why it was rebuilt, or ""."""
    out = folder / "trial"
    shutil.copytree(state, out)
    _killed(out, name, nth)
    rebuilt = build_index(out).rebuilt
    assert indexed(out) == expected_rows(out)
    assert check_index(out) == []
    shutil.rmtree(out)
    return rebuilt


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak index", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for state, path in prepare(folder, args.rows).items():
            for point, times in names_of(path, folder).items():
                nth = (times + 1) // 2
                rebuilt = bool(trial(path, folder, point, nth))
                rows.append(dict(state=state, point=point, call=nth, of=times, made_anew=rebuilt))
                print(json.dumps(rows[-1]), flush=True)
    what = "a builder of an index killed at each call by name, then another one; D-1"
    points = len({row["point"] for row in rows})
    write_figures(args.out, what, dict(rows=rows), rows=args.rows, trials=len(rows), points=points)
