"""Checkpoints: damage is saved, and nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tessella.errors import OutputError, WeightsError
from tessella.training import checkpoint, loop
from tessella.training.validation import Validation

from .small_runs import remarks_of, run, small


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "pipe"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(tmp_path: Path, name: str, damage: str) -> None:
    tensors = {part: {"a": torch.arange(5.0), "b/step": torch.tensor(3.0)} for part in ("model", "optimizer")}
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors, dict(step=step))
    path = checkpoint.checkpoint_folder(tmp_path, 2) / name
    if damage == "flip":
        flip(path, 40)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    if damage == "pipe":  # reading it would block forever
        os.mkfifo(path)
    messages: list[str] = []
    saved = checkpoint.read_newest(tmp_path, messages.append)
    assert saved is not None
    assert (saved.checkpoint_id, saved.state) == (1, dict(step=1))
    assert "at-00000002 is damaged" in messages[0]
    with pytest.raises(WeightsError) as caught:  # the intact one is not deleted
        checkpoint.prune(tmp_path, 2, 1)
    assert caught.value.code == "damaged_checkpoint"
    assert checkpoint.checkpoint_ids(tmp_path) == [1, 2]


def test_files_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, dict(model={"a": torch.full((3,), float(step))}), dict(step=step))
    first, second = (checkpoint.checkpoint_folder(tmp_path, step) for step in (1, 2))
    (second / "model.safetensors").write_bytes((first / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="does not match the manifest"):
        checkpoint.read(tmp_path, 2)
    for path in first.iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match="manifest is that of checkpoint 1"):
        checkpoint.read(tmp_path, 2)
    flip(first / "state.json", 3)
    with pytest.raises(WeightsError) as caught:
        checkpoint.read_newest(tmp_path, lambda text: None)
    assert caught.value.code == "damaged_checkpoint"


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 1, dict(model={"a": torch.zeros(2)}), dict(step=1))
    torch.save({"a": torch.zeros(2)}, folder / "model.safetensors")
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["sha256"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.read(tmp_path, 1)


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, dict(model={"a": torch.zeros(2)}), dict(step=step))
    checkpoint.prune(tmp_path, 5, 2, best=1)
    assert checkpoint.checkpoint_ids(tmp_path) == [1, 4, 5]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_goes_on_after_falling_back_to_an_older_checkpoint(tmp_path: Path, keep: int) -> None:
    for step in (5, 10, 20):
        checkpoint.save(tmp_path, step, dict(model={"a": torch.zeros(3)}), dict(step=step))
    flip(checkpoint.checkpoint_folder(tmp_path, 20) / "model.safetensors", -1)
    resumed = checkpoint.read_newest(tmp_path, lambda text: None)
    assert resumed is not None
    assert resumed.checkpoint_id == 10
    checkpoint.save(tmp_path, 15, dict(model={"a": torch.zeros(3)}), dict(step=15))
    checkpoint.prune(tmp_path, 15, keep)
    assert checkpoint.checkpoint_ids(tmp_path) == [10, 15, 20][-keep - 1 :]
    newest = checkpoint.read_newest(tmp_path, lambda text: None)
    assert newest is not None
    assert newest.checkpoint_id == 15


@pytest.mark.usefixtures("without_report")
def test_a_checkpoint_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "one", small("convmixer_768_32", epochs=1))
    run(data, tmp_path / "two", small(epochs=1))
    for path in (tmp_path / "two" / "checkpoints").iterdir():
        shutil.rmtree(path)
    shutil.copytree(tmp_path / "one" / "checkpoints", tmp_path / "two" / "checkpoints", dirs_exist_ok=True)
    with pytest.raises(WeightsError, match="does not fit the model") as caught:
        run(data, tmp_path / "two", small(epochs=1))
    assert caught.value.code == "damaged_checkpoint"


@pytest.mark.usefixtures("without_report")
def test_a_run_ends_with_a_model_if_the_best_checkpoint_was_deleted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = iter([0.9, 0.5, 0.95, 0.6])  # the last: epoch 2 once more, on another machine
    monkeypatch.setattr(loop, "validate", lambda *args: Validation(next(tops), 1.0, 24, 0))
    config = small(keep_checkpoints=2, calibrate=False)
    run(data, tmp_path, config)
    assert checkpoint.checkpoint_ids(tmp_path) == [8, 12]  # 4, the best before epoch 2, is deleted
    flip(checkpoint.checkpoint_folder(tmp_path, 12) / "model.safetensors", -1)
    (tmp_path / "model.safetensors").unlink()
    events = run(data, tmp_path, config)
    assert "the checkpoint of the best epoch so far is missing" in remarks_of(events)
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("damage", ["delete", "flip"])
def test_a_finished_run_keeps_its_newest_checkpoint_if_the_best_cannot_be_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    tops = iter([0.9, 0.5, 0.6])
    monkeypatch.setattr(loop, "validate", lambda *args: Validation(next(tops), 1.0, 24, 0))
    config = small(calibrate=False)
    run(data, tmp_path, config)
    best = checkpoint.checkpoint_folder(tmp_path, 4)
    if damage == "delete":
        shutil.rmtree(best)
    else:
        flip(best / "model.safetensors", -1)
    remarks = remarks_of(run(data, tmp_path, config))
    reason = "the best epoch so far is missing" if damage == "delete" else f"{best} is damaged: the hash of"
    assert reason in remarks
    assert "the weights of the newest checkpoint are kept, those of the last epoch" in remarks
    assert "remaining epochs" not in remarks
    kept, newest = (
        safetensors.torch.load_file(path / "model.safetensors")
        for path in (tmp_path, checkpoint.checkpoint_folder(tmp_path, 12))
    )
    assert all(torch.equal(kept[name], newest[name]) for name in kept)


@pytest.mark.usefixtures("without_report")
def test_a_damaged_best_checkpoint_is_reported_before_the_remaining_epochs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = iter([0.9, 0.5, 0.6])
    monkeypatch.setattr(loop, "validate", lambda *args: Validation(next(tops), 1.0, 24, 0))
    one, two = (small(epochs=n, schedule="constant", warmup_fraction=0.0, calibrate=False) for n in (2, 3))
    run(data, tmp_path, one)
    flip(checkpoint.checkpoint_folder(tmp_path, 4) / "model.safetensors", -1)
    remarks = remarks_of(run(data, tmp_path, two))
    assert (
        "is damaged: the hash of model.safetensors does not match the manifest, so the best of the remaining" in remarks
    )


def test_checkpoints_that_cannot_be_listed_have_an_error_code(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(OutputError, match="could not be read") as caught:
        checkpoint.read_newest(tmp_path, lambda text: None)
    assert caught.value.code == "output_failed"
