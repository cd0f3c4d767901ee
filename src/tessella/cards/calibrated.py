"""What a card says about the calibration of a model."""

from __future__ import annotations

from pathlib import Path

from ..calibration.calibration import Calibration
from ..calibration.finding import beside
from ..calibration.storage import read_calibration
from ..errors import TessellaError
from ..text import escape_line


def read_calibration_beside(place: Path) -> Calibration | None:
    """Return the calibration in a model folder, or beside a weight file; None if there is none.

    A file that is damaged counts as none: a card is no check of its model, and loading the model reports the damage.
    """
    try:
        return read_calibration(beside(place))
    except TessellaError:
        return None


def calibration_text(calibration: Calibration) -> str:
    """Return a paragraph of Markdown about a calibration."""
    data, figures = calibration.data, calibration.figures
    before, after = figures.get("ece_before"), figures.get("ece_after")
    measured = ""
    if isinstance(before, int | float) and isinstance(after, int | float):
        measured = f" The expected calibration error is {100 * before:.1f} % without and {100 * after:.1f} % with it."
    return (
        f"Probabilities are calibrated: logits are divided by {calibration.temperature:.3g}, fitted on "
        f"{data.images:,} images of {escape_line(data.origin)}.{measured} Prediction sets have the true class for "
        f"{100 * calibration.coverage:g} % of images like these, and at most "
        f"{100 * calibration.unknown.false_alarms:g} % of them are called unknown; neither holds for images of another "
        "kind."
    )
