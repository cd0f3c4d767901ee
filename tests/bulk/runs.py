"""Run folders as `tessella run` writes them, made without a model, with given vectors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tessella.bulk import run_folder, shards
from tessella.bulk.ledger import Ledger, Shard
from tessella.bulk.manifest import MANIFEST, write_manifest
from tessella.data.isolated.protocol import Decoded
from tessella.data.source import Source
from tessella.results import Assessment, Prediction, Record
from tessella.search.index import HOME, open_table
from tessella.text import escape

LABELS = ("cat", "dog", "it's a horse")
SHARD_ROWS = 100


@dataclass
class Image:
    """A row to write.

    label: its position in LABELS. error: the code of a row that is an error. assessment: in a run with a calibration.
    """

    key: str
    vector: Any
    label: int = 0
    sha256: str = ""
    size: tuple[int, int, int] = (1000, 640, 480)  # bytes, width, height
    error: str = ""
    assessment: Assessment | None = None


def unit(vectors: Any) -> Any:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_vectors(rows: int, seed: int, width: int = 16) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def numbered(vectors: Any, start: int = 0) -> list[Image]:
    """Return images with keys, labels and sizes numbered from `start`."""
    places = range(start, start + len(vectors))
    return [Image(f"{i:06d}.jpg", v, i % 3, size=(1000 + i, 640, 480)) for i, v in zip(places, vectors, strict=True)]


def write_run(out: Path, images: Sequence[Image], dtype: str = "float16", **facts: Any) -> Path:
    """Write a finished run of these rows, in shards of 100."""
    (out / "shards").mkdir(parents=True)
    sources = [Source(image.key, image.key) for image in images]
    count, digest = write_manifest(out / MANIFEST, sources, SHARD_ROWS)
    contents = dict(
        fingerprint="0123456789abcdef", model="tiny", transform="exact", policy="tessella", precision="float32",
        engine="eager", labels=list(LABELS), top=2, dtype=dtype, width=len(images[0].vector), shard_rows=SHARD_ROWS,
        rows=count, manifest=digest,
    )  # fmt: skip
    contents |= facts
    run_folder.write_facts(out / run_folder.RUN, contents)
    Ledger(out, new=True).close()
    for number in range(-(-count // SHARD_ROWS)):
        write_shard(out, number, images[number * SHARD_ROWS : (number + 1) * SHARD_ROWS])
    return out


def write_shard(out: Path, number: int, images: Sequence[Image]) -> None:
    """Write and record a shard, replacing the one with this number."""
    facts = run_folder.read_run(out)
    data = shards.encode([_row(image, facts["top"]) for image in images], facts)
    name = f"shard-{number:08d}.parquet"
    (out / "shards" / name).write_bytes(data)
    ok = sum(not image.error for image in images)
    errors = dict(corrupt_image=len(images) - ok)
    with Ledger(out) as ledger:
        ledger.forget([number])
        ledger.commit(Shard(number, name, hashlib.sha256(data).hexdigest(), len(data), len(images), ok, errors))


def drop_shard(out: Path, number: int) -> None:
    with Ledger(out) as ledger:
        ledger.forget([number])


def _row(image: Image, top: int) -> shards.ShardRow:
    sha256 = image.sha256 or hashlib.sha256(os.fsencode(image.key)).hexdigest()
    size, width, height = image.size
    decoded = Decoded(None, None, sha256, size, width, height)
    source = Source(escape(image.key), image.key)
    if image.error:
        return shards.ShardRow(source, decoded, Record(source.key, image.error, "cut off"))
    best = Prediction(image.label, LABELS[image.label], 0.5 + image.label / 8)
    predictions = (best, Prediction(0, LABELS[0], 0.1))[:top]
    vector = unit(image.vector)
    record = Record(source.key, "ok", "", predictions, vector, assessment=image.assessment)
    return shards.ShardRow(source, decoded, record)


def expected_rows(out: Path) -> dict[str, tuple[Any, ...]]:
    """Return what the shards hold for each image, by key."""
    rows = {}
    place = 0
    for table in run_folder.read_rows(out):
        for row in table.to_pylist():
            if row["status"] == "ok":
                label = (*row["top_label"], None)[0], (*row["top_probability"], None)[0]
                same = (row[name] for name in ("source", "sha256", "bytes", "width", "height"))
                rows[row["key"]] = (place, *same, *label, np.array(row["embedding"], np.float16).tobytes())
            place += 1
    return rows


def indexed(out: Path) -> dict[str, tuple[Any, ...]]:
    """Return the same from the index, in its sealed version; every file is compared with its hash."""
    facts = run_folder.read_run(out)
    size = facts["shard_rows"]
    table, seal = open_table(out / HOME, facts)
    table.checkout(seal.version)
    found = table.to_arrow().to_pylist()
    assert len(found) == seal.rows
    hashes = {shard.id * size: shard.sha256 for shard in run_folder.finished_shards(out)}
    assert all(row["shard"] == f"{(first := row['row'] // size * size)}:{hashes[first]}" for row in found)
    names = ("row", "source", "sha256", "bytes", "width", "height", "label", "probability")
    rows = {
        row["key"]: (*(row[name] for name in names), np.array(row["vector"], np.float16).tobytes()) for row in found
    }
    assert len(rows) == len(found)  # no key twice
    return rows
