"""Make the disk fail, or kill the process, at any call with which a bulk run changes its folder.

`scripts/soak faults --out FILE` tries all of them, or with --named one of each name, for runs of many rows; the tests
try a part. Only the system's side is patched (opening, writing, syncing, renaming, removing, SQLite's statement), in
the process that runs.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tessella.bulk.integrity import verify
from tessella.bulk.ledger import Ledger, Shard
from tessella.errors import TessellaError

from ..soak import write_figures
from .bulk_kills import CONTEXT, contents, finished, make_rows, run_tiny

DISK = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
KINDS = (*DISK, "short", "kill")  # short: a write takes half of its data, which is no error


class Points:
    """Records calls in their order, such as "write shard-00000000.parquet"; `kind` happens at call number `at`."""

    def __init__(self, folder: Path, at: int = -1, kind: str = ""):
        self.folder, self.at, self.kind = str(folder), at, kind
        self.names: list[str] = []

    def reach(self, call: str, path: Any) -> bool:
        """Record a call, and cause the fault; return True if a write must be short."""
        if not os.fspath(path).startswith(self.folder):
            return False
        name = os.path.basename(path)  # noqa: PTH119
        parts = name.split(".")
        self.names.append(f"{call} {'.'.join(parts[1:-2]) if name.startswith('.') and parts[-1] == 'tmp' else name}")
        if len(self.names) - 1 != self.at or self.kind == "short":
            return len(self.names) - 1 == self.at
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if call == "commit":
            raise sqlite3.OperationalError("database or disk is full")
        raise OSError(DISK[self.kind], os.strerror(DISK[self.kind]), str(path))


@contextmanager
def reaching(points: Points) -> Iterator[None]:
    """Report Path.open for writing, os.fsync, replace, mkdir, unlink, and the ledger's commit to `points` first."""
    really_open, commit, fsync = Path.open, Ledger.commit, os.fsync

    class Writer(io.FileIO):
        def write(self, data: Any) -> int:
            half = points.reach("write", self.name) and len(data) > 1
            return super().write(memoryview(data)[: len(data) // 2] if half else data)

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("xwa") or not str(path).startswith(points.folder):
            return really_open(path, mode, *args, **kwargs)
        points.reach("open", path)
        buffered = io.BufferedWriter(Writer(str(path), mode.replace("b", "")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    def reported(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def first(path: Any, *args: Any, **kwargs: Any) -> Any:
            if call != "mkdir" or not Path(path).exists():
                points.reach(call, path)
            return real(path, *args, **kwargs)

        return first

    def synced(descriptor: int) -> None:
        points.reach("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        fsync(descriptor)

    def entered(ledger: Ledger, shard: Shard) -> None:
        connection = ledger._connection

        def execute(*arguments: Any) -> Any:
            points.reach("commit", f"{points.folder}/before entry {shard.id}")
            return connection.execute(*arguments)

        with mock.patch.object(ledger, "_connection", mock.Mock(execute=execute)):
            commit(ledger, shard)
        if points.kind == "kill":  # a commit that is done cannot fail
            points.reach("commit", f"{points.folder}/after entry {shard.id}")

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Path, "open", opened))
        stack.enter_context(mock.patch.object(os, "fsync", synced))
        stack.enter_context(mock.patch.object(Ledger, "commit", entered))
        for name in ("replace", "mkdir", "unlink"):
            stack.enter_context(mock.patch.object(os, name, reported(name, getattr(os, name))))
        yield


def run_reaching(data: Path, out: Path, points: Points) -> list[str]:
    with reaching(points):
        run_tiny(data, out)
    return points.names


def _die(data: Path, out: Path, at: int) -> None:
    run_reaching(data, out, Points(out, at, "kill"))


def trial(data: Path, folder: Path, at: int, kind: str, expected: dict[str, bytes]) -> str:
    """Run with a fault of this kind at call `at`, run again, and check both results; return how the first one ended."""
    out = folder / f"{kind} {at}"
    points = Points(out, at, kind)
    ended = "complete"
    if kind == "kill":
        process = CONTEXT.Process(target=_die, args=(data, out, at))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, process.exitcode
        ended = "killed"
    else:
        try:
            run_reaching(data, out, points)
        except TessellaError as error:
            ended = error.code
        assert ended == ("complete" if kind == "short" else "output_failed"), (points.names[at], ended)
    if (out / "run.json").exists():
        assert not verify(out).damage
    run_tiny(data, out)
    assert contents(out) == expected
    assert finished(out) == len(expected)
    assert not verify(out).damage
    assert json.loads((out / "summary.json").read_text())["rows"] > 0
    return ended


def names_of(data: Path, folder: Path, kind: str) -> list[str]:
    """Return all calls of a run without a fault."""
    out = folder / f"names {kind}"
    return run_reaching(data, out, Points(out, kind="kill" if kind == "kill" else ""))


def one_of_each(names: list[str]) -> list[int]:
    """Return the middle one of all calls that differ only by a number."""
    alike: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        alike.setdefault(re.sub(r"\d+", "", name), []).append(at)
    return sorted(calls[len(calls) // 2] for calls in alike.values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak faults", description=__doc__)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--named", action="store_true", help="one call of each name, in the middle of the run")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_rows(folder / "rows.parquet", args.rows)
        run_tiny(data, folder / "whole")
        expected = contents(folder / "whole")
        for kind in args.kinds:
            names = names_of(data, folder, kind)
            for at in one_of_each(names) if args.named else range(len(names)):
                point = names[at]
                if kind == "short" and not point.startswith("write"):
                    continue
                for repeat in range(args.repeats):
                    (folder / f"{kind} {repeat}").mkdir(exist_ok=True)
                    rows.append(
                        dict(
                            kind=kind,
                            point=point,
                            call=at,
                            ended=trial(data, folder / f"{kind} {repeat}", at, kind, expected),
                        )
                    )
                print(json.dumps(rows[-1]), flush=True)
    what = "a fault at every call that changes the folder of a bulk run, then the same run again; D-2, D-3"
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in args.kinds}
    points = len({row["point"] for row in rows})
    conditions = dict(rows=args.rows, named=args.named)
    write_figures(args.out, what, dict(rows=rows), **conditions, trials=len(rows), each=counts, points=points)
