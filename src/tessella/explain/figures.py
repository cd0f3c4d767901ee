"""One figure per explanation: the image, the map, the overlay, the scores, and a legend.

All positions are computed here, in inches from the lower left corner, because a constrained layout takes seconds.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..plots.figures import new_figure, plain, render
from .colors import NEGATIVE, POSITIVE, color_table, colorize, enlarge, is_averaged, overlay, scale_of
from .facts import ExplanationFacts, MapPart
from .maps import upsample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from ..data.decode import Pixels
    from .faithfulness import Curve

HEIGHT, LEFT, GAP = 4.05, 0.2, 0.25
PANEL, BOTTOM = 2.35, 0.9  # the side of a picture, and its lower edge
PART, PARTS_HIGH = 1.1, 2  # the side of a part of the map, and how many stand above each other
NOTE = 0.12  # where the lowest line of text stands
SCORES = 4.05  # the width of the scores
CURVE = (SCORES - 0.75) / 2  # the width of a curve
DPI = 120
SMALL, NORMAL, LARGE = 8, 9, 12  # points
LONGEST_NAME = 64  # characters of a name
WRAPPED = 60  # characters of a line of text beside the pictures
SHOWN = 3  # predictions
LEAST_SPAN = 0.1  # of a curve, in logits: smaller differences do not show in the scores, and may be rounding
GRAY, BAND, DOTS, ALARM = "0.35", "0.8", "0.4", "#9b1c10"


def draw_explanation(facts: ExplanationFacts) -> bytes:
    """Draw an explanation as a PNG file. Raises UsageError `missing_dependency` without matplotlib."""
    scores_left = _left(3) + math.ceil(len(facts.parts) / PARTS_HIGH) * (PART + GAP)
    width = scores_left + (SCORES + LEFT if facts.faithfulness else 0)
    figure = new_figure(width, HEIGHT, layout=None)
    figure.set_dpi(DPI)  # texts are measured
    _draw_title(figure, facts)
    values, image = facts.map.values, enlarge(facts.pixels)
    scale = scale_of(values)
    blocks = colorize(upsample(values, *image.shape[:2], smooth=False), scale)
    _draw_picture(figure, 0, image, f"image, {facts.pixels.shape[1]}×{facts.pixels.shape[0]} px")
    _draw_picture(figure, 1, blocks, f"map, {values.shape[1]}×{values.shape[0]}")
    _draw_picture(
        figure, 2, overlay(facts.pixels, values), f"{'averaged ' if is_averaged(values) else ''}map over the image"
    )
    _draw_predictions(figure, facts)
    _draw_scale(figure, facts, scale)
    _draw_legend(figure, facts)
    for place, part in enumerate(facts.parts):
        _draw_part(figure, place, part, image.shape)
    if facts.faithfulness is not None:
        _draw_verdict(figure, facts, scores_left)
        y_label = "logit" if facts.versus is None else "difference of logits"
        next_left = scores_left + CURVE + 0.37
        _draw_curve(figure, scores_left, facts.faithfulness.deletion_curve, "deletion", y_label)
        _draw_curve(figure, next_left, facts.faithfulness.insertion_curve, "insertion", "")
        _draw_scores(figure, facts, scores_left)
    return render(figure, dpi=DPI)


def _draw_title(figure: Figure, facts: ExplanationFacts) -> None:
    def title(longest: int) -> str:
        versus = "" if facts.versus is None else f" and not {plain(facts.versus.label, longest)}"
        return f"Why {plain(facts.target.label, longest)}{versus}?"

    def names(longest: int) -> str:
        unscored = "" if facts.faithfulness else f", {facts.verdict}"
        return f"{plain(facts.key, longest)}, {plain(facts.model, longest)}, method: {facts.map.method}{unscored}"

    _write_fitting(figure, HEIGHT - 0.14, title, size=LARGE, weight="bold", va="top")
    _write_fitting(figure, HEIGHT - 0.41, names, size=SMALL, color=GRAY, va="top")


def _write_fitting(figure: Figure, y: float, text: Callable[[int], str], **style: object) -> None:
    """Write a text above the pictures. text: makes it, with names of at most so many characters."""
    for longest in range(LONGEST_NAME, 7, -4):
        written = _write(figure, LEFT, y, text(longest), **style)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # as in `render`
            end = written.get_window_extent().x1
        if end <= (_left(3) - GAP) * figure.dpi:
            return
        written.remove()
    _write(figure, LEFT, y, text(8), **style)


def _draw_picture(figure: Figure, panel: int, pixels: Pixels, title: str) -> None:
    axes = _axes(figure, _left(panel), BOTTOM, PANEL, PANEL)
    axes.imshow(pixels, interpolation="antialiased")
    axes.set_anchor("NW")
    axes.set_axis_off()
    _write(figure, _left(panel), BOTTOM + PANEL + 0.06, title, size=NORMAL)


def _draw_predictions(figure: Figure, facts: ExplanationFacts) -> None:
    """Write the classes that are explained below the image, and the most probable of the others."""
    asked = [one for one in (facts.target, facts.versus) if one is not None]
    numbers = [one.index for one in asked]
    others = [one for one in facts.predictions if one.index not in numbers]
    shown = sorted((*asked, *others[: SHOWN - len(asked)]), key=lambda one: -one.probability)
    for line, prediction in enumerate(shown):
        y = BOTTOM - 0.2 - 0.19 * line
        weight = "bold" if prediction in asked else "normal"
        share = f"{100 * prediction.probability:.1f} %"
        _write(figure, _left(0) + 0.5, y, share, size=SMALL, weight=weight, ha="right")
        _write(figure, _left(0) + 0.57, y, plain(prediction.label, 26), size=SMALL, weight=weight)


def _draw_scale(figure: Figure, facts: ExplanationFacts, scale: float) -> None:
    axes = _axes(figure, _left(1), BOTTOM - 0.18, PANEL, 0.11)
    axes.imshow(color_table()[None], extent=(-scale, scale, 0, 1), aspect="auto")
    axes.set_yticks([])
    axes.tick_params(labelsize=SMALL, length=2, pad=2)
    if facts.map.values.any():
        axes.set_xticks([-scale, 0, scale], [f"−{scale:.3g}", "0", f"+{scale:.3g}"])
        first, _, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
    else:
        axes.set_xticks([0], ["0"])
    _write(figure, _left(1), BOTTOM - 0.5, facts.unit, size=SMALL, color=GRAY)


def _draw_legend(figure: Figure, facts: ExplanationFacts) -> None:
    """Explain the colors and the outlines of the overlay."""
    if not facts.map.values.any():
        _write(figure, _left(2), BOTTOM - 0.19, "the map is zero everywhere", size=SMALL)
        return
    against = "contradicts it" if facts.versus is None else f"supports {plain(facts.versus.label, 26)}"
    entries = ((POSITIVE, False, f"supports {plain(facts.target.label, 26)}"), (NEGATIVE, True, against))
    for line, (color, is_dashed, text) in enumerate(entries):
        axes = _axes(figure, _left(2) + 0.02, BOTTOM - 0.2 - 0.21 * line, 0.26, 0.14)
        axes.set_facecolor(color)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_linestyle("--" if is_dashed else "-")
            spine.set_linewidth(1.2)
        _write(figure, _left(2) + 0.37, BOTTOM - 0.19 - 0.21 * line, text, size=SMALL)
    _write(figure, _left(2), BOTTOM - 0.19 - 0.21 * 2, "lines: above half of the maximum", size=SMALL, color=GRAY)


def _draw_part(figure: Figure, place: int, part: MapPart, image_shape: tuple[int, ...]) -> None:
    """Draw a map that the map is composed of, with the place `place`, in its own colors, which are stated below it."""
    column, line = divmod(place, PARTS_HIGH)
    x = _left(3) + column * (PART + GAP)
    bottom = BOTTOM + PANEL - PART - line * (PART + 0.55)
    scale = scale_of(part.values)
    axes = _axes(figure, x, bottom, PART, PART)
    axes.imshow(colorize(upsample(part.values, *image_shape[:2], smooth=False), scale), interpolation="antialiased")
    axes.set_anchor("NW")
    axes.set_axis_off()
    _write(figure, x, bottom + PART + 0.06, f"{plain(part.name, 12)}, {part.grid}", size=NORMAL)
    colors = f"colors to ±{scale:.3g}" if part.values.any() else "zero everywhere"
    for number, text in enumerate((colors, part.share.replace("-", "−"))):
        _write(figure, x, bottom - 0.15 - 0.15 * number, text, size=SMALL, color=GRAY)


def _draw_verdict(figure: Figure, facts: ExplanationFacts, x: float) -> None:
    color = ALARM if facts.is_doubtful else "black"
    _write(figure, x, HEIGHT - 0.14, facts.verdict, size=LARGE, weight="bold", va="top", color=color)
    reason = "\n".join(textwrap.wrap(facts.verdict_reason, WRAPPED))
    _write(figure, x, HEIGHT - 0.41, reason, size=SMALL, va="top", color=GRAY)


def _draw_curve(figure: Figure, x: float, curve: Curve, title: str, y_label: str) -> None:
    """Draw the score while regions are deleted or inserted, in front of the band of random maps."""
    axes = _axes(figure, x + 0.38, BOTTOM + 0.62, CURVE, PANEL - 0.78)
    percent = 100 * curve.fractions
    axes.fill_between(percent, curve.random_low, curve.random_high, color=BAND, lw=0)
    axes.plot(percent, curve.random_mean, color=DOTS, ls=":", lw=1.2)
    axes.plot(percent, curve.values, color="black", lw=1.8, marker="o", ms=3)
    middle = sum(axes.get_ylim()) / 2
    if np.ptp(axes.get_ylim()) < LEAST_SPAN:
        axes.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100], ["0", "50", "100"])
    axes.set_xlabel(f"% of the image {'deleted' if title == 'deletion' else 'inserted'}", fontsize=SMALL, labelpad=2)
    axes.tick_params(labelsize=SMALL, length=2, pad=2)
    axes.set_ylabel(y_label, fontsize=SMALL, labelpad=1)
    axes.set_title(title, fontsize=NORMAL, loc="left", pad=4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_scores(figure: Figure, facts: ExplanationFacts, x: float) -> None:
    top = BOTTOM - 0.02
    columns = ((0.0, "left"), (1.2, "right"), (2.68, "right"), (2.8, "left"))
    rows = [("", "this map", "95 % of random maps", "their mean")]
    _write(figure, x + 0.58, top, "●", size=SMALL)
    _write(figure, x + 1.29, top - 0.01, "■", size=LARGE, color=BAND)
    _write(figure, x + 2.8, top, "····", size=SMALL, weight="bold", color=DOTS)
    for line in facts.scores:
        arrow = "↑" if line.goal == "higher" else "↓"
        rows.append(
            (f"{line.name} {arrow}", f"{line.value:.2f}", f"{line.low:.2f} to {line.high:.2f}", line.comparison)
        )
    for place, cells in enumerate(rows):
        for (offset, side), text in zip(columns, cells, strict=True):
            color = GRAY if place == 0 else "black"
            offset += 0.22 if text == "their mean" else 0  # beside its dots
            _write(figure, x + offset, top - 0.19 * place, text.replace("-", "−"), size=SMALL, ha=side, color=color)
    _write(figure, x, NOTE, "↑ higher is better, ↓ lower is better", size=SMALL, color=GRAY)


def _left(panel: int) -> float:
    return LEFT + panel * (PANEL + GAP)


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    total = figure.get_figwidth()
    axes: Axes = figure.add_axes((x / total, y / HEIGHT, width / total, height / HEIGHT))
    return axes


def _write(figure: Figure, x: float, y: float, text: str, **style: object) -> Text:
    return figure.text(x / figure.get_figwidth(), y / HEIGHT, text, **style)  # type: ignore[arg-type]
