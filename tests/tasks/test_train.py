"""The training script: augmentation, learning, resuming, and a folder that loads."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import tessella
from tessella import ImageError, UsageError
from tessella.models import build
from tessella.tasks import train as training
from tessella.tasks.train import TrainConfig, augment, read_images, train

NAMES = ["dark", "bright"]
CONFIG = TrainConfig(epochs=3, batch_size=16, peak_lr=2e-3)


def write_parquet(path: Path, count: int = 64, side: int = 16, seed: int = 0, odd: bool = False) -> Path:
    """Pictures that are dark (class 0) or bright (class 1) noise, in the Hugging Face layout."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for i in range(count):
        label = int(rng.integers(2))
        size = side + 1 if odd and i == count - 1 else side
        pixels = rng.integers(0, 140, (size, size, 3)) + 110 * label
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        rows.append(dict(bytes=file.getvalue(), path=f"{i}.png"))
        labels.append(label)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(dict(image=pa.array(rows, kind), label=pa.array(labels, pa.int64())))
    features = dict(image=dict(_type="Image"), label=dict(_type="ClassLabel", names=NAMES))
    table = table.replace_schema_metadata({"huggingface": json.dumps(dict(info=dict(features=features)))})
    pq.write_table(table, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "images.parquet")


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "build", lambda arch, **args: build(arch, dim=16, depth=2, **args))


def test_read_images(data: Path, tmp_path: Path) -> None:
    images, labels, names = read_images(data)
    assert (images.shape, images.dtype, names) == ((64, 16, 16, 3), torch.uint8, NAMES)
    assert images[labels == 1].float().mean() > images[labels == 0].float().mean() + 90
    with pytest.raises(UsageError, match="no Parquet file"):
        read_images(tmp_path / "absent.parquet")
    with pytest.raises(ImageError, match="2 sizes"):
        read_images(write_parquet(tmp_path / "odd.parquet", odd=True))


def test_augment_crops_and_flips_and_nothing_else() -> None:
    image = torch.arange(6 * 6 * 3, dtype=torch.uint8).reshape(1, 6, 6, 3)
    padded = torch.nn.functional.pad(image.permute(0, 3, 1, 2), (2,) * 4, mode="reflect").permute(0, 2, 3, 1)[0]
    windows = {
        (top, left, flip): (window.flip(1) if flip else window)
        for top in range(5)
        for left in range(5)
        for window in [padded[top : top + 6, left : left + 6]]
        for flip in (False, True)
    }
    seen = augment(image.repeat(4000, 1, 1, 1), 2, torch.Generator().manual_seed(0))
    counts = {key: int((seen == window).flatten(1).all(1).sum()) for key, window in windows.items()}
    assert sum(counts.values()) == 4000  # the 50 outcomes are distinct, and there is no other
    assert min(counts.values()) > 40  # 80 each on average
    assert max(counts.values()) < 130


def test_it_learns_and_its_folder_loads(data: Path, tmp_path: Path) -> None:
    train(data, write_parquet(tmp_path / "test.parquet", seed=1), tmp_path / "run", CONFIG)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[0]["config"]["epochs"] == 3
    assert [row["epoch"] for row in log[1:]] == [0, 1, 2]
    assert log[-1]["test_top1"] > 0.9
    assert log[-1]["loss"] < log[1]["loss"]
    predictor = tessella.load(f"local-dir:{tmp_path / 'run'}")
    assert predictor.labels == tuple(NAMES)
    assert predictor.classify(np.full((16, 16, 3), 230, np.uint8))[0].label == "bright"
    images, labels, _ = read_images(tmp_path / "test.parquet")
    hits = [p[0].index == int(label) for p, label in zip(predictor.classify(images.numpy()), labels, strict=True)]
    assert sum(hits) / len(hits) == log[-1]["test_top1"]


def test_an_interrupted_run_ends_as_the_whole_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(data, data, tmp_path / "whole", CONFIG)
    accuracy = training.accuracy
    calls = 0

    def interrupt_second(*args: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return accuracy(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "accuracy", interrupt_second)
        with pytest.raises(KeyboardInterrupt):
            train(data, data, tmp_path / "cut", CONFIG)
    resumed = train(data, data, tmp_path / "cut", CONFIG)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(UsageError, match="another configuration"):
        train(data, data, tmp_path / "cut", dataclasses.replace(CONFIG, seed=1))
