"""The progress of `tessella run` on standard error."""

from __future__ import annotations

import time

import pytest

from tessella.bulk import RunProgress, RunRemark
from tessella.cli.run_progress import RunProgressBar


def progress(
    rows_done: int, speed: float | None, fraction: float | None = None, errors: dict[str, int] | None = None
) -> RunProgress:
    return RunProgress(
        rows_done=rows_done,
        rows_total=400_000,
        seconds=0.0,
        errors=errors or {},
        images_per_second=speed,
        speed_fraction=fraction,
    )


def test_progress_shows_no_remaining_time_without_a_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    show = RunProgressBar()
    for speed in (None, None, 4.0):
        show(progress(0, speed))
    assert capsys.readouterr().err.splitlines() == [
        "0 of 400,000, 0.0 images/s",
        "0 of 400,000, 1 day, 3:46:40 left, 4.0 images/s",
    ]


def test_lines_come_at_most_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 9.0, 11.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    show = RunProgressBar()
    for rows_done in (0, 100_000, 200_000, 300_000):
        show(progress(rows_done, 100.0, 0.5, {"empty": 2_000, "timeout": 1}))
    show(RunRemark(text="a line\x1b[31m"))
    assert capsys.readouterr().err.splitlines() == [
        "200,000 of 400,000, 0:33:20 left, 100.0 images/s, 50 % of the model's own speed; 2,000 empty, 1 timeout",
        "a line\\x1b[31m",
    ]
