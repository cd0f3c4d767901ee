"""Classify and embed a collection: every input becomes one row of a Parquet dataset, whatever happens on the way.

A shard is written completely, synced, renamed, and only then recorded in the ledger. So a killed run resumes with the
first shard that is not recorded, and ends with the same bytes as an uninterrupted one: the listing is frozen, every
batch has the same images (shard_rows is a multiple of the batch size), and no shard contains a time. Images are decoded
in separate processes; one that dies or hangs costs one row. run_folder.py describes the files.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..calibration.storage import calibration_hash
from ..checks import as_inputs, as_path, checked
from ..data.names import Skipped, is_missing_path
from ..data.sources import iter_sources
from ..errors import OutputError, RunError, UsageError
from ..extras import need_pyarrow, require
from ..machine import require_fork
from ..predictor import Predictor
from ..records import csv_line
from ..signals import GracefulStop
from ..storage import check_output, copy_file, file_hash, folder_lock, write_bytes
from ..text import count_of
from ..weights.catalogue import full_name
from .events import OnEvent, ProgressTracker, RunRemark, ignore_event
from .ledger import LEDGER, Ledger, Shard
from .manifest import MANIFEST, Manifest, write_manifest
from .ray.driver import Cluster, ClusterMaker
from .resume import load_for_run, without_new_calibration
from .run_folder import (
    COPY,
    LOG,
    RUN,
    SUMMARY,
    RunFacts,
    RunIdentity,
    complete_log,
    has_shards,
    how_to_load,
    log_line,
    read_rows,
    read_run,
    read_shard,
    truncate_log,
    write_facts,
)
from .settings import RunSettings
from .shards import SHARDS, ShardMaker

MIN_MEASURED_BATCHES = 100  # per stream: in shorter runs, measuring the speed of the model alone would take too long
SHOWN_CHANGES = 6  # settings that differ, in an error
DEFAULTS = RunSettings()


@dataclass(frozen=True)
class RunSummary:
    """What a run has written: rows = ok + the sum of errors, which are counts by error code.

    images_per_second: of this call, None if nothing was left to do. speed_fraction: images_per_second as a fraction of
    the speed of the model alone, if that was measured.
    """

    out: str
    fingerprint: str
    rows: int
    ok: int
    errors: dict[str, int]
    images_per_second: float | None = None
    speed_fraction: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the summary under the names of summary.json and `tessella run --json`."""
        values = dict(vars(self))
        return values | dict(share=values.pop("speed_fraction"))


@checked
def run(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    predictor: Predictor | Callable[[], Predictor],
    settings: RunSettings = DEFAULTS,
    *,
    stdin: Iterable[str] | None = None,
    cluster: Cluster | None = None,
    on_event: OnEvent = ignore_event,
) -> RunSummary:
    """Classify and embed a collection into Parquet files in the folder `out`, with exactly one row per input.

    If `out` holds an unfinished run with the same settings, it is resumed with the inputs that were listed when it
    started.

    inputs: as `iter_sources` reads them; "-" for a list on `stdin`. predictor: from `tessella.load`, or a function that
    loads it and is called after the inputs were checked (see AutomaticEngine). cluster: where to compute the shards
    with Ray; None for this process. on_event: is called with a RunRemark, RunProgress or ShardFinished.

    Raises UsageError: bad_argument, busy, changed_run, damaged_run, missing_dependency, not_found, unsupported_system;
    OutputError `output_failed`; RunError: interrupted, and on a cluster cluster_failed, not_shared and the errors of
    actors.
    """
    out, inputs = as_path("out", out), as_inputs(inputs)
    if not isinstance(predictor, Predictor) and not _is_started(out):
        _require_inputs(inputs)
    _check_system(cluster)
    bad_inputs = None if settings.bad_inputs is None else check_output(Path(settings.bad_inputs), [".csv"])
    if not isinstance(predictor, Predictor):
        predictor, cluster = load_for_run(out, predictor, cluster, on_event)
    predictor = without_new_calibration(out, predictor, on_event) if settings.top else predictor.with_calibration(None)
    identity = _identity(inputs, predictor, settings)
    with translate_errors(out), folder_lock(out):
        _remove_drafts(out)
        resumed = _is_started(out)
        facts, manifest = create_or_resume(out, identity, stdin, on_event)
        with Ledger(out) as ledger:
            finished = ledger.finished()
            complete_log(out, finished.values())
            todo = [shard for shard in range(manifest.shards) if shard not in finished]
            if resumed:
                _require_unchanged(out, manifest, todo, finished.values())
            if resumed:
                done = f"{len(finished):,} of {count_of(manifest.shards, 'shard')} finished"
                on_event(RunRemark(text=f"resuming: {done}; inputs added since the run was started are ignored"))
            rows_left = manifest.rows - sum(shard.rows for shard in finished.values())
            speed = None if cluster else _model_speed(predictor, rows_left)
            tracker = ProgressTracker(manifest.rows, finished.values(), speed, on_event)
            make_maker = cluster.maker if cluster else ShardMaker
            maker = make_maker(out, facts, manifest, predictor, processes=settings.processes, timeout=settings.timeout)
            signal_name = _make_shards(out, ledger, maker, todo, tracker, on_event)
            finished = ledger.finished()
        if len(finished) < manifest.shards:
            raise RunError(
                "interrupted",
                f"stopped by {signal_name}; every finished shard of {out} is kept",
                hint="rerun the same command to resume",
            )
        return _finish(out, facts, finished.values(), tracker, bad_inputs)


# --- starting and resuming --------------------------------------------------------------------------------------------


def _check_system(cluster: Cluster | None) -> None:
    """Raise UsageError `unsupported_system` or `missing_dependency` if a run is not possible here."""
    require_fork("`tessella run`")
    need_pyarrow()
    if cluster:
        require("ray", "a run on a cluster")


def _is_started(out: Path) -> bool:
    try:
        return (out / RUN).exists()
    except OSError:  # the name is too long, or the folder cannot be read; writing to it reports the error
        return False


def _require_inputs(inputs: Sequence[str]) -> None:
    """Refuse inputs of which none exists, before a model is loaded."""
    if inputs and all(map(is_missing_path, inputs)):
        raise UsageError("not_found", f"there is no file or folder {inputs[0]!r}")


def _identity(inputs: Sequence[str], predictor: Predictor, settings: RunSettings) -> RunIdentity:
    if settings.top and not predictor.num_classes:
        raise UsageError("bad_argument", f"{predictor.name} has no classifier", hint="use top=0: embeddings only")
    plan = predictor.plan
    identity = RunIdentity(
        fingerprint=predictor.fingerprint,
        model=predictor.name,
        precision=plan.precision,
        engine=plan.engine,
        transform=predictor.transform,
        policy=predictor.policy,
        device=plan.device,
        batch=plan.batch_size,
        threads=plan.pass_threads,
        shard_rows=settings.shard_rows_for(plan.device, plan.batch_size),
        top=min(settings.top, predictor.num_classes),
        dtype=settings.dtype,
        width=predictor.width,
        inputs=list(inputs),
        labels=list(predictor.labels),
    )
    if settings.top and predictor.calibration is not None:
        identity["calibration"] = calibration_hash(predictor.calibration)
    return identity


def create_or_resume(
    out: Path, identity: RunIdentity, stdin: Iterable[str] | None, on_event: OnEvent
) -> tuple[RunFacts, Manifest]:
    """List the inputs of a new run, or check that the run in the folder has the same settings.

    Return the contents of run.json and the listing.
    """
    if _is_started(out) or (out / LOG).exists() or has_shards(out):  # shards are never overwritten
        truncate_log(out / LOG)
        facts = read_run(out)
        _require_same_settings(out, facts, identity)
        return facts, Manifest(out / MANIFEST, facts["manifest"])
    on_event(RunRemark(text="listing the inputs"))
    skipped = Skipped()
    rows, digest = write_manifest(
        out / MANIFEST,
        iter_sources(identity["inputs"], stdin, skipped),
        identity["shard_rows"],
        lambda listed: on_event(RunRemark(text=f"{listed:,} inputs listed")),
    )
    for line in skipped.lines():
        on_event(RunRemark(text=line))
    for folder in (SHARDS, COPY):
        (out / folder).mkdir(exist_ok=True)
    Ledger(out, new=True).close()
    copy_file(out / MANIFEST, out / COPY / MANIFEST)
    facts = RunFacts(**identity, rows=rows, manifest=digest)
    for path in (out / COPY / RUN, out / RUN):  # run.json is written last: if it exists, all other files do
        write_facts(path, facts)
    return facts, Manifest(out / MANIFEST, digest)


def _require_same_settings(out: Path, facts: RunFacts, identity: RunIdentity) -> None:
    """Refuse to resume a run with other settings: UsageError `changed_run`."""
    recorded = dict(facts)
    recorded.setdefault("calibration", "")  # runs without one have no such entry
    values = {"calibration": "", **identity}
    changed = [(name, recorded.get(name), value) for name, value in values.items() if recorded.get(name) != value]
    if full_name(facts["model"]) == full_name(identity["model"]):
        changed = [change for change in changed if change[0] != "model"]
    if changed:
        former = "the settings of that run"
        if "model" in (name for name, _, _ in changed):
            former = f"the model of that run: {how_to_load(facts['model'])}"
        elif [name for name, _, _ in changed] == ["calibration"]:
            former = (
                "the calibration of that run: --calibration FILE" if facts.get("calibration") else "--no-calibration"
            )
        shown = "; ".join(
            f"{name} {_short(before)}, now {_short(now)}" for name, before, now in changed[:SHOWN_CHANGES]
        )
        raise UsageError(
            "changed_run",
            f"{out} holds a run with other settings: {shown}",
            hint=f"use another --out, or {former}",
        )


def _require_unchanged(out: Path, manifest: Manifest, todo: Sequence[int], finished: Iterable[Shard]) -> None:
    """Refuse to resume if an archive or table that is still needed has changed: UsageError `changed_run`."""
    hashes = ((shard.id, read_shard(out, shard, ["sha256"])["sha256"].to_pylist()) for shard in finished)
    manifest.require_unchanged(todo, hashes)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _model_speed(predictor: Predictor, rows: int) -> float | None:
    """Measure images per second of the model alone; None if that would take more than a twentieth of the run."""
    images = predictor.plan.batch_size * predictor.plan.streams
    if rows < MIN_MEASURED_BATCHES * images:
        return None
    blank = np.zeros((predictor.spec.height, predictor.spec.width, 3), np.uint8)
    for count in (images, 4 * images):  # the first is a warm-up
        start = time.perf_counter()
        for _ in predictor.decoded_outputs(enumerate([blank] * count), split_batch=False):
            pass
    return count / (time.perf_counter() - start)


# --- shards and counts ------------------------------------------------------------------------------------------------


def _remove_drafts(out: Path) -> None:
    """Remove the temporary files of a process that was killed while writing."""
    for draft in (*out.glob(".*.tmp"), *(out / SHARDS).glob(".*.tmp")):
        draft.unlink(missing_ok=True)


def _make_shards(
    out: Path,
    ledger: Ledger,
    maker: ShardMaker | ClusterMaker,
    todo: Sequence[int],
    tracker: ProgressTracker,
    on_event: OnEvent,
) -> str:
    """Make and record the shards `todo`; return the name of the signal that stopped it, if any."""
    if todo:  # only a complete run has a summary
        (out / SUMMARY).unlink(missing_ok=True)
    with GracefulStop() as stop, maker:
        for shard in maker.make(todo, tracker.add, lambda: stop.requested):
            ledger.commit(shard)  # its file is durable; from here on the shard counts
            event = tracker.shard_finished(shard)
            with (out / LOG).open("ab") as file:
                file.write(log_line(event.log_entry()))
            on_event(event)
    return stop.name


def _finish(
    out: Path, facts: RunFacts, shards: Iterable[Shard], tracker: ProgressTracker, bad_inputs: Path | None
) -> RunSummary:
    """Write summary.json and the list of bad inputs."""
    rows = ok = 0
    errors: Counter[str] = Counter()
    for shard in shards:
        rows, ok = rows + shard.rows, ok + shard.ok
        errors.update(shard.errors)
    assert rows == facts["rows"] == ok + errors.total()
    progress = tracker.progress()
    speeds = progress.images_per_second, progress.speed_fraction
    summary = RunSummary(str(out), facts["fingerprint"], rows, ok, dict(sorted(errors.items())), *speeds)
    write_facts(out / SUMMARY, summary.as_dict() | dict(ledger=file_hash(out / LEDGER)))
    if bad_inputs is not None:
        _write_bad_inputs(out, bad_inputs)
    return summary


def _write_bad_inputs(out: Path, path: Path) -> None:
    columns = ["key", "status", "message"]
    lines = [csv_line(columns)]
    for table in read_rows(out, columns):
        lines += [csv_line(row.values()) for row in table.to_pylist() if row["status"] != "ok"]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


@contextmanager
def translate_errors(out: Path) -> Iterator[None]:
    """Raise OutputError `output_failed` for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            "output_failed",
            f"{out} could not be written: {error.strerror or error}",
            hint="every finished shard is kept; free some space and rerun the same command to resume",
        ) from error
