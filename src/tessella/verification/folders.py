"""Verify a run, an index and a training run: every file, and some rows that are computed again from their images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..bulk.integrity import IntegrityReport
from ..bulk.integrity import verify as verify_run
from ..bulk.ledger import Shard
from ..bulk.manifest import MANIFEST, Manifest
from ..bulk.run_folder import INDEX_SEAL, INDEX_SEAL_KEY, RunFacts, finished_shards, read_run, read_shard
from ..data.source import Source
from ..engine.difference import TOLERANCE
from ..errors import ImageError, OutputError, TessellaError, UsageError
from ..predictor import Predictor, load
from ..results import FloatArray, l2_normalize
from ..storage import damaged_files, file_hash, read_regular, read_sealed
from ..text import count_of
from ..training.run_folder import SETTINGS, TrainingRecord
from .findings import Outcome, compared, failures, judged

SAMPLED_ROWS = 8  # of a run, which are computed again
HALF_PRECISION = 2.0**-11  # relative rounding error of float16
_CHECKPOINTS, _MANIFEST = "checkpoints", "MANIFEST.json"  # as in training/checkpoint.py, which imports PyTorch


# --- runs -------------------------------------------------------------------------------------------------------------


def check_run(out: Path) -> tuple[list[Outcome], RunFacts | None]:
    """Check every file of a run as `tessella verify-run` does, and compute some of its rows again.

    Returns the findings, and the facts of the run if run.json is intact. Raises UsageError `busy`, `damaged_run`.
    """
    report = verify_run(out)
    findings = list(_damage(report))
    if findings:
        return [*findings, Outcome("rows", "", "not computed again, because files are damaged", "skipped")], None
    facts = read_run(out)
    findings.append(Outcome("files", "as they were written", "all of them", "passed"))
    shards = f"{report.finished:,} of {report.shards:,} finished"
    findings.append(Outcome("shards", "intact, with the keys of the listing", shards, "passed"))
    return [*findings, _recompute(out, facts)], facts


def _damage(report: IntegrityReport) -> Iterator[Outcome]:
    for damage in report.damage:
        yield Outcome(damage.file, "as it was written", damage.message, "failed", "damaged_run")


def _recompute(out: Path, facts: RunFacts) -> Outcome:
    """Compute some rows again, from images that are still there and unchanged, with the model that the run names."""
    check = "rows computed again"
    try:
        rows = list(_sample(out, facts))
    except (UsageError, ImageError) as error:
        return Outcome(check, "", str(error), "skipped")
    if not rows:
        return Outcome(check, "", "none of the images that were tried exists unchanged", "skipped")
    try:
        predictor = _load_like(facts)
    except TessellaError as error:
        return Outcome(check, "", f"{facts['model']} could not be loaded: {error}", "skipped")
    if predictor.fingerprint != facts["fingerprint"]:
        found = f"fingerprint {predictor.fingerprint}"
        return Outcome(check, f"a model with fingerprint {facts['fingerprint']}", found, "skipped")
    stored = np.array([vector for _, vector in rows], np.float32)
    computed = np.array(predictor.embed([data for data, _ in rows]), np.float32)
    difference, bound = float(np.abs(stored - computed).max()), _bound(facts, computed)
    shown = f"{count_of(len(rows), 'row')}, largest difference {difference:.1e}"
    return judged(check, f"the stored embeddings, within {bound:.1e}", shown, difference <= bound, "damaged_run")


def _bound(facts: RunFacts, embeddings: FloatArray) -> float:
    """Return how much a stored embedding may differ from one that is computed again; (N,width), unit length."""
    rounding = HALF_PRECISION * float(np.abs(embeddings).max()) if facts["dtype"] == "float16" else 0.0
    return TOLERANCE.get(facts["precision"], 0.1) * float(embeddings.std()) + rounding


def _load_like(facts: RunFacts) -> Predictor:
    """Load the model of a run with its settings; the engine may be another one if the precision is float32."""
    name, precision = facts["model"], facts["precision"]
    engine = "auto" if precision == "float32" else facts["engine"]
    settings: dict[str, Any] = dict(transform=facts["transform"], policy=facts["policy"])
    try:
        return load(name, precision=precision, engine=engine, **settings)
    except UsageError:  # an exported model, whose precision cannot be chosen
        return load(name, **settings)


def _sample(out: Path, facts: RunFacts) -> Iterator[tuple[bytes, FloatArray]]:
    """Yield the encoded image and the stored embedding (width,) of rows that are spread over the finished shards."""
    shards = finished_shards(out)
    manifest = Manifest(out / MANIFEST, facts["manifest"])
    chosen = shards[:: max(len(shards) // SAMPLED_ROWS, 1)][:SAMPLED_ROWS]
    per_shard = max(SAMPLED_ROWS // max(len(chosen), 1), 1)
    for shard in chosen:
        yield from _sample_shard(out, shard, manifest.sources(shard.id), per_shard)


def _sample_shard(out: Path, shard: Shard, sources: list[Source], count: int) -> Iterator[tuple[bytes, FloatArray]]:
    rows = read_shard(out, shard, ["status", "sha256", "embedding"]).to_pylist()
    step = max(len(rows) // count, 1)
    for row, source in list(zip(rows, sources, strict=True))[::step][:count]:
        if row["status"] != "ok":
            continue
        try:
            data = source.read()
        except ImageError:
            continue
        if hashlib.sha256(data).hexdigest() == row["sha256"]:
            yield data, l2_normalize(np.array([row["embedding"]], np.float32))[0]


# --- indexes ----------------------------------------------------------------------------------------------------------


def check_index(home: Path) -> tuple[list[Outcome], RunFacts | None]:
    """Check the files of an index against its seal, and the seal against the shards of the run that it is in.

    Returns the findings, and the facts of the run if it can be read.
    """
    seal = read_sealed(home / INDEX_SEAL, INDEX_SEAL_KEY)
    if seal is None:
        return [Outcome(INDEX_SEAL, "sealed with its own hash", "missing or changed", "failed", "damaged_run")], None
    try:
        files: dict[str, list[int | str]] = dict(seal["files"])
        indexed = set(seal["shards"])
        damaged = list(damaged_files(home, files))
    except (KeyError, TypeError, ValueError) as error:
        return [Outcome(INDEX_SEAL, "names of files and shards", repr(error), "failed", "damaged_run")], None
    findings = [Outcome(name, "as it was written", "missing or changed", "failed", "damaged_run") for name in damaged]
    if not damaged:
        findings.append(Outcome("files", "the hashes of the seal", f"all {count_of(len(files), 'file')}", "passed"))
    try:
        facts = read_run(home.parent)
        shards = {f"{shard.id * facts['shard_rows']}:{shard.sha256}" for shard in finished_shards(home.parent)}
    except UsageError as error:
        return [*findings, Outcome("shards", "those of the run", f"no run: {error.message}", "skipped")], None
    found = "the same" if indexed == shards else "others; `tessella index` updates the index"
    findings.append(Outcome("shards", "those of the run", found, "passed" if indexed == shards else "differs"))
    return findings, facts


# --- training runs ----------------------------------------------------------------------------------------------------


def check_training(run: Path) -> list[Outcome]:
    """Check train.json, and the files of every checkpoint of a training run against the hashes in its manifest."""
    findings = []
    try:
        TrainingRecord.read(run)
        findings.append(Outcome(SETTINGS, "can be read", "yes", "passed"))
    except OutputError as error:
        findings.append(Outcome(SETTINGS, "can be read", error.message, "failed", "damaged_run"))
    for folder in sorted((run / _CHECKPOINTS).glob("at-*")):
        findings += _check_checkpoint(folder)
    if not failures(findings):
        findings.append(Outcome(_CHECKPOINTS, "the hashes of their manifests", "all of them", "passed"))
    return findings


def _check_checkpoint(folder: Path) -> Iterator[Outcome]:
    name = f"{_CHECKPOINTS}/{folder.name}"
    try:
        hashes = json.loads(read_regular(folder / _MANIFEST))["sha256"]
        for file, digest in hashes.items():
            finding = compared(f"{name}/{file}", digest, file_hash(folder / file), "damaged_checkpoint")
            if finding.verdict == "failed":
                yield finding
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield Outcome(name, "a manifest and its files", repr(error), "failed", "damaged_checkpoint")
