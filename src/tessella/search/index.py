"""The index of a run: a LanceDB table built from its Parquet shards, in which the nearest rows are found.

    RUN/index/rows.lance   a row per input that has an embedding: the embedding as float16, and the shard it comes from
    RUN/index/map-*        the map of the rows, if there is one (projection.py)
    RUN/index/index.json   the seal: the complete version of the table, its shards, and the hash of every file

The shards are the source of truth, and RUN/index can be deleted at any time. A shard is identified by its position and
its hash: an update adds new shards and removes the rows of shards that no longer exist. The seal is written last. If a
builder was killed, the next one returns to the version of the seal; if that is damaged too, the table is rebuilt.

LanceDB runs threads, which a fork does not copy: a process that has opened an index must start other processes by spawn
or forkserver.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..bulk.ledger import Shard
from ..bulk.run_folder import INDEX, INDEX_SEAL, INDEX_SEAL_KEY, RunFacts, finished_shards, read_run, read_shard
from ..checks import as_path, check_count, checked
from ..errors import OutputError, TessellaError, UsageError
from ..extras import need_pyarrow
from ..results import l2_normalize
from ..storage import damaged_files, file_hash, folder_lock, read_sealed, sealed_bytes, sync_folder, write_atomic
from . import projection
from .lance import import_lancedb
from .nearest import APPROXIMATE_FROM, SCAN_ROWS, ArrowTable, Floats, LanceTable, SearchPlan, choose_plan, vectors_of

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1  # of table and seal: an index of another format is rebuilt
HOME, TABLE, SEAL, SEAL_KEY = INDEX, "rows", INDEX_SEAL, INDEX_SEAL_KEY
HINT = "latest_version_hint.json"  # the only file that LanceDB changes in place; it is optional
COLUMNS = ("key", "row", "source", "sha256", "bytes", "width", "height", "label", "probability")
ASSESSED = ("unknown", "familiarity", "set_size")  # more columns, in the index of a run with a calibrated model
STEP_ROWS = 65_536  # added per step
_PANICS = ("PanicException", "RustPanic")  # of PyO3: not subclasses of Exception, and exported by no module


@dataclass(frozen=True)
class Seal:
    """A complete state of the table.

    shards: number of rows by name. files: (bytes, SHA-256) by name. approximate_from: as in the call of `build_index`
    that made the plan.
    """

    version: int
    rows: int
    plan: SearchPlan
    shards: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    format: int = FORMAT
    approximate_from: int = APPROXIMATE_FROM  # also of earlier versions, which did not store it


@dataclass(frozen=True)
class IndexReport:
    """The result of `build_index`.

    rows: number of rows in the index. added, removed: number of rows. rebuilt: why an existing index was discarded, or
    "". plan: how the rows are searched. seconds: duration. bytes: size on disk. map: the method of the map, or "".
    """

    rows: int
    added: int
    removed: int
    rebuilt: str
    plan: SearchPlan
    seconds: float
    bytes: int
    map: str = ""


# --- building ---------------------------------------------------------------------------------------------------------


@checked
def build_index(
    out: str | Path,
    *,
    map: Literal["pca", "umap", "none"] | None = None,
    approximate_from: int = APPROXIMATE_FROM,
    log: Callable[[str], None] = lambda text: None,
) -> IndexReport:
    """Build RUN/index for the run in the folder `out`, or update it to the shards of the run.

    map: also compute a map of the rows, which `Index.map` returns, with this method; "none" removes it, None keeps the
    index with a map or without one. An existing map is computed again if rows were added or removed.
    From `approximate_from` rows on, an approximate index is trained and its recall measured; if that is under 0.99,
    searches still compare all rows. A damaged index is rebuilt. log: receives progress messages.
    Raises UsageError: `not_found` without a run, `busy`, `damaged_run` for a damaged shard, `missing_dependency`;
    OutputError `output_failed`.
    """
    out = as_path("the run", out)
    check_count("approximate_from", approximate_from, 10**12)
    facts, home = read_run(out), out / HOME
    import_lancedb()
    if map is not None and map != "none":
        projection.check_method(map)
    start = time.monotonic()
    hint = "free some space, check the permissions of the folder, and run the same command again"
    with lance_errors("output_failed", f"{home} could not be written", hint), folder_lock(home):
        shards = {f"{shard.id * facts['shard_rows']}:{shard.sha256}": shard for shard in finished_shards(out)}
        table, seal, rebuilt = _reopen(home, facts)
        if rebuilt:
            log(f"the index is rebuilt: {rebuilt}")
        indexed = {name: rows for name, rows in seal.shards.items() if name in shards}
        removed = seal.rows - sum(indexed.values())
        if outdated := seal.shards.keys() - indexed.keys():
            names = ", ".join(f"'{name}'" for name in outdated)
            table.delete(f"shard IN ({names})")
        missing = {name: shard for name, shard in shards.items() if name not in indexed}
        for added in _add_shards(table, out, missing, facts):
            indexed |= added
            log(f"{len(indexed):,} of {len(shards):,} shards are in the index")
        changed = bool(outdated or missing or not seal.files)
        map_file = _update_map(out, shards, facts, seal, map, changed, log)
        if changed or (seal.rows >= approximate_from) != (seal.rows >= seal.approximate_from):
            changed = True
            plan = choose_plan(table, home, seal.plan, approximate_from, log)
            # a kill between here and the seal loses the index; no other process writes, and readers open what is sealed
            table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
            files = _sync_files(home, seal.files) | map_file
            rows = table.count_rows()
            seal = Seal(table.version, rows, plan, indexed, files, approximate_from=approximate_from)
        elif map_file != map_file_of(seal):
            others = {name: value for name, value in seal.files.items() if not projection.is_map(name)}
            seal, changed = replace(seal, files=others | map_file), True
        if changed:
            _write_seal(home, seal)
        for path in home.glob(projection.PATTERN):
            if path.name not in map_file:
                path.unlink()
        assert seal.rows == sum(indexed.values())
        method = next((projection.method_of(home / name) or "" for name in map_file), "")
    rows_added, size = sum(indexed[name] for name in missing), sum(size for size, _ in seal.files.values())
    return IndexReport(seal.rows, rows_added, removed, rebuilt, seal.plan, time.monotonic() - start, size, method)


def _add_shards(table: LanceTable, out: Path, shards: Mapping[str, Shard], facts: RunFacts) -> Iterator[dict[str, int]]:
    """Add the rows of the shards to the table, several shards at a time; yield the number of rows of each."""
    pa, _ = need_pyarrow()
    names = list(shards)
    step = max(STEP_ROWS // facts["shard_rows"], 1)
    for start in range(0, len(names), step):
        part = names[start : start + step]
        rows = [_rows(out, name, shards[name], facts) for name in part]
        table.add(pa.concat_tables(rows))
        yield {name: len(added) for name, added in zip(part, rows, strict=True)}


def _rows(out: Path, name: str, shard: Shard, facts: RunFacts) -> ArrowTable:
    """Return what the table stores of a shard: the rows that are ok and whose vectors are finite."""
    pa, _ = need_pyarrow()
    import pyarrow.compute as pc

    table = read_shard(out, shard)
    table = table.append_column("row", pa.array(shard.id * facts["shard_rows"] + np.arange(shard.rows)))
    table, vectors_ND = _with_embedding(table, facts)
    columns = {column: table[column] for column in COLUMNS if column in table.column_names}
    for column in ("label", "probability"):
        columns[column] = pc.list_element(table[f"top_{column}"], 0) if facts["top"] else pa.nulls(len(table))
    if is_assessed(facts):
        columns |= {column: table[column] for column in ASSESSED}
    vectors = pa.array(vectors_ND.reshape(-1))
    columns["shard"] = pa.array([name] * len(table), pa.string())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(vectors, facts["width"])
    return pa.table(columns).cast(_schema(facts))


def is_assessed(facts: RunFacts) -> bool:
    """Return whether the rows of a run say what is unknown, and how many classes the prediction set has."""
    return bool(facts.get("calibration"))


def columns_of(facts: RunFacts) -> tuple[str, ...]:
    """Return the columns of the index of a run, without the vectors."""
    return (*COLUMNS, *(ASSESSED if is_assessed(facts) else ()))


def _with_embedding(table: ArrowTable, facts: RunFacts) -> tuple[ArrowTable, NDArray[np.float16]]:
    """Return the rows of a shard that belong into an index, and their embeddings (N,D)."""
    pa, _ = need_pyarrow()
    import pyarrow.compute as pc

    table = table.filter(pc.equal(table["status"], "ok"))
    vectors_ND = vectors_of(table["embedding"], facts["width"]).astype(np.float16)
    finite_N = np.isfinite(vectors_ND).all(1)  # a model may return NaN for an image, which is similar to nothing
    return table.filter(pa.array(finite_N)), vectors_ND[finite_N]


def _update_map(
    out: Path,
    shards: Mapping[str, Shard],
    facts: RunFacts,
    seal: Seal,
    method: Literal["pca", "umap", "none"] | None,
    changed: bool,
    log: Callable[[str], None],
) -> dict[str, tuple[int, str]]:
    """Compute the map of the rows if it is missing, of another method, or of other rows.

    Returns its file with size and hash, as in a seal, or {} if there is to be none.
    """
    home, present = out / HOME, map_file_of(seal)
    before = next((found for path in home.glob(projection.PATTERN) if (found := projection.method_of(path))), None)
    wanted = before if method is None else method
    if wanted is None or wanted == "none":
        return {}
    if present and before == wanted and not changed:
        return present
    try:
        projection.check_method(wanted)
    except UsageError as error:  # the map is a part of the index that another machine made
        log(f"the map is removed: {error}")
        return {}
    log(f"computing the map ({wanted})")
    ordered = [shards[name] for name in sorted(shards, key=lambda name: shards[name].id)]
    points = projection.project(lambda: _unit_vectors(out, ordered, facts), facts["width"], wanted)
    name = projection.write_map(home, points)
    return {name: ((home / name).stat().st_size, file_hash(home / name))}


def map_file_of(seal: Seal) -> dict[str, tuple[int, str]]:
    """Return the file of the map with its size and hash, as in the seal; {} if there is no map."""
    return {name: value for name, value in seal.files.items() if projection.is_map(name)}


def _unit_vectors(out: Path, shards: Sequence[Shard], facts: RunFacts) -> Iterator[Floats]:
    """Yield the embeddings (B,D) of all rows of an index, of unit length, by position in the listing."""
    for shard in shards:
        _, vectors_ND = _with_embedding(read_shard(out, shard, ["status", "embedding"]), facts)
        for start in range(0, len(vectors_ND), SCAN_ROWS):
            yield l2_normalize(vectors_ND[start : start + SCAN_ROWS].astype(np.float32))


def _schema(facts: RunFacts) -> pa.Schema:
    pa, _ = need_pyarrow()
    text, int64, int32 = pa.string(), pa.int64(), pa.int32()
    types = dict(
        key=text,
        row=int64,
        source=text,
        sha256=text,
        bytes=int64,
        width=int32,
        height=int32,
        label=text,
        probability=pa.float32(),
        **(dict(unknown=pa.bool_(), familiarity=pa.float32(), set_size=int32) if is_assessed(facts) else {}),
        shard=text,
        vector=pa.list_(pa.float16(), facts["width"]),
    )
    identity = {name: facts[name] for name in ("fingerprint", "model", "transform", "policy", "precision")}
    return pa.schema(list(types.items()), metadata={"tessella": json.dumps(identity)})


# --- opening ----------------------------------------------------------------------------------------------------------


def open_table(home: Path, facts: RunFacts) -> tuple[LanceTable, Seal]:
    """Return the table of an index in its newest version, which may be later than that of the seal, and the seal.

    Every sealed file is compared with its hash (about a second per GB), because LanceDB does not detect damage.
    Raises UsageError `damaged_run` if a file is damaged or the index has another fingerprint than the run.
    """
    seal = open_seal(home)
    lancedb = import_lancedb()
    with lance_errors("damaged_run", f"{home} cannot be used", _rebuild_hint(home)):
        table = lancedb.connect(home).open_table(TABLE)
        fingerprint = json.loads(table.schema.metadata[b"tessella"])["fingerprint"]
    if fingerprint != facts["fingerprint"]:
        raise _damaged(home, f"its fingerprint is {fingerprint}, that of the run is {facts['fingerprint']}")
    return table, seal


def open_seal(home: Path) -> Seal:
    """Return the seal of an index after comparing all files with it. Raises UsageError `damaged_run`."""
    seal = _read_seal(home)
    if seal is None:
        raise _damaged(home, "it is unfinished, or its seal is damaged")
    if bad := next(damaged_files(home, seal.files), None):
        raise _damaged(home, f"{bad} is missing or corrupt")
    return seal


def sealed_rows(out: Path, facts: RunFacts, seal: Seal) -> ArrowTable | None:
    """Return the rows of an index as an Arrow table, read from the shards of the run; None if a shard is damaged.

    For few rows this is faster than importing LanceDB.
    """
    pa, _ = need_pyarrow()
    try:
        shards = {f"{shard.id * facts['shard_rows']}:{shard.sha256}": shard for shard in finished_shards(out)}
        if seal.shards.keys() - shards.keys():
            return None
        tables = [_rows(out, name, shards[name], facts) for name in seal.shards]
    except UsageError:  # the index does not depend on the shards, so it can still be searched
        return None
    table = pa.concat_tables([_schema(facts).empty_table(), *tables])
    return table.append_column("_rowid", pa.array(np.arange(len(table)))) if len(table) == seal.rows else None


def check_index(out: str | Path) -> list[str]:
    """Return the names of the files of an index that are missing or corrupt; [] if it is intact. Reads all files.

    Raises UsageError `not_found` if there is no index.
    """
    out = as_path("the run", out)
    home = out / HOME
    if not os.path.isdir(home):  # noqa: PTH112 - False if it cannot be read
        raise no_index(out)
    seal = _read_seal(home)
    return [SEAL] if seal is None else list(damaged_files(home, seal.files))


def _reopen(home: Path, facts: RunFacts) -> tuple[LanceTable, Seal, str]:
    """Return the table in the version of the seal, or an empty one and why the existing one is discarded."""
    reason = ""
    if (home / SEAL).exists() or (home / f"{TABLE}.lance").exists():
        try:
            table, seal = open_table(home, facts)
            if table.version != seal.version:  # left by a builder that was killed
                table.restore(seal.version)
            return table, seal, ""
        except UsageError as error:
            if error.code != "damaged_run":
                raise
            reason = error.message
    (home / SEAL).unlink(missing_ok=True)
    shutil.rmtree(home / f"{TABLE}.lance", ignore_errors=True)
    table = import_lancedb().connect(home).create_table(TABLE, schema=_schema(facts))
    return table, Seal(table.version, 0, SearchPlan()), reason


def _read_seal(home: Path) -> Seal | None:
    """Return the seal of an index; None if there is none, or it is damaged or of another format."""
    try:
        seal = msgspec.convert(read_sealed(home / SEAL, SEAL_KEY), Seal)
    except msgspec.ValidationError:
        return None
    return seal if seal.format == FORMAT else None


def _write_seal(home: Path, seal: Seal) -> None:
    write_atomic(home / SEAL, sealed_bytes(asdict(seal), SEAL_KEY))


def _sync_files(home: Path, known: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Sync the table's files to disk, which LanceDB does not do; return their (bytes, hash) by name.

    known: files that were compared with their hashes already; LanceDB never changes a file.
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
            files[name] = known.get(name) or (path.stat().st_size, file_hash(path))
    for folder in folders:
        sync_folder(folder)
    return files


@contextmanager
def lance_errors(code: str, what: str, hint: str, why: str = "LanceDB failed") -> Iterator[None]:
    """Translate disk errors and all exceptions of LanceDB to OutputError `output_failed` or UsageError `code`."""
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


def index_command(out: Path) -> str:
    """Return what to type to build or update the index of a run."""
    return f"tessella index {shlex.quote(str(out))}"


def no_index(out: Path) -> UsageError:
    """Return the error for a run without an index."""
    return UsageError("not_found", f"{out} has no index", hint=index_command(out))


def _damaged(home: Path, what: str) -> UsageError:
    return UsageError("damaged_run", f"{home} cannot be used: {what}", hint=_rebuild_hint(home))


def _rebuild_hint(home: Path) -> str:
    return f"nothing is lost, rebuild it: {index_command(home.parent)}"
