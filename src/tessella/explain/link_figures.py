"""Figures of links: two images side by side, with lines between the regions that make their embeddings similar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..checks import check_count
from ..data.decode import Pixels
from ..extras import require
from ..plots.figures import new_figure, plain, render
from .ledger import Doubles
from .links import Grid, Link, Links, strongest
from .maps import upsample
from .subject import PreparedImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REGIONS = 4  # per side: links of single positions are many and small, and neighboring positions have similar features
MAX_LINKS = 12  # in one figure
LEAST_LINK = 0.05  # of the strongest one; weaker links are not drawn
ROUNDED = 0.0005  # smaller values would be written as 0.000
STRONG_LINK = 0.02  # the lines of all links of a figure are thin if even the strongest one is weaker
LEAST_COSINE = 0.05  # of a smaller similarity, shares say nothing: the links cancel each other out
WIDTH, HEIGHT = 7.2, 2.8  # inches
PICTURES = (4.9, 2.45)  # inches, of both images together
HEADING = 0.3  # inches
CHARACTER = 0.07  # inches, of the name of an image
GAP = 0.25  # between the images, relative to their height
DIMMED = 0.4  # brightness of regions without a part in the similarity
THICKNESS = (1.0, 6.0)  # points, of the weakest and the strongest link
BEND = 0.12  # of lines, which would cover each other if they were straight
LINE, CASING = "#0b3c5d", "white"  # dark lines with a light edge are visible on any image, in gray, too
_EXACT = (
    "The similarity of two images is the sum of its links, which are products of the features of two regions. Lines "
    "connect the regions with the strongest links, such that each region has at most one line."
)
_MEASURED = (
    "The similarity of two images under this model is not a sum over regions: {problem}. A link is what masking two "
    "regions changes beyond the sum of what masking each of them changes; the figures say how well this agrees with "
    "the measured decreases of the similarity."
)
Point = tuple[float, float]


@dataclass(frozen=True)
class LinkRow:
    """One row of a figure: a heading, and below it two images with their links; only the heading if they are None.

    minor: whether the heading belongs to one of the rows below a main heading.
    """

    heading: str
    images: tuple[PreparedImage, PreparedImage] | None = None
    links: Links | None = None
    minor: bool = False

    @property
    def height(self) -> float:
        """The height in inches."""
        return (HEADING if self.heading else 0) + (0 if self.links is None else HEIGHT)


def about_links(*, exact: bool, problem: str | None = None) -> str:
    """Return what links are, as a text to stand beside figures.

    problem: why the links of a model are not exact, as `links.links_problem` says it; None if the model is not at hand.
    """
    return _EXACT if exact else _MEASURED.format(problem=problem or "its embedding is not a mean over positions")


def draw_links(a: PreparedImage, b: PreparedImage, links: Links, *, count: int = 8) -> bytes:
    """Draw at most `count` of the strongest links between regions of two images; return a PNG file.

    The links of positions are summed over at most 4 x 4 regions of each image. Lines are as wide as a link is strong;
    their numbers refer to the legend, which has the share of each link in the similarity. The images are bright where
    positions have a large part in the similarity, whatever they are linked to.
    Raises UsageError: `bad_argument` for a count that is not from 1 to 12, `missing_dependency` without matplotlib.
    """
    return draw_link_rows([LinkRow("", (a, b), links)], count=count)


def draw_link_rows(rows: Sequence[LinkRow], *, count: int = 8) -> bytes:
    """Draw several pairs of images below each other, as `draw_links` does; return a PNG file. Raises as `draw_links`.

    At least one row is needed.
    """
    check_count("count", count, MAX_LINKS)
    total = sum(row.height for row in rows)
    figure = new_figure(WIDTH, total, layout=None)
    top = total
    for row in rows:
        if row.heading:
            weight = "normal" if row.minor else "bold"
            figure.text(0.01, (top - 0.08) / total, plain(row.heading, 100), fontsize=9, va="top", weight=weight)
        top -= row.height
        if row.images is None or row.links is None:
            continue
        areas = ((0.07, 0.08, *PICTURES), (0.71 * WIDTH, 0.08, 0.28 * WIDTH, 0.94 * HEIGHT))
        pictures, legend = (
            figure.add_axes((left / WIDTH, (top + bottom) / total, width / WIDTH, height / total))
            for left, bottom, width, height in areas
        )
        regions = row.links.regions(REGIONS, REGIONS)
        shown = [link for i, link in enumerate(strongest(regions, count)) if i == 0 or _is_visible(link, regions)]
        _draw_pictures(pictures, row.images, row.links)
        _draw_lines(pictures, row.images, regions, shown)
        _write_legend(legend, regions, shown)
    return render(figure)


def _is_visible(link: Link, regions: Links) -> bool:
    return link.value >= max(LEAST_LINK * float(regions.values.max()), ROUNDED)


def _draw_pictures(panel: Axes, images: tuple[PreparedImage, PreparedImage], links: Links) -> None:
    """Show both images with a height of 1, below their names."""
    total = _lefts(images)[1] + _width(images[1])
    unit = min(PICTURES[0] / total, PICTURES[1])  # inches
    for image, part_hw, left in zip(images, (links.map_a, links.map_b), _lefts(images), strict=True):
        shown = dimmed(image.pixels, part_hw)
        smoothing = "nearest" if max(shown.shape) < 160 else "antialiased"
        panel.imshow(shown, extent=(left, left + _width(image), 0, 1), interpolation=smoothing)
        room = int((_width(image) + 0.8 * GAP) * unit / CHARACTER)
        panel.text(left, 1.02, plain(image.key, max(room, 2)), fontsize=8, va="bottom", clip_on=False)
    panel.set_xlim(0, total)
    panel.set_ylim(0, 1)
    panel.set_anchor("NW")
    panel.set_axis_off()


def dimmed(pixels: Pixels, part_hw: Doubles) -> Pixels:
    """Darken (H,W,3) pixels where the values of a map (rows,columns) are small compared with its largest one.

    Negative values and a map without positive ones are as dark as zeros.
    """
    largest = max(float(part_hw.max()), np.finfo(np.float64).tiny)
    relative = upsample((part_hw.clip(0) / largest).astype(np.float32), *pixels.shape[:2])
    brightness_HW1 = DIMMED + (1 - DIMMED) * relative[..., None]
    return (pixels * brightness_HW1).round().astype(np.uint8)


def _width(image: PreparedImage) -> float:
    return image.pixels.shape[1] / image.pixels.shape[0]


def _lefts(images: tuple[PreparedImage, PreparedImage]) -> tuple[float, float]:
    return 0.0, _width(images[0]) + GAP


def _draw_lines(panel: Axes, images: tuple[PreparedImage, PreparedImage], regions: Links, shown: list[Link]) -> None:
    """Draw bent lines with a number at both ends; the strongest is on top, and all numbers are above all lines."""
    patches = require("matplotlib.patches", "drawing figures")
    for i, link in reversed(list(enumerate(shown))):
        places = zip((link.a, link.b), regions.grids, images, _lefts(images), strict=True)
        ends = [_center(place, grid, _width(image), left) for place, grid, image, left in places]
        thickness = _thickness(link, shown)
        bend = f"arc3,rad={BEND if i % 2 else -BEND}"
        for color, extra, order in ((CASING, 2.0, 2), (LINE, 0.0, 2.5)):
            arrow = patches.FancyArrowPatch(*ends, arrowstyle="-", connectionstyle=bend, shrinkA=0, shrinkB=0)
            arrow.set(color=color, linewidth=thickness + extra, zorder=order, clip_on=False)
            panel.add_patch(arrow)
        for x, y in ends:
            panel.plot(x, y, "o", color="white", markersize=11, markeredgecolor=LINE, markeredgewidth=1.3, zorder=3)
            panel.text(x, y, str(i + 1), fontsize=7, ha="center", va="center_baseline", weight="bold", zorder=4)


def _center(region: Grid, grid: Grid, width: float, left: float) -> Point:
    return left + (region[1] + 0.5) / grid[1] * width, 1 - (region[0] + 0.5) / grid[0]


def _thickness(link: Link, shown: list[Link]) -> float:
    least, most = THICKNESS
    return max(most * link.value / max(shown[0].value, STRONG_LINK), least)


def _write_legend(panel: Axes, regions: Links, shown: list[Link]) -> None:
    panel.set_axis_off()
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.text(0, 1, f"cosine similarity {_signed(regions.cosine, 4)}", fontsize=9.5, va="top", weight="bold")
    unit = "links: parts of the similarity" if regions.exact else "links, measured by masking"
    panel.text(0, 0.89, unit if shown else "no link is positive", fontsize=8, va="top")
    step = min(0.075, 0.5 / max(len(shown), 1))
    size = min(8, 140 * step)
    for i, link in enumerate(shown):
        y = 0.77 - i * step
        panel.text(0.03, y, str(i + 1), fontsize=size, ha="center", va="center", weight="bold")
        thickness = min(_thickness(link, shown), 0.8 * size)
        panel.plot((0.1, 0.3), (y, y), color=LINE, linewidth=thickness, solid_capstyle="butt")
        panel.text(0.5, y, f"{link.value:.3f}", fontsize=size, ha="right", va="center")
        if regions.exact and regions.cosine >= LEAST_COSINE:
            share = f"{100 * link.value / regions.cosine:.1f} %"
            panel.text(0.75, y, share, fontsize=size, ha="right", va="center")
    panel.text(0, 0, "\n".join(_notes(regions, shown)), fontsize=7, va="bottom", linespacing=1.25)


def _notes(regions: Links, shown: list[Link]) -> list[str]:
    if not regions.exact:
        return [
            "not exact: the embedding is",
            "not a mean over positions",
            f"agreement with decreases: {_signed(regions.agreement or 0, 2)}",
            "bright: masking decreases similarity",
        ]
    positive = float(regions.values[regions.values > 0].sum())
    return [
        f"links shown: {_signed(sum(link.value for link in shown), 3)}",
        f"all positive links: {_signed(positive, 3)}",
        f"all negative links: {_signed(float(regions.values.sum()) - positive, 3)}",
        "bright: large part in the similarity",
    ]


def _signed(value: float, digits: int) -> str:
    """Return a number with a real minus sign, and without one if it is rounded to zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
