"""Figures of weights without attention: token mixing of the mixers, patch embeddings, and depthwise kernels.

After the figures of arXiv:2105.01601 (MLP-Mixer), arXiv:2105.03404 (ResMLP), arXiv:2105.08050 (gMLP) and
arXiv:2201.09792 (ConvMixer). Letters for shapes: U units, L blocks, D model width, p pixels of a patch's side, k the
side of a kernel. Every function returns a PNG file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..models.configs.shared import Pair
from ..plots.figures import STYLES, new_figure, plain, render
from ..results import FloatArray
from .mosaic_panels import LABEL, LABEL_LINE, MARGIN, SCALE_WIDTH, TITLE, Canvas, outline_cells
from .mosaics import Mosaic, choose_evenly, filter_pictures, make_mosaic, scale_tiles
from .weights import pair_opposites, sort_by_frequency, spatial_frequency

MOST_BLOCKS = 8  # panels of a figure
MOST_UNITS, UNIT_COLUMNS = 64, 8  # tiles of a panel
MOST_POSITIONS, POSITION_BLOCKS = 6, 6  # rows and columns of output patches; panels
MOST_FILTERS, FILTER_COLUMNS, FILTER_PIXELS = 256, 32, 36
GAP = 3  # pixels
TILE_PIXELS, POSITION_PIXELS = 42, 56  # of a tile's longer side
SCALE = "weight / largest absolute weight of the tile"


def draw_units(grids: Sequence[FloatArray], title: str, name: str, *, paired: bool) -> bytes:
    """Draw units of several blocks, each (U,rows,columns), sorted from the lowest spatial frequency to the highest.

    paired: units of opposite phase stand side by side, as in figure 5 of arXiv:2105.01601.
    """
    blocks = choose_evenly(len(grids), MOST_BLOCKS)
    orders = [_paired_order(grids[i]) if paired else _spread(sort_by_frequency(grids[i]), MOST_UNITS) for i in blocks]
    tiles = [scale_tiles(grids[i][order]) for i, order in zip(blocks, orders, strict=True)]
    group = 2 if paired else 0
    mosaics = [make_mosaic(part, UNIT_COLUMNS, size=TILE_PIXELS, gap=GAP, group=group) for part in tiles]
    texts = [
        f"block {i}: {len(order)} of {len(grids[i])} units" if len(order) < len(grids[i]) else f"block {i}"
        for i, order in zip(blocks, orders, strict=True)
    ]
    arranged = "pairs of opposite phase, " if paired else ""
    title = f"{title}: {plain(name, 50)}\n{arranged}sorted by spatial frequency"
    return _draw_panels(mosaics, texts, title, len(grids))


def draw_positions(grids: Sequence[FloatArray], name: str) -> bytes:
    """Draw which patches an output patch reads, for (N,rows,columns) weights of several blocks.

    Output patches are chosen evenly over the image and stand at their places, as in figure 2 of arXiv:2105.03404; each
    is outlined in its own tile.
    """
    rows, columns = grids[0].shape[1:]
    ys, xs = choose_evenly(rows, MOST_POSITIONS), choose_evenly(columns, MOST_POSITIONS)
    wanted = (ys[:, None] * columns + xs).ravel()
    blocks = choose_evenly(len(grids), POSITION_BLOCKS)
    tiles = [scale_tiles(grids[i][wanted]) for i in blocks]
    cells = [(tile, int(i) // columns, int(i) % columns) for tile, i in enumerate(wanted)]
    shown = f", {len(ys)}x{len(xs)} of {rows}x{columns} output patches" if len(wanted) < rows * columns else ""
    title = f"Which patches the outlined one reads: {plain(name, 50)}{shown}"
    texts = [f"block {i}" for i in blocks]
    mosaics = [make_mosaic(part, len(xs), size=POSITION_PIXELS, gap=GAP) for part in tiles]
    return _draw_panels(mosaics, texts, title, len(grids), cells=cells, size=(rows, columns))


def draw_mixing_summary(
    grids: Sequence[FloatArray], sparsities: Mapping[str, Sequence[float]], threshold: float, name: str
) -> bytes:
    """Draw the sparsity of layers and the spatial frequency of token mixing by depth.

    grids: (U,rows,columns) of each block; sparsities: share of small weights (0 to 1) of each block, by kind of layer;
    threshold: what counts as small, relative to the largest weight of the layer.
    """
    figure = new_figure(10.5, 3.8)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    for (label, shares), (color, marker) in zip(sparsities.items(), STYLES, strict=False):
        left.plot(range(len(shares)), [100 * share for share in shares], color=color, marker=marker, label=label)
    left.set_ylim(bottom=0)
    left.set_ylabel(f"weights below {100 * threshold:g} % of the largest (%)")
    left.set_title("sparsity", fontsize=10)
    low, middle, high = np.stack([np.quantile(spatial_frequency(g), (0.25, 0.5, 0.75)) for g in grids], 1)
    right.fill_between(range(len(grids)), low, high, color="0.85", label="middle half of the units")
    right.plot(range(len(grids)), middle, "o-", color="black", label="median")
    noise = np.random.default_rng(0).normal(size=(500, *grids[0].shape[1:])).astype(np.float32)
    level = float(np.median(spatial_frequency(noise)))
    right.axhline(level, color="0.45", linestyle=":", label=f"random weights ({level:.2f})")
    right.set_ylim(bottom=0)
    right.set_ylabel("mean spatial frequency (cycles per patch)")
    right.set_title("smoothness of token mixing", fontsize=10)
    for panel in (left, right):
        panel.set_xlabel("block")
        panel.set_xticks(choose_evenly(len(grids), 12))
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
        panel.legend(fontsize=LABEL)
    figure.suptitle(f"Token-mixing weights by depth: {plain(name, 60)}", fontsize=TITLE)
    return render(figure)


def draw_patch_filters(filters: FloatArray, name: str) -> bytes:
    """Draw (D,p,p,3) filters of a patch embedding as RGB pictures, from the lowest spatial frequency to the highest."""
    order = _spread(sort_by_frequency(filters), MOST_FILTERS)
    mosaic = make_mosaic(filter_pictures(filters[order]), FILTER_COLUMNS, size=FILTER_PIXELS)
    shown = f", {len(order)} of {len(filters)}" if len(order) < len(filters) else ""
    title = (
        f"Patch-embedding filters in units of pixel values: {plain(name, 50)}{shown}\n"
        "middle gray is 0; each is scaled to its largest weight; sorted by spatial frequency"
    )
    height, width = mosaic.picture.shape[:2]
    canvas = Canvas(title, width, height)
    canvas.mosaic(mosaic, 0, 0, signed=False)
    return canvas.png()


def draw_kernels(kernels_LDkk: FloatArray, name: str) -> bytes:
    """Draw depthwise kernels of the blocks of a ConvMixer, (L,D,k,k), sorted by spatial frequency in each block."""
    blocks = choose_evenly(len(kernels_LDkk), MOST_BLOCKS)
    orders = [_spread(sort_by_frequency(kernels_LDkk[i]), MOST_UNITS) for i in blocks]
    tiles = [scale_tiles(kernels_LDkk[i][order]) for i, order in zip(blocks, orders, strict=True)]
    width = kernels_LDkk.shape[1]
    shown = f", {len(orders[0])} of {width} per block" if len(orders[0]) < width else ""
    title = f"Depthwise kernels: {plain(name, 50)}{shown}\nsorted by spatial frequency"
    mosaics = [make_mosaic(part, UNIT_COLUMNS, size=TILE_PIXELS, gap=GAP) for part in tiles]
    return _draw_panels(mosaics, [f"block {i}" for i in blocks], title, len(kernels_LDkk))


def draw_reach(kernels_LDkk: FloatArray, name: str) -> bytes:
    """Draw the share of each offset in the absolute weights of depthwise kernels (L,D,k,k), averaged over a block."""
    shares = np.abs(kernels_LDkk).mean(1)
    shares = shares / np.maximum(shares.sum((1, 2), keepdims=True), np.finfo(np.float32).tiny)
    blocks = choose_evenly(len(shares), MOST_BLOCKS)
    columns = min(len(blocks), 4)
    rows = math.ceil(len(blocks) / columns)
    figure = new_figure(2.1 * columns + 1.2, 2.1 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    size = shares.shape[1]
    offsets = np.arange(size) - (size - 1) // 2
    for panel, block in zip(panels, blocks, strict=False):
        image = panel.imshow(100 * shares[block], cmap="cividis", vmin=0, vmax=100 * shares[blocks].max())
        panel.set_title(f"block {block}", fontsize=LABEL)
        for axis, ticks in (("x", panel.set_xticks), ("y", panel.set_yticks)):
            ticks(range(size), [f"{offset:d}" for offset in offsets], fontsize=7 if size <= 7 else 5)
            panel.tick_params(axis=axis, length=2)
    for panel in panels[len(blocks) :]:
        panel.set_axis_off()
    bar = figure.colorbar(image, ax=list(panels), shrink=0.7, aspect=25, pad=0.02)
    bar.set_label("share of the absolute weights (%)", fontsize=LABEL)
    figure.supxlabel("offset in patches", fontsize=LABEL)
    shown = f", {len(blocks)} of {len(shares)} blocks" if len(blocks) < len(shares) else ""
    figure.suptitle(f"Reach of the depthwise kernels: {plain(name, 50)}{shown}", fontsize=TITLE)
    return render(figure)


def _draw_panels(
    mosaics: Sequence[Mosaic],
    texts: Sequence[str],
    title: str,
    count: int,
    *,
    cells: Sequence[tuple[int, int, int]] = (),
    size: Pair = (0, 0),
) -> bytes:
    """Draw one mosaic of signed tiles per block, of which there are `count`; cells, size: see `outline_cells`."""
    columns = 4 if len(mosaics) > 6 else min(len(mosaics), 3)
    height, width = mosaics[0].picture.shape
    across, down = width + 2 * MARGIN, height + LABEL_LINE + 2 * MARGIN
    area = math.ceil(len(mosaics) / columns) * down - MARGIN
    shown = f"; {len(mosaics)} of {count} blocks" if len(mosaics) < count else ""
    canvas = Canvas(f"{title}{shown}", columns * across + SCALE_WIDTH, area)
    for i, (mosaic, text) in enumerate(zip(mosaics, texts, strict=True)):
        panel, image = canvas.mosaic(mosaic, i % columns * across, i // columns * down + LABEL_LINE, signed=True)
        panel.set_title(text, fontsize=LABEL + 1, pad=4)
        if cells:
            outline_cells(panel, mosaic, cells, size)
    canvas.scale(image, columns * across, area, SCALE, signed=True)
    return canvas.png()


def _paired_order(grids: FloatArray) -> NDArray[np.int64]:
    """Return at most MOST_UNITS indices: pairs of opposite phase, evenly chosen from those sorted by frequency."""
    pairs = pair_opposites(grids)
    return pairs[choose_evenly(len(pairs), MOST_UNITS // 2)].ravel()


def _spread(order: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return order[choose_evenly(len(order), most)]
