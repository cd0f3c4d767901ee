"""Fixtures that tests of the inspection share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.predictor import Predictor

from ..evaluation.small_data import predictor_of
from .made import cropped, mirrored, save, scene


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """Return an untrained model with an input of 32 px and batches of 4."""
    return predictor_of()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write two classes with 14 training and 4 test images each, with planted problems.

    train/cat/0.png is damaged; cat/1.png is cat/2.png; cat/3.png and dog/3.png are the same file; dog/4.png is a crop
    of dog/5.png; test/dog/1.png mirrors train/dog/6.png; test/cat/0.png is train/cat/5.png.
    """
    root = tmp_path / "data"
    for number, label in enumerate(("cat", "dog")):
        for i in range(14):
            save(scene(100 * number + i), root / "train" / label / f"{i}.png")
        for i in range(4):
            save(scene(50 + 100 * number + i), root / "test" / label / f"{i}.png")
    train, test = root / "train", root / "test"
    (train / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (train / "cat" / "1.png").write_bytes((train / "cat" / "2.png").read_bytes())
    (train / "dog" / "3.png").write_bytes((train / "cat" / "3.png").read_bytes())
    save(cropped(scene(105), 0.8, 0.1, 0.3), train / "dog" / "4.png")
    save(mirrored(scene(106)), test / "dog" / "1.png")
    (test / "cat" / "0.png").write_bytes((train / "cat" / "5.png").read_bytes())
    return root
