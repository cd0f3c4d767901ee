"""What figures share: matplotlib without a display, contact sheets, thumbnails, curves, colours."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.decode import Pixels
from ..data.resize import resize_exact
from ..errors import TessellaError
from ..extras import require
from ..text import printable

log = logging.getLogger(__name__)

DPI = 120
SHEET = (4, 5)  # rows and columns of the contact sheet
THUMBNAIL = 160  # pixels of the longer side
STYLES = (
    ("#000000", "o"), ("#E69F00", "s"), ("#0072B2", "^"), ("#009E73", "D"), ("#CC79A7", "v"), ("#D55E00", "P"),
    ("#56B4E9", "X"), ("#F0E442", "*"),
)  # fmt: skip


def matplotlib(module: str = "figure") -> Any:
    """A module of matplotlib; UsageError `missing_dependency` where it is not installed."""
    return require(f"matplotlib.{module}", "drawing pictures")


def draw_or_warn(what: str, draw: Callable[[], bytes]) -> bytes | None:
    """Return the picture from `draw`, or None with a warning if it cannot be drawn: no result depends on it."""
    try:
        return draw()
    except TessellaError as error:
        log.warning("%s was not drawn: %s", what, error)
    except Exception as error:  # fonts, caches and backends outside this package fail in ways that nobody has listed
        log.warning("%s was not drawn: %s: %s", what, type(error).__name__, error)
    return None


def render(figure: Any, suffix: str = ".png") -> bytes:
    """The file of a Figure; the same picture is the same bytes."""
    buffer = io.BytesIO()
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}}[suffix]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class named in a script that the font does not have
        figure.savefig(buffer, format=suffix[1:], dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def contact_sheet(pictures: Sequence[tuple[Pixels, str]], columns: int = SHEET[1]) -> bytes:
    """Images (H,W,3) uint8 of any size with a text above each, in rows of so many."""
    rows = max(math.ceil(len(pictures) / columns), 1)
    figure = matplotlib().Figure(figsize=(2.2 * columns, 2.6 * rows))
    for i, (pixels, text) in enumerate(pictures):
        # places by arithmetic: a layout of twenty axes that fits itself takes seconds
        left, bottom = (i % columns + 0.05) / columns, 1 - (i // columns + 0.97) / rows
        panel = figure.add_axes((left, bottom, 0.9 / columns, 0.76 / rows))
        panel.set_anchor("N")
        panel.imshow(pixels, interpolation="nearest" if max(pixels.shape) < THUMBNAIL else "antialiased")
        panel.set_axis_off()
        figure.text(left, 1 - (i // columns + 0.02) / rows, text, fontsize=8, va="top")
    return render(figure)


def curves(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Training curves of the rows of a run's log: losses, accuracies (0..1) and learning rates, by their names.

    The horizontal axis is `epoch` or `step`, whichever the rows have, else their position. A row without a value, or
    with one that is not finite, is left out of that curve.
    """
    axis = next((name for name in ("epoch", "step") if any(name in row for row in rows)), "")
    names = list(dict.fromkeys(name for row in rows for name in row))
    wanted = {
        "loss": [name for name in names if "loss" in name],
        "accuracy (%)": [name for name in names if any(part in name for part in ("top1", "top5", "accuracy"))],
        "learning rate": [name for name in names if name == "lr" or name.endswith("_lr")],
    }
    shown = {title: some for title, some in wanted.items() if some}
    figure = matplotlib().Figure(figsize=(5 * max(len(shown), 1), 4), layout="constrained")
    panels = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for panel, (title, some) in zip(panels, shown.items(), strict=False):
        scale = 100 if "%" in title else 1
        for name in some:
            points = [(row.get(axis, i), scale * row[name]) for i, row in enumerate(rows) if _is_number(row.get(name))]
            panel.plot(*zip(*points, strict=True), label=name) if points else None
            if len(points) == 1:
                panel.plot(*points[0], "o", color=panel.lines[-1].get_color())
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(axis)
        panel.grid(color="0.92")
        if panel.lines:
            panel.legend(fontsize=8)
    return render(figure)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plain(text: str, length: int = 28) -> str:
    """A name for a picture: one line, not too long, and no mathematics in it."""
    line = printable(" ".join(text.split()))
    return (line if len(line) <= length else f"{line[: length - 1]}…").replace("$", r"\$")


def warn_without_matplotlib() -> bool:
    """Return whether pictures can be drawn; warn if not."""
    try:
        matplotlib()
    except TessellaError as error:
        log.warning("no pictures will be drawn: %s", error)
        return False
    return True


def thumbnail(pixels: Pixels) -> Pixels:
    """(H,W,3) with no side over THUMBNAIL; a smaller image stays as it is."""
    height, width, _ = pixels.shape
    scale = THUMBNAIL / max(height, width)
    if scale >= 1:
        return pixels
    height, width = max(round(height * scale), 1), max(round(width * scale), 1)
    return resize_exact(pixels, height, width, slice(0, height), slice(0, width), "bilinear")


# Okabe and Ito's colours, which people of all colour vision can tell apart; the shapes say the same once more
