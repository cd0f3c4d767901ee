"""Arguments and images are checked before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tessella.data.datasets import open_labelled
from tessella.errors import UsageError
from tessella.training.distributed import DistributedContext
from tessella.training.loop import train
from tessella.training.setup import DataSettings, check_batch_size, default_workers

from .small_runs import run, small


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
def test_invalid_arguments_are_refused_before_the_work(data: Path, tmp_path: Path, options: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        train(data, tmp_path / "run", small(), **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_report")
def test_too_few_images_for_a_batch_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="48 training images, fewer than the batch size of 64"):
        run(data, tmp_path / "run", small(batch_size=64))
    assert not (tmp_path / "run").exists()
    run(data, tmp_path / "run", small(batch_size=48, epochs=1))


def test_a_batch_that_cannot_be_split_evenly_is_refused(data: Path) -> None:
    images = open_labelled(data, "train")
    with pytest.raises(UsageError, match="cannot be split evenly over 3 processes") as caught:
        check_batch_size(small(), images, DistributedContext(0, 3, torch.device("cpu")))
    assert "--batch-size 18" in str(caught.value.hint)


@pytest.mark.parametrize(
    "changes",
    [
        dict(distill="hard"),
        dict(distill_weight=1.0),
        dict(distill_target="embedding"),
        dict(teacher_labels="names.txt"),
        dict(teacher_epochs=1),
    ],
)
def test_settings_of_distillation_without_a_teacher_are_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(changes))} is set, but there is no teacher") as caught:
        run(data, tmp_path / "run", small(**changes))
    assert (caught.value.code, caught.value.hint) == ("bad_argument", "--teacher MODEL")
    assert not (tmp_path / "run").exists()


def test_data_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="val_fraction is 'half'") as caught:
        DataSettings(data="images", val_fraction="half")  # type: ignore[arg-type]
    assert caught.value.code == "bad_argument"


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(("fraction", "least", "most"), [(0.25, 5, 20), (0.5, 15, 33)])
def test_a_fraction_of_the_images_is_held_out(
    data: Path, tmp_path: Path, fraction: float, least: int, most: int
) -> None:
    settings = DataSettings(data=data / "train", val_fraction=fraction)
    images = tmp_path / "images"
    shutil.copytree(data / "train", images)  # nothing called val is beside it
    train_images, val_images = DataSettings(data=images, val_fraction=fraction).open()
    assert len(train_images) + len(val_images) == 48
    assert least <= len(val_images) <= most
    assert len(settings.open()[1]) == 24  # the validation split beside the training images
    assert len(DataSettings(data=images, val=data / "val").open()[1]) == 24
    out = train(DataSettings(data=images, val_fraction=fraction), tmp_path / "run", small(epochs=1, batch_size=8))
    row = json.loads((out / "metrics.jsonl").read_text())
    assert row["val_images"] == len(val_images)


def test_the_number_of_data_loader_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((None, 1), (1, 0), (4, 3), (64, 8)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert default_workers() == workers
