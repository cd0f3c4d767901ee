"""Training: it learns, goes on after any interruption as if there had been none, and never learns from nonsense."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch._dynamo
from torch import Tensor

import tessella
from tessella.data.datasets import open_labelled
from tessella.errors import ImageError, OutputError, TrainingError, UsageError, WeightsError
from tessella.storage import folder_lock, write_atomic
from tessella.training import checkpoint
from tessella.training import loop as training
from tessella.training.config import TrainConfig
from tessella.training.loop import train
from tessella.training.trainer import Process, Student, layers_of, new_model, parameter_groups

from .kills import assert_same, killed_and_whole, last
from .small_runs import CLASSES, FAMILIES, make_images, small


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data"))


def run(data: Path, out: Path, config: TrainConfig | None = None, **args: Any) -> list[dict[str, Any]]:
    """The events of a whole run."""
    events: list[dict[str, Any]] = []
    train(data, out, config or small(), workers=0, watch=events.append, **args)
    return events


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["kind"] == "step"]


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pictures of the report, which take most of the time of so small a run."""
    monkeypatch.setattr(training, "write_report", lambda *args, **more: None)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(data, out, small(ema=0.9))
    return out


def test_it_learns_and_its_folder_loads(data: Path, whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[-1]["val_top1"] > 0.9
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (rows[-1]["images"], rows[-1]["val_images"], rows[-1]["skipped"]) == (48, 24, 0)
    predictor = tessella.load(f"local-dir:{whole}")
    assert predictor.labels == CLASSES
    held_out = open_labelled(data, "val")
    right = sum(predictor.classify(held_out.source(i))[0].index == held_out.labels[i] for i in range(len(held_out)))
    best = max(rows, key=lambda row: row["val_top1"])
    assert right / len(held_out) == best["val_top1"]
    report = json.loads((whole / "report" / "report.json").read_text())
    assert report["metrics"]["top1"] == pytest.approx(best["val_top1"])
    assert {path.name for path in (whole / "report").iterdir()} >= {"report.md", "confusion.png", "curves.png"}
    assert "## Training" in (whole / "README.md").read_text()


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_trains_with_everything_on(data: Path, tmp_path: Path, model: str) -> None:
    config = small(
        model, epochs=1, ema=0.9, drop_path=0.1, accumulate=2, repeats=2, grad_checkpointing=True, channels_last=True,
        clip_norm=1.0, smoothing=0.1, precision="bfloat16", mixing=dict(mixup=0.5, cutmix=0.5), layer_decay=0.9,
        erasing=dict(prob=0.5, mode="pixel"), augmentation=dict(auto_augment="rand-m9-mstd0.5-inc1"),
    )  # fmt: skip
    events = run(data, tmp_path / "run", config)
    assert all(np.isfinite(losses(events)))
    assert tessella.load(f"local-dir:{tmp_path / 'run'}").labels == CLASSES


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_rest_is_bit_equal(
    data: Path, tmp_path: Path, model: str, number: signal.Signals
) -> None:
    config = small(model, ema=0.9, drop_path=0.1, channels_last=True, augmentation=dict(auto_augment="rand-m9-inc1"),
                   mixing=dict(mixup=0.2), model_args=FAMILIES[model] | dict(drop_rate=0.1))  # fmt: skip
    events = run(data, tmp_path / "whole", config)
    cut: list[dict[str, Any]] = []

    def watch(event: dict[str, Any]) -> None:
        cut.append(event)
        if event["kind"] == "step" and event["step"] in (2, 4):  # in the middle of epochs 0 and 1
            os.kill(os.getpid(), number)

    for _ in range(2):
        with pytest.raises(TrainingError, match=f"stopped by {number.name}") as caught:
            train(data, tmp_path / "cut", config, workers=0, watch=watch)
        assert (caught.value.code, caught.value.exit_code) == ("interrupted", 130)
    train(data, tmp_path / "cut", config, workers=2, watch=watch)
    assert losses(cut) == losses(events)
    assert_same(last(tmp_path / "whole"), last(tmp_path / "cut"))
    kept = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "cut" / "metrics.jsonl")
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_at_any_moment_it_ends_as_the_whole_one(data: Path, tmp_path: Path, family: str) -> None:
    facts = killed_and_whole(data, tmp_path, family, kills=2)
    assert (facts["kills"], facts["ends"]) == (2, facts["bit_equal"])


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("call", range(1, 6))
def test_a_full_disk_leaves_the_checkpoint_before(
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
            with pytest.raises(UsageError, match="No space left") as caught:
                run(data, tmp_path / "cut")
            assert caught.value.code == "output_failed"
            assert checkpoint.moments(tmp_path / "cut") == [4]
    events = run(data, tmp_path / "cut")
    assert any("resuming after step 3" in event.get("text", "") for event in events) == (call <= 4)
    run(data, tmp_path / "whole")
    assert_same(last(tmp_path / "whole"), last(tmp_path / "cut"))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "pipe"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    tensors = {part: {"a": torch.arange(5.0), "b/step": torch.tensor(3.0)} for part in ("model", "optimizer")}
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors, dict(step=step))
    path = checkpoint.folder_of(tmp_path, 2) / name
    if damage == "flip":
        flip(path, 40)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    if damage == "pipe":  # reading it would wait for ever
        os.mkfifo(path)
    said: list[str] = []
    found = checkpoint.read_newest(tmp_path, said.append)
    assert found is not None
    assert (found.moment, found.state) == (1, dict(step=1))
    assert "at-00000002 is damaged" in said[0]
    with pytest.raises(WeightsError) as caught:  # nor is the good one deleted for it
        checkpoint.prune(tmp_path, 1)
    assert caught.value.code == "damaged_checkpoint"
    assert checkpoint.moments(tmp_path) == [1, 2]


def test_checkpoints_of_two_steps_do_not_mix(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, dict(model={"a": torch.full((3,), float(step))}), dict(step=step))
    one, two = (checkpoint.folder_of(tmp_path, step) for step in (1, 2))
    (two / "model.safetensors").write_bytes((one / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="not the file that was written"):
        checkpoint.read(tmp_path, 2)
    for path in one.iterdir():
        (two / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match="manifest is that of moment 1"):
        checkpoint.read(tmp_path, 2)
    flip(one / "state.json", 3)
    with pytest.raises(WeightsError) as caught:
        checkpoint.read_newest(tmp_path, lambda text: None)
    assert caught.value.code == "damaged_checkpoint"


def test_no_pickle_is_read(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 1, dict(model={"a": torch.zeros(2)}), dict(step=1))
    torch.save({"a": torch.zeros(2)}, folder / "model.safetensors")
    import hashlib

    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["sha256"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.read(tmp_path, 1)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, dict(model={"a": torch.zeros(2)}), dict(step=step))
    checkpoint.prune(tmp_path, 2, best=1)
    assert checkpoint.moments(tmp_path) == [1, 4, 5]


@pytest.mark.usefixtures("unreported")
def test_another_config_or_other_data_is_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lr was 0\.003, now 0\.1 ") as caught:
        run(data, whole, small(ema=0.9, lr=0.1))
    assert caught.value.code == "changed_run"
    with pytest.raises(UsageError, match="the training images changed"):
        run(make_images(tmp_path, count=50), whole, small(ema=0.9))


@pytest.mark.usefixtures("unreported")
def test_other_contents_of_the_same_sizes_are_refused(tmp_path: Path) -> None:
    data, out = make_images(tmp_path / "data"), tmp_path / "run"
    run(data, out, small(epochs=1))
    image = data / "train" / "dark" / "3.png"
    before = image.read_bytes()
    image.write_bytes(before[:-20] + bytes([before[-20] ^ 1]) + before[-19:])
    with pytest.raises(UsageError, match="other contents than when training") as caught:
        run(data, out, small(epochs=1))
    assert caught.value.code == "changed_run"
    image.write_bytes(before)
    run(data, out, small(epochs=1))


@pytest.mark.usefixtures("unreported")
def test_a_damaged_record_of_the_images_is_written_anew(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, small(epochs=1))
    record = tmp_path / "images.npz"
    before = record.read_bytes()
    record.write_bytes(before[:100])
    run(data, tmp_path, small(epochs=1))
    assert record.read_bytes() == before


@pytest.mark.usefixtures("unreported")
def test_more_epochs_extend_a_run_of_constant_learning_rate(data: Path, tmp_path: Path) -> None:
    three, four = (small(schedule="constant", warmup=0.0, epochs=n) for n in (3, 4))
    run(data, tmp_path / "run", three)
    events = run(data, tmp_path / "run", four)
    assert [event["epoch"] for event in events if event["kind"] == "epoch"] == [3]
    run(data, tmp_path / "whole", four)
    assert_same(last(tmp_path / "whole"), last(tmp_path / "run"))
    run(data, tmp_path / "run", four)  # train.json says so too
    with pytest.raises(UsageError, match="holds a run of 4 epochs, not 3"):
        run(data, tmp_path / "run", three)


@pytest.mark.usefixtures("unreported")
def test_a_run_of_an_earlier_version_is_resumed(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, small(epochs=1))
    facts = json.loads((tmp_path / "train.json").read_text())
    del facts["config"]["probe"], facts["config"]["keep_statistics"]
    (tmp_path / "train.json").write_text(json.dumps(facts))
    (tmp_path / "images.npz").unlink()
    events = run(data, tmp_path, small(epochs=1))
    assert any("every epoch is done" in event.get("text", "") for event in events)
    assert (tmp_path / "images.npz").exists()


def test_a_refusal_says_how_to_train_further_and_dumps_no_dict(data: Path, whole: Path) -> None:
    with pytest.raises(UsageError, match="a run of 3 epochs, not 4") as caught:
        run(data, whole, small(ema=0.9, epochs=4))
    assert f"-m local-dir:{whole}" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        run(data, whole, small(ema=0.9, augmentation=dict(scale=[0.5, 1.0])))
    assert "augmentation.scale was null, now [0.5, 1.0] " in str(caught.value)
    assert "{" not in str(caught.value)


def test_a_second_training_in_the_folder_is_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    with folder_lock(whole, training.LOCK), pytest.raises(UsageError) as caught:
        run(data, whole, small(ema=0.9))
    assert caught.value.code == "busy"
    with folder_lock(tmp_path / "new", training.LOCK), pytest.raises(UsageError, match="another process"):
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
def test_a_damaged_train_json_is_a_coded_error(data: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"train\.json is damaged") as caught:
        run(data, tmp_path)
    assert caught.value.code == "damaged_run"


@pytest.mark.usefixtures("unreported")
def test_damaged_lines_of_the_log_are_left_out(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    log = tmp_path / "metrics.jsonl"
    rows = log.read_text()
    log.write_text('{"kind": "epoch"}\nnonsense\n' + rows + '{"kind": "st')
    events = run(data, tmp_path)
    assert log.read_text() == rows
    assert any("2 damaged lines" in event.get("text", "") for event in events)


@pytest.mark.usefixtures("unreported")
def test_a_checkpoint_of_another_model_is_a_coded_error(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "one", small("convmixer_768_32", epochs=1))
    run(data, tmp_path / "two", small(epochs=1))
    for path in (tmp_path / "two" / "checkpoints").iterdir():
        shutil.rmtree(path)
    shutil.copytree(tmp_path / "one" / "checkpoints", tmp_path / "two" / "checkpoints", dirs_exist_ok=True)
    with pytest.raises(WeightsError, match="of another model") as caught:
        run(data, tmp_path / "two", small(epochs=1))
    assert caught.value.code == "damaged_checkpoint"


# --- the linear probe that fine-tuning starts from --------------------------------------------------------------------


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("model", FAMILIES)
def test_fine_tuning_starts_from_a_linear_probe(data: Path, tmp_path: Path, model: str) -> None:
    events = run(data, tmp_path / "run", small(model, probe=True, keep_statistics=True, lr=1e-9))
    probed, *epochs = [event for event in events if event["kind"] in ("probe", "epoch")]
    assert probed["val_top1"] > 0.9
    for row in epochs:  # nothing changes at such a learning rate
        assert row["val_loss"] == pytest.approx(probed["val_loss"], abs=2e-3)
    assert (probed["step"], probed["epoch"]) == (0, -1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [-1, 0, 1, 2]


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(
    ("top1", "loss", "kept", "said"),
    [
        (
            (0.5, 0.25, 0.5, 0.25),
            (0.3, 0.1, 0.4, 0.1),
            0,
            "did not beat the linear probe (50.00 %): the weights of",
        ),
        ((0.5, 0.25, 0.75, 0.5), (0.3, 0.1, 0.4, 0.1), 8, "beat the linear probe (75.00 % against 50.00 %)"),
        ((0.5, 0.25, 0.5, 0.5), (0.3, 0.1, 0.4, 0.1), 12, "equals the linear probe in accuracy and has a lower loss"),
    ],
)
def test_the_better_of_probe_and_fine_tuning_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top1: Any, loss: Any, kept: int, said: str
) -> None:
    found = [dict(val_top1=a, val_loss=b, val_images=24, val_errors=0) for a, b in zip(top1, loss, strict=True)]
    monkeypatch.setattr(training, "evaluate", lambda *_: found.pop(0))
    events = run(data, tmp_path / "run", small(probe=True))
    assert any(said in event.get("text", "") for event in events)
    weights = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    for name, value in checkpoint.read(tmp_path / "run", kept).tensors["model"].items():
        assert torch.equal(value, weights[name])


@pytest.mark.usefixtures("unreported")
def test_a_classifier_for_the_same_classes_is_not_replaced(data: Path, whole: Path, tmp_path: Path) -> None:
    config = TrainConfig(model=f"local-dir:{whole}", start="pretrained", probe=True, epochs=1, batch_size=16)
    assert all(event["kind"] != "probe" for event in run(data, tmp_path / "run", config))


@pytest.mark.usefixtures("unreported")
def test_batch_norms_keep_their_statistics(data: Path, tmp_path: Path) -> None:
    config = small("convmixer_768_32", keep_statistics=True, epochs=1)
    torch.manual_seed(config.seed)
    before = new_model(config, CLASSES)[0].state_dict()
    run(data, tmp_path / "run", config)
    after = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {name for name in after if "running" in name or "num_batches" in name}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(device="cuda:7"), "device 'cuda:7' is not available"),
        (dict(device="meta"), "device 'meta'"),
        (dict(device="abacus"), "device 'abacus'"),
        (dict(workers=-1), "workers is -1"),
        (dict(workers=1_000_000), "workers is 1000000"),
        (dict(shard=True), "torchrun"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(data: Path, tmp_path: Path, options: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        train(data, tmp_path / "run", small(), **options)
    assert not (tmp_path / "run").exists()


def test_folders_and_environments_that_cannot_be(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(img_size=4000), "would be resized to"),
        (dict(img_size=1), "smaller than one 4 px patch"),
        (dict(model_args=dict(dim="wide")), "dim is 'wide', expected an integer"),
        (dict(model_args=dict(dim=-3)), "convmixer_768_32 cannot be built with .*dim=-3"),
    ],
)
def test_models_that_cannot_be(data: Path, tmp_path: Path, changes: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        run(data, tmp_path / "run", small("convmixer_768_32", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "does not fit in memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "does not fit in memory"),
        (torch._dynamo.exc.TorchDynamoException("no compiler\nlong story"), "torch.compile failed: no compiler"),
    ],
)
def test_memory_that_runs_out_is_a_coded_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Student, "step", fail)
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.Module.compile", lambda self: None)
        with pytest.raises(UsageError, match=text):
            run(data, tmp_path / "run", small(compile=True))


def test_names_that_are_not_utf8(data: Path, tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(data, root)
    for split in ("train", "val"):
        (root / split / "dark").rename(root / split / os.fsdecode(b"gr\xe9y"))
        (root / split / "bright" / "0.png").rename(root / split / "bright" / os.fsdecode(b"\xff.png"))
    run(root, tmp_path / "run", small(epochs=1), command=f"tessella train {root}")
    assert "gr" in tessella.load(f"local-dir:{tmp_path / 'run'}").labels[1]
    assert r"caf\xe9" in (tmp_path / "run" / "report" / "report.md").read_text()
    assert (tmp_path / "run" / "report" / "confusion.png").exists()


# --- what must not be learned -----------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float, where: str) -> list[dict[str, Tensor]]:
    """Make loss, gradient or input not finite at some steps; returns the weights after each step."""
    states: list[dict[str, Tensor]] = []
    step, loss, inputs = Student.step, Student._loss, Student._inputs
    now = 0

    def watched(self: Student, batch: Any, number: int, *rest: Any) -> Any:
        nonlocal now
        now = number
        if not states:
            states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        result = step(self, batch, number, *rest)
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return result

    def poisoned_loss(self: Student, logits: Tensor, answers: Tensor) -> Tensor:
        found = loss(self, logits, answers)
        if now not in steps or where == "input":
            return found
        if where == "loss":
            return found * value
        found.register_hook(lambda gradient: gradient * value)  # the loss itself is fine
        return found

    def poisoned_inputs(self: Student, batch: Any, number: int) -> tuple[Tensor, Tensor]:
        x, answers = inputs(self, batch, number)
        if number in steps and where == "input":
            x[0, 0, 0, 0] = value
        return x, answers

    monkeypatch.setattr(Student, "step", watched)
    monkeypatch.setattr(Student, "_loss", poisoned_loss)
    monkeypatch.setattr(Student, "_inputs", poisoned_inputs)
    return states


@pytest.mark.parametrize("where", ["loss", "gradient", "input"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("model", FAMILIES)
def test_no_step_is_taken_from_what_is_not_finite(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, value: float, where: str
) -> None:
    states = poison(monkeypatch, {4}, value, where)
    with pytest.raises(TrainingError, match="step 5: the loss is") as caught:
        run(data, tmp_path / "run", small(model))
    assert (caught.value.code, caught.value.exit_code) == ("diverged", 7)
    for name, after in states[-1].items():  # batch statistics too
        assert torch.equal(after, states[-2][name]), name
    assert any(not torch.equal(after, states[-3][name]) for name, after in states[-2].items())
    assert checkpoint.moments(tmp_path / "run") == [4]  # nothing of it was saved


@pytest.mark.usefixtures("unreported")
def test_a_bad_step_can_be_skipped_but_not_ten(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        states = poison(patch, {4, 5}, float("nan"), "loss")
        events = run(data, tmp_path / "run", small(on_bad_loss="skip"))
        assert torch.equal(states[4]["head.weight"], states[6]["head.weight"])
    rows = [event for event in events if event["kind"] == "epoch"]
    assert [row["bad_steps"] for row in rows] == [0, 2, 0]
    assert np.isfinite(rows[1]["loss"])
    poison(monkeypatch, set(range(100)), float("nan"), "loss")
    with pytest.raises(TrainingError, match="step 11"):
        run(data, tmp_path / "never", small(on_bad_loss="skip", epochs=9))


@pytest.mark.usefixtures("unreported")
def test_images_that_cannot_be_read_are_counted_and_named(data: Path, tmp_path: Path) -> None:
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
        path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="none of the held-out images"):
        run(folder, tmp_path / "blind")


@pytest.mark.usefixtures("unreported")
def test_too_few_images_for_a_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="48 images to learn from, less than one batch of 64"):
        run(data, tmp_path / "run", small(batch_size=64))
    assert not (tmp_path / "run").exists()
    run(data, tmp_path / "run", small(batch_size=48, epochs=1))


# --- what learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
def test_layers_and_decay(model: str) -> None:
    net, _ = new_model(small(model), CLASSES)
    layers = layers_of(net)
    names = dict(net.named_parameters())
    assert layers.keys() == names.keys()
    head = {name for name in names if name.startswith("head")}
    blocks = len(net.blocks)
    assert {layers[name] for name in head} == {blocks + 1}
    assert {layer for name, layer in layers.items() if name not in head} == set(range(blocks + 1))
    assert all(layers[name] == blocks for name in names if name.startswith("norm."))
    groups = parameter_groups(net, small(model, layer_decay=0.5, weight_decay=0.3))
    scales = {id(p): (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    excluded = net.no_weight_decay()
    for name, parameter in names.items():
        scale, decay = scales[id(parameter)]
        assert scale == 0.5 ** (blocks + 1 - layers[name])
        assert decay == (0.0 if parameter.ndim <= 1 or name in excluded else 0.3)


@pytest.mark.usefixtures("unreported")
def test_only_the_head_learns(data: Path, tmp_path: Path) -> None:
    config = small("convmixer_768_32", part="head", epochs=1)
    torch.manual_seed(config.seed)
    before = {name: value.clone() for name, value in new_model(config, CLASSES)[0].state_dict().items()}
    run(data, tmp_path / "run", config)
    after = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.usefixtures("unreported")
def test_parts_of_a_batch_are_the_batch(data: Path, tmp_path: Path) -> None:
    one, four = (losses(run(data, tmp_path / f"{n}", small(accumulate=n))) for n in (1, 4))
    np.testing.assert_allclose(one, four, rtol=1e-5)


@pytest.mark.usefixtures("unreported")
def test_a_fine_tune_begins_with_the_weights(data: Path, whole: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        model=f"local-dir:{whole}", start="pretrained", epochs=1, batch_size=16, lr=1e-9, smoothing=0.0
    )
    run(data, tmp_path / "tuned", config)
    before, after = (safetensors.torch.load_file(path / "model.safetensors") for path in (whole, tmp_path / "tuned"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    assert tessella.load(f"local-dir:{tmp_path / 'tuned'}").labels == CLASSES


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("way", ["soft", "hard"])
def test_a_teacher_is_learned_from(data: Path, whole: Path, tmp_path: Path, way: str) -> None:
    config = small(teacher=f"local-dir:{whole}", distill=way, distill_weight=1.0, distill_temperature=2.0)
    events = run(data, tmp_path / "run", config)
    assert losses(events)[-1] < losses(events)[0]
    rows = [event for event in events if event["kind"] == "epoch"]
    assert rows[-1]["val_top1"] > 0.9  # though no label was learned
    with pytest.raises(UsageError, match="knows 10 classes, the data has 2"):
        run(data, tmp_path / "other", small(teacher="convmixer_256_8_ks3_p4.cifar10"))


# --- several processes ------------------------------------------------------------------------------------------------


def together(data: Path, out: Path, config: TrainConfig, *more: str) -> list[float]:
    """Per epoch the loss of two processes under torchrun."""
    file = out.with_suffix(".json")
    file.write_text(json.dumps(config.as_dict()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tessella",
               "train", str(data), "--config", str(file), "--out", str(out), "--workers", "0", *more]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"), timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in rows] == list(range(config.epochs))  # one writer
    return [row["loss"] for row in rows] + [row["val_loss"] for row in rows]


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("more", [(), ("--shard",)])
def test_two_processes_are_one(data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    config = small(probe=True, ema=0.9, clip_norm=1.0, repeats=2)
    events = run(data, tmp_path / "alone", config)
    rows = [event for event in events if event["kind"] == "epoch"]
    alone = [row["loss"] for row in rows] + [row["val_loss"] for row in rows]
    np.testing.assert_allclose(together(data, tmp_path / "both", config, *more), alone, rtol=1e-4)
    model, same = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("alone", "both"))
    for name, value in model.items():
        torch.testing.assert_close(same[name], value, rtol=1e-3, atol=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused(data: Path) -> None:
    images = open_labelled(data, "train")
    with pytest.raises(UsageError, match="cannot be shared by 3 processes") as caught:
        training.check_data(small(), images, Process(0, 3, torch.device("cpu")))
    assert "--batch-size 18" in str(caught.value.hint)
