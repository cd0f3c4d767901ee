"""Flip one bit anywhere in a run or in its index: it must be found, or change nothing that is read.

`scripts/soak flips --out FILE` tries 200 in the files of runs (finished, and killed with a write-ahead log) and 200 in
those of an index; the tests try a part.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tessella.bulk import run_folder
from tessella.bulk.integrity import verify
from tessella.bulk.ledger import LEDGER, Ledger
from tessella.bulk.manifest import MANIFEST, Manifest
from tessella.errors import TessellaError
from tessella.search.index import build_index
from tessella.search.query import Index

from ..soak import write_figures
from .bulk_kills import make_rows, run_tiny
from .runs import numbered, random_vectors, write_run


def read_back(out: Path) -> Any:
    """Return everything that is ever read of a run."""
    facts = run_folder.read_run(out)
    manifest = Manifest(out / MANIFEST, facts["manifest"])
    summary = json.loads((out / run_folder.SUMMARY).read_bytes()) if (out / run_folder.SUMMARY).exists() else None
    rows = [row for table in run_folder.read_rows(out) for row in table.to_pylist()]
    return facts, run_folder.finished_shards(out), summary, rows, [manifest.sources(i) for i in range(manifest.shards)]


def answers(out: Path) -> Any:
    """Return results of searches with all rows, with the approximate index, with filters and by key."""
    index = Index(out)
    results = [index.search(query, top=5, all_rows=every) for query in random_vectors(3, 9) for every in (False, True)]
    return [*results, index.search("000003.jpg", top=3, label="dog", where="bytes > 1010")]


def make_runs(folder: Path) -> list[Path]:
    """Return a finished run, and one as a killed process leaves it: half of its shards, all in a write-ahead log."""
    finished, killed = folder / "whole", folder / "killed"
    run_tiny(make_rows(folder / "rows.parquet", 60), finished)
    shutil.copytree(finished, killed)
    (killed / run_folder.SUMMARY).unlink()
    shards = run_folder.finished_shards(finished)
    with Ledger(killed, new=True) as ledger:
        for shard in shards[: len(shards) // 2]:
            ledger.commit(shard)
        for name in (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"):
            shutil.copyfile(killed / name, folder / name)
    for name in (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"):
        (folder / name).replace(killed / name)
    lines = (finished / run_folder.LOG).read_bytes().splitlines(keepends=True)
    (killed / run_folder.LOG).write_bytes(b"".join(lines[: len(shards) // 2]))
    for shard in shards[len(shards) // 2 :]:
        (killed / "shards" / shard.file).unlink()
    return [finished, killed]


def make_index(folder: Path) -> Path:
    """Return a run with an approximate index."""
    run = write_run(folder / "indexed", numbered(random_vectors(500, 0)))
    build_index(run, approximate_from=300)
    return run


def checked(out: Path) -> Any:
    """Return the contents of a run, or the names of the files that `verify` reports as damaged."""
    report = verify(out)
    return sorted({damage.file for damage in report.damage}) or read_back(out)


def flip_run(out: Path, rng: random.Random) -> tuple[str, str]:
    return _flip(out, _files(out), checked, rng)


def flip_index(out: Path, rng: random.Random) -> tuple[str, str]:
    return _flip(out, _files(out / "index"), answers, rng)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def _flip(out: Path, files: list[Path], read: Callable[[Path], Any], rng: random.Random) -> tuple[str, str]:
    """Flip one bit of one file and restore it; return the name of the file and the result, "found" or "no effect"."""
    expected = read(out)
    path = rng.choice(files)
    data = path.read_bytes()
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
        got = read(out)
    except TessellaError as error:
        if error.code != "damaged_run":
            raise
        return path.name, "found"
    finally:
        path.write_bytes(data)
    if got == expected:
        return path.name, "no effect"
    assert read is checked, (path, "other answers")
    assert isinstance(got, list), (path, "other rows")
    return path.name, "found"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak flips", description=__doc__)
    parser.add_argument("--flips", type=int, default=200, help="in runs, and as many in an index")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    counts: dict[str, Counter[str]] = dict(run=Counter(), index=Counter())
    files: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        runs, index = make_runs(Path(name)), make_index(Path(name))
        for i in range(args.flips):
            for kind, (file, result) in (("run", flip_run(runs[i % 2], rng)), ("index", flip_index(index, rng))):
                counts[kind][result] += 1
                files[f"{file}: {result}"] += 1
            print(json.dumps(counts), flush=True)
    what = "one flipped bit in the files of a run or an index: found, or read as it was written"
    write_figures(args.out, what, dict(counts=counts, files=files), flips=args.flips, seed=args.seed)
