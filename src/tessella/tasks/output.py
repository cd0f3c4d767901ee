"""Records as files and lines: JSON, CSV, NumPy archive, Parquet; one row per input, whatever became of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_atomic
from ..checks import checked
from ..errors import TessellaError, UsageError
from ..extras import require
from ..predictor import Record


def as_dict(record: Record) -> dict[str, Any]:
    """What `--json` prints of a record: absent parts are left out."""
    row: dict[str, Any] = dict(key=record.key, status=record.status)
    if record.message:
        row["message"] = record.message
    if record.top:
        row["top"] = [{k: v for k, v in dataclasses.asdict(one).items() if v != ""} for one in record.top]
    if record.embedding is not None:
        row["embedding"] = record.embedding.tolist()
    return row


def csv_header(top: int, width: int) -> list[str]:
    """Columns of `csv_row`: top-k classes side by side, then the components of the embedding."""
    ranks = [f"{name}{rank}" for rank in range(1, top + 1) for name in ("index", "label", "probability")]
    return ["key", "status", "message", *ranks, *(f"e{i}" for i in range(width))]


def csv_row(record: Record, top: int, width: int) -> list[Any]:
    ranks = [cell for one in record.top for cell in (one.index, one.label, one.probability)]
    vector = [] if record.embedding is None else record.embedding.tolist()
    return [record.key, record.status, record.message, *pad(ranks, 3 * top), *pad(vector, width)]


def pad(cells: Sequence[Any], length: int) -> list[Any]:
    return [*cells, *[""] * (length - len(cells))]


@checked
def check_output(path: str | Path, suffixes: Sequence[str]) -> Path:
    """Refuse a file that could not be written before the work is done, not after."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            "bad_argument", f"cannot write {path.name!r}", hint=f"use a name ending in {' or '.join(suffixes)}"
        )
    if path.suffix.lower() == ".parquet":
        need_pyarrow()
    if not path.parent.is_dir():
        raise UsageError("bad_argument", f"there is no folder {str(path.parent)!r}", hint="make it first")
    return path


def write_records(path: Path, records: Sequence[Record], facts: dict[str, str]) -> None:
    """All records to `path`, as its suffix says; facts (model, fingerprint, ...) go where the format has room.

    The file appears whole or not at all. Rows without an embedding hold NaN in .npz, null in .parquet.
    """
    top = max((len(record.top) for record in records), default=0)
    width = max((len(record.embedding) for record in records if record.embedding is not None), default=0)
    writers: dict[str, Callable[..., bytes]] = {".csv": _csv, ".npz": _npz, ".parquet": _parquet}
    write_bytes(path, writers[path.suffix.lower()](records, top, width, facts))


def write_bytes(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise TessellaError("output_failed", f"{str(path)!r} could not be written: {error.strerror}") from None


def npz_bytes(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _csv(records: Iterable[Record], top: int, width: int, facts: dict[str, str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(csv_header(top, width))
    writer.writerows(csv_row(record, top, width) for record in records)
    return text.getvalue().encode()


def _npz(records: Sequence[Record], top: int, width: int, facts: dict[str, str]) -> bytes:
    arrays: dict[str, Any] = dict(
        keys=np.array([r.key for r in records], dtype=str),
        status=np.array([r.status for r in records], dtype=str),
        **{name: np.array(value) for name, value in facts.items()},
    )
    if width:
        missing = np.full(width, np.nan, np.float32)
        arrays["embeddings"] = np.stack([missing if r.embedding is None else r.embedding for r in records])
    if top:
        arrays["indices"] = np.array([[p.index for p in r.top] or [-1] * top for r in records], np.int64)
        arrays["probabilities"] = np.array(
            [[p.probability for p in r.top] or [np.nan] * top for r in records], np.float32
        )
        arrays["labels"] = np.array([[p.label for p in r.top] or [""] * top for r in records], dtype=str)
    return npz_bytes(arrays)


def _parquet(records: Sequence[Record], top: int, width: int, facts: dict[str, str]) -> bytes:
    pa, pq = need_pyarrow()
    columns = dict(
        key=pa.array([r.key for r in records], pa.string()),
        status=pa.array([r.status for r in records], pa.string()),
        message=pa.array([r.message for r in records], pa.string()),
    )
    if top:
        columns["indices"] = pa.array([[p.index for p in r.top] or None for r in records], pa.list_(pa.int32()))
        columns["labels"] = pa.array([[p.label for p in r.top] or None for r in records], pa.list_(pa.string()))
        columns["probabilities"] = pa.array(
            [[p.probability for p in r.top] or None for r in records], pa.list_(pa.float32())
        )
    if width:
        vectors = [None if r.embedding is None else r.embedding for r in records]
        columns["embedding"] = pa.array(vectors, pa.list_(pa.float32(), width))
    table = pa.table(columns).replace_schema_metadata({"tessella": json.dumps(facts)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def need_pyarrow() -> tuple[Any, Any]:
    return require("pyarrow", "Parquet"), require("pyarrow.parquet", "Parquet")
