"""A collection through one model: every input becomes one row of a Parquet dataset, whatever happens on the way.

    OUT/run.json                       what decides the rows, written first; another run into OUT is refused
    OUT/manifest.parquet               the inputs, listed once (manifest.py)
    OUT/shards/shard-00000000.parquet  the rows of the inputs shard_rows * i and following
    OUT/run.sqlite                     which shards are finished (ledger.py); a shard that is not in it does not count
    OUT/log.jsonl                      a line a shard: for people, and to find what a damaged ledger has lost
    OUT/summary.json                   counts, at the end
    OUT/copy/                          run.json and manifest.parquet again, for `verify-run --repair`

A shard is written whole, synced, renamed, and only then entered, so a run that is killed at any moment goes on with the
first shard that is not there, and ends with the same bytes: the listing is frozen, every batch has the same images
(shard_rows is a multiple of the batch), and nothing in a shard tells the time. Images are decoded in processes of their
own; one that dies or hangs costs one row.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ..checks import as_inputs, as_path, check_count, check_seconds, checked
from ..data.names import Skipped
from ..data.sources import iter_sources
from ..errors import OutputError, RunError, UsageError
from ..extras import need_pyarrow
from ..predictor import Predictor
from ..records import csv_line
from ..signals import Stop
from ..storage import check_output, copy_file, file_hash, folder_lock, read_regular, write_atomic, write_bytes
from .ledger import FILE, Ledger, Shard, read_ledger
from .manifest import MANIFEST, RUN, Manifest, write_manifest
from .ray.driver import Cluster
from .shards import SHARDS, ShardMaker

SHARD_ROWS = {"cpu": 1024, "cuda": 16_384}  # or the next multiple of the batch: what a kill costs, in images
LOG, SUMMARY, COPY = "log.jsonl", "summary.json", "copy"
MOST_ROWS = 10_000_000  # of a shard, which is held in memory
MOST_PROCESSES = 4096
MOST_SECONDS = 30 * 24 * 3600.0  # for one image
Dtype: TypeAlias = Literal["float16", "float32"]
Event: TypeAlias = "dict[str, Any]"
_LOGGED = {"kind", "rows_done", "of", "seconds", "errors_so_far", "images_per_second", "share",
           *Shard.__dataclass_fields__}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """rows = ok + the sum of errors, which are counts by code.

    images_per_second: of what this call did itself; share: of what the model does with nothing beside it, where that
    was measured.
    """

    out: str
    fingerprint: str
    rows: int
    ok: int
    errors: Mapping[str, int]
    images_per_second: float | None = None
    share: float | None = None


class Tally:
    """How far a run is; tells `watch` twice a second at most. alone: images a second of the model by itself."""

    def __init__(self, of: int, finished: Iterable[Shard], alone: float | None, watch: Callable[[Event], None]):
        self.of, self.before, self.done, self.alone, self.watch = of, 0, 0, alone, watch
        self.errors: Counter[str] = Counter()
        for shard in finished:
            self.before += shard.rows
            self.errors.update(shard.errors)
        self.began = self.told = time.monotonic()
        watch(self.event("rows"))

    def count(self, status: str, rows: int = 1) -> None:
        self.done += rows
        if status != "ok":
            self.errors[status] += rows
        if time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            self.watch(self.event("rows"))

    def event(self, kind: str) -> Event:
        """rows_done: of all calls, of rows; seconds: since this call began."""
        seconds = round(time.monotonic() - self.began, 2)
        errors = dict(sorted(self.errors.items()))
        return dict(kind=kind, rows_done=self.before + self.done, of=self.of, seconds=seconds, errors_so_far=errors,
                    images_per_second=self.rate(), share=self.share())  # fmt: skip

    def rate(self) -> float | None:
        """Images a second of this call."""
        return round(self.done / (time.monotonic() - self.began), 2) if self.done else None

    def share(self) -> float | None:
        """Of the rate of the model by itself."""
        rate = self.rate()
        return round(rate / self.alone, 3) if rate and self.alone else None


@checked
def run(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    predictor: Predictor,
    *,
    top: int = 5,
    dtype: Dtype = "float16",
    shard_rows: int | None = None,
    stdin: Iterable[str] | None = None,
    processes: int | None = None,
    timeout: float = 30.0,
    quarantine: str | Path | None = None,
    cluster: Cluster | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> Summary:
    """Classify and embed all that `inputs` name (as `iter_sources` reads them) into the folder `out`.

    A run that is there already goes on, if its settings are these; its inputs are those listed when it began. top:
    classes a row; dtype: of the stored embeddings; shard_rows: rows a file, rounded up to whole batches. processes:
    that decode; timeout: seconds an image may take there. quarantine: a CSV file for key, status and message of every
    bad input. cluster: has actors of Ray make the shards. watch: gets a dict per remark, batch and shard.
    Raises UsageError: bad_argument, busy, changed_run, damaged_run, not_found; OutputError; RunError: interrupted,
    and with a cluster cluster_failed, not_shared and what went wrong in an actor.
    """
    need_pyarrow()
    _check_numbers(top, shard_rows, processes, timeout)
    if not (isinstance(predictor, Predictor) and isinstance(cluster, Cluster | None) and callable(watch)):
        raise UsageError("bad_argument", "predictor, cluster or watch is not a Predictor, a Cluster or a function")
    out, inputs = as_path("out", out), as_inputs(inputs)
    bad = None if quarantine is None else check_output(as_path("quarantine", quarantine), [".csv"])
    batch = predictor.plan.batch_size
    shard_rows = -(-(shard_rows or SHARD_ROWS.get(predictor.plan.device, 16_384)) // batch) * batch
    facts = _facts(inputs, predictor, top, dtype, shard_rows)
    with writing(out), folder_lock(out):
        for draft in (*out.glob(".*.tmp"), *(out / SHARDS).glob(".*.tmp")):  # of a run that was killed while it wrote
            draft.unlink(missing_ok=True)
        resumed = (out / RUN).exists()
        manifest = _claim(out, facts, inputs, stdin, watch)
        with Ledger(out) as ledger:
            finished = ledger.finished()
            todo = [shard for shard in range(manifest.shards) if shard not in finished]
            _complete_log(out, finished)
            if resumed:
                hashes = ((one.id, read_shard(out, one, ["sha256"])["sha256"].to_pylist()) for one in finished.values())
                manifest.need_unchanged(todo, hashes)
            if todo:  # a summary is of a run that is at its end
                (out / SUMMARY).unlink(missing_ok=True)
            if finished:
                watch(_remark(f"going on: {len(finished):,} of {manifest.shards:,} shards are finished"))
            left = manifest.rows - sum(shard.rows for shard in finished.values())
            alone_rate = None if cluster else _alone_rate(predictor, left)
            tally = Tally(manifest.rows, finished.values(), alone_rate, watch)
            made = (cluster.maker if cluster else ShardMaker)(
                out, facts, manifest, predictor, processes=processes, timeout=timeout
            )
            with Stop() as stop, made as maker:
                for shard in maker.make(todo, tally.count, lambda: stop.asked):
                    _enter(out, ledger, shard, tally)
            finished = ledger.finished()
        if len(finished) < manifest.shards:
            raise RunError(
                "interrupted", f"stopped by {stop.name}; every finished shard of {out} is kept",
                hint="run the same command again to go on",
            )  # fmt: skip
        summary = _summarise(out, facts, finished.values(), tally)
        assert summary.rows == manifest.rows == summary.ok + sum(summary.errors.values())
        write_facts(out / SUMMARY, asdict(summary) | dict(ledger=file_hash(out / FILE)))
        if bad is not None:
            _quarantine(out, bad)
    return summary


def _check_numbers(top: Any, shard_rows: Any, processes: Any, timeout: Any) -> None:
    """UsageError `bad_argument` for what no machine can have, before it fails in the middle of something else."""
    check_count("top", top, MOST_ROWS, least=0)
    if shard_rows is not None:
        check_count("shard_rows", shard_rows, MOST_ROWS)
    if processes is not None:
        check_count("processes", processes, MOST_PROCESSES)
    check_seconds("timeout", timeout, MOST_SECONDS)


def _enter(out: Path, ledger: Ledger, shard: Shard, tally: Tally) -> None:
    """A shard whose file is durable counts from here on."""
    ledger.commit(shard)
    event = tally.event("shard") | asdict(shard)
    with (out / LOG).open("ab") as file:
        file.write(log_line(event))
    tally.watch(event)


def log_line(event: Mapping[str, Any]) -> bytes:
    """A line of log.jsonl: an event, or of a shard that was logged anew its entry, with a hash of the line."""
    return (json.dumps(dict(event, check=_check(event))) + "\n").encode()


def read_log_line(line: bytes) -> Shard:
    """The entry in a line of log.jsonl; ValueError where it is not what was written."""
    event = json.loads(line)
    if not isinstance(event, dict):
        raise ValueError("not an event")
    check = event.pop("check", None)
    if check != _check(event) and (check is not None or not event.keys() <= _LOGGED):  # earlier versions wrote none
        raise ValueError("not the line that was written")
    try:
        return Shard(**{name: event[name] for name in Shard.__dataclass_fields__})
    except KeyError:
        raise ValueError("not of a shard") from None


def _end_log(path: Path) -> None:
    """Cut off half a line, as a process leaves it that is killed while it writes."""
    if path.exists():
        data = read_regular(path)
        if not data.endswith(b"\n"):
            write_atomic(path, data[: data.rfind(b"\n") + 1])


def _complete_log(out: Path, finished: Mapping[int, Shard]) -> None:
    """Log the shards that a process had entered when it was killed, before it logged them."""
    path = out / LOG
    logged: set[int] = set()
    for line in read_regular(path).splitlines() if path.exists() else ():
        with suppress(ValueError):  # damage is for `verify-run` to report
            logged.add(read_log_line(line).id)
    if missing := [shard for shard in finished.values() if shard.id not in logged]:
        with path.open("ab") as file:
            file.writelines(log_line(dict(kind="shard", **vars(shard))) for shard in missing)


def _alone_rate(predictor: Predictor, rows: int) -> float | None:
    """Images a second of the model with nothing beside it, where what that takes is under a twentieth of the run."""
    some = predictor.plan.batch_size * predictor.plan.streams
    if rows < 100 * some:
        return None
    blank = np.zeros((predictor.spec.height, predictor.spec.width, 3), np.uint8)
    for count in (some, 4 * some):  # the first one warms up
        began = time.perf_counter()
        for _ in predictor.decoded_outputs(enumerate([blank] * count), split_batch=False):
            pass
    return count / (time.perf_counter() - began)


# --- what a run is ----------------------------------------------------------------------------------------------------


def _facts(inputs: Sequence[str], predictor: Predictor, top: int, dtype: str, shard_rows: int) -> dict[str, Any]:
    """All that decides the bytes of the rows, in words; engine and batch decide their last bits."""
    if dtype not in ("float16", "float32"):
        raise UsageError("bad_argument", f"dtype is {dtype!r}, expected float16 or float32")
    if top and not predictor.num_classes:
        raise UsageError("bad_argument", f"{predictor.name} has no classifier", hint="top=0 keeps the embeddings alone")
    plan = predictor.plan
    return dict(
        fingerprint=predictor.fingerprint, model=predictor.name, precision=plan.precision, engine=plan.engine,
        transform=predictor.transform, policy=predictor.policy, device=plan.device, batch=plan.batch_size,
        threads=plan.pass_threads, shard_rows=shard_rows, top=min(top, predictor.num_classes), dtype=dtype,
        width=predictor.width, inputs=list(inputs), labels=list(predictor.labels),
    )  # fmt: skip


def _claim(
    out: Path, facts: Mapping[str, Any], inputs: Sequence[str], stdin: Iterable[str] | None,
    watch: Callable[[Event], None],
) -> Manifest:  # fmt: skip
    """List the inputs of a new run, or make sure that the run which is there is this one."""
    if (out / RUN).exists() or (out / LOG).exists() or _has_shards(out):  # which are never made anew without a word
        _end_log(out / LOG)
        there = read_run(out)
        changed = [name for name in facts if there.get(name) != facts[name]]
        if changed:
            shown = "; ".join(f"{name} {_short(there.get(name))}, now {_short(facts[name])}" for name in changed[:6])
            raise UsageError(
                "changed_run",
                f"{out} holds a run with other settings: {shown}",
                hint="give another --out, or the settings of the run that is there",
            )
        return Manifest(out / MANIFEST, there["manifest"])
    watch(_remark("listing the inputs"))
    skipped = Skipped()
    count, digest = write_manifest(
        out / MANIFEST, iter_sources(inputs, stdin, skipped), facts["shard_rows"],
        lambda listed: watch(_remark(f"{listed:,} listed")),
    )  # fmt: skip
    for line in skipped.lines():
        watch(_remark(line))
    for folder in (SHARDS, COPY):
        (out / folder).mkdir(exist_ok=True)
    Ledger(out, new=True).close()
    copy_file(out / MANIFEST, out / COPY / MANIFEST)
    told = dict(facts, rows=count, manifest=digest)
    for path in (out / COPY / RUN, out / RUN):  # last: where it is, all of the above is
        write_facts(path, told)
    return Manifest(out / MANIFEST, digest)


def read_run(out: Path) -> dict[str, Any]:
    """run.json; UsageError `not_found` where there is none, `damaged_run` where it is not what was written."""
    facts = read_facts(out / RUN)
    if facts is not None:
        return facts
    need_run(out)
    raise UsageError(
        "damaged_run", f"{out / RUN} is missing or is not what was written", hint=f"tessella verify-run {out} --repair"
    )


def need_run(out: Path) -> None:
    """UsageError `not_found` where nothing of a run is in `out`, `unreadable` where that cannot be told."""
    try:
        there = any((out / name).exists() for name in (RUN, LOG, f"{COPY}/{RUN}")) or _has_shards(out)
    except OSError as error:
        raise UsageError("unreadable", f"{str(out)[:200]!r} could not be read: {error.strerror or error}") from None
    if not there:
        raise UsageError("not_found", f"{out} holds no run", hint="tessella run SOURCE --out FOLDER")


def _has_shards(out: Path) -> bool:
    return any((out / SHARDS).glob("shard-*.parquet"))


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """A run.json or summary.json, with a hash that tells later whether it is whole."""
    write_atomic(path, facts_bytes(facts))


def facts_bytes(facts: Mapping[str, Any]) -> bytes:
    """The file that `read_facts` reads."""
    return (json.dumps(dict(facts, check=_check(facts)), indent=1) + "\n").encode()


def read_facts(path: Path) -> dict[str, Any] | None:
    """A run.json or summary.json, or None where it is missing or not what was written."""
    try:
        facts = json.loads(read_regular(path))
        return facts if facts.pop("check") == _check(facts) else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def _check(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- around the rows --------------------------------------------------------------------------------------------------


def _summarise(out: Path, facts: Mapping[str, Any], shards: Iterable[Shard], tally: Tally) -> Summary:
    rows, ok = 0, 0
    errors: Counter[str] = Counter()
    for shard in shards:
        rows, ok = rows + shard.rows, ok + shard.ok
        errors.update(shard.errors)
    return Summary(
        str(out), facts["fingerprint"], rows, ok, dict(sorted(errors.items())), tally.rate(), tally.share()
    )  # fmt: skip


def finished_shards(out: Path) -> list[Shard]:
    """In order: what the ledger lists, never what lies in the folder. UsageError `not_found`, `damaged_run`."""
    read_run(out)
    told = read_facts(out / SUMMARY) or {}  # of a run that came to its end; what is damaged there is for `verify-run`
    found = list(read_ledger(out).values())
    if told.get("ledger") not in (None, file_hash(out / FILE)):
        raise UsageError(
            "damaged_run", f"{out / FILE} is not what was written", hint=f"tessella verify-run {out} --repair"
        )
    return found


def read_shard(out: Path, shard: Shard, columns: Sequence[str] | None = None) -> Any:
    """The rows of a finished shard, an Arrow table; UsageError `damaged_run` where its file is not what was written."""
    pa, pq = need_pyarrow()
    path = out / SHARDS / shard.file
    try:
        data = read_regular(path)
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise UsageError("damaged_run", f"{path} is missing or damaged", hint=f"tessella verify-run {out} --repair")
    return pq.read_table(pa.BufferReader(data), columns=columns)


def read_rows(out: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """An Arrow table a finished shard, in order. Raises as the two above."""
    for shard in finished_shards(out):
        yield read_shard(out, shard, columns)


def _quarantine(out: Path, path: Path) -> None:
    lines = [csv_line(["key", "status", "message"])]
    for table in read_rows(out, ["key", "status", "message"]):
        lines += [csv_line(row.values()) for row in table.to_pylist() if row["status"] != "ok"]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _remark(text: str) -> Event:
    return dict(kind="remark", text=text)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What the disk refuses, as an OutputError `output_failed`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            "output_failed",
            f"{out} could not be written: {error.strerror or error}",
            hint="every finished shard is kept: make room and run the same command again",
        ) from error
