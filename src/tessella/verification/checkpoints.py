"""Verify a model: its weight file, tensors, config and answers; and an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..engine.artefacts import find_damaged
from ..engine.exported import FILE
from ..errors import TessellaError, UsageError, WeightsError
from ..extras import is_installed
from ..predictor import Predictor, load
from ..storage import file_hash
from ..weights.catalogue import CATALOGUE, full_name
from ..weights.sources import find_checkpoint, locate
from .answers import check_answers
from .findings import Outcome, PhotographAnswer
from .targets import Artifact

_SKIPPED = "not run, because a check before it failed"


class ModelCheck(NamedTuple):
    """The findings about a model. weights: its weight file. settings, answers: as in a Verification."""

    findings: list[Outcome]
    name: str = ""
    fingerprint: str = ""
    weights: Path | None = None
    settings: dict[str, str] = {}
    answers: tuple[PhotographAnswer, ...] = ()


def check_model(target: Artifact) -> ModelCheck:
    """Check the weight file against its published hash, load it in float32, and check what it computes.

    Raises UsageError for names that do not exist and for PyTorch where it is needed, HubError.
    """
    path, published = find_weight_file(target)
    digest = file_hash(path)
    weights = _check_hash(path, digest, published)
    if weights.verdict == "failed":
        return ModelCheck([weights, Outcome("answers", "", _SKIPPED, "skipped")], target.model, weights=path)
    try:
        predictor = load(target.model, checkpoint_path=target.checkpoint, precision="float32", device="cpu")
    except WeightsError as error:
        failed = Outcome("tensors and config", "those of the architecture, finite", str(error), "failed", error.code)
        return ModelCheck([weights, failed], target.model, weights=path)
    network = predictor.engine.network
    assert network is not None
    loaded = Outcome("tensors", f"those of {network.arch}, finite", f"{len(network.tensors)} tensors", "passed")
    return _with_answers(predictor, [weights, loaded], path)


def find_weight_file(target: Artifact) -> tuple[Path, str | None]:
    """Return the weight file of a model, and the SHA-256 that it must have, if one is known.

    Published weights are downloaded, or found in the cache. Raises UsageError, WeightsError, HubError.
    """
    if target.checkpoint is not None:
        if target.model.startswith("local-dir:"):
            return locate(find_checkpoint(target.model, read_pretrained=True)[0], target.model, None)
        row = CATALOGUE.get(full_name(target.model))
        return target.checkpoint, row.sha256 if row else None
    return locate(find_checkpoint(target.model, read_pretrained=True)[0], target.model, None)


def _check_hash(path: Path, digest: str, published: str | None) -> Outcome:
    check = f"SHA-256 of {path.name}"
    if not published:
        return Outcome(check, "none is published", digest, "recorded")
    is_same = digest.startswith(published.lower())  # some configs state the first digits only
    if not is_same:
        return Outcome(check, published, digest, "failed", "hash_mismatch")
    return Outcome(check, published, "the same", "passed")


def check_export(target: Artifact) -> ModelCheck:
    """Check the files of an exported folder against its manifest, and what the graph computes. Raises UsageError."""
    folder = target.path
    assert folder is not None
    damaged = find_damaged(folder, (FILE,))
    if damaged:
        failed = Outcome(damaged, "as it was exported", "missing or changed", "failed", "hash_mismatch")
        return ModelCheck([failed, Outcome("answers", "", _SKIPPED, "skipped")], target.model)
    files = Outcome("files", "the hashes of the manifest", "all of them", "passed")
    try:
        predictor = load(target.model)
    except WeightsError as error:
        failed = Outcome("card and graph", "fit together", str(error), "failed", error.code)
        return ModelCheck([files, failed], target.model)
    return _with_answers(predictor, [files], None)


def _with_answers(predictor: Predictor, findings: list[Outcome], path: Path | None) -> ModelCheck:
    labels = Outcome("labels", f"{predictor.num_classes} classes", f"{len(predictor.labels)} names", "passed")
    if len(predictor.labels) != predictor.num_classes:
        labels = labels._replace(verdict="failed", code="bad_config")
    try:
        computed = check_answers(predictor)
    except (UsageError, WeightsError) as error:
        computed_findings = [_failed_answers(error)]
        answers: tuple[PhotographAnswer, ...] = ()
    else:
        computed_findings, answers = computed
    settings = dict(
        engine=predictor.plan.engine,
        precision=predictor.plan.precision,
        transform=predictor.transform,
        policy=predictor.policy,
        reference="PyTorch" if is_installed("torch") else "the engine itself",
    )
    return ModelCheck(
        [*findings, labels, *computed_findings], predictor.name, predictor.fingerprint, path, settings, answers
    )


def _failed_answers(error: TessellaError) -> Outcome:
    return Outcome("answers", "outputs for the photographs", str(error), "failed", error.code)
