"""Helpers for figures that several packages share: matplotlib without a display, contact sheets, curves, colors."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

from ..data.decode import Pixels
from ..data.resize import resize_exact
from ..errors import TessellaError
from ..extras import require
from ..text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

DPI = 120
SHEET = (4, 5)  # rows and columns of the contact sheet
THUMBNAIL = 160  # pixels of the longer side
# Okabe and Ito's colors, which color-blind people can distinguish; the markers distinguish them as well
STYLES = (
    ("#000000", "o"),
    ("#E69F00", "s"),
    ("#0072B2", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#D55E00", "P"),
    ("#56B4E9", "X"),
    ("#F0E442", "*"),
)


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """Return an empty figure of width x height inches.

    It is not registered with pyplot, so threads and the figures of the calling program are not affected. Raises
    UsageError `missing_dependency` without matplotlib.
    """
    figure: Figure = require("matplotlib.figure", "drawing figures").Figure(figsize=(width, height), layout=layout)
    return figure


def draw_or_warn(what: str, draw: Callable[[], bytes]) -> bytes | None:
    """Return the result of `draw`, or log a warning and return None if it fails, as figures are optional."""
    try:
        return draw()
    except TessellaError as error:
        log.warning("%s was not drawn: %s", what, error)
    except Exception as error:  # fonts, caches and backends can raise exceptions of many types
        log.warning("%s was not drawn: %s: %s", what, type(error).__name__, error)
    return None


def render(figure: Figure, suffix: str = ".png", dpi: int = DPI) -> bytes:
    """Return a figure as a .png or .svg file; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}}[suffix]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # class names in a script that the font lacks
        figure.savefig(buffer, format=suffix[1:], dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def contact_sheet(pictures: Sequence[tuple[Pixels, str]], columns: int = SHEET[1]) -> bytes:
    """Draw (H,W,3) uint8 images of any size, `columns` per row, each below its caption; return a PNG file."""
    rows = max(math.ceil(len(pictures) / columns), 1)
    figure = new_figure(2.2 * columns, 2.6 * rows, layout=None)
    for i, (pixels, text) in enumerate(pictures):
        # positions are computed here because a constrained layout of twenty axes takes seconds
        left, bottom = (i % columns + 0.05) / columns, 1 - (i // columns + 0.97) / rows
        panel = figure.add_axes((left, bottom, 0.9 / columns, 0.76 / rows))
        panel.set_anchor("N")
        panel.imshow(pixels, interpolation="nearest" if max(pixels.shape) < THUMBNAIL else "antialiased")
        panel.set_axis_off()
        figure.text(left, 1 - (i // columns + 0.02) / rows, text, fontsize=8, va="top")
    return render(figure)


def curves(rows: Sequence[Mapping[str, object]]) -> bytes:
    """Draw the training curves of a metrics log: losses, accuracies (0 to 1) and learning rates, recognized by name.

    The horizontal axis is `epoch` or `step` if the rows have one, otherwise their position. Missing values, and values
    that are not finite, are omitted. Returns a PNG file.
    """
    axis = next((name for name in ("epoch", "step") if any(name in row for row in rows)), "")
    names = list(dict.fromkeys(name for row in rows for name in row))
    groups = {
        "loss": [name for name in names if "loss" in name],
        "accuracy (%)": [name for name in names if any(part in name for part in ("top1", "top5", "accuracy"))],
        "learning rate": [name for name in names if name == "lr" or name.endswith("_lr")],
    }
    titles = [title for title, members in groups.items() if members]
    figure = new_figure(5 * max(len(titles), 1), 4)
    panels = figure.subplots(1, max(len(titles), 1), squeeze=False)[0]
    for panel, title in zip(panels, titles, strict=False):
        scale = 100 if "%" in title else 1
        for name in groups[title]:
            points = [
                (row.get(axis, i), scale * value) for i, row in enumerate(rows) if _is_number(value := row.get(name))
            ]
            panel.plot(*zip(*points, strict=True), label=name) if points else None
            if len(points) == 1:
                panel.plot(*points[0], "o", color=panel.lines[-1].get_color())
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(axis)
        panel.grid(color="0.92")
        if panel.lines:
            panel.legend(fontsize=8)
    return render(figure)


def style_speed_axis(panel: Axes) -> None:
    """Make the horizontal axis logarithmic with plain labels (1, 2, 5, 10, ...), and add a grid and margins."""
    ticker = require("matplotlib.ticker", "drawing figures")
    panel.set_xscale("log")
    panel.margins(0.2)
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.xaxis.set_major_formatter("{x:g}")


def label_point(panel: Axes, text: str, point: tuple[float, float]) -> None:
    """Write a text above a data point."""
    panel.annotate(text, point, (0, 7), textcoords="offset points", ha="center", fontsize=8)


def plain(text: str, length: int = 28) -> str:
    """Return a name for use in a figure: one line, at most `length` characters, `$` escaped."""
    line = printable(" ".join(text.split()))
    return (line if len(line) <= length else f"{line[: length - 1]}…").replace("$", r"\$")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def warn_without_matplotlib() -> bool:
    """Return whether figures can be drawn; warn if not."""
    try:
        require("matplotlib.figure", "drawing figures")
    except TessellaError as error:
        log.warning("no figures will be drawn: %s", error)
        return False
    return True


def thumbnail(pixels: Pixels) -> Pixels:
    """Reduce an (H,W,3) image so that no side exceeds THUMBNAIL; a smaller image is returned unchanged."""
    height, width, _ = pixels.shape
    scale = THUMBNAIL / max(height, width)
    if scale >= 1:
        return pixels
    height, width = max(round(height * scale), 1), max(round(width * scale), 1)
    return resize_exact(pixels, height, width, slice(0, height), slice(0, width), "bilinear")
