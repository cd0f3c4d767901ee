"""The results of checks: what was expected, what was found, and the verdict."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal, NamedTuple

from ..machine import cpu_name, instruction_set, thread_count, versions

Kind = Literal["model", "export", "run", "index", "training run"]
# passed, failed: the check was made. recorded: there is nothing to compare with, so the value is only shown and written
# to receipts. skipped: the check could not be made, for the reason in `found`. differs: a difference that is allowed,
# such as another version of a package.
Verdict = Literal["passed", "failed", "recorded", "skipped", "differs"]
PACKAGES = ("numpy", "pillow", "simplejpeg", "pyarrow", "lancedb")  # that change results, besides those that run models


class Outcome(NamedTuple):
    """A check and its result. code: of `errors.CODES`, for a check that failed."""

    check: str
    expected: str
    found: str
    verdict: Verdict
    code: str = ""


@dataclass(frozen=True)
class PhotographAnswer:
    """What a model gives for one photograph in this package, in float32.

    pixels: SHA-256 of the pixels after resizing and cropping. logits, embedding: rounded to SIGNIFICANT_DIGITS.
    """

    photograph: str
    pixels: str
    logits: tuple[float, ...]
    embedding: tuple[float, ...]


@dataclass(frozen=True)
class Verification:
    """Everything that `verify` found out about a target.

    target: as it was given. fingerprint: of its results, "" if it could not be determined. files: (bytes, SHA-256) by
    name, of all files. settings, answers: how a model was run, and what it gave; empty if it was not run. machine,
    packages: where this was done, and with which versions.
    """

    target: str
    kind: Kind
    name: str  # of the model
    fingerprint: str
    findings: tuple[Outcome, ...]
    files: Mapping[str, tuple[int, str]]
    settings: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[PhotographAnswer, ...] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Outcome]:
        """The checks that failed."""
        return failures(self.findings)

    @property
    def code(self) -> str:
        """The code of the first check that failed; "" if none did."""
        return self.failed[0].code if self.failed else ""


def failures(findings: Sequence[Outcome]) -> list[Outcome]:
    """Return the checks that failed."""
    return [finding for finding in findings if finding.verdict == "failed"]


def judged(check: str, expected: str, found: str, passed: bool, code: str) -> Outcome:
    """Return the finding of a check that was made. code: if it did not pass."""
    return Outcome(check, expected, found, "passed") if passed else Outcome(check, expected, found, "failed", code)


def compared(check: str, expected: str, found: str, code: str) -> Outcome:
    """Return the finding for two texts that must be equal."""
    return judged(check, expected, found, found == expected, code)


def describe_machine() -> dict[str, str]:
    """Return the facts about this computer that a receipt records."""
    return dict(
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        instructions=instruction_set(),
        threads=str(thread_count()),
    )


def package_versions() -> dict[str, str]:
    """Return the versions of Python, of this package, and of the installed packages that results depend on."""
    result = dict(python=platform.python_version(), **versions())
    for name in PACKAGES:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return result
