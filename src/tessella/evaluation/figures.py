"""Figures of a report, as PNG files: confusion matrix, calibration, and coverage against accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..extras import require
from ..plots.figures import new_figure, plain, render
from .metrics import Bin, Coverage, Ints

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED_CLASSES = 30  # confusion matrices with at most this number of classes show names and counts
CELLS = 250  # cells per side of larger ones, in which neighboring classes share a cell
PAIRS = 25  # confused pairs beside a larger one
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "0.75"  # distinguishable for color-blind people


def confusion(counts_KK: Ints, classes: Sequence[str]) -> bytes:
    """Draw a (K,K) confusion matrix: rows are true classes, columns predicted ones.

    Up to 30 classes are shown with names and counts; more are shown as a heat map, with the most frequently confused
    pairs beside it. If there are more than 30, classes that do not occur are omitted, and the others are renumbered.
    """
    if len(classes) > NAMED_CLASSES:
        occurring = np.flatnonzero(counts_KK.any(0) | counts_KK.any(1))
        counts_KK, classes = counts_KK[occurring][:, occurring], [classes[i] for i in occurring.tolist()]
    if len(classes) <= NAMED_CLASSES:
        return _small_confusion(counts_KK, classes)
    return _large_confusion(counts_KK, classes)


def _small_confusion(counts_KK: Ints, classes: Sequence[str]) -> bytes:
    size = len(classes)
    side = 2.5 + 0.5 * size
    figure = new_figure(side + 0.8, side)
    panel = figure.subplots()
    fractions = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    image = panel.imshow(100 * fractions, cmap="Blues", vmin=0, vmax=100)
    for true, predicted in np.argwhere(counts_KK):
        color = "white" if fractions[true, predicted] > 0.6 else "black"
        panel.text(predicted, true, f"{counts_KK[true, predicted]}", ha="center", va="center", fontsize=8, color=color)
    names = [plain(name) for name in classes]
    panel.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    panel.set_yticks(range(size), names, fontsize=8)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    figure.colorbar(image, ax=panel, shrink=0.7, label="fraction of the true class (%)")
    return render(figure)


def _large_confusion(counts_KK: Ints, classes: Sequence[str]) -> bytes:
    size = len(classes)
    per_cell = math.ceil(size / CELLS)
    starts = np.arange(0, size, per_cell)
    cells = np.add.reduceat(np.add.reduceat(counts_KK, starts, 0), starts, 1)
    fractions = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    figure = new_figure(15, 8)
    panel, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    # a power norm makes rare confusions visible: each is a single point among a thousand classes
    norm = require("matplotlib.colors", "drawing figures").PowerNorm(0.4, 0, 100)
    image = panel.imshow(100 * fractions, cmap="Blues", norm=norm, extent=(0, size, size, 0), interpolation="nearest")
    grouped = f", {per_cell} classes per cell" if per_cell > 1 else ""
    panel.set_xlabel(f"predicted class (index among the {size:,} that occur{grouped})")
    panel.set_ylabel(f"true class (index among the {size:,} that occur{grouped})")
    figure.colorbar(image, ax=panel, shrink=0.8, label="fraction of the true class (%)")
    _draw_confused_pairs(bars, counts_KK, classes)
    return render(figure)


def _draw_confused_pairs(panel: Axes, counts_KK: Ints, classes: Sequence[str]) -> None:
    true, predicted = counts_KK.nonzero()
    wrong = true != predicted
    true, predicted = true[wrong], predicted[wrong]
    worst = np.argsort(-counts_KK[true, predicted], kind="stable")[:PAIRS]
    pairs = [f"{plain(classes[true[i]])} → {plain(classes[predicted[i]])}" for i in worst]
    panel.barh(range(len(pairs)), counts_KK[true[worst], predicted[worst]], color=BLUE)
    panel.set_yticks(range(len(pairs)), pairs, fontsize=8)
    panel.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
    panel.set_xlabel("images")
    panel.set_title("most frequently confused: true → predicted" if pairs else "no mistakes", fontsize=10)


def calibration(bins: Sequence[Bin], ece: float) -> bytes:
    """Draw a reliability diagram: accuracy against confidence, and below it the number of images per bin."""
    figure = new_figure(5.5, 6.5)
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [group for group in bins if group.images]
    width = bins[0].upper - bins[0].lower
    centers = [(group.lower + group.upper) / 2 for group in filled]
    accuracies = [group.accuracy for group in filled]
    panel.bar(centers, accuracies, width * 0.92, color=BLUE, label="accuracy")
    confidences = [group.confidence for group in filled]
    panel.plot(confidences, accuracies, "o", color=ORANGE, ms=5, clip_on=False, label="at mean confidence")
    panel.plot((0, 1), (0, 1), "--", color="black", linewidth=1, label="perfect calibration")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_ylabel("accuracy")
    panel.set_title(f"expected calibration error {100 * ece:.2f} %", fontsize=10)
    panel.legend(loc="upper left", fontsize=8)
    below.bar(centers, [group.images for group in filled], width * 0.92, color=GRAY)
    below.set_xlabel("confidence in the predicted class")
    below.set_ylabel("images")
    return render(figure)


def coverage_curve(curve: Coverage, thresholds: Sequence[float] = (0.5, 0.8, 0.95)) -> bytes:
    """Draw accuracy against coverage when the least confident images are rejected, with some thresholds marked."""
    figure = new_figure(6, 4.5)
    panel = figure.subplots()
    panel.plot(100 * curve.coverage, 100 * curve.accuracy, color=BLUE)
    for threshold, marker in zip(thresholds, "osD^vP", strict=False):
        coverage, accuracy = curve.at(threshold)
        if accuracy is not None:
            label = f"at least {threshold:g}: {100 * coverage:.1f} % answered, {100 * accuracy:.1f} % correct"
            panel.plot(100 * coverage, 100 * accuracy, marker, color=ORANGE, label=label)
    if len(panel.lines) > 1:
        panel.legend(title="confidence", title_fontsize=8, fontsize=8)
    panel.set_xlim(0, 102)
    panel.margins(y=0.12)
    panel.grid(color="0.92")
    panel.set_xlabel("coverage: images answered, the most confident first (%)")
    panel.set_ylabel("accuracy on the answered images (%)")
    return render(figure)
