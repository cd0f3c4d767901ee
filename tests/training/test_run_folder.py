"""The folder of a run: what is resumed, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tessella.errors import OutputError, TrainingError, UsageError
from tessella.storage import folder_lock
from tessella.training import setup
from tessella.training.config import FORMER_NAMES
from tessella.training.events import StepEvent, TrainingEvent
from tessella.training.loop import train
from tessella.training.model import build_model
from tessella.training.run_folder import LOCK

from .kills import assert_same, last
from .small_runs import epochs_of, make_images, remarks_of, run, small


@pytest.mark.usefixtures("without_report")
def test_another_config_or_other_data_is_refused(data: Path, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lr was 0\.003, now 0\.1 ") as caught:
        run(data, finished_run, small(ema_decay=0.9, lr=0.1))
    assert caught.value.code == "changed_run"
    with pytest.raises(UsageError, match="the training images changed"):
        run(make_images(tmp_path, count=50), finished_run, small(ema_decay=0.9))


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "config.json", "model.safetensors", "calibration.safetensors", "images.npz", "metrics.jsonl"),
        *("skipped.jsonl", "report/report.md", "checkpoints/at-00000004/MANIFEST.json"),
    ],
)
def test_files_that_no_training_has_written_are_not_replaced(data: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    shown = name.partition("/M")[0]
    with pytest.raises(
        UsageError, match=f"is not the folder of a training run, .* and its {shown} would be overwritten"
    ) as caught:
        run(data, tmp_path / "mine")
    assert (caught.value.code, caught.value.hint) == ("exists", "give another --out")
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "mine"


@pytest.mark.usefixtures("without_report")
def test_other_files_in_the_folder_of_a_run_are_kept(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run(data, tmp_path, small(epochs=1))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("without_report")
def test_images_of_the_same_size_with_other_contents_are_refused(tmp_path: Path) -> None:
    data, out = make_images(tmp_path / "data"), tmp_path / "run"
    run(data, out, small(epochs=1))
    image = data / "train" / "dark" / "3.png"
    before = image.read_bytes()
    image.write_bytes(before[:-20] + bytes([before[-20] ^ 1]) + before[-19:])
    with pytest.raises(UsageError, match="contents of the images have changed since training") as caught:
        run(data, out, small(epochs=1))
    assert caught.value.code == "changed_run"
    image.write_bytes(before)
    run(data, out, small(epochs=1))


@pytest.mark.usefixtures("without_report")
def test_a_damaged_record_of_the_images_is_written_again(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, small(epochs=1))
    record = tmp_path / "images.npz"
    before = record.read_bytes()
    record.write_bytes(before[:100])
    run(data, tmp_path, small(epochs=1))
    assert record.read_bytes() == before


@pytest.mark.usefixtures("without_report")
def test_more_epochs_extend_a_run_with_a_constant_learning_rate(data: Path, tmp_path: Path) -> None:
    three, four = (small(schedule="constant", warmup_fraction=0.0, epochs=n) for n in (3, 4))
    run(data, tmp_path / "run", three)
    events = run(data, tmp_path / "run", four)
    assert [event.epoch for event in epochs_of(events)] == [3]
    run(data, tmp_path / "uninterrupted", four)
    assert_same(last(tmp_path / "uninterrupted"), last(tmp_path / "run"))
    run(data, tmp_path / "run", four)  # train.json has four epochs now
    with pytest.raises(UsageError, match="holds a run of 4 epochs, not 3"):
        run(data, tmp_path / "run", three)


@pytest.mark.usefixtures("without_report")
def test_a_run_without_the_newest_settings_is_resumed(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, small(epochs=1))
    facts = json.loads((tmp_path / "train.json").read_text())
    del facts["config"]["probe"], facts["config"]["freeze_batch_norm_stats"]
    (tmp_path / "train.json").write_text(json.dumps(facts))
    (tmp_path / "images.npz").unlink()
    events = run(data, tmp_path, small(epochs=1))
    assert "all epochs are done" in remarks_of(events)
    assert (tmp_path / "images.npz").exists()


def test_a_refusal_explains_how_to_train_further_and_names_single_settings(data: Path, finished_run: Path) -> None:
    with pytest.raises(UsageError, match="a run of 3 epochs, not 4") as caught:
        run(data, finished_run, small(ema_decay=0.9, epochs=4))
    assert f"-m local-dir:{finished_run}" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        run(data, finished_run, small(ema_decay=0.9, augmentation=dict(scale=[0.5, 1.0])))
    assert "augmentation.scale was null, now [0.5, 1.0] " in str(caught.value)
    assert "{" not in str(caught.value)


def test_a_second_training_in_the_same_folder_is_refused(data: Path, finished_run: Path, tmp_path: Path) -> None:
    with folder_lock(finished_run, LOCK), pytest.raises(UsageError) as caught:
        run(data, finished_run, small(ema_decay=0.9))
    assert caught.value.code == "busy"
    with folder_lock(tmp_path / "new", LOCK), pytest.raises(UsageError, match="another process"):
        run(data, tmp_path / "new")
    assert not (tmp_path / "new" / "train.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b'{"config": {}}', b'{"config": 3, "data": "", "val": ""}', b"\xff\xfe"),
        b'{"config": {"lr": NaN}, "data": "", "val": ""}',
        b'{"config": {"lr": "fast"}, "data": "", "val": ""}',
        b'{"config": {"epochs": 1e400}, "data": "", "val": ""}',
        b'{"config": {"mixing": {"mixup": []}}, "data": "", "val": ""}',
        b'{"config": {"resnet": 1}, "data": "", "val": ""}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_train_json_is_refused(data: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"train\.json is damaged") as caught:
        run(data, tmp_path)
    assert caught.value.code == "damaged_run"


def test_unusable_folders_and_environments_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError) as caught:
            train(data, out, small())
        assert caught.value.code == "output_failed"
    with pytest.raises(UsageError, match="null character"):
        train(data, "a\0b", small())
    with pytest.raises(UsageError, match="has no name"):
        train(data, "", small())
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE is 'two'"):
        train(data, tmp_path / "run", small())


def write_with_former_names(path: Path) -> bytes:
    """Rewrite a train.json as versions before the renaming of settings wrote it; return the bytes."""
    values = json.loads(path.read_text())
    former = {name: old for old, name in FORMER_NAMES.items()}
    values["config"] = {former.get(name, name): value for name, value in values["config"].items()}
    assert values["config"].keys() >= {"start", "smoothing", "ema"}
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path.read_bytes()


@pytest.mark.usefixtures("without_report")
def test_a_run_with_former_names_of_settings_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    config = small(ema_decay=0.9, max_grad_norm=1.0, grad_accum_steps=2)

    def interrupt(event: TrainingEvent) -> None:
        if isinstance(event, StepEvent) and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingError, match="stopped by SIGTERM"):
        train(data, tmp_path / "resumed", config, workers=0, on_event=interrupt)
    before = write_with_former_names(tmp_path / "resumed" / "train.json")
    with pytest.raises(UsageError, match=r"label_smoothing was 0\.0, now 0\.2 ") as caught:
        run(data, tmp_path / "resumed", dataclasses.replace(config, label_smoothing=0.2))
    assert caught.value.code == "changed_run"
    assert "resuming after step 5" in remarks_of(run(data, tmp_path / "resumed", config))
    assert (tmp_path / "resumed" / "train.json").read_bytes() == before
    run(data, tmp_path / "uninterrupted", config)
    assert_same(last(tmp_path / "uninterrupted"), last(tmp_path / "resumed"))


@pytest.mark.usefixtures("without_report")
def test_extending_a_run_with_former_names_writes_the_current_ones(data: Path, tmp_path: Path) -> None:
    one, two = (small(schedule="constant", warmup_fraction=0.0, epochs=n) for n in (1, 2))
    run(data, tmp_path, one)
    write_with_former_names(tmp_path / "train.json")
    run(data, tmp_path, two)
    config = json.loads((tmp_path / "train.json").read_text())["config"]
    assert (config["epochs"], config["label_smoothing"], "smoothing" in config) == (2, 0.0, False)


@pytest.mark.usefixtures("without_report")
def test_a_run_that_started_while_the_model_was_built_is_not_overwritten(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(setup, "build_model", build_model)
        run(data, tmp_path, small(epochs=1))
        return build_model(*args)

    monkeypatch.setattr(setup, "build_model", meanwhile)
    with pytest.raises(UsageError, match="epochs") as caught:
        run(data, tmp_path, small(epochs=2))
    assert caught.value.code == "changed_run"
