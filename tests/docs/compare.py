"""Compare what a page shows below a command with what the command prints.

- Numbers, hashes, dates, absolute paths and the kind of CPU may differ, and so may the spaces and lines of a table. All
  other words must be the same.
- If the command names no model, the name of the built-in model that it uses may be another one.
- Standard output is shown completely and in order; a line "..." stands for any number of lines. Lines of standard
  error, such as warnings and progress, may be left out.
- A response in JSON has the same keys, kinds of values and words as the one that is shown on one or more lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from tessella.weights.catalogue import CATALOGUE

SKIPPED = "..."
_MODELS = re.compile("|".join(re.escape(row.name) for row in CATALOGUE.values() if row.file))
_ABSOLUTE_PATH = re.compile(r"(?<![\w./:])/[^\s:,]+")
_CPU = re.compile(r"(?<=hardware )[^.]*")
_HASH = re.compile(r"\b(?=\w*\d)[0-9a-f]{8,}\b")
_NUMBER = re.compile(r"[-+]?\d+(,\d{3})*(\.\d*)?(e[-+]?\d+)?")
_SEVERAL_NUMBERS = re.compile("#[#:]+")  # dates and times
_TABLE = re.compile(r"[\u2500-\u257f]+")
_PROGRESS = re.compile(r"[\d,]+ of [\d,]+, .* images/s.*")  # printed every ten seconds of a run


def words(line: str, any_model: bool = False) -> str:
    """Return a line without what may differ."""
    if any_model:
        line = _MODELS.sub("MODEL", line)
    line = _TABLE.sub(" ", line)
    for pattern, replacement in (
        (_CPU, "CPU"),
        (_ABSOLUTE_PATH, "PATH"),
        (_HASH, "#"),
        (_NUMBER, "#"),
        (_SEVERAL_NUMBERS, "#"),
    ):
        line = pattern.sub(replacement, line)
    return re.sub(r"\s+(?=[],)])|\s+$", "", re.sub(r"\s+", " ", line)).lstrip()


def difference(shown: Sequence[str], out: str, err: str = "", any_model: bool = False) -> str | None:
    """Return how the shown lines differ from standard output and standard error, or None.

    Without any shown lines, the page says nothing about the output.
    """
    if not any(line.strip() for line in shown):
        return None
    if shown[0].startswith("{") and shown[-1].endswith("}"):
        return _difference_of_json(shown, out, any_model)
    results = _meaningful(out.splitlines(), any_model)
    remarks = _meaningful((line for line in err.splitlines() if not _PROGRESS.fullmatch(line)), any_model)
    skipping = False
    for line, normalized in _meaningful(shown, any_model):
        if line == SKIPPED:
            skipping = True
        elif results and results[0][1] == normalized:
            del results[0]
            skipping = False
        elif (place := _place(normalized, remarks)) is not None:
            del remarks[: place + 1]
        elif skipping and (place := _place(normalized, results)) is not None:
            del results[: place + 1]
            skipping = False
        else:
            return f"not printed (at this place): {line}"
    if results and not skipping:
        return f"printed, but not shown: {results[0][0]}"
    return None


def _meaningful(lines: Iterable[str], any_model: bool) -> list[tuple[str, str]]:
    """Return each line that says something, with its words."""
    return [(line, text) for line in lines if (text := words(line, any_model))]


def _place(text: str, lines: Sequence[tuple[str, str]]) -> int | None:
    return next((place for place, (_, other) in enumerate(lines) if other == text), None)


def _difference_of_json(shown: Sequence[str], out: str, any_model: bool) -> str | None:
    return _difference_of_values(json.loads("".join(shown)), json.loads(out), any_model, "the response")


def _difference_of_values(shown: object, actual: object, any_model: bool, where: str) -> str | None:
    if isinstance(shown, dict) and isinstance(actual, dict):
        if list(shown) != list(actual):
            return f"{where} has the keys {list(actual)}, not {list(shown)}"
        pairs = [(shown[key], actual[key], f"{where}, {key}") for key in shown]
    elif isinstance(shown, list) and isinstance(actual, list):
        if len(shown) != len(actual):
            return f"{where} has {len(actual)} items, not {len(shown)}"
        pairs = [(one, other, f"{where}, item {i}") for i, (one, other) in enumerate(zip(shown, actual, strict=True))]
    else:
        return _difference_of_scalars(shown, actual, any_model, where)
    return next(
        (text for one, other, place in pairs if (text := _difference_of_values(one, other, any_model, place))), None
    )


def _difference_of_scalars(shown: object, actual: object, any_model: bool, where: str) -> str | None:
    if isinstance(shown, str) and isinstance(actual, str):
        equal = words(shown, any_model) == words(actual, any_model)
    elif isinstance(shown, bool) or isinstance(actual, bool) or shown is None or actual is None:
        equal = shown is actual
    else:
        equal = isinstance(shown, int | float) and isinstance(actual, int | float)
    return None if equal else f"{where} is {actual!r}, not {shown!r}"
