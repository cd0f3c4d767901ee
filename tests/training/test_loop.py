"""Training runs: they learn, and resume after any interruption to the same weights."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import tessella
from tessella.data.datasets import open_labelled
from tessella.errors import ImageError, OutputError, TrainingError
from tessella.storage import write_atomic
from tessella.training import checkpoint
from tessella.training.config import TrainConfig
from tessella.training.events import StepEvent, TrainingEvent
from tessella.training.loop import train

from .kills import assert_same, kill_and_resume, last
from .small_runs import CLASSES, FAMILIES, losses, make_images, remarks_of, run, small


def test_training_improves_accuracy_and_the_folder_can_be_loaded(data: Path, finished_run: Path) -> None:
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[-1]["val_top1"] > 0.9
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (rows[-1]["images"], rows[-1]["val_images"], rows[-1]["skipped"]) == (48, 24, 0)
    predictor = tessella.load(f"local-dir:{finished_run}")
    assert predictor.labels == CLASSES
    held_out = open_labelled(data, "val")
    correct = sum(predictor.classify(held_out.source(i))[0].index == held_out.labels[i] for i in range(len(held_out)))
    best = max(rows, key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert correct / len(held_out) == best["val_top1"]
    report = json.loads((finished_run / "report" / "report.json").read_text())
    assert report["metrics"]["top1"] == pytest.approx(best["val_top1"])
    assert report["notes"][0].startswith(f"Weights: epoch {best['epoch']} of epochs 0 to 2")  # as in metrics.jsonl
    assert {path.name for path in (finished_run / "report").iterdir()} >= {"report.md", "confusion.png", "curves.png"}
    assert "## Training" in (finished_run / "README.md").read_text()


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_trains_with_all_features(data: Path, tmp_path: Path, model: str) -> None:
    config = small(
        model,
        epochs=1,
        ema_decay=0.9,
        drop_path_rate=0.1,
        grad_accum_steps=2,
        repeats=2,
        grad_checkpointing=True,
        channels_last=True,
        max_grad_norm=1.0,
        label_smoothing=0.1,
        precision="bfloat16",
        mixing=dict(mixup=0.5, cutmix=0.5),
        layer_decay=0.9,
        erasing=dict(prob=0.5, mode="pixel"),
        augmentation=dict(auto_augment="rand-m9-mstd0.5-inc1"),
    )
    events = run(data, tmp_path / "run", config)
    assert all(np.isfinite(losses(events)))
    assert tessella.load(f"local-dir:{tmp_path / 'run'}").labels == CLASSES


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize(("number", "optimizer"), [(signal.SIGTERM, "adamw"), (signal.SIGINT, "muon")])
def test_a_run_stopped_by_a_signal_resumes_to_the_same_weights(
    data: Path, tmp_path: Path, model: str, number: signal.Signals, optimizer: str
) -> None:
    config = small(
        model,
        optimizer=optimizer,
        ema_decay=0.9,
        drop_path_rate=0.1,
        channels_last=True,
        augmentation=dict(auto_augment="rand-m9-inc1"),
        mixing=dict(mixup=0.2),
        model_args=FAMILIES[model] | dict(drop_rate=0.1),
    )
    events = run(data, tmp_path / "uninterrupted", config)
    interrupted: list[TrainingEvent] = []

    def on_event(event: TrainingEvent) -> None:
        interrupted.append(event)
        if isinstance(event, StepEvent) and event.step in (2, 4):  # in the middle of epochs 0 and 1
            os.kill(os.getpid(), number)

    for _ in range(2):
        with pytest.raises(TrainingError, match=f"stopped by {number.name}") as caught:
            train(data, tmp_path / "resumed", config, workers=0, on_event=on_event)
        assert (caught.value.code, caught.value.exit_code) == ("interrupted", 130)
    train(data, tmp_path / "resumed", config, workers=2, on_event=on_event)
    assert losses(interrupted) == losses(events)
    assert_same(last(tmp_path / "uninterrupted"), last(tmp_path / "resumed"))
    metrics = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "uninterrupted" / "metrics.jsonl", tmp_path / "resumed" / "metrics.jsonl")
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_run_resumes_to_the_same_weights(data: Path, tmp_path: Path, family: str) -> None:
    facts = kill_and_resume(data, tmp_path, family, kills=2)
    assert (facts["kills"], facts["ends"]) == (2, facts["bit_equal"])


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("call", range(1, 6))
def test_a_full_disk_leaves_the_previous_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls = 0

    def write(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += "at-00000008" in str(path)
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomic(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", write)
        if call <= 4:  # model, optimizer, state, manifest
            with pytest.raises(OutputError, match="No space left") as caught:
                run(data, tmp_path / "resumed")
            assert caught.value.code == "output_failed"
            assert checkpoint.checkpoint_ids(tmp_path / "resumed") == [4]
    events = run(data, tmp_path / "resumed")
    assert ("resuming after step 3" in remarks_of(events)) == (call <= 4)
    run(data, tmp_path / "uninterrupted")
    assert_same(last(tmp_path / "uninterrupted"), last(tmp_path / "resumed"))


@pytest.mark.usefixtures("without_report")
def test_fine_tuning_starts_from_the_pretrained_weights(data: Path, finished_run: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        model=f"local-dir:{finished_run}", init_from="pretrained", epochs=1, batch_size=16, lr=1e-9, label_smoothing=0.0
    )
    run(data, tmp_path / "tuned", config)
    before, after = (
        safetensors.torch.load_file(path / "model.safetensors") for path in (finished_run, tmp_path / "tuned")
    )
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    assert tessella.load(f"local-dir:{tmp_path / 'tuned'}").labels == CLASSES


@pytest.mark.usefixtures("without_report")
def test_training_images_of_the_initial_model_that_are_not_recorded_are_a_warning(
    data: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(model=f"local-dir:{finished_run}", init_from="pretrained", epochs=1, batch_size=16)
    monkeypatch.setattr("tessella.evaluation.leakage.MAX_BYTES", 100)  # so that only names are recorded
    assert f"leaves out those of local-dir:{finished_run}" in remarks_of(run(data, tmp_path / "tuned", config))


def test_an_epoch_without_any_image_is_an_error(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data")
    for image in (data / "train").rglob("*.png"):
        image.write_bytes(b"no image")
    for _ in range(2):  # a run that is resumed, too
        with pytest.raises(ImageError, match="epoch 0: none of the training images can be read") as caught:
            run(data, tmp_path / "run", small())
        assert (caught.value.code, caught.value.hint) == ("unreadable", "replace the images, and give another --out")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    keys = {json.loads(line)["key"] for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()}
    assert len(keys) == 48


def test_file_names_that_are_not_utf8(data: Path, tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(data, root)
    for split in ("train", "val"):
        (root / split / "dark").rename(root / split / os.fsdecode(b"gr\xe9y"))
        (root / split / "bright" / "0.png").rename(root / split / "bright" / os.fsdecode(b"\xff.png"))
    run(root, tmp_path / "run", small(epochs=1), command=f"tessella train {root}")
    assert "gr" in tessella.load(f"local-dir:{tmp_path / 'run'}").labels[1]
    assert r"caf\xe9" in (tmp_path / "run" / "report" / "report.md").read_text()
    assert (tmp_path / "run" / "report" / "confusion.png").exists()
