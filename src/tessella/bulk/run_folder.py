"""The folder of a bulk run: names of its files, its settings, its log, and reading its rows.

RUN/run.json                       what determines the rows; written before the first shard
RUN/manifest.parquet               the inputs, listed once (manifest.py)
RUN/shards/shard-00000000.parquet  the rows of inputs 0 to shard_rows - 1, and so on
RUN/run.sqlite                     the finished shards (ledger.py); a shard that is not recorded does not count
RUN/log.jsonl                      one line per shard, for people and for rebuilding a damaged ledger
RUN/summary.json                   counts, written at the end
RUN/copy/                          run.json and manifest.parquet again, for repairs
RUN/index/                         an index made from the shards (tessella.search)
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict, cast

import msgspec

from ..data.source import Source
from ..errors import UsageError
from ..extras import need_pyarrow
from ..storage import file_hash, json_hash, read_regular, read_sealed, sealed_bytes, write_atomic
from .ledger import LEDGER, Shard, read_ledger, shard_of
from .manifest import MANIFEST, Manifest
from .shards import SHARDS

if TYPE_CHECKING:
    import pyarrow as pa

RUN, LOG, SUMMARY, COPY = "run.json", "log.jsonl", "summary.json", "copy"
INDEX, INDEX_SEAL, INDEX_SEAL_KEY = "index", "index.json", "sha256"
SEAL_KEY = "check"  # the key of the hash in run.json, summary.json and the lines of log.jsonl
SHARD_FIELDS = tuple(field.name for field in fields(Shard))
LOG_KEYS = {"kind", "rows_done", "of", "seconds", "errors_so_far", "images_per_second", "share", *SHARD_FIELDS}


class RunIdentity(TypedDict):
    """Everything that determines the rows; a run is resumed only if all of it is the same.

    The engine, the batch size and the number of threads per batch determine the last bits of the results.
    """

    fingerprint: str
    model: str
    precision: str
    engine: str
    transform: str
    policy: str
    device: str
    batch: int  # images
    threads: int  # per batch
    shard_rows: int
    top: int  # classes per row
    dtype: str
    width: int  # of an embedding
    inputs: list[str]
    labels: list[str]
    calibration: NotRequired[str]  # hash; missing if the probabilities are the plain softmax, as in earlier versions


class RunFacts(RunIdentity):
    """The contents of run.json."""

    rows: int
    manifest: str  # SHA-256 of manifest.parquet


class _ReadFacts(msgspec.Struct):
    """The types and limits of what readers of a run use of run.json; other entries are only compared."""

    fingerprint: str
    model: str
    precision: str
    engine: str
    transform: str
    policy: str
    shard_rows: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    top: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    dtype: Literal["float16", "float32"]
    width: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    labels: list[str]
    rows: Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
    manifest: str
    calibration: str = ""


# --- settings and counts ----------------------------------------------------------------------------------------------


def read_run(out: Path) -> RunFacts:
    """Read run.json. Raises UsageError `not_found` if `out` holds no run, `damaged_run` if the file is damaged."""
    facts = read_facts(out / RUN)
    if facts is None:
        require_run(out)
        raise damaged_run(out, f"{out / RUN} is missing or damaged")
    try:
        msgspec.convert(facts, _ReadFacts)
    except msgspec.ValidationError as error:  # the hash is right, so somebody edited the file on purpose
        raise damaged_run(out, f"{out / RUN} is not the file of a run: {error}") from None
    return cast(RunFacts, facts)


def require_run(out: Path) -> None:
    """Raise UsageError `not_found` if `out` holds nothing of a run, `unreadable` if it cannot be read."""
    try:
        exists = any((out / name).exists() for name in (RUN, LOG, f"{COPY}/{RUN}")) or has_shards(out)
    except OSError as error:
        raise UsageError("unreadable", f"{str(out)[:200]!r} could not be read: {error.strerror or error}") from None
    if not exists:
        raise UsageError("not_found", f"{out} holds no run", hint="start one with: tessella run INPUT --out FOLDER")


def has_shards(out: Path) -> bool:
    """Return whether the folder holds files of shards, finished or not."""
    return any((out / SHARDS).glob("shard-*.parquet"))


def write_facts(path: Path, facts: Mapping[str, object]) -> None:
    """Write a run.json or summary.json together with its hash."""
    write_atomic(path, sealed_bytes(facts, SEAL_KEY))


def read_facts(path: Path) -> dict[str, Any] | None:
    """Read a run.json or summary.json; None if it is missing or damaged."""
    return read_sealed(path, SEAL_KEY)


def model_of(out: str | Path) -> str | None:
    """Return the name of the model of the run in the folder `out`; None if there is no run, or run.json is damaged."""
    facts = read_facts(Path(out) / RUN)
    return None if facts is None else str(facts.get("model"))


def how_to_load(model: str) -> str:
    """Return what to type for the model of a run, on the command line and in Python."""
    return f"-m {shlex.quote(model)}, in Python tessella.load({model!r})"


def damaged_run(out: Path, message: str) -> UsageError:
    """Return an error `damaged_run` that tells how to repair the run."""
    return UsageError("damaged_run", message, hint=f"tessella verify-run {shlex.quote(str(out))} --repair")


# --- log --------------------------------------------------------------------------------------------------------------


def log_line(entry: Mapping[str, object]) -> bytes:
    """Return a line of log.jsonl with its hash. entry: that of an event, or `shard_entry`."""
    return (json.dumps({**entry, SEAL_KEY: json_hash(entry)}) + "\n").encode()


def shard_entry(shard: Shard) -> dict[str, object]:
    """Return the log entry of a shard of which nothing else is known."""
    return dict(kind="shard") | asdict(shard)


def read_log_line(line: bytes) -> Shard:
    """Return the shard in a line of log.jsonl. Raises ValueError for a damaged line."""
    try:
        entry = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    digest = entry.pop(SEAL_KEY, None)
    is_from_earlier_version = digest is None and entry.keys() <= LOG_KEYS  # they wrote no hash
    if digest != json_hash(entry) and not is_from_earlier_version:
        raise ValueError("does not match its hash")
    return shard_of(entry)


def truncate_log(path: Path) -> None:
    """Remove an incomplete last line, which a process leaves if it is killed while writing."""
    if path.exists():
        data = read_regular(path)
        if not data.endswith(b"\n"):
            write_atomic(path, data[: data.rfind(b"\n") + 1])


def complete_log(out: Path, finished: Iterable[Shard]) -> None:
    """Log the shards that a killed process had recorded in the ledger but not logged yet."""
    path = out / LOG
    logged: set[int] = set()
    for line in read_regular(path).splitlines() if path.exists() else ():
        with suppress(ValueError):  # `verify` reports damage
            logged.add(read_log_line(line).id)
    if missing := [shard for shard in finished if shard.id not in logged]:
        with path.open("ab") as file:
            file.writelines(log_line(shard_entry(shard)) for shard in missing)


# --- inputs and rows --------------------------------------------------------------------------------------------------


def finished_shards(out: Path) -> list[Shard]:
    """Return the shards that the ledger lists, in order; files that it does not list are ignored.

    Raises UsageError `not_found` if `out` holds no run, `damaged_run` if run.json or the ledger is damaged.
    """
    read_run(out)
    summary = read_facts(out / SUMMARY) or {}  # exists if the run is complete; `verify` reports a damaged one
    shards = list(read_ledger(out).values())
    if summary.get("ledger") not in (None, file_hash(out / LEDGER)):
        raise damaged_run(out, f"{out / LEDGER} is not what was written")
    return shards


def read_shard(out: Path, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a finished shard as an Arrow table. columns: names of the columns to read, None for all.

    Raises UsageError `damaged_run` if the file is missing or damaged.
    """
    pa, pq = need_pyarrow()
    path = out / SHARDS / shard.file
    try:
        data = read_regular(path)
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise damaged_run(out, f"{path} is missing or damaged")
    # not pq.read_table, which imports pyarrow.dataset and with it pandas
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=None if columns is None else list(columns))


def read_rows(out: str | Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a run in the order of its inputs, as one Arrow table per finished shard.

    columns: names of the columns to read, such as ["key", "embedding"]; None for all.
    Raises UsageError `not_found` if `out` holds no run, `damaged_run` if a file of it is damaged.
    """
    out = Path(out)
    for shard in finished_shards(out):
        yield read_shard(out, shard, columns)


def row_sources(out: Path, facts: RunFacts, rows: Sequence[int]) -> dict[int, Source]:
    """Return the inputs of some rows of a run, by row number. Raises UsageError `damaged_run`."""
    manifest, size = Manifest(out / MANIFEST, facts["manifest"]), facts["shard_rows"]
    listed = {shard: manifest.sources(shard) for shard in {row // size for row in rows}}
    return {row: listed[row // size][row % size] for row in rows}
