"""Receipts: what `verify` found, as a file that another machine can check with `replay`.

A receipt contains its own hash, and only the bytes that `write_receipt` writes are accepted. So every change of the
file is detected, even one that JSON would not notice, such as a space. This is no signature: whoever can change the
file can compute a new hash. To rule that out, pass on the hash in another way, and compare it with the one that
`replay` shows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..checks import checked
from ..errors import OutputError, UsageError
from ..storage import absolute, check_output, read_regular, sealed_bytes, write_bytes
from .findings import Kind, PhotographAnswer, Verification

FORMAT = 1
SEAL_KEY = "sha256"
MAX_BYTES = 64 << 20  # of a receipt; four answers of a model with 21,843 classes take 1 MB


@dataclass(frozen=True)
class Receipt:
    """A receipt that was read.

    sha256: its own hash. findings: (check, expected, found, verdict), as they were when it was written. The other
    fields are those of a Verification.
    """

    sha256: str
    target: str
    kind: Kind
    name: str
    fingerprint: str
    files: dict[str, tuple[int, str]]
    settings: dict[str, str]
    answers: tuple[PhotographAnswer, ...]
    machine: dict[str, str]
    packages: dict[str, str]
    findings: tuple[tuple[str, str, str, str], ...]
    format: Literal[1] = 1


def receipt_bytes(found: Verification) -> bytes:
    """Return the only bytes of the receipt of a verification."""
    values = dict(
        format=FORMAT,
        target=found.target,
        kind=found.kind,
        name=found.name,
        fingerprint=found.fingerprint,
        files=dict(sorted(found.files.items())),
        settings=dict(found.settings),
        answers=[asdict(answer) for answer in found.answers],
        machine=dict(found.machine),
        packages=dict(found.packages),
        findings=[finding[:4] for finding in found.findings],
    )
    return sealed_bytes(values, SEAL_KEY)


@checked
def check_receipt_path(path: str | Path, target: str | Path) -> Path:
    """Check that a receipt can be written, before the work starts, and return its path.

    Raises UsageError `bad_argument`, also for a place inside the folder that it describes.
    """
    path = check_output(path, [".json"])
    folder = Path(absolute(str(target).removeprefix("local-dir:")))
    if folder.is_dir() and Path(absolute(path)).is_relative_to(folder):
        raise UsageError(
            "bad_argument",
            f"the receipt {str(path)!r} would be a file of {str(target)!r}, which it describes",
            hint="write it to another folder",
        )
    return path


@checked
def write_receipt(found: Verification, path: str | Path) -> str:
    """Write the receipt of a verification and return its hash.

    Raises UsageError `bad_argument` if a check failed, since a receipt is for a copy that is right, and OutputError
    `output_failed`.
    """
    if found.failed:
        raise UsageError(
            "bad_argument",
            f"{found.target} gets no receipt: {len(found.failed)} of its checks failed",
            hint="a receipt is for a copy that passes; replace the files and verify them again",
        )
    data = receipt_bytes(found)
    write_bytes(Path(path), data)
    return str(json.loads(data)[SEAL_KEY])


@checked
def read_receipt(path: str | Path) -> Receipt:
    """Read a receipt.

    Raises UsageError `not_found`, and OutputError `damaged_receipt` unless every byte is as it was written.
    """
    path = Path(path)
    try:
        data = read_regular(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError("not_found", f"the receipt {str(path)!r} could not be read: {reason}") from None
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("too large")
        values: dict[str, Any] = json.loads(data)
        unsealed = {key: value for key, value in values.items() if key != SEAL_KEY}
        if sealed_bytes(unsealed, SEAL_KEY) != data:
            raise ValueError("it is not what was written")
        return msgspec.convert(values, Receipt)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = str(error) if isinstance(error, msgspec.ValidationError) else "it is not what was written"
        raise OutputError(
            "damaged_receipt", f"the receipt {str(path)!r} is damaged: {reason}", hint="copy it again"
        ) from None
