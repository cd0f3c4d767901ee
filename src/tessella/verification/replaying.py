"""Replay a receipt: verify a copy on this machine, and compare what was found with what the receipt says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..checks import checked
from ..engine.difference import TOLERANCE, relative_difference
from .answers import as_arrays
from .checkpoints import find_weight_file
from .contents import content_hashes
from .findings import (
    Outcome,
    PhotographAnswer,
    Verification,
    compared,
    describe_machine,
    failures,
    judged,
    package_versions,
)
from .receipts import Receipt, read_receipt
from .targets import find_target, path_of
from .verifying import verify_target

CODE = "not_as_recorded"
_SHOWN = 12  # hexadecimal digits of a hash


@checked
def replay(receipt: str | Path, target: str | Path | None = None, *, model: str | None = None) -> Verification:
    """Compare a copy with a receipt: hashes exactly, answers within the tolerance of the precision.

    receipt: a file of `write_receipt`. target: the copy; None for the name or path in the receipt. model: as in
    `verify`. If a file differs, nothing is loaded or computed. The findings of the result are the comparisons, followed
    by those of `verify`. Raises OutputError `damaged_receipt`, and the errors of `verify`.
    """
    recorded = read_receipt(receipt)
    given = str(target) if target is not None else recorded.target
    files = list(_compare_files(recorded.files, content_hashes(_find_files(given, model))))
    if failures(files):
        skipped = Outcome("answers", "", "not computed, because files differ", "skipped")
        return _unchecked(given, recorded, [*files, skipped])
    found = verify_target(find_target(given, model))
    comparisons = [*files, compared("kind", recorded.kind, found.kind, CODE)]
    comparisons.append(compared("fingerprint", recorded.fingerprint, found.fingerprint, CODE))
    comparisons += _compare_answers(recorded, found)
    comparisons += _compare_facts("machine", recorded.machine, found.machine)
    comparisons += _compare_facts("version of", recorded.packages, found.packages)
    return replace(found, findings=(*comparisons, *found.findings))


def _find_files(given: str, model: str | None) -> Path:
    """Return the folder or file to compare; a folder need not be complete enough to be recognized."""
    path = path_of(given)
    if path is not None and path.is_dir():
        return path
    place = find_target(given, model)
    return place.path or find_weight_file(place)[0]


def _unchecked(given: str, recorded: Receipt, findings: list[Outcome]) -> Verification:
    """Return the result if the copy was not loaded."""
    return Verification(
        target=given,
        kind=recorded.kind,
        name=recorded.name,
        fingerprint="",
        findings=tuple(findings),
        files={},
        machine=describe_machine(),
        packages=package_versions(),
    )


def _compare_files(expected: Mapping[str, tuple[int, str]], found: Mapping[str, tuple[int, str]]) -> Iterator[Outcome]:
    """Yield a finding for every file that differs, or one if none does."""
    if len(expected) == len(found) == 1:  # a weight file, whose name may be another one
        name = next(iter(expected))
        found = {name: next(iter(found.values()))}
    pairs = [(name, expected.get(name), found.get(name)) for name in sorted(expected.keys() | found.keys())]
    findings = [Outcome(name, _text(old), _text(new), "failed", CODE) for name, old, new in pairs if old != new]
    yield from findings or [Outcome("files", f"{len(expected)} with the hashes of the receipt", "all", "passed")]


def _text(file: tuple[int, str] | None) -> str:
    return "no such file" if file is None else f"{file[0]:,} bytes, {file[1][:_SHOWN]}"


def _compare_answers(recorded: Receipt, found: Verification) -> Iterator[Outcome]:
    if not recorded.answers:
        return
    old, new = (" ".join(answer.pixels[:_SHOWN] for answer in side.answers) for side in (recorded, found))
    yield compared("pixels of the receipt", old, new, CODE)
    bound = TOLERANCE.get(recorded.settings.get("precision", ""), TOLERANCE["float32"])
    error = float("inf")
    if _shapes(recorded.answers) == _shapes(found.answers):
        error = relative_difference(as_arrays(found.answers), as_arrays(recorded.answers))
    wanted = f"the same, within {bound:g} of their standard deviation"
    shown = f"largest difference {error:.1e}" + (" (identical)" if recorded.answers == found.answers else "")
    yield judged("answers of the receipt", wanted, shown, error <= bound, CODE)


def _shapes(answers: Sequence[PhotographAnswer]) -> list[tuple[int, int]]:
    return [(len(answer.logits), len(answer.embedding)) for answer in answers]


def _compare_facts(what: str, expected: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Outcome]:
    """Yield facts that differ, which is allowed: a receipt is for other machines."""
    for name in sorted(expected.keys() | found.keys()):
        old, new = expected.get(name, "none"), found.get(name, "none")
        if old != new:
            yield Outcome(f"{what} {name}", old, new, "differs")
