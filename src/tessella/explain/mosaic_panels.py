"""Draw mosaics of weights and attention into figures, with color maps that survive gray print.

Both color maps become lighter from their lowest to their highest value, so that a gray print keeps the order, also the
sign of weights, and color-blind people can distinguish their hues. Panels are placed in pixels and not by a layout
engine: a cell of a mosaic is one pixel, so that all gaps have the same width and files stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..extras import require
from ..plots.figures import DPI, new_figure, render
from .mosaics import Mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

# negative weights are dark blue, zero is gray, positive weights are light yellow
SIGNED_COLORS = ("#00114d", "#1f4a9e", "#6d7f9c", "#8f8f8f", "#bda56b", "#eabf4a", "#fff6cf")
ATTENTION = "magma"  # of matplotlib; attention has no sign
TITLE, LABEL = 11, 8  # points
TITLE_LINE, LABEL_LINE = 22, 16  # pixels from line to line
TITLE_LETTER, LABEL_LETTER = 10.5, 7.0  # pixels, wider than most letters
MARGIN = 14  # pixels
SCALE_WIDTH = 90  # pixels of a color bar with its label


def signed_colors() -> Colormap:
    """Return the color map for weights of both signs; its lightness grows with the value, and zero is gray."""
    colors = require("matplotlib.colors", "drawing figures")
    made: Colormap = colors.LinearSegmentedColormap.from_list("signed", SIGNED_COLORS)
    return made


class Canvas:
    """A figure with a title, and panels that are placed in pixels from the top left corner of the area below it."""

    def __init__(self, title: str, width: int, height: int):
        """title: one or more lines. width, height: pixels of the area; the figure is widened for a long title."""
        lines = title.split("\n")
        self.top = TITLE_LINE * len(lines) + MARGIN
        self.width = max(width + 2 * MARGIN, round(TITLE_LETTER * max(map(len, lines))) + 2 * MARGIN)
        self.height = height + self.top + MARGIN
        self.figure = new_figure(self.width / DPI, self.height / DPI, layout=None)
        self.figure.text(
            MARGIN / self.width, 1 - MARGIN / 2 / self.height, title, fontsize=TITLE, va="top", linespacing=1.15
        )

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return a new panel."""
        x, y = (MARGIN + left) / self.width, 1 - (self.top + top + height) / self.height
        return self.figure.add_axes((x, y, width / self.width, height / self.height))

    def mosaic(self, mosaic: Mosaic, left: float, top: float, *, signed: bool) -> tuple[Axes, AxesImage]:
        """Draw a mosaic of tiles in -1..1 (`signed`), in 0..1, or in color, with its top left corner at a point."""
        height, width = mosaic.picture.shape[:2]
        panel = self.panel(left, top, width, height)
        image = panel.imshow(
            mosaic.picture,
            cmap=signed_colors() if signed else ATTENTION,
            vmin=-1 if signed else 0,
            vmax=1,
            interpolation="nearest",
        )
        panel.set_xticks([])
        panel.set_yticks([])
        for spine in panel.spines.values():
            spine.set_visible(False)
        return panel, image

    def scale(self, image: AxesImage, left: float, height: int, label: str, *, signed: bool) -> None:
        """Draw a color bar at `left`, in the middle of an area `height` pixels high."""
        length = min(height, 420)
        bar = self.figure.colorbar(image, cax=self.panel(left, (height - length) / 2, 16, length))
        bar.set_label(label, fontsize=LABEL)
        bar.set_ticks([-1, -0.5, 0, 0.5, 1] if signed else [0, 0.25, 0.5, 0.75, 1])
        bar.ax.tick_params(labelsize=LABEL)

    def png(self) -> bytes:
        """Return the figure as a PNG file."""
        return render(self.figure)


def label_tiles(panel: Axes, mosaic: Mosaic, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Write a label beside each row of tiles and above each column."""
    panel.set_yticks(mosaic.y, rows, fontsize=LABEL)
    panel.set_xticks(mosaic.x, columns, fontsize=LABEL)
    panel.xaxis.tick_top()
    panel.tick_params(length=0)


def labels_width(labels: Sequence[str]) -> int:
    """Return the pixels that labels beside a panel need."""
    return round(LABEL_LETTER * max((len(line) for label in labels for line in label.split("\n")), default=0)) + 8


def outline_cells(panel: Axes, mosaic: Mosaic, cells: Sequence[tuple[int, int, int]], size: tuple[int, int]) -> None:
    """Outline one cell in each of several tiles: (tile, row, column), for tiles of `size` (rows, columns).

    The outline is a white line of one pixel around the cell and a black one around that, so that it shows on every
    color and hides nothing of the cell.
    """
    patches = require("matplotlib.patches", "drawing figures")
    collections = require("matplotlib.collections", "drawing figures")
    # the edges of tiles; a pixel's center has whole coordinates
    lefts, tops = mosaic.x - size[1] * mosaic.cell / 2, mosaic.y - size[0] * mosaic.cell / 2
    columns = len(mosaic.x)
    for color, away in (("black", 1.5), ("white", 0.5)):  # pixels from the edge of the cell to the middle of the line
        squares = [
            patches.Rectangle(
                (
                    lefts[tile % columns] + column * mosaic.cell - away,
                    tops[tile // columns] + row * mosaic.cell - away,
                ),
                mosaic.cell + 2 * away,
                mosaic.cell + 2 * away,
            )
            for tile, row, column in cells
        ]
        style = dict(facecolor="none", edgecolor=color, linewidth=72 / DPI, antialiased=False, snap=False)
        panel.add_collection(collections.PatchCollection(squares, clip_on=False, **style))
