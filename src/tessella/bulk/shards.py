"""One shard of a bulk run: its inputs through decoder and model into a Parquet file, which is whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.decode import Pixels
from ..data.isolated.decoder import IsolatedDecoder
from ..data.isolated.protocol import Decoded
from ..data.sources import Source
from ..errors import ImageError
from ..predictor import Output, Predictor, softmax, unit_length
from ..storage import write_atomic
from ..text import escape
from .ledger import Shard
from .manifest import Manifest, as_text

SHARDS = "shards"  # the folder of the files, below that of the run
TOLD = ("fingerprint", "model", "width", "dtype", "transform", "policy", "precision")  # facts that a file repeats


@dataclass(frozen=True)
class Row:
    """One input; top and embedding are of an image that is ok. embedding: (width,) float32 of unit length."""

    source: Source
    image: Decoded
    status: str
    message: str = ""
    top: tuple[tuple[int, str, float], ...] = ()
    embedding: Any = None


def decoder_of(predictor: Predictor, processes: int | None = None, timeout: float = 30.0) -> IsolatedDecoder:
    """Of what this predictor reads, as it would read it itself."""
    return IsolatedDecoder(
        predictor.spec, policy=predictor.policy, mode=predictor.transform, limits=predictor.limits,
        processes=processes, timeout=timeout,
    )  # fmt: skip


class ShardMaker:
    """Makes shards of one run, in one process: a model, and decoding processes that stay. A context manager.

    facts: run.json. The same shard gives the same bytes wherever it is made, as long as the model's numbers are the
    same there: its batches begin at its first input. (An image that is near the time limit may fail on one day and
    pass on another; nothing else depends on the machine's load.)
    """

    def __init__(
        self, out: Path, facts: Mapping[str, Any], manifest: Manifest, predictor: Predictor, *,
        processes: int | None = None, timeout: float = 30.0,
    ):  # fmt: skip
        self._out, self._facts, self._manifest, self._predictor = out, facts, manifest, predictor
        self._decoder = decoder_of(predictor, processes, timeout)

    def __enter__(self) -> ShardMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def make(
        self, todo: Iterable[int], seen: Callable[[str], None] = lambda status: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Shard]:  # fmt: skip
        """The shards `todo`, one after the other, each durable when it comes. seen: hears the status of every row.

        One stream goes through decoder and model, so that nothing waits between shards; `stop` ends it after a row.
        """
        ahead: deque[Source] = deque()
        images: deque[Decoded] = deque()
        sizes: deque[tuple[int, int]] = deque()

        def sources() -> Iterator[Source]:
            for shard in todo:
                listed = self._manifest.sources(shard)
                sizes.append((shard, len(listed)))
                for source in listed:
                    ahead.append(source)
                    yield source

        def prepared() -> Iterator[Pixels | ImageError]:
            for image in self._decoder.decoded(sources()):
                images.append(image._replace(pixels=None))
                yield image.outcome

        rows: list[Row] = []
        # a batch that is left alone after a kill gives the bits that it would have given among others
        for outcome in self._predictor.outputs_of(prepared(), split_batch=False):
            rows.append(self._row(ahead.popleft(), images.popleft(), outcome))
            seen(rows[-1].status)
            if stop():
                return  # the shard that is being made is made again
            if len(rows) == sizes[0][1]:
                yield write(self._out, sizes.popleft()[0], rows, self._facts)
                rows = []

    def _row(self, source: Source, image: Decoded, outcome: Output | ImageError) -> Row:
        if isinstance(outcome, ImageError):
            return Row(source, image, outcome.code, outcome.message)
        if not (np.isfinite(outcome.logits).all() and np.isfinite(outcome.embedding).all()):
            return Row(source, image, "non_finite", "the model gives NaN or infinity for this image")
        named: tuple[tuple[int, str, float], ...] = ()
        if self._facts["top"]:
            probabilities = softmax(outcome.logits[None])[0]
            best = np.argsort(-probabilities, kind="stable")[: self._facts["top"]]
            named = tuple((int(i), self._predictor.labels[i], float(probabilities[i])) for i in best)
        return Row(source, image, "ok", "", named, unit_length(outcome.embedding[None])[0])


def write(out: Path, number: int, rows: Sequence[Row], facts: Mapping[str, Any]) -> Shard:
    """Encode, write, sync and rename; what comes back is for the ledger."""
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
    told = {key: facts[key] for key in TOLD}
    columns: dict[str, Any] = dict(
        key=pa.array([row.source.key for row in rows], pa.string()),
        source=pa.array([escape(row.source.path) for row in rows], pa.string()),
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
