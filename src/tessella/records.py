"""Write records as JSON, CSV, NumPy archive or Parquet; one row per input, even if it could not be read.

Every text that is written is valid UTF-8: a key is written as `text.escape` makes it, so that names which are not UTF-8
stay distinct, and `text.unescape` restores it.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .errors import UsageError
from .extras import need_pyarrow
from .results import Assessment, FloatArray, Prediction, Record, is_finite
from .storage import write_bytes
from .text import any_of, encode_text, escape

if TYPE_CHECKING:
    import pyarrow as pa

ASSESSED = ("unknown", "familiarity", "set_indices", "set_labels")  # columns for what a calibration says
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")  # text that begins with one of these is run by spreadsheets


def as_dict(record: Record) -> dict[str, object]:
    """Return a record as JSON: parts that are missing are omitted, and numbers that are not finite are None.

    Of feature maps only the shapes are kept.
    """
    row: dict[str, object] = dict(key=escape(record.key), status=record.status)
    if record.message:
        row["message"] = valid_text(record.message)
    if record.top:
        row["top"] = [_prediction_dict(prediction) for prediction in record.top]
    if record.assessment is not None:
        row |= _assessment_dict(record.assessment)
    if record.embedding is not None:
        values = record.embedding.tolist()
        row["embedding"] = values if is_finite(record.embedding) else [finite_or_none(value) for value in values]
    if record.features:
        row["shapes"] = [list(features.shape) for features in record.features]
    return row


def _prediction_dict(prediction: Prediction) -> dict[str, object]:
    row: dict[str, object] = dict(index=prediction.index, label=valid_text(prediction.label))
    row["probability"] = finite_or_none(prediction.probability)
    if prediction.synset:
        row["synset"] = prediction.synset
    return row


def _assessment_dict(assessment: Assessment) -> dict[str, object]:
    return dict(
        prediction_set=[_prediction_dict(prediction) for prediction in assessment.prediction_set],
        set_size=assessment.set_size,
        unknown=assessment.unknown,
        familiarity=assessment.familiarity,
    )


def finite_or_none(value: float) -> float | None:
    """Return the value, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def valid_text(text: str) -> str:
    """Replace lone surrogates by their escapes, so that the text is valid UTF-8; cannot be reversed."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_lines(records: Iterable[Record]) -> Iterator[str]:
    """Yield one JSON object per record, without line breaks, as the records arrive."""
    for record in records:
        yield json.dumps(as_dict(record), allow_nan=False)


def csv_lines(
    records: Iterable[Record], top: int, width: int, *, assessed: bool = False, safe: bool = False
) -> Iterator[str]:
    """Yield a header and one line per record, without line breaks, as the records arrive.

    Columns: key, status, message, the `top` classes side by side, with `assessed` what a calibration says, the `width`
    components of the embedding. safe: as in `csv_line`.
    """
    ranks = [f"{name}{rank}" for rank in range(1, top + 1) for name in ("index", "label", "probability")]
    names = ASSESSED if assessed else ()
    yield csv_line(["key", "status", "message", *ranks, *names, *(f"e{i}" for i in range(width))])
    for record in records:
        classes = [cell for best in record.top for cell in (best.index, best.label, best.probability)]
        vector = [] if record.embedding is None else record.embedding.tolist()
        cells = [escape(record.key), record.status, record.message, *pad(classes, 3 * top)]
        cells += pad(_assessment_cells(record.assessment), len(names)) if assessed else []
        yield csv_line([*cells, *pad(vector, width)], safe=safe)


def _assessment_cells(assessment: Assessment | None) -> list[object]:
    """Return the cells under ASSESSED; of the set, indices and labels are each joined by semicolons."""
    if assessment is None:
        return []
    members = assessment.prediction_set
    joined = (";".join(str(one.index) for one in members), ";".join(one.label for one in members))
    return ["true" if assessment.unknown else "false", assessment.familiarity, *joined]


def csv_line(cells: Iterable[object], *, safe: bool = False) -> str:
    """Return one line of CSV by RFC 4180, without a line break; text with a comma, a quote or a line break is quoted.

    safe: put an apostrophe before text that a spreadsheet would run as a formula.
    """
    return ",".join(_csv_cell(cell, safe) for cell in cells)


def _csv_cell(cell: object, safe: bool) -> str:
    if not isinstance(cell, str):
        return repr(cell)
    text = valid_text(cell)
    if safe and text.startswith(FORMULA_PREFIXES):
        text = "'" + text
    # the csv module leaves a carriage return unquoted before Python 3.13
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """Return a CSV file with a header and one line per row, as `csv_line`; None becomes an empty cell."""

    def text(cell: object) -> str:
        return "" if cell is None else encode_text(str(cell)).decode()

    lines = [csv_line(columns), *(csv_line(text(row[name]) for name in columns) for row in rows)]
    return "".join(f"{line}\n" for line in lines).encode()


def pad(cells: Sequence[object], length: int, filler: object = "") -> list[object]:
    """Return the cells followed by as many fillers as `length` needs."""
    return [*cells, *[filler] * (length - len(cells))]


def write_records(
    path: str | Path, records: Iterable[Record], metadata: Mapping[str, str] | None = None, *, csv_safe: bool = False
) -> int:
    """Write records to a .npz, .parquet, .csv, .json or .jsonl file, and return their number.

    metadata: such as model and fingerprint; stored in .npz and .parquet. csv_safe: as `safe` in `csv_line`. The file is
    written atomically, once all records have arrived. Rows without an embedding hold NaN in .npz, null in .parquet.
    Feature maps are stored in .npz only, as NaN for rows without any.
    Raises OutputError; UsageError `bad_argument` for another suffix, feature maps in another format, embeddings of
    different widths in .npz and .parquet, or metadata in .npz with the name of an array.
    """
    path, metadata = Path(path), metadata or {}
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = f"use a name ending in {any_of(SUFFIXES)}"
        raise UsageError("bad_argument", f"cannot write {path.name!r}", hint=hint)
    rows = list(records)
    if suffix != ".npz" and any(record.features for record in rows):
        raise UsageError("bad_argument", f"feature maps cannot be stored as {suffix}", hint="use a .npz file")
    top = max((len(record.top) for record in rows), default=0)
    widths = {len(record.embedding) for record in rows if record.embedding is not None}
    if len(widths) > 1 and suffix in (".npz", ".parquet"):
        raise UsageError("bad_argument", f"the embeddings have different widths: {', '.join(map(str, sorted(widths)))}")
    width = max(widths, default=0)
    if suffix == ".csv":
        assessed = any(record.assessment for record in rows)
        lines = csv_lines(rows, top, width, assessed=assessed, safe=csv_safe)
        data = "".join(f"{line}\n" for line in lines).encode()
    else:
        data = WRITERS[suffix](rows, top, width, metadata)
    write_bytes(path, data)
    return len(rows)


def npz_bytes(arrays: Mapping[str, ArrayLike]) -> bytes:
    """Return a NumPy archive (.npz) of the arrays, without pickled objects."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # `np.savez` has no option against pickles before NumPy 2.2
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


def _json(records: Sequence[Record], top: int, width: int, metadata: Mapping[str, str]) -> bytes:
    return "[{}]\n".format(",\n".join(json_lines(records))).encode()


def _json_lines(records: Sequence[Record], top: int, width: int, metadata: Mapping[str, str]) -> bytes:
    return "".join(f"{line}\n" for line in json_lines(records)).encode()


def _npz(records: Sequence[Record], top: int, width: int, metadata: Mapping[str, str]) -> bytes:
    first: dict[str, ArrayLike] = dict(
        keys=np.array([escape(r.key) for r in records], dtype=str),
        status=np.array([r.status for r in records], dtype=str),
    )
    arrays: dict[str, ArrayLike] = {}
    if width:
        missing = np.full(width, np.nan, np.float32)
        arrays["embeddings"] = np.stack([missing if r.embedding is None else r.embedding for r in records])
    if top:
        arrays["indices"] = np.array([pad([p.index for p in r.top], top, -1) for r in records], np.int64)
        arrays["probabilities"] = np.array(
            [pad([p.probability for p in r.top], top, np.nan) for r in records], np.float32
        )
        arrays["labels"] = np.array([pad([valid_text(p.label) for p in r.top], top) for r in records], dtype=str)
    arrays |= _stack_assessments(records) | _stack_features(records)
    if taken := sorted((first | arrays).keys() & metadata.keys()):
        message = f"the metadata contains the name {taken[0]!r}, which is that of an array of the records"
        raise UsageError("bad_argument", message, hint="use another name")
    return npz_bytes(first | {name: np.array(valid_text(value)) for name, value in metadata.items()} | arrays)


def _stack_assessments(records: Sequence[Record]) -> dict[str, ArrayLike]:
    """Return the arrays under ASSESSED, except labels: sets are padded with -1; {} if no record has an assessment."""
    found = [record.assessment for record in records]
    longest = max((len(one.prediction_set) for one in found if one), default=0)
    if not longest:
        return {}
    sets_NM = np.full((len(found), longest), -1, np.int64)
    for row, one in enumerate(found):
        if one is not None:
            sets_NM[row, : len(one.prediction_set)] = [member.index for member in one.prediction_set]
    return dict(
        unknown=np.array([one is not None and one.unknown for one in found]),
        familiarity=np.array([np.nan if one is None else one.familiarity for one in found], np.float32),
        set_indices=sets_NM,
    )


def _stack_features(records: Sequence[Record]) -> dict[str, FloatArray]:
    """Stack the feature maps by block, each (N,channels,rows,columns); NaN for records without any."""
    shapes = next(([features.shape for features in record.features] for record in records if record.features), [])
    return {
        f"features{i}": np.stack(
            [record.features[i] if record.features else np.full(shape, np.nan, np.float32) for record in records]
        )
        for i, shape in enumerate(shapes)
    }


def _parquet(records: Sequence[Record], top: int, width: int, metadata: Mapping[str, str]) -> bytes:
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
    if any(record.assessment for record in records):
        columns |= _assessment_columns([record.assessment for record in records])
    if width:
        vectors = [None if r.embedding is None else r.embedding for r in records]
        columns["embedding"] = pa.array(vectors, pa.list_(pa.float32(), width))
    table = pa.table(columns).replace_schema_metadata({"tessella": json.dumps(dict(metadata))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def _assessment_columns(found: Sequence[Assessment | None]) -> dict[str, pa.Array]:
    """Return the columns under ASSESSED, null for records without an assessment."""
    pa, _ = need_pyarrow()
    sets = [None if one is None else one.prediction_set for one in found]
    return dict(
        unknown=pa.array([None if one is None else one.unknown for one in found], pa.bool_()),
        familiarity=pa.array([None if one is None else one.familiarity for one in found], pa.float32()),
        set_indices=pa.array([one and [member.index for member in one] for one in sets], pa.list_(pa.int32())),
        set_labels=pa.array(
            [one and [valid_text(member.label) for member in one] for one in sets], pa.list_(pa.string())
        ),
    )


WRITERS: dict[str, Callable[[Sequence[Record], int, int, Mapping[str, str]], bytes]] = {
    ".npz": _npz,
    ".parquet": _parquet,
    ".json": _json,
    ".jsonl": _json_lines,
}
SUFFIXES = (".npz", ".parquet", ".csv", ".json", ".jsonl")


def short_name(name: str) -> str:
    """Return a model's name without its tag; names of folders and repositories are returned unchanged."""
    return name if ":" in name else name.partition(".")[0]


def slug(text: str) -> str:
    """Return text for a file's name: lower-case letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\((r|tm)\)|processor|cpu|@.*?hz", "", text.lower())).strip("-")
