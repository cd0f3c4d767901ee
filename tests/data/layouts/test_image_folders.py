"""Image folders: classes, splits, links and mixed layouts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.data.datasets import open_labelled, open_split
from tessella.data.source import Source
from tessella.errors import ImageError

from ..labelled import CLASSES, class_names, image_bytes, keys, refusal, write


def test_class_folders(image_folder: Path) -> None:
    data = open_labelled(image_folder)
    assert data.classes == CLASSES  # a2 before a10
    assert keys(data) == ["a2/9.jpg", "a2/10.jpg", "a2/x/y/3.webp", "a10/1.jpg", "a10/2.PNG", "b/4.jpg"]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert data.labels.dtype == np.int64
    assert len(data) == 6
    for i in range(6):
        assert data.read(i) == image_bytes(data.key(i))
        source = data.source(i)
        assert isinstance(source, Source)
        assert (source.key, source.read()) == (data.key(i), data.read(i))
    with pytest.raises(IndexError):
        data.key(6)
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 1
    assert keys(open_labelled(str(image_folder), "train")) == keys(data)


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "val"), ("training", "validation"), ("Train", "Eval"), ("TRAIN", "VALID"),
     ("train", "evaluation"), ("training", "test")],
)  # fmt: skip
def test_splits_are_found_by_folder_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str, val: str
) -> None:
    write(tmp_path, f"{train}/cat/1.jpg", f"{train}/dog/2.jpg", f"{val}/dog/3.jpg", "devkit/readme.txt")
    assert keys(open_labelled(tmp_path, "train")) == [f"{train}/cat/1.jpg", f"{train}/dog/2.jpg"]
    assert set(keys(open_labelled(tmp_path))) == {f"{train}/cat/1.jpg", f"{train}/dog/2.jpg", f"{val}/dog/3.jpg"}
    train_images, val_images = open_split(tmp_path)
    assert train_images.classes == val_images.classes == ("cat", "dog")
    assert (keys(val_images), val_images.labels.tolist()) == ([f"{val}/dog/3.jpg"], [1])
    # the validation split of a folder that is itself called train lies beside it
    monkeypatch.chdir(tmp_path / train)
    for path in (tmp_path / train, "."):
        val_images = open_split(path)[1]
        assert (keys(val_images), val_images.labels.tolist()) == (["dog/3.jpg"], [1])


def test_the_test_split_is_used_if_there_is_no_validation_split(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val", "test") for name in "xy"))
    assert keys(open_split(tmp_path)[1]) == ["val/x/1.jpg", "val/y/1.jpg"]
    assert len(open_labelled(tmp_path)) == 6
    assert "no val split, only 'train'" in refusal(
        "not_found", lambda: open_labelled(write(tmp_path / "2", "train/x/1.jpg", "train/y/1.jpg"), "val")
    )
    refusal("not_found", lambda: open_labelled(write(tmp_path / "3", "test/x/1.jpg", "test/y/1.jpg"), "train"))


def test_a_class_can_have_the_name_of_a_split(tmp_path: Path) -> None:
    write(tmp_path, "bus/1.jpg", "train/1.jpg", "train/steam/2.jpg")
    assert class_names(open_labelled(tmp_path, "train")) == ["bus", "train", "train"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1.jpg", "train/b/1.jpg", "more/1.jpg"], "'train' and 'more'"),
        (["a/1.jpg", "b/1.jpg", "c.tar"], "'a/1.jpg', and 'c.tar'"),
        (["train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"], "'val', 'validation'"),
        (["a/1.jpg", "b/1.jpg", "2.jpg"], "'2.jpg' is not in a class folder"),
        (["train/1.jpg", "val/2.jpg"], "'train/1.jpg' is not in a class folder"),
        (["train/a/1.jpg", "train/b/1.jpg", "train/2.jpg"], "'train/2.jpg' is not in a class folder"),
        (["a.tar", "b.parquet"], "several kinds"),
        (["x-train.tar", "y.tar"], "'y.tar' of no split"),
        (["only/1.jpg"], "only one class, 'only'"),
    ],
)
def test_mixed_layouts_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    assert message in refusal("bad_argument", lambda: open_labelled(write(tmp_path, *names), "train"))


def test_paths_without_labelled_images_are_refused(tmp_path: Path, image_folder: Path) -> None:
    (tmp_path / "none").mkdir()
    refusal("not_found", lambda: open_labelled(tmp_path / "none"))
    refusal("not_found", lambda: open_labelled(tmp_path / "absent"))
    refusal("not_found", lambda: open_labelled(tmp_path / "*.tar"))
    assert "4.jpg" in refusal("bad_argument", lambda: open_labelled(image_folder / "b" / "4.jpg"))
    refusal("bad_argument", lambda: open_labelled(image_folder, "test"))  # type: ignore[arg-type]


def test_empty_class_folders_are_refused(image_folder: Path) -> None:
    (image_folder / "c" / "deep").mkdir(parents=True)
    assert "'c' has no images" in refusal("bad_argument", lambda: open_labelled(image_folder))
    assert len(open_labelled(image_folder, classes=CLASSES)) == 6  # as the caller has chosen a class list
    write(image_folder, "c/deep/1.jpg")
    assert open_labelled(image_folder).classes == (*CLASSES, "c")


def test_links_are_followed_but_not_in_circles(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "b" / "back").symlink_to(image_folder)
    (image_folder / "b" / "gone.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "few").mkdir()
    for name in ("a2", "b"):
        (tmp_path / "few" / name).symlink_to(image_folder / name)
    data = open_labelled(tmp_path / "few")
    assert [key for key in keys(data) if "back" not in key] == [
        "a2/9.jpg", "a2/10.jpg", "a2/x/y/3.webp", "b/4.jpg", "b/gone.jpg",
    ]  # fmt: skip
    with pytest.raises(ImageError) as error:
        data.read(keys(data).index("b/gone.jpg"))
    assert error.value.code == "not_found"
    assert len(open_labelled(image_folder)) == 7


def test_a_folder_that_cannot_be_listed(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_scandir(path: str) -> Any:
        if path.endswith("a10"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", failing_scandir)
    assert "Permission denied" in refusal("unreadable", lambda: open_labelled(image_folder))
