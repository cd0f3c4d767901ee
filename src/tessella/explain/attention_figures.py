"""Figures of attention: gates, attention by position and by content, and non-locality of a ConViT; the branches and
fusions of a CrossViT.

After the figures of arXiv:2103.10697 (ConViT) and arXiv:2103.14899 (CrossViT). Letters for shapes: L blocks, H heads, N
patches, R, C rows and columns of tiles. Every function returns a PNG file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..models.configs.shared import Pair
from ..plots.figures import STYLES, new_figure, plain, render
from ..results import FloatArray
from .attention_weights import StageAttention, non_locality, patch_distances
from .maps import upsample
from .mosaic_panels import (
    LABEL,
    LABEL_LINE,
    MARGIN,
    SCALE_WIDTH,
    TITLE,
    Canvas,
    label_tiles,
    labels_width,
    outline_cells,
)
from .mosaics import Mosaic, choose_evenly, make_mosaic, scale_tiles
from .subject import PreparedImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS, MOST_HEADS = 10, 9  # tiles of a figure; more blocks or heads are chosen evenly
INITIAL_GATE = 0.731  # sigmoid(1), with which a ConViT starts
BRANCH_NAMES = ("small", "large")  # patches of branch 0 and 1
TILE_PIXELS, IMAGE_PIXELS = 88, 240  # of the longer side

# --- ConViT -----------------------------------------------------------------------------------------------------------


def draw_gates(gates_LH: FloatArray, name: str) -> bytes:
    """Draw (L,H) gates of a ConViT: as a table of blocks and heads, and per block with the mean over the heads."""
    blocks, heads = gates_LH.shape
    figure = new_figure(4.6 + 0.42 * heads, 1.6 + max(0.36 * blocks, 2.2))
    table, curve = figure.subplots(1, 2, width_ratios=(0.42 * heads, 3.4), gridspec_kw={"wspace": 0.08})
    low = min(float(np.floor(10 * gates_LH.min())) / 10, 0.9)
    high = max(float(np.ceil(10 * gates_LH.max())) / 10, low + 0.1)
    image = table.imshow(gates_LH, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for (block, head), value in np.ndenumerate(gates_LH):
        color = "black" if value > 0.45 * high + 0.55 * low else "white"
        table.text(head, block, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=7, color=color)
    table.set_xticks(range(heads))
    table.set_yticks(range(blocks))
    table.set_xlabel("head")
    table.set_ylabel("block")
    table.set_title("gate of each head", fontsize=10)
    bar = figure.colorbar(image, ax=table, aspect=25, pad=0.02)
    bar.set_label("gate (0: content only, 1: position only)", fontsize=LABEL)
    bar.ax.tick_params(labelsize=LABEL)
    _dots_per_block(curve, list(gates_LH), "mean over the heads")
    start = f"start of training ({INITIAL_GATE:.2f})"
    curve.axhline(INITIAL_GATE, color="0.45", linestyle=":", linewidth=1.2, label=start)
    curve.set_ylim(-0.03, 1.03)
    curve.set_ylabel("gate (share of attention by position)")
    curve.set_title("by depth", fontsize=10)
    curve.legend(fontsize=LABEL, loc="lower left")
    figure.suptitle(f"Gates between position and content: {plain(name, 60)}", fontsize=TITLE)
    return render(figure)


def draw_head_attention(
    attention_LHNN: FloatArray, grid: Pair, title: str, image: PreparedImage | None = None
) -> bytes:
    """Draw where the middle patch looks in (L,H,N,N) attention: one row of tiles per block, one column per head.

    grid: (rows, columns) of patches. image: shown beside the tiles, with the middle patch outlined.
    """
    blocks = choose_evenly(attention_LHNN.shape[0], MOST_ROWS)
    heads = choose_evenly(attention_LHNN.shape[1], MOST_HEADS)
    row, column = grid[0] // 2, grid[1] // 2
    maps = attention_LHNN[np.ix_(blocks, heads)][:, :, row * grid[1] + column].reshape(-1, *grid)
    count, heads_in_all = attention_LHNN.shape[:2]
    shown = _shown(len(blocks), count, "blocks") + _shown(len(heads), heads_in_all, "heads")
    mosaic = make_mosaic(scale_tiles(maps), len(heads), size=TILE_PIXELS)
    labels = [f"block {i}" for i in blocks], [f"head {i}" for i in heads]
    canvas, panel, beside = _tiles(f"{title}\nwhere the outlined patch looks{shown}", mosaic, *labels, image)
    outline_cells(panel, mosaic, [(tile, row, column) for tile in range(len(maps))], grid)
    if beside is not None and image is not None:
        _outline_patch(beside, image, grid, (row, column))
    return canvas.png()


def draw_non_locality(
    attention: Sequence[FloatArray], position_LHNN: FloatArray, content_LHNN: FloatArray, grid: Pair, name: str
) -> bytes:
    """Draw the non-locality of each head of a ConViT by depth.

    attention: (H,T,T) of each block, blended, T with or without a class token; position_LHNN, content_LHNN: (L,H,N,N)
    attention by position and by content of the L gated blocks, of which the means over the heads are drawn.
    """
    figure = new_figure(8.4, 4.4)
    panel = figure.subplots()
    _dots_per_block(panel, [non_locality(maps_HTT, grid) for maps_HTT in attention], "attention, mean over the heads")
    parts = (("by position only", position_LHNN, STYLES[2], "--"), ("by content only", content_LHNN, STYLES[5], "-."))
    for label, maps_LHNN, (color, marker), line in parts:
        if len(maps_LHNN):
            means = non_locality(maps_LHNN, grid).mean(1)
            panel.plot(range(len(means)), means, line, color=color, marker=marker, markersize=5, label=label)
    uniform = float(patch_distances(grid).mean())
    panel.axhline(uniform, color="0.45", linestyle=":", linewidth=1.2, label=f"uniform attention ({uniform:.2f})")
    panel.set_ylim(bottom=0)
    panel.set_ylabel("non-locality (patches)")
    figure.suptitle(f"Non-locality, the mean distance that attention bridges: {plain(name, 50)}", fontsize=TITLE)
    gated = len(position_LHNN)
    if 0 < gated < len(attention):
        panel.axvline(gated - 0.5, color="0.75", linewidth=1)
        panel.text(gated - 0.45, 0.02, " standard\n attention", fontsize=LABEL, transform=panel.get_xaxis_transform())
    panel.legend(fontsize=LABEL, loc="upper left", bbox_to_anchor=(1.01, 1))
    return render(figure)


def _dots_per_block(panel: Axes, values: Sequence[FloatArray], label: str) -> None:
    """Draw one dot per head and block, and the mean over the heads as a line."""
    for block, heads in enumerate(values):
        spread = np.linspace(-0.18, 0.18, len(heads)) if len(heads) > 1 else np.zeros(1)
        panel.plot(
            block + spread, heads, "o", color="0.55", markersize=3, label="one head" if block == 0 else None, zorder=1
        )
    means = [float(heads.mean()) for heads in values]
    panel.plot(range(len(means)), means, "-", color="black", marker="o", markersize=5, label=label)
    panel.set_xticks(range(len(means)))
    panel.set_xlim(-0.5, max(len(means), 1) - 0.5)
    panel.set_xlabel("block")
    panel.grid(axis="y", color="0.92")
    panel.set_axisbelow(True)


# --- CrossViT ---------------------------------------------------------------------------------------------------------


def draw_branches(stages: Sequence[StageAttention], grids: Sequence[Pair], name: str, image: PreparedImage) -> bytes:
    """Draw the attention of the class token to the patches in both branches.

    The first and the last block of each stage are shown. grids: (rows, columns) of the patches of each branch.
    """
    rows, labels = [], []
    for number, stage in enumerate(stages):
        for b, blocks in enumerate(stage.branches):
            for i in choose_evenly(len(blocks), 2):
                rows.append(blocks[i][:, 0, 1:].reshape(-1, *grids[b]))
                labels.append(f"stage {number}, {BRANCH_NAMES[b]} patches,\nblock {i + 1} of {len(blocks)}")
    title = f"Attention of the class tokens inside the branches: {plain(name, 50)}"
    return _draw_rows(rows, labels, title, image)


def draw_fusions(stages: Sequence[StageAttention], grids: Sequence[Pair], name: str, image: PreparedImage) -> bytes:
    """Draw the attention of the class token of each branch to the patches of the other one, for each fusion.

    grids: (rows, columns) of the patches of each branch.
    """
    rows, labels = [], []
    for number, stage in enumerate(stages):
        for b, fusions in enumerate(stage.fusions):
            maps_HT = fusions[0]
            rows.append(maps_HT[:, 1:].reshape(-1, *grids[1 - b]))
            itself = 100 * float(maps_HT[:, 0].mean())
            reader = f"stage {number}: class token of\nthe {BRANCH_NAMES[b]}-patch branch reads\n"
            labels.append(f"{reader}{BRANCH_NAMES[1 - b]} patches (itself: {itself:.0f} %)")
    return _draw_rows(rows, labels, f"Cross-attention of the fusions: {plain(name, 60)}", image)


def _draw_rows(rows: Sequence[FloatArray], labels: Sequence[str], title: str, image: PreparedImage) -> bytes:
    """Draw rows of (H,rows,columns) maps, whose grids and numbers of heads may differ, with their means first."""
    most = max(len(maps) for maps in rows)
    columns = 1 + min(most, MOST_HEADS - 1)
    height, width = (max(maps.shape[axis] for maps in rows) for axis in (1, 2))
    factor = max(TILE_PIXELS // max(height, width), 2)  # cells of the coarser grid may differ by a pixel in size
    tiles = np.full((len(rows) * columns, height * factor, width * factor), np.nan, np.float32)
    for i, maps in enumerate(rows):
        chosen = [maps.mean(0), *maps[choose_evenly(len(maps), columns - 1)]]
        for k, values in enumerate(scale_tiles(np.stack(chosen))):
            tiles[i * columns + k] = upsample(values, *tiles.shape[1:], smooth=False)
    heads = choose_evenly(most, columns - 1)
    mosaic = make_mosaic(tiles, columns, size=TILE_PIXELS)
    title = f"{title}{_shown(len(heads), most, 'heads')}"
    return _tiles(title, mosaic, labels, ["mean", *(f"head {i}" for i in heads)], image)[0].png()


# --- shared -----------------------------------------------------------------------------------------------------------


def _tiles(
    title: str, mosaic: Mosaic, rows: Sequence[str], columns: Sequence[str], image: PreparedImage | None
) -> tuple[Canvas, Axes, Axes | None]:
    """Draw a mosaic of attention with labels and a color bar, beside the image if there is one.

    Returns the canvas, the panel of the mosaic, and that of the image.
    """
    height, width = mosaic.picture.shape[:2]
    left = (IMAGE_PIXELS + MARGIN if image else 0) + labels_width(rows)
    below = max(height, IMAGE_PIXELS if image else 0) + LABEL_LINE
    canvas = Canvas(title, left + width + SCALE_WIDTH, below)
    panel, drawn = canvas.mosaic(mosaic, left, LABEL_LINE, signed=False)
    label_tiles(panel, mosaic, rows, columns)
    canvas.scale(drawn, left + width + MARGIN, below, "attention / largest of the tile", signed=False)
    if image is None:
        return canvas, panel, None
    ratio = image.pixels.shape[0] / image.pixels.shape[1]
    size = (IMAGE_PIXELS, IMAGE_PIXELS * ratio) if ratio <= 1 else (IMAGE_PIXELS / ratio, IMAGE_PIXELS)
    beside = canvas.panel(0, LABEL_LINE, *size)
    beside.imshow(image.pixels, interpolation="nearest" if max(image.pixels.shape) < IMAGE_PIXELS else "antialiased")
    beside.set_axis_off()
    beside.set_title("image as the model sees it", fontsize=LABEL, pad=4)
    return canvas, panel, beside


def _outline_patch(panel: Axes, image: PreparedImage, grid: Pair, cell: Pair) -> None:
    height, width = image.pixels.shape[0] / grid[0], image.pixels.shape[1] / grid[1]
    left, top = cell[1] * width - 0.5, cell[0] * height - 0.5
    xs, ys = [left, left + width, left + width, left, left], [top, top, top + height, top + height, top]
    panel.plot(xs, ys, color="black", linewidth=3)
    panel.plot(xs, ys, color="white", linewidth=1.4)


def _shown(shown: int, count: int, what: str) -> str:
    return "" if shown == count else f"; {shown} of {count} {what}"
