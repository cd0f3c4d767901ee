"""Distillation: what a student learns from a teacher's file, with labeled and unlabeled images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tessella
from tessella.data.augment import Augmentation, TrainTransform
from tessella.data.datasets import open_labelled
from tessella.data.loader import CropCache, Loader, Schedule, TrainImages
from tessella.data.mix import Erasing
from tessella.data.row_cache import RowCache
from tessella.data.spec import InputSpec
from tessella.errors import OutputError, UsageError
from tessella.training import checkpoint
from tessella.training.config import TrainConfig
from tessella.training.distillation import OUTPUTS, Distillation, StudentOutputs, resized
from tessella.training.events import EpochEvent, StepEvent, TrainingEvent
from tessella.training.loop import train
from tessella.training.setup import DataSettings
from tessella.training.teacher_base import Teacher, TeacherOutputs
from tessella.training.teacher_file import FileTeacher

from .kills import kill_and_resume, last
from .small_runs import FAMILIES, epochs_of, losses, make_images, remarks_of, run, small
from .small_teachers import CLASSES, WIDTH, save_teacher
from .test_distributed import train_two_processes

FAMILY = "convmixer_768_32"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher for images of 32 pixels, twice the size of the student's."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.xml", side=32).path


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unlabelled(tmp_path_factory.mktemp("unlabelled"))


def make_unlabelled(folder: Path, count: int = 40) -> Path:
    """Write noise of any brightness and color."""
    rng = np.random.default_rng(7)
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = rng.integers(0, 100, (24, 24, 3)) + rng.integers(0, 156, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def student(teacher: Path | str, **changes: Any) -> TrainConfig:
    settings = dict(teacher=str(teacher), distill_target="both", distill_weight=1.0, distill_center_images=32)
    return small(changes.pop("model", FAMILY), **settings | changes)


# --- parts ------------------------------------------------------------------------------------------------------------


class FixedTeacher(Teacher):
    """A teacher with the same outputs for every batch."""

    def __init__(self, outputs: TeacherOutputs, size: tuple[int, int] | None = None):
        self.outputs = outputs
        super().__init__("fixed", size, 3, 4, ())

    def __call__(self, pixels_BCHW: torch.Tensor) -> TeacherOutputs:
        self.seen = pixels_BCHW
        return self.outputs

    def describe(self) -> str:
        return "fixed"


def distillation_of(teacher: Teacher, **changes: Any) -> Distillation:
    config = TrainConfig.from_dict(dict(teacher="fixed", distill_target="both", distill_weight=1.0) | changes)
    distillation = Distillation(teacher, config, InputSpec(height=8, width=8), own_classes=True, folder=Path("unused"))
    distillation.center = dict(mean=torch.tensor([1.0, 2.0, 3.0, 4.0]), std=torch.tensor([1.0, 2.0, 1.0, 0.5]))
    return distillation


def test_images_are_resized_to_the_size_of_each_model() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert resized(x, (16, 16)) is x
    expected = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(resized(x, (8, 8)), expected)
    stripes = torch.arange(240).remainder(2).float().expand(1, 3, 240, 240)
    assert (resized(stripes, (96, 96)) - 0.5).abs().max() < 0.3  # without antialiasing, whole columns would be 0 or 1
    assert resized(x, (10, 12)).shape == (2, 3, 10, 12)


def test_teacher_and_student_see_the_same_crop() -> None:
    fixed = FixedTeacher(TeacherOutputs(None, None), size=(16, 16))
    distillation = distillation_of(fixed)
    assert distillation.rendered == (16, 16)
    pixels = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in (distillation.spec.mean, distillation.spec.std))
    x = (pixels - mean) / std
    distillation.targets(x)
    torch.testing.assert_close(fixed.seen, pixels)
    torch.testing.assert_close(distillation.student_input(x), (resized(pixels, (8, 8)) - mean) / std)
    smaller = distillation_of(FixedTeacher(TeacherOutputs(None, None), size=(4, 4)))
    assert smaller.rendered == (8, 8)
    assert distillation_of(FixedTeacher(TeacherOutputs(None, None))).rendered == (8, 8)


def test_losses_of_embeddings_and_logits() -> None:
    logits, embedding = torch.randn(5, 3), torch.randn(5, 4)
    distillation = distillation_of(FixedTeacher(TeacherOutputs(logits, embedding)), distill_embedding_weight=3.0)
    targets = distillation.targets(torch.zeros(5, 3, 8, 8))
    centered = embedding - distillation.center["mean"]
    perfect = StudentOutputs(logits + 7, centered * 2)  # neither a shift of logits nor the length of a vector matters
    assert float(distillation.loss(perfect, targets)) == pytest.approx(0, abs=1e-5)
    assert distillation.score(perfect, targets) == 5
    opposite = StudentOutputs(logits, -centered)
    assert float(distillation.loss(opposite, targets)) == pytest.approx(3 * 2)
    regression = distillation_of(distillation.teacher, distill_target="embedding", distill_embedding_loss="regression")
    standardized = centered / distillation.center["std"]
    assert float(regression.loss(StudentOutputs(None, standardized), targets)) == pytest.approx(0, abs=1e-6)
    assert float(regression.loss(StudentOutputs(None, standardized + 2), targets)) == pytest.approx(4)
    assert regression.score(StudentOutputs(None, centered), targets) == pytest.approx(5)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("loss", ["cosine", "regression"])
def test_a_student_learns_the_embedding(data: Path, teacher: Path, unlabelled: Path, tmp_path: Path, loss: str) -> None:
    settings = DataSettings(data=data, unlabelled=(unlabelled,))
    config = student(teacher, distill_target="embedding", distill_embedding_loss=loss, epochs=8, lr=0.01)
    events = run(settings, tmp_path / "run", config)
    assert losses(events)[-1] < 0.9 * losses(events)[0]
    first, *_, final = epochs_of(events)
    assert final.measure == "cosine with the teacher"
    assert first.val_top1 < final.val_top1 <= 1
    assert final.val_top1 > 0.5
    if loss == "cosine":
        assert final.val_loss == pytest.approx(1 - final.val_top1, abs=1e-5)
    text = remarks_of(events)
    assert f"teacher: {teacher}, input uint8 NHWC 32 x 32 px, embedding of {WIDTH} numbers (features)" in text
    assert "48 labeled and 40 unlabeled images; an epoch is 80 images, 45 % of them unlabeled" in text
    assert "centered on its mean over 32 training crops" in text
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"Distilled from the teacher {teacher}, its embeddings; no labels, on 48 images of" in card
    assert f"and 40 of {unlabelled}" in card
    assert "The classifier is a linear probe" in card
    predictor = tessella.load(f"local-dir:{tmp_path / 'run'}")
    assert predictor.labels == ("bright", "dark")
    images = [data / "val" / name / f"{i}.png" for name in ("bright", "dark") for i in range(12)]
    right = sum(predictor.classify(path)[0].label == path.parent.name for path in images)
    assert right > 20  # the fitted classifier is that of the labels


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("target", ["logits", "both"])
def test_a_student_without_labels_has_the_classes_of_its_teacher(
    data: Path, teacher: Path, unlabelled: Path, tmp_path: Path, target: str
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    config = student(teacher, distill_target=target, teacher_labels=str(names), epochs=6, lr=0.01)
    events = run(DataSettings(data=data, unlabelled=(unlabelled,)), tmp_path / "run", config)
    final = epochs_of(events)[-1]
    assert final.measure == "agreement with the teacher"
    assert losses(events)[-1] < losses(events)[0]
    assert final.val_top1 > 0.6
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Its accuracy was not measured." in card
    assert "top-1" not in card
    assert not (tmp_path / "run" / "report").exists()
    assert tessella.load(f"local-dir:{tmp_path / 'run'}").labels == ("one", "two", "three")
    assert len(tessella.load(f"local-dir:{tmp_path / 'run'}").labels) == CLASSES


@pytest.mark.usefixtures("without_report")
def test_labels_count_for_labelled_images_only(data: Path, teacher: Path, unlabelled: Path, tmp_path: Path) -> None:
    config = student(teacher, distill_target="embedding", distill_weight=0.5, unlabelled_fraction=0.5, epochs=6)
    events = run(DataSettings(data=data, unlabelled=(unlabelled,)), tmp_path / "run", config)
    final = epochs_of(events)[-1]
    assert final.measure == "top-1"
    assert final.val_top1 > 0.9
    assert "its embeddings, and the labels (weight 0.5), on 48 images" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("loss", ["softmax", "binary"])
@pytest.mark.usefixtures("without_report")
def test_mixed_images_and_accumulated_gradients(
    data: Path, teacher: Path, unlabelled: Path, tmp_path: Path, loss: str
) -> None:
    settings = DataSettings(data=data, unlabelled=(unlabelled,))
    config = student(
        teacher,
        model="mixer_s32_224",  # without batch norms, which see the images of a part
        model_args=FAMILIES["mixer_s32_224"],
        distill_target="embedding",
        distill_weight=0.5,
        loss=loss,
        mixing=dict(mixup=0.5, mode="elem"),
        epochs=1,
    )
    one, two = (
        losses(run(settings, tmp_path / f"{n}", TrainConfig.from_dict(config.as_dict() | dict(grad_accum_steps=n))))
        for n in (1, 2)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    "features",
    [
        dict(precision="bfloat16", mixing=dict(cutmix=1.0)),
        dict(grad_checkpointing=True, channels_last=True, repeats=2, erasing=dict(prob=0.5, mode="pixel")),
        dict(optimizer="sgd", distill="hard", unlabelled_fraction=1.0, max_grad_norm=1.0),
        dict(model="crossvit_tiny_240", model_args=FAMILIES["crossvit_tiny_240"], img_size=16, teacher_img_size=24),
    ],
)
def test_distillation_with_other_features_of_training(
    data: Path, teacher: Path, unlabelled: Path, tmp_path: Path, features: dict[str, Any]
) -> None:
    settings = DataSettings(data=data, unlabelled=(unlabelled,))
    events = run(settings, tmp_path / "run", student(teacher, epochs=2, **features))
    assert np.isfinite(losses(events)).all()
    assert np.mean(losses(events)[-3:]) < np.mean(losses(events)[:2])


@pytest.mark.usefixtures("without_report")
def test_a_model_as_the_teacher_of_embeddings(data: Path, finished_run: Path, tmp_path: Path) -> None:
    config = student(f"local-dir:{finished_run}", distill_target="embedding", epochs=6, lr=0.01)
    events = run(data, tmp_path / "run", config)
    assert epochs_of(events)[-1].val_top1 > epochs_of(events)[0].val_top1
    assert f"teacher: local-dir:{finished_run}, embedding of 16 numbers" in remarks_of(events)


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [FAMILY, "mixer_s32_224"])
def test_killed_runs_end_with_the_same_bits(tmp_path: Path, family: str) -> None:
    data = make_images(tmp_path / "data")
    save_teacher(tmp_path / "teacher.xml", side=20)
    make_unlabelled(tmp_path / "unlabelled")
    facts = kill_and_resume(data, tmp_path / "runs", family, kills=2)
    assert facts["bit_equal"] == facts["ends"] > 0
    saved = last(tmp_path / "runs" / "uninterrupted")
    assert {"projection", "ema_projection", "center"} <= saved.tensors.keys()
    assert "projection.weight/exp_avg" in saved.tensors["optimizer"]


@pytest.mark.usefixtures("without_report")
def test_other_unlabelled_images_or_another_teacher_are_refused(data: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher.xml").path
    more, out = make_unlabelled(tmp_path / "more"), tmp_path / "run"
    settings, config = DataSettings(data=data, unlabelled=(more,)), student(teacher, epochs=1)
    run(settings, out, config)
    record = json.loads((out / "train.json").read_text())
    assert set(record) == {"config", "data", "val", "unlabelled", "teacher"}
    assert "all epochs are done" in remarks_of(run(settings, out, config))
    for changed in (DataSettings(data=data), DataSettings(data=data, unlabelled=(more, more))):
        with pytest.raises(UsageError, match="the unlabeled images changed") as caught:
            run(changed, out, config)
        assert caught.value.code == "changed_run"
    (more / "0.png").rename(more / "other.png")
    with pytest.raises(UsageError, match="the unlabeled images changed"):
        run(settings, out, config)
    (more / "other.png").rename(more / "0.png")
    save_teacher(teacher, seed=1)
    with pytest.raises(UsageError, match="the teacher's files changed"):
        run(settings, out, config)


def test_a_checkpoint_of_another_teacher_is_refused(data: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher.xml").path
    config = student(teacher, epochs=1)
    run(data, tmp_path / "run", config)
    saved = last(tmp_path / "run")
    saved.tensors["center"]["mean"] = torch.zeros(3)
    checkpoint.save(tmp_path / "run", saved.checkpoint_id, saved.tensors, saved.state)
    with pytest.raises(tessella.errors.WeightsError, match="a different teacher") as caught:
        run(data, tmp_path / "run", config)
    assert caught.value.code == "damaged_checkpoint"


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(("target", "repeated"), [("both", 0), ("embedding", 0), ("both", 1)])
def test_two_processes_distill_as_one(
    data: Path, teacher: Path, unlabelled: Path, tmp_path: Path, target: str, repeated: int
) -> None:
    # a Mixer, as the batch norms of a ConvMixer see the images of one process
    mixer = dict(model="mixer_s32_224", model_args=FAMILIES["mixer_s32_224"])
    config = student(teacher, **mixer, ema_decay=0.9, distill_target=target, teacher_epochs=repeated)
    settings = DataSettings(data=data, unlabelled=(unlabelled,))
    epochs = epochs_of(run(settings, tmp_path / "one", config))
    expected = [epoch.loss for epoch in epochs] + [epoch.val_loss for epoch in epochs]
    found = train_two_processes(data, tmp_path / "two", config, "--unlabelled", str(unlabelled))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert not (tmp_path / "two" / OUTPUTS).exists()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_settings_that_do_not_fit_together_are_refused(
    data: Path, teacher: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = DataSettings(data=data, unlabelled=(unlabelled,))
    for settings, config, text in (
        (more, small(), "can only be used with a teacher"),
        (more, student(teacher, distill_weight=0.0, distill_target="embedding"), "distill_weight is 0"),
        (DataSettings(data=data), student(teacher, unlabelled_fraction=0.5), "need unlabeled images"),
        (more, student(teacher, trainable="head"), "the embedding is not trained"),
        (more, student(teacher, unlabelled_weights=(1.0, 2.0)), "for 1 sets of unlabeled images"),
        (more, student(teacher, distill_weight=0.5), "has 3 classes, the data has 2"),
        (more, small(teacher="convmixer_256_8_ks3_p4.cifar10", teacher_background=1), "teachers that are files"),
    ):
        with pytest.raises(UsageError, match=text) as caught:
            run(settings, tmp_path / "run", config)
        assert caught.value.code == "bad_argument"
        assert not (tmp_path / "run").exists()


def test_sharded_embeddings_are_refused_before_the_work(data: Path, teacher: Path, tmp_path: Path) -> None:
    from tessella.training.setup import check_distillation

    images = DataSettings(data=data).open_all()
    with pytest.raises(UsageError, match="--shard cannot distill embeddings"):
        check_distillation(student(teacher), images, shard=True)
    check_distillation(student(teacher, distill_target="logits"), images, shard=True)


@pytest.mark.usefixtures("without_report")
def test_broken_unlabelled_images_are_skipped_and_counted(data: Path, teacher: Path, tmp_path: Path) -> None:
    more = make_unlabelled(tmp_path / "more")
    for i in range(10):
        (more / f"{i}.png").write_bytes(b"broken")
    events = run(DataSettings(data=data, unlabelled=(more,)), tmp_path / "run", student(teacher, epochs=2))
    assert 0 < sum(epoch.skipped for epoch in epochs_of(events)) <= 20
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {Path(row["key"]).name for row in rows} <= {f"{i}.png" for i in range(10)}
    assert all(os.fspath(more) in row["key"] for row in rows)
    shutil.rmtree(more)
    more.mkdir()
    with pytest.raises(UsageError) as caught:
        train(DataSettings(data=data, unlabelled=(more,)), tmp_path / "other", student(teacher))
    assert caught.value.code == "not_found"


# --- repeated crops ---------------------------------------------------------------------------------------------------


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of images of every call of a teacher that is a file."""
    calls: list[int] = []
    original = FileTeacher.__call__

    def recording(self: FileTeacher, pixels: torch.Tensor) -> TeacherOutputs:
        calls.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(FileTeacher, "__call__", recording)
    return calls


@pytest.mark.parametrize("target", ["logits", "embedding", "both"])
def test_the_teacher_is_not_asked_again(
    teacher: Path, unlabelled: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(monkeypatch)
    data = DataSettings(data=make_images(tmp_path / "data"), unlabelled=(unlabelled,))
    config = student(teacher, distill_target=target, epochs=4, teacher_epochs=2, distill_center_images=16)
    events = run(data, tmp_path / "run", config)
    assert "later epochs repeat their crops" in remarks_of(events)
    epoch = 5 * 16  # of 48 labeled and 40 unlabeled images
    validation = 4 * 24
    assert sum(calls) == 2 * epoch + validation  # the 16 crops for the center are the first batch
    assert not (tmp_path / "run" / OUTPUTS).exists()
    assert np.isfinite(losses(events)).all()


def test_repeated_crops_have_the_outputs_of_the_teacher(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets that are read again are those of the same crop, in another order."""
    seen: list[tuple[bytes, bytes, bytes]] = []
    original = Distillation.batch_targets

    def recording(self: Distillation, batch: Any, device: torch.device) -> TeacherOutputs:
        targets = original(self, batch, device)
        assert targets.logits is not None
        assert targets.embedding is not None
        for x, logits, embedding in zip(batch.x, targets.logits, targets.embedding, strict=True):
            seen.append((x.numpy().tobytes(), logits.numpy().tobytes(), embedding.numpy().tobytes()))
        return targets

    monkeypatch.setattr(Distillation, "batch_targets", recording)
    data = make_images(tmp_path / "data")
    run(data, tmp_path / "run", student(teacher, epochs=3, teacher_epochs=1, distill_center_images=16))
    first, second, third = (seen[16 + 48 * k : 64 + 48 * k] for k in range(3))
    assert first != second != third
    assert sorted(first) == sorted(second) == sorted(third)
    assert len({logits for _, logits, _ in first}) == len({x for x, _, _ in first})


def test_outputs_that_are_lost_or_damaged_are_computed_again(
    teacher: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataSettings(data=make_images(tmp_path / "data"), unlabelled=(unlabelled,))
    config = student(teacher, epochs=4, teacher_epochs=1)
    run(data, tmp_path / "whole", config)
    validations: list[int] = []

    def damage(event: TrainingEvent) -> None:
        if isinstance(event, EpochEvent):
            path = tmp_path / "damaged" / OUTPUTS
            content = bytearray(path.read_bytes())
            if event.epoch == 0:
                content[: len(content) // 2] = bytes(len(content) // 2)
            elif event.epoch == 1:
                content[100] ^= 1
            else:
                content.clear()
            path.write_bytes(content)
            validations.append(event.epoch)

    calls = calls_of(monkeypatch)
    train(data, tmp_path / "damaged", config, workers=0, on_event=damage)
    assert validations == [0, 1, 2, 3]
    assert sum(calls) > 2 * 5 * 16 + 4 * 24
    whole, damaged = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "damaged"))
    assert all(torch.equal(value, damaged[name]) for name, value in whole.items())


def test_a_killed_run_repeats_its_crops(teacher: Path, unlabelled: Path, tmp_path: Path) -> None:
    data = DataSettings(data=make_images(tmp_path / "data"), unlabelled=(unlabelled,))
    config = student(teacher, epochs=4, teacher_epochs=2, ema_decay=0.9)
    run(data, tmp_path / "whole", config)

    class KilledError(Exception):
        pass

    def kill(event: TrainingEvent) -> None:
        if isinstance(event, StepEvent) and event.step == 13:
            raise KilledError

    with pytest.raises(KilledError):
        train(data, tmp_path / "killed", config, workers=0, on_event=kill)
    run(data, tmp_path / "killed", config)
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())


def test_worker_processes_and_the_cache_do_not_change_the_weights(
    teacher: Path, unlabelled: Path, tmp_path: Path
) -> None:
    data = DataSettings(data=make_images(tmp_path / "data"), unlabelled=(unlabelled,))
    config = student(teacher, epochs=3, teacher_epochs=1)
    for workers in (0, 2):
        train(data, tmp_path / str(workers), config, workers=workers, on_event=lambda _: None)
    none, two = (load_file(tmp_path / name / "model.safetensors") for name in ("0", "2"))
    assert all(torch.equal(value, two[name]) for name, value in none.items())


def test_a_batch_is_passed_between_processes_as_few_tensors(tmp_path: Path) -> None:
    """Each tensor is a file descriptor: with one per image, large batches would exceed the limit."""
    images = open_labelled(make_images(tmp_path / "data"), "train")
    cache = RowCache(tmp_path / "rows.bin", 4)
    transform = TrainTransform(InputSpec(height=32, width=32), Augmentation())
    dataset = TrainImages(images, transform, Erasing(), 0, CropCache(cache, 48, 16, 16))
    draws = Schedule(48, 48, 0).epoch(0)
    (first,) = Loader(dataset, 0).run(draws)
    assert first.crops is not None
    for key in first.crops.keys[:20]:
        cache.put(key, np.full(4, key.number, np.float16))
    (second,) = Loader(dataset, 2, persistent=False).run(draws)
    assert second.crops is not None
    keys, known, rows, rendered = second.crops
    assert known.tolist() == [True] * 20 + [False] * 28
    assert rows[:, 0].tolist() == [key.number for key in keys[:20]]
    assert torch.equal(rendered, first.crops.rendered[20:])
    assert rendered.shape == (28, 32, 32, 3)
    assert torch.equal(second.x, first.x)


def test_a_full_disk_is_reported(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tessella.data.row_cache.os.pwrite", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        run(make_images(tmp_path / "data"), tmp_path / "run", student(teacher, teacher_epochs=1))
    assert caught.value.code == "output_failed"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(mixing=dict(mixup=0.5)), "teacher_epochs"),
        (dict(erasing=dict(prob=0.5)), "teacher_epochs"),
        (dict(teacher=""), "is set, but there is no teacher"),
    ],
)
def test_what_cannot_be_repeated_is_refused(
    teacher: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    config = student(changes.pop("teacher", teacher), teacher_epochs=1, **changes)
    with pytest.raises(UsageError, match=problem):
        run(make_images(tmp_path / "data"), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
