"""A collection through one model: every input becomes one row of a Parquet dataset, whatever happens on the way.

    OUT/run.json                       what decides the rows, written first; another run into OUT is refused
    OUT/manifest.parquet               the inputs, listed once (manifest.py)
    OUT/shards/shard-00000000.parquet  the rows of the inputs shard_rows * i and following
    OUT/run.sqlite                     which shards are finished (ledger.py); a shard that is not in it does not count
    OUT/log.jsonl                      a line a shard, for people
    OUT/summary.json                   counts, at the end

A shard is written whole, synced, renamed, and only then entered, so a run that is killed at any moment goes on with the
first shard that is not there, and ends with the same bytes: the listing is frozen, every batch has the same images
(shard_rows is a multiple of the batch), and nothing in a shard tells the time. Images are decoded in processes of their
own; one that dies or hangs costs one row.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ..atomic import write_atomic
from ..data.decode import Pixels
from ..data.isolated import Decoded, IsolatedDecoder
from ..data.sources import Source, iter_sources
from ..errors import ImageError, RunError, UsageError
from ..predictor import Output, Predictor, softmax, unit_length
from .ledger import Ledger, Shard, alone
from .manifest import Manifest, as_text, write_manifest
from .output import need_pyarrow
from .stop import Stop

SHARD_ROWS = {"cpu": 1024, "cuda": 16_384}  # or the next multiple of the batch: what a kill costs, in images
RUN, MANIFEST, SHARDS, LOG, SUMMARY = "run.json", "manifest.parquet", "shards", "log.jsonl", "summary.json"
Dtype: TypeAlias = Literal["float16", "float32"]
Event: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Summary:
    """rows = ok + the sum of errors, which are counts by code. images_per_second: of what this call did itself."""

    out: str
    fingerprint: str
    rows: int
    ok: int
    errors: Mapping[str, int]
    images_per_second: float | None = None


@dataclass(frozen=True)
class Row:
    """One input; top and embedding are of an image that is ok. embedding: (width,) float32 of unit length."""

    source: Source
    image: Decoded
    status: str
    message: str = ""
    top: tuple[tuple[int, str, float], ...] = ()
    embedding: Any = None


class Tally:
    """How far a run is; tells `watch` twice a second at most."""

    def __init__(self, of: int, finished: Iterable[Shard], watch: Callable[[Event], None]):
        self.of, self.before, self.done, self.watch = of, 0, 0, watch
        self.errors: Counter[str] = Counter()
        for shard in finished:
            self.before += shard.rows
            self.errors.update(shard.errors)
        self.began = self.told = time.monotonic()
        watch(self.event("rows"))

    def count(self, status: str) -> None:
        self.done += 1
        if status != "ok":
            self.errors[status] += 1
        if time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            self.watch(self.event("rows"))

    def event(self, kind: str) -> Event:
        """rows_done: of all calls, of rows; seconds: since this call began."""
        seconds = round(time.monotonic() - self.began, 2)
        errors = dict(sorted(self.errors.items()))
        return dict(kind=kind, rows_done=self.before + self.done, of=self.of, seconds=seconds, errors_so_far=errors)

    def rate(self) -> float | None:
        """Images a second of this call."""
        return self.done / (time.monotonic() - self.began) if self.done else None


def run(
    inputs: Sequence[str],
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
    watch: Callable[[Event], None] = lambda event: None,
) -> Summary:
    """Classify and embed all that `inputs` name (as `iter_sources` reads them) into the folder `out`.

    A run that is there already goes on, if its settings are these; its inputs are those listed when it began. top:
    classes a row; dtype: of the stored embeddings; shard_rows: rows a file, rounded up to whole batches. processes:
    that decode; timeout: seconds an image may take there. quarantine: a file for key and code of every bad input, a
    line each. watch: gets a dict per remark, batch and shard.
    Raises UsageError: bad_argument, busy, changed_run, damaged_run, not_found, output_failed; RunError: interrupted.
    """
    need_pyarrow()
    out = Path(out)
    batch = predictor.plan.batch_size
    shard_rows = -(-(shard_rows or SHARD_ROWS.get(predictor.plan.device, 16_384)) // batch) * batch
    facts = _facts(inputs, predictor, top, dtype, shard_rows)
    with _writing(out), alone(out):
        for draft in (*out.glob(".*.tmp"), *(out / SHARDS).glob(".*.tmp")):  # of a run that was killed while it wrote
            draft.unlink(missing_ok=True)
        manifest = _claim(out, facts, inputs, stdin, shard_rows, watch)
        ledger = Ledger(out)
        try:
            finished = ledger.finished()
            todo = [shard for shard in range(manifest.shards) if shard not in finished]
            if finished:
                watch(_remark(f"going on: {len(finished):,} of {manifest.shards:,} shards are finished"))
            tally = Tally(manifest.rows, finished.values(), watch)
            with Stop() as stop, IsolatedDecoder(
                predictor.spec, policy=predictor.policy, mode=predictor.transform, limits=predictor.limits,
                processes=processes, timeout=timeout,
            ) as decoder:  # fmt: skip
                for number, rows in _shards(manifest, todo, predictor, decoder, top, stop, tally):
                    shard = _write(out, number, rows, facts)
                    ledger.commit(shard)
                    event = tally.event("shard") | asdict(shard)
                    _append(out / LOG, event)
                    watch(event)
            if stop.asked and len(ledger.finished()) < manifest.shards:
                raise RunError(
                    "interrupted", f"stopped by {stop.name}; every finished shard of {out} is kept",
                    hint="run the same command again to go on",
                )  # fmt: skip
            summary = summarise(out, facts["fingerprint"], ledger.finished().values(), tally.rate())
        finally:
            ledger.close()
        assert summary.rows == manifest.rows == summary.ok + sum(summary.errors.values())
        write_atomic(out / SUMMARY, (json.dumps(asdict(summary), indent=1) + "\n").encode())
        if quarantine is not None:
            _quarantine(out, Path(quarantine))
    return summary


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
        shard_rows=shard_rows, top=min(top, predictor.num_classes), dtype=dtype, width=predictor.width,
        inputs=list(inputs), labels=list(predictor.labels),
    )  # fmt: skip


def _claim(
    out: Path, facts: Mapping[str, Any], inputs: Sequence[str], stdin: Iterable[str] | None, shard_rows: int,
    watch: Callable[[Event], None],
) -> Manifest:  # fmt: skip
    """List the inputs of a new run, or make sure that the run which is there is this one."""
    if (out / RUN).exists():
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
    count, digest = write_manifest(
        out / MANIFEST, iter_sources(inputs, stdin), shard_rows, lambda listed: watch(_remark(f"{listed:,} listed"))
    )
    (out / SHARDS).mkdir(exist_ok=True)
    write_atomic(out / RUN, (json.dumps(dict(facts, rows=count, manifest=digest), indent=1) + "\n").encode())
    return Manifest(out / MANIFEST, digest)


def read_run(out: Path) -> dict[str, Any]:
    """run.json; UsageError `not_found` where there is none, `damaged_run` where it cannot be read."""
    try:
        facts = json.loads((out / RUN).read_text())
    except FileNotFoundError:
        raise UsageError("not_found", f"{out} holds no run", hint="tessella run SOURCE --out FOLDER") from None
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict) or not {"fingerprint", "manifest", "rows"} <= set(facts):
        raise UsageError("damaged_run", f"{out / RUN} cannot be read", hint="take it from a backup, or run anew")
    return facts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- rows -------------------------------------------------------------------------------------------------------------


def _shards(
    manifest: Manifest, todo: Sequence[int], predictor: Predictor, decoder: IsolatedDecoder, top: int, stop: Stop,
    tally: Tally,
) -> Iterator[tuple[int, list[Row]]]:  # fmt: skip
    """The rows of each shard to do. One stream through decoder and model: between shards nothing waits."""
    ahead: deque[Source] = deque()
    images: deque[Decoded] = deque()
    sizes: deque[tuple[int, int]] = deque()

    def sources() -> Iterator[Source]:
        for shard in todo:
            listed = manifest.sources(shard)
            sizes.append((shard, len(listed)))
            for source in listed:
                ahead.append(source)
                yield source

    def prepared() -> Iterator[Pixels | ImageError]:
        for image in decoder.decoded(sources()):
            images.append(image._replace(pixels=None))
            seen = image.error if image.pixels is None else image.pixels
            assert seen is not None
            yield seen

    rows: list[Row] = []
    for outcome in predictor.outputs_of(prepared()):
        rows.append(_row(ahead.popleft(), images.popleft(), outcome, predictor, top))
        tally.count(rows[-1].status)
        if stop.asked:
            return  # the shard that is being made is made again
        if len(rows) == sizes[0][1]:
            yield sizes.popleft()[0], rows
            rows = []


def _row(source: Source, image: Decoded, outcome: Output | ImageError, predictor: Predictor, top: int) -> Row:
    if isinstance(outcome, ImageError):
        return Row(source, image, outcome.code, outcome.message)
    named: tuple[tuple[int, str, float], ...] = ()
    if top:
        probabilities = softmax(outcome.logits[None])[0]
        best = np.argsort(-probabilities, kind="stable")[:top]
        named = tuple((int(i), predictor.labels[i], float(probabilities[i])) for i in best)
    return Row(source, image, "ok", "", named, unit_length(outcome.embedding[None])[0])


def _write(out: Path, number: int, rows: Sequence[Row], facts: Mapping[str, Any]) -> Shard:
    data = encode(rows, facts)
    name = f"shard-{number:08d}.parquet"
    write_atomic(out / SHARDS / name, data)
    errors = Counter(row.status for row in rows if row.status != "ok")
    ok = len(rows) - errors.total()
    return Shard(number, name, hashlib.sha256(data).hexdigest(), len(data), len(rows), ok, dict(sorted(errors.items())))


def encode(rows: Sequence[Row], facts: Mapping[str, Any]) -> bytes:
    """The Parquet file of some rows; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = {"float16": pa.float16(), "float32": pa.float32()}[facts["dtype"]]
    width = facts["width"]
    vectors = np.zeros((len(rows), width), facts["dtype"])
    for i, row in enumerate(rows):
        if row.embedding is not None:
            vectors[i] = row.embedding
    missing = pa.array([row.embedding is None for row in rows])
    told = {key: facts[key] for key in ("fingerprint", "model", "width", "dtype", "transform", "policy", "precision")}
    columns: dict[str, Any] = dict(
        key=pa.array([row.source.key for row in rows], pa.string()),
        source=pa.array([as_text(row.source.path) for row in rows], pa.string()),
        status=pa.array([row.status for row in rows], pa.string()),
        message=pa.array([as_text(row.message) for row in rows], pa.string()),
        sha256=pa.array([row.image.sha256 for row in rows], pa.string()),
        bytes=pa.array([row.image.bytes for row in rows], pa.int64()),
        width=pa.array([row.image.width for row in rows], pa.int32()),
        height=pa.array([row.image.height for row in rows], pa.int32()),
        top_index=pa.array([[index for index, _, _ in row.top] for row in rows], pa.list_(pa.int32())),
        top_label=pa.array([[label for _, label, _ in row.top] for row in rows], pa.list_(pa.string())),
        top_probability=pa.array([[share for _, _, share in row.top] for row in rows], pa.list_(pa.float32())),
        embedding=pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), kind), width, mask=missing),
    )
    table = pa.table(columns).replace_schema_metadata({b"tessella": json.dumps(told, sort_keys=True).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, row_group_size=len(rows))
    return buffer.getvalue()


# --- around the rows --------------------------------------------------------------------------------------------------


def summarise(out: Path, fingerprint: str, shards: Iterable[Shard], rate: float | None) -> Summary:
    rows, ok = 0, 0
    errors: Counter[str] = Counter()
    for shard in shards:
        rows, ok = rows + shard.rows, ok + shard.ok
        errors.update(shard.errors)
    return Summary(str(out), fingerprint, rows, ok, dict(sorted(errors.items())), rate)


def read_rows(out: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """An Arrow table a finished shard, in order: what the ledger lists, never what lies in the folder."""
    import pyarrow.parquet as pq

    ledger = Ledger(out)
    try:
        for shard in ledger.finished().values():
            yield pq.read_table(out / SHARDS / shard.file, columns=columns)
    finally:
        ledger.close()


def _quarantine(out: Path, path: Path) -> None:
    lines = []
    for table in read_rows(out, ["key", "status"]):
        rows = zip(table.column("key").to_pylist(), table.column("status").to_pylist(), strict=True)
        lines += [f"{key}\t{status}\n" for key, status in rows if status != "ok"]
    write_atomic(path, "".join(lines).encode())


def _append(path: Path, event: Event) -> None:
    with path.open("a") as file:
        file.write(json.dumps(event) + "\n")


def _remark(text: str) -> Event:
    return dict(kind="remark", text=text)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            "output_failed",
            f"{out} could not be written: {error.strerror or error}",
            hint="every finished shard is kept: make room and run the same command again",
        ) from error
