"""A plot of speed against published accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..extras import require
from ..plots.figures import STYLES, draw_or_warn, label_point, new_figure, render, style_speed_axis
from ..records import short_name
from ..storage import write_bytes
from ..weights.catalogue import published_accuracy
from .measuring import BenchmarkRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
FIGURE_DPI = 150


def published_top1(name: str) -> float | None:
    """Return the published top-1 accuracy (%) of a model on the ImageNet-1k validation set."""
    accuracies = {} if ":" in name else published_accuracy(name)
    return accuracies["imagenet"].top1 if "imagenet" in accuracies else None


def check_figure(names: Sequence[str]) -> None:
    """Check that a plot can be drawn for these models.

    Raises UsageError `missing_dependency`, or `bad_argument` if no model has a published accuracy.
    """
    require("matplotlib", "--plot")
    if all(published_top1(name) is None for name in names):
        raise UsageError(
            "bad_argument",
            f"the plot shows speed against published accuracy, but no accuracy is published for {', '.join(names)}",
            hint="choose a model for which `tessella list` shows a top-1 accuracy",
        )


def draw(rows: Sequence[BenchmarkRow], path: Path) -> None:
    """Plot speed against published accuracy, one panel per batch size, to a .png or .svg file.

    If it cannot be drawn, a warning is logged. Raises the errors of `check_figure`, and OutputError
    `output_failed`.
    """
    check_figure([row.model for row in rows])
    if data := draw_or_warn(str(path), lambda: render_figure(rows, path.suffix)):
        write_bytes(path, data)


def render_figure(rows: Sequence[BenchmarkRow], suffix: str) -> bytes:
    """Return the plot as a .png or .svg file."""
    batch_sizes = list(dict.fromkeys(row.batch for row in rows))
    series = list(dict.fromkeys((row.candidate, row.precision) for row in rows if row.images_per_second))
    figure = new_figure(1.5 + 5 * len(batch_sizes), 5)
    panels = figure.subplots(1, len(batch_sizes), sharey=True, squeeze=False)[0]
    for batch, panel in zip(batch_sizes, panels, strict=True):
        _draw_panel(panel, [row for row in rows if row.batch == batch], series)
        panel.set_title(f"batch size {batch}", fontsize=10)
    panels[0].set_ylabel("published top-1 accuracy, ImageNet-1k (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(f"{rows[0].hardware}, {rows[0].threads} threads", fontsize=10)
    return render(figure, suffix.lower(), dpi=FIGURE_DPI)


def _draw_panel(panel: Axes, rows: Sequence[BenchmarkRow], series: Sequence[tuple[str, str]]) -> None:
    points = [
        (row, row.images_per_second, top1)
        for row in rows
        if row.images_per_second and (top1 := published_top1(row.model))
    ]
    for index, name in enumerate(series):
        colour, marker = STYLES[index % len(STYLES)]
        series_points = [(speed, top1) for row, speed, top1 in points if (row.candidate, row.precision) == name]
        panel.scatter(
            [speed for speed, _ in series_points],
            [top1 for _, top1 in series_points],
            s=45,
            facecolors=colour if index < len(STYLES) else "white",
            marker=marker,
            edgecolors=colour,
            linewidths=1.5,
            zorder=2 + index,
            label=", ".join(name),
        )
    for model in dict.fromkeys(row.model for row, _, _ in points):
        line = [(speed, top1) for row, speed, top1 in points if row.model == model]
        panel.plot([speed for speed, _ in line], [top1 for _, top1 in line], color="0.8", linewidth=1, zorder=1)
        label_point(panel, short_name(model), max(line))
    style_speed_axis(panel)
    panel.set_xlabel("speed (images per second, median)")
