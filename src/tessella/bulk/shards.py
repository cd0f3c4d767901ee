"""Shards of a bulk run: the inputs go through decoder and model into Parquet files that are complete or absent."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.decode import Pixels
from ..data.isolated.decoder import IsolatedDecoder
from ..data.isolated.protocol import Decoded
from ..data.source import Source
from ..errors import ImageError
from ..pipeline import map_values
from ..predictor import Predictor
from ..results import Record
from ..storage import write_atomic
from ..text import escape
from .ledger import Shard
from .manifest import Manifest, as_text

SHARDS = "shards"  # the folder of the files, inside that of the run
MAX_SET = 50  # classes of a prediction set that are stored
METADATA = ("fingerprint", "model", "width", "dtype", "transform", "policy", "precision")  # of run.json, in each shard


class Place(NamedTuple):
    """An input of a run and its place in the listing."""

    shard: int
    is_last: bool  # the last input of the shard
    source: Source


@dataclass(frozen=True)
class ShardRow:
    """One row of a shard: the input, what its decoder reported, and the result."""

    source: Source
    image: Decoded  # without its pixels
    record: Record


def decoder_of(predictor: Predictor, processes: int | None = None, timeout: float = 30.0) -> IsolatedDecoder:
    """Return a decoder in separate processes that gives the pixels which the predictor's own decoder would give.

    processes: None for one per core, at most 8. timeout: seconds per image.
    """
    return IsolatedDecoder(
        predictor.spec,
        policy=predictor.policy,
        mode=predictor.transform,
        limits=predictor.limits,
        processes=processes,
        timeout=timeout,
    )


class ShardMaker:
    """Makes the shards of a run with one model and one set of decoder processes; a context manager.

    facts: the contents of run.json. A shard has the same bytes wherever it is made, as long as the model gives the same
    numbers there: batches begin at the first input of a shard. (An image whose decoding takes about as long as the time
    limit may fail on one day and pass on another; nothing else depends on the load of the machine.)
    """

    def __init__(
        self,
        out: Path,
        facts: Mapping[str, Any],
        manifest: Manifest,
        predictor: Predictor,
        *,
        processes: int | None = None,
        timeout: float = 30.0,
    ):
        self._out, self._facts, self._manifest, self._predictor = out, facts, manifest, predictor
        self._decoder = decoder_of(predictor, processes, timeout)

    def __enter__(self) -> ShardMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def make(
        self,
        todo: Iterable[int],
        on_row: Callable[[str], None] = lambda status: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Shard]:
        """Make the shards `todo` in this order; each is durable when it is yielded.

        All inputs are one stream through decoder and model, so that nothing waits between shards. on_row: is called
        with the status of every row. stop: return True to end the work after a row; the current shard is not written.
        """
        rows: list[ShardRow] = []
        # never split: if a resumed run has one batch left, its bits must be those of the uninterrupted run
        for (place, image), outcome in self._predictor.decoded_outputs(self._decode(todo), split_batch=False):
            record = self._predictor.record(place.source.key, outcome, top=self._facts["top"], most_listed=MAX_SET)
            rows.append(ShardRow(place.source, image, record))
            on_row(record.status)
            if stop():
                return
            if place.is_last:
                yield write(self._out, place.shard, rows, self._facts)
                rows = []

    def _decode(self, todo: Iterable[int]) -> Iterator[tuple[tuple[Place, Decoded], Pixels | ImageError]]:
        """The decode step of the pipeline, in isolated processes; Decoded is without its pixels."""
        pairs = ((place, place.source) for place in self._places(todo))
        for place, image in map_values(self._decoder.decoded, pairs):
            yield (place, image._replace(pixels=None)), _without_hint(image.outcome)

    def _places(self, todo: Iterable[int]) -> Iterator[Place]:
        for shard in todo:
            sources = self._manifest.sources(shard)
            for number, source in enumerate(sources, 1):
                yield Place(shard, number == len(sources), source)


def _without_hint(outcome: Pixels | ImageError) -> Pixels | ImageError:
    """Hints are for people at a terminal; rows have the message alone."""
    return ImageError(outcome.code, outcome.message) if isinstance(outcome, ImageError) else outcome


def write(out: Path, number: int, rows: Sequence[ShardRow], facts: Mapping[str, Any]) -> Shard:
    """Write a shard atomically and durably, and return its entry in the ledger."""
    data = encode(rows, facts)
    name = f"shard-{number:08d}.parquet"
    write_atomic(out / SHARDS / name, data)
    errors = Counter(row.record.status for row in rows if row.record.status != "ok")
    ok = len(rows) - errors.total()
    return Shard(number, name, hashlib.sha256(data).hexdigest(), len(data), len(rows), ok, dict(sorted(errors.items())))


def encode(rows: Sequence[ShardRow], facts: Mapping[str, Any]) -> bytes:
    """Return the Parquet file of the rows; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = {"float16": pa.float16(), "float32": pa.float32()}[facts["dtype"]]
    width = facts["width"]
    vectors = np.zeros((len(rows), width), facts["dtype"])
    for i, row in enumerate(rows):
        if row.record.embedding is not None:
            vectors[i] = row.record.embedding
    missing = pa.array([row.record.embedding is None for row in rows])
    top = [row.record.top for row in rows]
    indices = [[prediction.index for prediction in predictions] for predictions in top]
    labels = [[prediction.label for prediction in predictions] for predictions in top]
    probabilities = [[prediction.probability for prediction in predictions] for predictions in top]
    metadata = {key: facts[key] for key in METADATA}
    if facts.get("calibration"):
        metadata["calibration"] = facts["calibration"]
    columns: dict[str, Any] = dict(
        key=pa.array([row.source.key for row in rows], pa.string()),
        source=pa.array([escape(row.source.path) for row in rows], pa.string()),
        status=pa.array([row.record.status for row in rows], pa.string()),
        message=pa.array([as_text(row.record.message) for row in rows], pa.string()),
        sha256=pa.array([row.image.sha256 for row in rows], pa.string()),
        bytes=pa.array([row.image.bytes for row in rows], pa.int64()),
        width=pa.array([row.image.width for row in rows], pa.int32()),
        height=pa.array([row.image.height for row in rows], pa.int32()),
        top_index=pa.array(indices, pa.list_(pa.int32())),
        top_label=pa.array(labels, pa.list_(pa.string())),
        top_probability=pa.array(probabilities, pa.list_(pa.float32())),
        **(_assessed_columns(rows) if facts.get("calibration") else {}),
        embedding=pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), kind), width, mask=missing),
    )
    table = pa.table(columns).replace_schema_metadata({b"tessella": json.dumps(metadata, sort_keys=True).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, row_group_size=len(rows))
    return buffer.getvalue()


def _assessed_columns(rows: Sequence[ShardRow]) -> dict[str, Any]:
    """Return the columns of a calibrated model, null for rows without an assessment.

    The classes of a set are stored if they are at most MAX_SET: hundreds of them say nothing, and would take more space
    than the embedding.
    """
    import pyarrow as pa

    found = [row.record.assessment for row in rows]
    sets = [None if one is None or one.set_size > MAX_SET else one.prediction_set for one in found]
    return dict(
        set_size=pa.array([None if one is None else one.set_size for one in found], pa.int32()),
        set_index=pa.array([one and [member.index for member in one] for one in sets], pa.list_(pa.int32())),
        set_label=pa.array([one and [member.label for member in one] for one in sets], pa.list_(pa.string())),
        unknown=pa.array([None if one is None else one.unknown for one in found], pa.bool_()),
        familiarity=pa.array([None if one is None else one.familiarity for one in found], pa.float32()),
    )
