"""A picture of accuracy against speed: every checkpoint, and the line of those that no other one surpasses in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..extras import require
from ..plots.figures import STYLES, draw_or_warn, new_figure, render, style_speed_axis
from ..storage import write_bytes
from .comparison import MACHINES, Machine, ModelRow, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
FIGURE_DPI = 150
LEAST = 2  # points of a picture
PANEL = (9.2, 5.6)  # inches that the axes take of the figure, for the places of labels
ROOM = 2.2  # the highest speed of the axis, divided by that of the fastest model, whose name is at its right


def check_points(rows: Sequence[ModelRow], machine: Machine) -> list[ModelRow]:
    """Return the rows that have a place in the picture.

    Raises UsageError `missing_dependency` without matplotlib, `bad_argument` if there are fewer than two.
    """
    require("matplotlib", "--plot")
    points = [row for row in rows if row.imagenet and row.speed(machine)]
    if len(points) < LEAST:
        measure = "measure models with `tessella tune MODEL`, or use --machine rtx-4090"
        raise UsageError(
            "bad_argument",
            f"{len(points)} of {len(rows)} models have a published accuracy on ImageNet-1k and a speed on "
            f"{MACHINES[machine][0]}, and a picture needs at least {LEAST}",
            hint=measure if machine == "here" else "choose more models",
        )
    return points


def draw_comparison(rows: Sequence[ModelRow], machine: Machine, path: Path) -> bool:
    """Draw accuracy against speed to a .png or .svg file; return whether it was drawn, and log a warning if not.

    Raises the errors of `check_points`, and OutputError `output_failed`.
    """
    points = check_points(rows, machine)
    data = draw_or_warn(str(path), lambda: render_comparison(points, machine, path.suffix.lower()))
    if data is None:
        return False
    write_bytes(path, data)
    return True


def render_comparison(rows: Sequence[ModelRow], machine: Machine, suffix: str) -> bytes:
    """Return the picture as a .png or .svg file. Every row has an accuracy and a speed."""
    figure = new_figure(10, 6.5)
    panel = figure.subplots()
    families = list(dict.fromkeys(row.family for row in rows))
    for family, (color, marker) in zip(families, STYLES, strict=False):
        _draw_family(panel, [row for row in rows if row.family == family], machine, color, marker)
    style_speed_axis(panel)
    panel.margins(x=0.1, y=0.1)
    panel.set_xlim(right=_point(max(rows, key=lambda row: row.speed(machine) or 0), machine)[0] * ROOM)
    _draw_front(panel, pareto_front(rows, machine), machine)
    panel.set_xlabel("images per second")
    panel.set_ylabel("published top-1 accuracy, ImageNet-1k (%)")
    panel.set_title(MACHINES[machine][1].replace("`", ""), fontsize=10)
    panel.legend(fontsize=8, loc="lower left")
    return render(figure, suffix, dpi=FIGURE_DPI)


def _draw_family(panel: Axes, rows: Sequence[ModelRow], machine: Machine, color: str, marker: str) -> None:
    speeds, accuracies = zip(*(_point(row, machine) for row in rows), strict=True)
    panel.scatter(speeds, accuracies, s=40, color=color, marker=marker, zorder=3, label=rows[0].family)


def _draw_front(panel: Axes, front: Sequence[ModelRow], machine: Machine) -> None:
    """Draw the front as steps, because between two of its models there is no model, and name its models."""
    points = [_point(row, machine) for row in front]
    speeds, accuracies = zip(*points, strict=True)
    panel.plot(speeds, accuracies, color="0.55", linewidth=1.2, drawstyle="steps-post", zorder=2, label="Pareto front")
    names = [row.name.partition(".")[0] for row in front]
    low, high = panel.get_ylim()
    left, right = (math.log(limit) for limit in panel.get_xlim())
    inches = [
        ((math.log(speed) - left) / (right - left) * PANEL[0], (top1 - low) / (high - low) * PANEL[1])
        for speed, top1 in points
    ]
    for name, point, rise in zip(names, points, _rises(names, inches), strict=True):
        panel.annotate(
            name,
            point,
            (7, 4 + 72 * rise),
            textcoords="offset points",
            fontsize=8,
            arrowprops=dict(arrowstyle="-", color="0.7", linewidth=0.7) if rise else None,
        )


def _rises(names: Sequence[str], points: Sequence[tuple[float, float]]) -> list[float]:
    """Return by how many inches each label has to be moved up, so that it covers no other one.

    points: the lower left corners of the labels in inches. Above and to the right of the front there are no models.
    """
    width, height = 0.066, 0.16  # inches: of a character, and of a line
    taken: list[tuple[float, float, float]] = []  # left, right, bottom
    rises = []
    for name, (left, bottom) in zip(names, points, strict=True):
        right, rise = left + width * len(name) + 0.1, 0.0
        while any(left < other[1] and other[0] < right and abs(bottom + rise - other[2]) < height for other in taken):
            rise += height / 4
        taken.append((left, right, bottom + rise))
        rises.append(rise)
    return rises


def _point(row: ModelRow, machine: Machine) -> tuple[float, float]:
    speed, top1 = row.speed(machine), row.imagenet
    assert speed is not None
    assert top1 is not None
    return speed, top1
