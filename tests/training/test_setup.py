"""Arguments and images are checked before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from tessella.data.datasets import open_labelled
from tessella.errors import UsageError
from tessella.training.distributed import DistributedContext
from tessella.training.loop import train
from tessella.training.setup import check_batch_size

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


@pytest.mark.usefixtures("unreported")
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
