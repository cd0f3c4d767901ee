"""Format reports: Markdown tables, percentages, counts and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..text import escape_line as escape_line
from ..text import finite


def percent(fraction: float | None) -> str:
    """Return 0.1234 as "12.34 %", None as ""."""
    return "" if fraction is None else f"{100 * fraction:.2f} %"


def counts_text(counts: Mapping[str, int]) -> str:
    """Return numbers of images by error code as "3 empty, 2 unsupported_format"."""
    return ", ".join(f"{count:,} {code}" for code, count in counts.items())


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a Markdown table; columns of numbers are aligned to the right."""
    rows = [[*row] for row in rows]
    alignments = ["--:" if _is_numeric([row[i] for row in rows]) else "---" for i in range(len(header))]
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join(alignments)} |"
    for row in rows:
        yield f"| {' | '.join(map(escape_line, row))} |"
    yield ""


def _is_numeric(column: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) or str(value)[:1].isdigit() for value in column if value != "")


def json_bytes(facts: Mapping[str, object]) -> bytes:
    """Return a JSON object with one line per member; numbers that are not finite are null."""
    lines = (f"{json.dumps(key)}: {json.dumps(finite(value), ensure_ascii=False)}" for key, value in facts.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "backslashreplace")  # \\udcNN is JSON's own escape
