"""What a calibration file says about a model, for its card.

Only the text in the header of the file is read: cards need neither the arrays nor the code that uses them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..storage import read_regular
from ..text import escape_line

FILE = "calibration.safetensors"
_KEY, _SEAL = "calibration", 64  # in the metadata: a hash of the text, and the text, which is JSON
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class CalibrationFacts:
    """What a card says about a calibration.

    temperature: by which logits are divided. coverage: promised share of images whose prediction set has the true
    class. false_alarms: largest share of images of the classes that are called unknown. images, origin: what it was
    made from. errors: expected calibration error before and after, 0 to 1, if it was measured.
    """

    temperature: float
    coverage: float
    false_alarms: float
    images: int
    origin: str
    errors: tuple[float, float] | None

    def text(self) -> str:
        """Return a paragraph of Markdown."""
        measured = ""
        if self.errors is not None:
            before, after = (f"{100 * error:.1f} %" for error in self.errors)
            measured = f" The expected calibration error is {before} without and {after} with it."
        return (
            f"Probabilities are calibrated: logits are divided by {self.temperature:.3g}, fitted on {self.images:,} "
            f"images of {escape_line(self.origin)}.{measured} Prediction sets have the true class for "
            f"{100 * self.coverage:g} % of images like these, and at most {100 * self.false_alarms:g} % of them are "
            "called unknown; neither holds for images of another kind."
        )


def read_calibration_facts(place: Path) -> CalibrationFacts | None:
    """Return the facts in the calibration of a model folder, or beside a weight file; None if there is none.

    A file that is damaged counts as none: a card is no check of its model.
    """
    path = place / FILE if place.is_dir() else place.with_name(f"{place.stem}.{FILE}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        return _facts_of(_header(read_regular(path)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _header(data: bytes) -> Mapping[str, object]:
    """Return the facts in the metadata of a safetensors file; ValueError, KeyError or TypeError without them."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    facts = json.loads(metadata[_KEY][_SEAL:])
    if not isinstance(facts, dict):
        raise ValueError("no object")
    return facts


def _facts_of(facts: Mapping[str, object]) -> CalibrationFacts:
    sets, unknown, data = (_object(facts[key]) for key in ("sets", "unknown", "data"))
    figures = _object(facts.get("figures") or {})
    before, after = figures.get("ece_before"), figures.get("ece_after")
    measured = isinstance(before, int | float) and isinstance(after, int | float)
    return CalibrationFacts(
        temperature=_number(facts["temperature"]),
        coverage=_number(sets["coverage"]),
        false_alarms=_number(unknown["false_alarms"]),
        images=int(_number(data["images"])),
        origin=str(data["origin"]),
        errors=(_number(before), _number(after)) if measured else None,
    )


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError("no object")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError("no number")
    return float(value)
