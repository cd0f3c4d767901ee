"""Events of training, and their rows in metrics.jsonl, whose keys are a file format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessella.training.events import EpochEvent, ProbeEvent, StepEvent

from .small_runs import run, small


def test_the_keys_of_rows() -> None:
    step = StepEvent(step=50, steps=90, epoch=1, loss=0.5, lr=0.1, images_per_second=12.0)
    epoch = EpochEvent(
        epoch=1,
        step=2,
        lr=0.1,
        loss=0.2,
        images=3,
        skipped=4,
        bad_steps=5,
        val_top1=0.6,
        val_loss=0.7,
        val_images=8,
        val_errors=9,
        seconds=1.5,
    )
    probe = ProbeEvent(val_top1=0.6, val_loss=0.7, val_images=8, val_errors=9, seconds=1.5)
    assert list(step.as_row()) == ["kind", "step", "steps", "epoch", "loss", "lr"]
    assert list(epoch.as_row()) == [
        *("kind", "epoch", "step", "lr", "loss", "images", "skipped", "bad_steps"),
        *("val_top1", "val_loss", "val_images", "val_errors", "seconds"),
    ]
    assert list(probe.as_row()) == [
        *("kind", "epoch", "step", "val_top1", "val_loss", "val_images", "val_errors", "seconds")
    ]
    assert [row["kind"] for row in (step.as_row(), epoch.as_row(), probe.as_row())] == ["step", "epoch", "probe"]
    assert (probe.as_row()["epoch"], probe.as_row()["step"]) == (-1, 0)


@pytest.mark.usefixtures("without_report")
def test_the_rows_of_a_run_are_its_events(data: Path, tmp_path: Path) -> None:
    events = run(data, tmp_path, small(probe=True))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [event.as_row() for event in events if isinstance(event, EpochEvent | ProbeEvent)]
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert [event.step for event in steps] == list(range(1, 10))
    assert {event.steps for event in steps} == {9}
    assert all(event.images_per_second > 0 for event in steps)
