"""Verify any artifact: a model, an export, a run, an index or a training run."""

from __future__ import annotations

from pathlib import Path

from ..checks import checked
from .checkpoints import ModelCheck, check_export, check_model
from .contents import content_hashes
from .findings import Outcome, Verification, describe_machine, package_versions
from .folders import check_index, check_run, check_training
from .targets import Artifact, find_target


@checked
def verify(target: str | Path, *, model: str | None = None) -> Verification:
    """Check everything about a target that can be checked here; nothing is written.

    target: the name of a model, a weight file, or the folder of a saved model, an export, a run, an index or a training
    run. model: the name of the model that a weight file belongs to, if neither its name nor its folder says so.
    A check that fails is in the result; what cannot be checked at all raises: UsageError `not_found`, `bad_argument`,
    `unreadable`, `busy`, `damaged_run` (run.json and its copy), `missing_dependency`; WeightsError, HubError.
    """
    return verify_target(find_target(str(target), model))


def verify_target(target: Artifact) -> Verification:
    """As `verify`, for a target that was found already."""
    if target.kind in ("run", "index"):
        assert target.path is not None
        findings, facts = check_run(target.path) if target.kind == "run" else check_index(target.path)
        found = ModelCheck(findings, facts["model"] if facts else "", facts["fingerprint"] if facts else "")
    elif target.kind == "export":
        found = check_export(target)
    elif target.kind == "training run":
        found = _check_training(target)
    else:
        found = check_model(target)
    path = target.path or found.weights
    assert path is not None
    return Verification(
        target=target.given,
        kind=target.kind,
        name=found.name,
        fingerprint=found.fingerprint,
        findings=tuple(found.findings),
        files=content_hashes(path),
        settings=found.settings,
        answers=found.answers,
        machine=describe_machine(),
        packages=package_versions(),
    )


def _check_training(target: Artifact) -> ModelCheck:
    assert target.path is not None
    findings = check_training(target.path)
    if not target.model:
        return ModelCheck([*findings, Outcome("model", "", "the run has not finished", "skipped")])
    found = check_model(target)
    return found._replace(findings=[*findings, *found.findings])
