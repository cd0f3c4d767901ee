"""TensorBoard logs of training events."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tessella.errors import OutputError, UsageError
from tessella.training import TensorBoardWriter
from tessella.training.events import EmbeddingEvent, ProbeEvent, StepEvent, TrainingRemark

STEP = StepEvent(step=3, steps=9, epoch=0, loss=0.5, lr=0.25, images_per_second=12.0)
PROBE = ProbeEvent(val_top1=0.75, val_loss=0.5, val_images=8, val_errors=0, seconds=1.5)


def test_numbers_of_events_become_scalars(tmp_path: Path) -> None:
    with TensorBoardWriter(tmp_path) as writer:
        for event in (TrainingRemark(text="started"), EmbeddingEvent(done=8, images=8), PROBE, STEP):
            writer(event)
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")  # without types
    logs = module.EventAccumulator(str(tmp_path))
    logs.Reload()
    assert set(logs.Tags()["scalars"]) == {
        *("step/loss", "step/lr", "step/images_per_second", "probe/val_top1", "probe/val_loss", "probe/seconds")
    }
    (loss,) = logs.Scalars("step/loss")
    assert (loss.step, loss.value) == (3, 0.5)


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with TensorBoardWriter(tmp_path) as writer:
        writer(STEP)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match="TensorBoard logging needs tensorboard") as caught:
        TensorBoardWriter(tmp_path)
    assert caught.value.code == "missing_dependency"


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="TensorBoard logs in") as caught:
        TensorBoardWriter(tmp_path / "file")
    assert caught.value.code == "output_failed"


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = TensorBoardWriter(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            writer(STEP)
        assert caught.value.code == "output_failed"
    writer.close()
