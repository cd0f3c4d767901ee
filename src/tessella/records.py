"""Records as files and lines: JSON, CSV, NumPy archive, Parquet; one row per input, even if it could not be read.

Every text that is written is valid UTF-8: a key is written as `text.escape` makes it, so that names which are not UTF-8
stay apart, and `text.unescape` restores it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .extras import need_pyarrow
from .predictor import Record
from .storage import write_bytes
from .text import escape

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # text that begins with one of these is run by spreadsheets


def as_dict(record: Record) -> dict[str, Any]:
    """The JSON that `--json` prints for a record: missing parts are omitted, a number that is not finite is None."""
    row: dict[str, Any] = dict(key=escape(record.key), status=record.status)
    if record.message:
        row["message"] = valid_text(record.message)
    if record.top:
        row["top"] = [
            {key: value for key, value in dataclasses.asdict(one).items() if value != ""}
            | dict(label=valid_text(one.label), probability=finite_or_none(one.probability))
            for one in record.top
        ]
    if record.embedding is not None:
        row["embedding"] = [finite_or_none(value) for value in record.embedding.tolist()]
    return row


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def valid_text(text: str) -> str:
    """Replace lone surrogates by their escapes; for display, cannot be reversed."""
    return text.encode("utf-8", "backslashreplace").decode()


def csv_header(top: int, width: int) -> list[str]:
    """Columns of `csv_row`: top-k classes side by side, then the components of the embedding."""
    ranks = [f"{name}{rank}" for rank in range(1, top + 1) for name in ("index", "label", "probability")]
    return ["key", "status", "message", *ranks, *(f"e{i}" for i in range(width))]


def csv_row(record: Record, top: int, width: int) -> list[Any]:
    ranks = [cell for one in record.top for cell in (one.index, one.label, one.probability)]
    vector = [] if record.embedding is None else record.embedding.tolist()
    return [escape(record.key), record.status, record.message, *pad(ranks, 3 * top), *pad(vector, width)]


def csv_line(cells: Iterable[Any], *, safe: bool = False) -> str:
    """One line of CSV by RFC 4180, without its end; text with a comma, a quote or any line break is quoted.

    safe: put an apostrophe before text that a spreadsheet would run as a formula.
    """
    return ",".join(_csv_cell(cell, safe) for cell in cells)


def _csv_cell(cell: Any, safe: bool) -> str:
    if not isinstance(cell, str):
        return repr(cell)
    text = valid_text(cell)
    if safe and text.startswith(FORMULA):
        text = "'" + text
    # the csv module leaves a carriage return unquoted before Python 3.13
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def pad(cells: Sequence[Any], length: int) -> list[Any]:
    return [*cells, *[""] * (length - len(cells))]


def write_records(path: Path, records: Sequence[Record], facts: dict[str, str], *, csv_safe: bool = False) -> None:
    """All records to `path`, as its suffix says; facts (model, fingerprint, ...) go where the format has room.

    The write is atomic. Rows without an embedding hold NaN in .npz, null in .parquet. csv_safe: as
    `csv_line` has it. Raises OutputError.
    """
    top = max((len(record.top) for record in records), default=0)
    width = max((len(record.embedding) for record in records if record.embedding is not None), default=0)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        lines = [csv_header(top, width), *(csv_row(record, top, width) for record in records)]
        data = "".join(csv_line(line, safe=csv_safe) + "\n" for line in lines).encode()
    else:
        data = WRITERS[suffix](records, top, width, facts)
    write_bytes(path, data)


def npz_bytes(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _json(records: Sequence[Record], top: int, width: int, facts: dict[str, str]) -> bytes:
    rows = ",\n".join(json.dumps(as_dict(record), allow_nan=False) for record in records)
    return f"[{rows}]\n".encode()


def _json_lines(records: Sequence[Record], top: int, width: int, facts: dict[str, str]) -> bytes:
    return "".join(json.dumps(as_dict(record), allow_nan=False) + "\n" for record in records).encode()


def _npz(records: Sequence[Record], top: int, width: int, facts: dict[str, str]) -> bytes:
    arrays: dict[str, Any] = dict(
        keys=np.array([escape(r.key) for r in records], dtype=str),
        status=np.array([r.status for r in records], dtype=str),
        **{name: np.array(valid_text(value)) for name, value in facts.items()},
    )
    if width:
        missing = np.full(width, np.nan, np.float32)
        arrays["embeddings"] = np.stack([missing if r.embedding is None else r.embedding for r in records])
    if top:
        arrays["indices"] = np.array([[p.index for p in r.top] or [-1] * top for r in records], np.int64)
        arrays["probabilities"] = np.array(
            [[p.probability for p in r.top] or [np.nan] * top for r in records], np.float32
        )
        arrays["labels"] = np.array([[valid_text(p.label) for p in r.top] or [""] * top for r in records], dtype=str)
    return npz_bytes(arrays)


def _parquet(records: Sequence[Record], top: int, width: int, facts: dict[str, str]) -> bytes:
    pa, pq = need_pyarrow()
    columns = dict(
        key=pa.array([escape(r.key) for r in records], pa.string()),
        status=pa.array([r.status for r in records], pa.string()),
        message=pa.array([valid_text(r.message) for r in records], pa.string()),
    )
    if top:
        columns["indices"] = pa.array([[p.index for p in r.top] or None for r in records], pa.list_(pa.int32()))
        columns["labels"] = pa.array(
            [[valid_text(p.label) for p in r.top] or None for r in records], pa.list_(pa.string())
        )
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


WRITERS: dict[str, Callable[[Sequence[Record], int, int, dict[str, str]], bytes]] = {
    ".npz": _npz,
    ".parquet": _parquet,
    ".json": _json,
    ".jsonl": _json_lines,
}
SUFFIXES = (".npz", ".parquet", ".csv", ".json", ".jsonl")


def short_name(name: str) -> str:
    """Without the tag; names of folders and repositories stay whole."""
    return name if ":" in name else name.partition(".")[0]


def slug(text: str) -> str:
    """For a file's name: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\((r|tm)\)|processor|cpu|@.*?hz", "", text.lower())).strip("-")
