"""Draw mosaics of weights and attention into panels of a figure, with color maps that survive gray print.

Both color maps become lighter from their lowest to their highest value, so that a gray print keeps the order, also the
sign of weights, and their hues can be told apart by colour-blind people. Letters for shapes: U tiles, h, w cells of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..extras import require
from .mosaics import Mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# negative weights are dark blue, zero is gray, positive weights are light yellow
SIGNED_COLORS = ("#00114d", "#1f4a9e", "#6d7f9c", "#8f8f8f", "#bda56b", "#eabf4a", "#fff6cf")
ATTENTION = "magma"  # of matplotlib; attention has no sign
TITLE, LABEL = 10, 8  # points


def signed_colors() -> Colormap:
    """Return the color map for weights of both signs; its lightness grows with the value, and zero is gray."""
    colors = require("matplotlib.colors", "drawing figures")
    made: Colormap = colors.LinearSegmentedColormap.from_list("signed", SIGNED_COLORS)
    return made


def draw_mosaic(panel: Axes, mosaic: Mosaic, *, signed: bool) -> AxesImage:
    """Draw a mosaic of tiles in -1..1 (`signed`), in 0..1, or in color, without ticks."""
    image = panel.imshow(
        mosaic.picture,
        cmap=signed_colors() if signed else ATTENTION,
        vmin=-1 if signed else 0,
        vmax=1,
        interpolation="nearest",
        interpolation_stage="data",
    )
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    return image


def label_rows(panel: Axes, mosaic: Mosaic, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Write a label beside each row of tiles and above each column."""
    panel.set_yticks(mosaic.y, rows, fontsize=LABEL)
    panel.set_xticks(mosaic.x, columns, fontsize=LABEL)
    panel.xaxis.tick_top()
    panel.tick_params(length=0)


def outline_cells(panel: Axes, mosaic: Mosaic, cells: Sequence[tuple[int, int, int]], size: tuple[int, int]) -> None:
    """Outline one cell in each of several tiles: (tile, row, column), for tiles of `size` (rows, columns).

    The outline is white between black lines, which shows on every color.
    """
    patches = require("matplotlib.patches", "drawing figures")
    collections = require("matplotlib.collections", "drawing figures")
    width, height = size[1] * mosaic.cell + mosaic.gap, size[0] * mosaic.cell + mosaic.gap
    columns = len(mosaic.x)
    squares = [
        patches.Rectangle(
            (tile % columns * width + column * mosaic.cell - 0.5, tile // columns * height + row * mosaic.cell - 0.5),
            mosaic.cell,
            mosaic.cell,
        )
        for tile, row, column in cells
    ]
    for color, line in (("black", 2.0), ("white", 0.9)):
        panel.add_collection(
            collections.PatchCollection(squares, facecolor="none", edgecolor=color, linewidth=line, clip_on=False)
        )


def add_scale(figure: Figure, image: AxesImage, panels: Sequence[Axes], label: str, *, signed: bool) -> None:
    """Add a color bar beside `panels`."""
    bar = figure.colorbar(image, ax=list(panels), shrink=0.7, aspect=25, pad=0.02)
    bar.set_label(label, fontsize=LABEL)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1] if signed else [0, 0.25, 0.5, 0.75, 1])
    bar.ax.tick_params(labelsize=LABEL)
