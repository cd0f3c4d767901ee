"""The index of a run: a LanceDB table made of its Parquet shards, in which the nearest rows are found.

    RUN/index/rows.lance   a row for each input that has an embedding: it as float16, and which shard it is from
    RUN/index/index.json   the seal: which version of the table is whole, its shards, the hash of every file

The shards are the truth, and RUN/index can be deleted at any time. A shard is known by its place and its hash: an
update adds those that are new and removes the rows of those that are gone. The seal is written last. What a killed
builder began is undone by going back to the version of the seal; where that is not whole either, the table is made
anew.

LanceDB runs threads that a fork does not copy: a process that has opened an index must start others by spawn or
forkserver.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ..bulk.ledger import Shard
from ..bulk.run_folder import INDEX, INDEX_SEAL, INDEX_SEAL_KEY, finished_shards, read_run, read_shard
from ..checks import as_path, check_count, checked
from ..errors import OutputError, TessellaError, UsageError
from ..extras import require
from ..records import need_pyarrow
from ..storage import damaged_files, file_hash, folder_lock, read_sealed, sealed_bytes, sync_folder, write_atomic
from .nearest import APPROXIMATE_FROM, Plan, choose_plan, vectors_of

FORMAT = 1  # of table and seal: an index of another one is made anew
HOME, TABLE, SEAL, SEAL_KEY = INDEX, "rows", INDEX_SEAL, INDEX_SEAL_KEY
HINT = "latest_version_hint.json"  # the one file that LanceDB changes in place; it does without
COLUMNS = ("key", "row", "source", "sha256", "bytes", "width", "height", "label", "probability")
STEP_ROWS = 65_536  # added at once
_PANICS = ("PanicException", "RustPanic")  # of PyO3 and its futures: no Exception, and no module has their names


@dataclass(frozen=True)
class Seal:
    """A state of the table that is whole. shards: rows by name; files: [bytes, hash] by name."""

    version: int
    rows: int
    plan: Plan
    shards: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, list[Any]] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class Report:
    """What `build_index` did. rows: in the index; rebuilt: why one that was there was thrown away; bytes: on disk."""

    rows: int
    added: int
    removed: int
    rebuilt: str
    plan: Plan
    seconds: float
    bytes: int


# --- building ---------------------------------------------------------------------------------------------------------


@checked
def build_index(
    out: str | Path, *, approximate_from: int = APPROXIMATE_FROM, say: Callable[[str], None] = lambda text: None
) -> Report:
    """Make RUN/index, or bring it to what the run's shards are.

    From `approximate_from` rows on an approximate index is trained and its recall measured; where that is under 0.99,
    searches go on to compare all rows. A damaged index is made anew. say: is told what happens.
    Raises UsageError: not_found without a run, busy, damaged_run for a shard, output_failed, missing_dependency.
    """
    out = as_path("the run", out)
    check_count("approximate_from", approximate_from, 10**12)
    facts, home = read_run(out), out / HOME
    _lancedb()
    pa, _ = need_pyarrow()
    began = time.monotonic()
    hint = "make room, look at the folder's permissions, and run the same command again"
    with lance_errors("output_failed", f"{home} could not be written", hint), folder_lock(home):
        shards = {f"{shard.id * facts['shard_rows']}:{shard.sha256}": shard for shard in finished_shards(out)}
        table, seal, rebuilt = _reopen(home, facts)
        if rebuilt:
            say(f"the index is made anew: {rebuilt}")
        there = {name: rows for name, rows in seal.shards.items() if name in shards}
        removed = seal.rows - sum(there.values())
        if gone := seal.shards.keys() - there.keys():
            listed = ", ".join(f"'{name}'" for name in gone)
            table.delete(f"shard IN ({listed})")
        missing = [name for name in shards if name not in there]
        step = max(STEP_ROWS // facts["shard_rows"], 1)
        for at in range(0, len(missing), step):
            part = missing[at : at + step]
            rows = [_rows(out, name, shards[name], facts) for name in part]
            table.add(pa.concat_tables(rows))
            there |= {name: len(some) for name, some in zip(part, rows, strict=True)}
            say(f"{len(there):,} of {len(shards):,} shards are in the index")
        if gone or missing or not seal.files:
            plan = choose_plan(table, home, seal.plan, approximate_from, say)
            # from here to the seal a kill costs the index; nobody else writes, and readers open what is sealed
            table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
            seal = Seal(table.version, table.count_rows(), plan, there, _durable(home, seal.files))
            _write_seal(home, seal)
        assert seal.rows == sum(there.values())
    added, size = sum(there[name] for name in missing), sum(size for size, _ in seal.files.values())
    return Report(seal.rows, added, removed, rebuilt, seal.plan, time.monotonic() - began, size)


def _rows(out: Path, name: str, shard: Shard, facts: Mapping[str, Any]) -> Any:
    """What the table holds of a shard: its rows that are ok and whose vectors are finite numbers."""
    pa, _ = need_pyarrow()
    import pyarrow.compute as pc

    table = read_shard(out, shard)
    table = table.append_column("row", pa.array(shard.id * facts["shard_rows"] + np.arange(shard.rows)))
    table = table.filter(pc.equal(table["status"], "ok"))
    vectors_ND = vectors_of(table["embedding"], facts["width"]).astype(np.float16)
    finite_N = np.isfinite(vectors_ND).all(1)  # a model may give NaN for an image, which is nobody's neighbour
    table = table.filter(pa.array(finite_N))
    columns = {column: table[column] for column in COLUMNS if column in table.column_names}
    for column in ("label", "probability"):
        columns[column] = pc.list_element(table[f"top_{column}"], 0) if facts["top"] else pa.nulls(len(table))
    vectors = pa.array(vectors_ND[finite_N].reshape(-1))
    columns["shard"] = pa.array([name] * len(table), pa.string())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(vectors, facts["width"])
    return pa.table(columns).cast(_schema(facts))


def _schema(facts: Mapping[str, Any]) -> Any:
    pa, _ = need_pyarrow()
    text, long, short = pa.string(), pa.int64(), pa.int32()
    types = dict(key=text, row=long, source=text, sha256=text, bytes=long, width=short, height=short, label=text,
                 probability=pa.float32(), shard=text, vector=pa.list_(pa.float16(), facts["width"]))  # fmt: skip
    told = {name: facts[name] for name in ("fingerprint", "model", "transform", "policy", "precision")}
    return pa.schema(list(types.items()), metadata={"tessella": json.dumps(told)})


# --- what is there ----------------------------------------------------------------------------------------------------


def open_table(home: Path, facts: Mapping[str, Any]) -> tuple[Any, Seal]:
    """The table of an index in its newest version, which may be after that of the seal, and the seal.

    Every sealed file is compared with its hash (about a second per GB), since LanceDB does not detect damage.
    Raises UsageError `damaged_run` where a file is not whole or is of another fingerprint than the run.
    """
    seal = open_seal(home)
    lancedb = _lancedb()
    with lance_errors("damaged_run", f"{home} cannot be used", _anew(home)):
        table = lancedb.connect(home).open_table(TABLE)
        made = json.loads(table.schema.metadata[b"tessella"])["fingerprint"]
    if made != facts["fingerprint"]:
        raise _damaged(home, f"it is of fingerprint {made}, the run of {facts['fingerprint']}")
    return table, seal


def open_seal(home: Path) -> Seal:
    """The seal of an index whose files are all as they were written; UsageError `damaged_run` for any other."""
    seal = _read_seal(home)
    if seal is None:
        raise _damaged(home, "it was never finished, or its seal is damaged")
    if bad := next(damaged_files(home, seal.files), None):
        raise _damaged(home, f"{bad} is missing or corrupt")
    return seal


def sealed_rows(out: Path, facts: Mapping[str, Any], seal: Seal) -> Any:
    """The rows of an index as an Arrow table, read from the run's shards; None unless all are intact.

    For few rows this is faster than importing LanceDB.
    """
    pa, _ = need_pyarrow()
    try:
        shards = {f"{shard.id * facts['shard_rows']}:{shard.sha256}": shard for shard in finished_shards(out)}
        if seal.shards.keys() - shards.keys():
            return None
        tables = [_rows(out, name, shards[name], facts) for name in seal.shards]
    except UsageError:  # it does not concern the index, which has all that a search needs
        return None
    table = pa.concat_tables([_schema(facts).empty_table(), *tables])
    return table.append_column("_rowid", pa.array(np.arange(len(table)))) if len(table) == seal.rows else None


def check_index(out: str | Path) -> list[str]:
    """Names of the index's files that are missing or not as they were written; reads all of it. [] for a whole one.

    Raises UsageError `not_found` where there is no index.
    """
    out = as_path("the run", out)
    home = out / HOME
    if not os.path.isdir(home):  # noqa: PTH112 - False where it cannot be told
        raise no_index(out)
    seal = _read_seal(home)
    return [SEAL] if seal is None else list(damaged_files(home, seal.files))


def _reopen(home: Path, facts: Mapping[str, Any]) -> tuple[Any, Seal, str]:
    """The table as the seal has it, or an empty one and why what was there is thrown away."""
    why = ""
    if (home / SEAL).exists() or (home / f"{TABLE}.lance").exists():
        try:
            table, seal = open_table(home, facts)
            if table.version != seal.version:  # of a builder that was killed
                table.restore(seal.version)
            return table, seal, ""
        except UsageError as error:
            if error.code != "damaged_run":
                raise
            why = error.message
    (home / SEAL).unlink(missing_ok=True)
    shutil.rmtree(home / f"{TABLE}.lance", ignore_errors=True)
    table = _lancedb().connect(home).create_table(TABLE, schema=_schema(facts))
    return table, Seal(table.version, 0, Plan()), why


def _read_seal(home: Path) -> Seal | None:
    """None where there is none that this version could have written."""
    values = read_sealed(home / SEAL, SEAL_KEY)
    try:
        if values is None or values["format"] != FORMAT:
            return None
        return Seal(**values | dict(plan=Plan(**values["plan"])))
    except (KeyError, TypeError):
        return None


def _write_seal(home: Path, seal: Seal) -> None:
    write_atomic(home / SEAL, sealed_bytes(asdict(seal), SEAL_KEY))


def _durable(home: Path, known: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Make the table's files last through a power cut, which LanceDB leaves to others; [bytes, hash] by name.

    known: those that were compared with their hashes already; LanceDB never changes a file.
    """
    files, folders = {}, {home}
    for path in sorted((home / f"{TABLE}.lance").rglob("*")):
        if path.is_dir():
            folders.add(path)
        elif path.name != HINT:
            name = path.relative_to(home).as_posix()
            if name not in known:
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            files[name] = known.get(name) or [path.stat().st_size, file_hash(path)]
    for folder in folders:
        sync_folder(folder)
    return files


@contextmanager
def lance_errors(code: str, what: str, hint: str, why: str = "LanceDB failed") -> Iterator[None]:
    """Failures of the disk, and all that LanceDB raises, as an OutputError `output_failed` or a UsageError `code`."""
    kind = OutputError if code == "output_failed" else UsageError
    try:
        yield
    except TessellaError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise kind(code, f"{what}: {getattr(error, 'strerror', None) or why}", hint=hint) from error
    except BaseException as error:
        if type(error).__name__ not in _PANICS:
            raise
        raise kind(code, f"{what}: {why}", hint=hint) from error


def no_index(out: Path) -> UsageError:
    return UsageError("not_found", f"{out} has no index", hint=f"tessella index {out}")


def _damaged(home: Path, what: str) -> UsageError:
    return UsageError("damaged_run", f"{home} cannot be used: {what}", hint=_anew(home))


def _anew(home: Path) -> str:
    return f"nothing is lost, make it anew: tessella index {home.parent}"


def _lancedb() -> Any:
    require("lancedb.index", "a search index")
    return require("lancedb", "a search index")
