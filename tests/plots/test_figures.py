"""Figures that several packages share."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tessella.plots import figures

pytest.importorskip("matplotlib")


def test_training_curves_are_grouped_by_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [
        dict(config={}, note="first"),
        dict(epoch=0, loss=2.0, val_loss=None, val_top1=0.25, lr=1e-3),
        dict(epoch=1, loss=math.nan, val_loss=1.5, val_top1=0.5, lr=5e-4),
        dict(epoch=2, loss=1.0, val_loss=1.0, val_top1=0.75, lr=0.0),
    ]
    drawn: list[Any] = []
    render = figures.render

    def keep(figure: Any) -> bytes:
        drawn.append(figure)
        return render(figure)

    monkeypatch.setattr(figures, "render", keep)
    figures.curves(rows)
    losses, accuracy, rate = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert lines == dict(loss=[[0, 2], [2, 1]], val_loss=[[1, 1.5], [2, 1]])
    assert accuracy.lines[0].get_ydata().tolist() == [25, 50, 75]
    assert rate.get_title() == "learning rate"
    assert figures.curves([dict(epoch=0, loss=1.0)]).startswith(b"\x89PNG")  # one point is a dot
    assert figures.curves([dict(seconds=1)]).startswith(b"\x89PNG")
