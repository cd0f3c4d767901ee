"""metrics.jsonl and skipped.jsonl."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tessella.errors import ImageError, OutputError, TrainingError
from tessella.training import metrics_log
from tessella.training.distributed import DistributedContext
from tessella.training.events import StepEvent, TrainingEvent
from tessella.training.loop import train
from tessella.training.metrics_log import MetricsLog

from .small_runs import make_images, remarks_of, run, small


@pytest.mark.usefixtures("without_report")
def test_damaged_lines_of_metrics_jsonl_are_skipped(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    log = tmp_path / "metrics.jsonl"
    rows = log.read_text()
    log.write_text('{"kind": "epoch"}\nnonsense\n' + rows + '{"kind": "st')
    events = run(data, tmp_path)
    assert log.read_text() == rows
    assert "2 damaged lines" in remarks_of(events)


@pytest.mark.usefixtures("without_report")
def test_unreadable_images_are_counted_and_listed(data: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "data")
    for name in ("train/dark/3.png", "train/bright/7.png", "val/dark/0.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    run(folder, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {(row["images"], row["skipped"]) for row in rows} == {(46, 2)}
    assert {(row["val_images"], row["val_errors"]) for row in rows} == {(23, 1)}
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 6
    assert {Path(row["key"]).name for row in skipped} == {"3.png", "7.png"}
    assert {row["code"] for row in skipped} == {"corrupt_image"}
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(ImageError, match="none of the validation images"):
        run(folder, tmp_path / "blind")


def test_a_log_that_cannot_be_read_is_not_replaced_by_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "epoch", "step": 3, "epoch": 0}\n')

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    log = MetricsLog(tmp_path, DistributedContext(), lambda event: None)
    with monkeypatch.context() as patch:
        patch.setattr(metrics_log, "read_regular", fail)
        with pytest.raises(OutputError, match="could not be read: Input/output error") as caught:
            log.trim(3, 1)
    assert caught.value.code == "output_failed"
    assert [row["step"] for row in log.rows()] == [3]


@pytest.mark.usefixtures("without_report")
def test_a_resumed_run_lists_each_unreadable_image_once_per_epoch(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "data"), tmp_path / "run"
    for name in ("train/dark/3.png", "train/bright/7.png"):
        (folder / name).write_bytes(b"broken")
    run(folder, tmp_path / "uninterrupted")

    class KilledError(Exception):
        pass

    def on_event(event: TrainingEvent) -> None:
        if isinstance(event, StepEvent) and event.step == 6:  # after the last batch of epoch 1, before its checkpoint
            raise KilledError

    with pytest.raises(KilledError):
        train(folder, out, small(), workers=0, on_event=on_event)
    with (out / "skipped.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')  # cut off
    run(folder, out)
    assert (out / "skipped.jsonl").read_text() == (tmp_path / "uninterrupted" / "skipped.jsonl").read_text()


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_finite_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    monkeypatch.setattr(F, "cross_entropy", lambda *args, **options: torch.tensor(loss))
    with pytest.raises(TrainingError, match=f"after step 3, the loss on the validation images is {loss}") as caught:
        run(data, tmp_path)
    assert caught.value.code == "diverged"
    assert not (tmp_path / "metrics.jsonl").exists()
