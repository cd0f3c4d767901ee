"""All splits of one or several data sets under one numbering."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessella.data.all_splits import SplitImages, open_all_splits
from tessella.errors import UsageError

from .labelled import image_bytes, samples, write, write_parquet, write_tar


def facts(images: SplitImages) -> list[tuple[str, str, str]]:
    classes = images.images.classes
    return [
        (images.images.key(i), images.split_of(i), classes[label] if label >= 0 else "")
        for i, label in enumerate(images.images.labels.tolist())
    ]


def test_the_splits_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "train/b/1.jpg", "train/a/2.jpg", "val/a/3.jpg", "test/b/4.jpg")
    images = open_all_splits([tmp_path])
    assert sorted(facts(images)) == [
        ("test/b/4.jpg", "test", "b"),
        ("train/a/2.jpg", "train", "a"),
        ("train/b/1.jpg", "train", "b"),
        ("val/a/3.jpg", "val", "a"),
    ]
    for i in range(4):
        assert images.images.read(i) == image_bytes(images.images.key(i))
        assert Path(images.location(i)).read_bytes() == image_bytes(images.images.key(i))
    assert images.images.sizes.min() > 0


def test_several_data_sets_have_keys_with_their_paths(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "x-train.parquet", [0, 2, 1])
    test = write_parquet(tmp_path / "x-test.parquet", [1, 1])
    images = open_all_splits([train, test])
    assert [key for key, _, _ in facts(images)] == [*(f"{train}:{i}" for i in range(3)), f"{test}:0", f"{test}:1"]
    assert [split for _, split, _ in facts(images)] == ["train"] * 3 + ["test"] * 2
    assert images.images.classes == ("a2", "a10", "b")
    assert images.images.read(4) == image_bytes("x-test:1")
    assert images.location(3) == f"{test}:0"


def test_class_lists_are_joined_by_name(tmp_path: Path) -> None:
    write(tmp_path, "one/a2/1.jpg", "one/b/2.jpg", "two/a10/1.jpg", "two/b/2.jpg")
    images = open_all_splits([tmp_path / "one", tmp_path / "two"])
    assert images.images.classes == ("a2", "a10", "b")
    assert [label for _, _, label in facts(images)] == ["a2", "b", "a10", "b"]
    assert len({key for key, _, _ in facts(images)}) == 4


def test_one_class_and_empty_class_folders_are_accepted(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "test/a/2.jpg")
    (tmp_path / "train" / "nothing").mkdir()
    images = open_all_splits([tmp_path])
    assert images.images.classes == ("a",)
    assert images.empty == ("train/nothing",)


def test_images_without_classes(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg")
    images = open_all_splits([tmp_path])
    assert not images.is_labeled
    assert images.images.labels.tolist() == [-1, -1]
    assert {Path(images.images.key(i)).name for i in range(2)} == {"1.jpg", "2.jpg"}
    assert images.images.sizes.tolist() == [len(image_bytes("1.jpg"))] * 2


def test_classes_can_be_ignored(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg", "b/2.jpg")
    archive = write_tar(tmp_path / "c.tar", {"3.jpg": image_bytes("3.jpg")})
    images = open_all_splits([tmp_path / "a", tmp_path / "b", archive], unlabeled=True)
    assert [images.images.read(i) for i in range(3)] == [image_bytes(f) for f in ("a/1.jpg", "b/2.jpg", "3.jpg")]
    assert images.splits == ("",)


def test_archives(tmp_path: Path) -> None:
    write_tar(tmp_path / "x-train.tar", samples("ab"))
    write_tar(tmp_path / "x-test.tar", samples("ba", first=5))
    images = open_all_splits([tmp_path])
    assert sorted(facts(images))[0] == ("x-test.tar::5.jpg", "test", "b")
    i = [key for key, _, _ in facts(images)].index("x-test.tar::5.jpg")
    assert images.location(i) == f"{tmp_path}/x-test.tar::5.jpg"
    assert np.bincount(images.split).tolist() == [2, 2]


def test_archives_of_class_folders(tmp_path: Path) -> None:
    names = ("c/train/a/1.jpg", "c/train/b/2.jpg", "c/test/b/3.jpg")
    archive = write_tar(tmp_path / "x.tar", {name: image_bytes(name) for name in names})
    images = open_all_splits([archive])
    assert sorted(facts(images)) == [
        ("x.tar::c/test/b/3.jpg", "test", "b"),
        ("x.tar::c/train/a/1.jpg", "train", "a"),
        ("x.tar::c/train/b/2.jpg", "train", "b"),
    ]
    assert {images.location(i) for i in range(3)} == {f"{archive}::{name}" for name in names}
    write(tmp_path / "folder", "train/a/4.jpg", "train/b/5.jpg")
    keys = {key for key, _, _ in facts(open_all_splits([archive, tmp_path / "folder"]))}
    assert keys >= {f"{archive}::{name}" for name in names}


@pytest.mark.parametrize(
    ("paths", "code"),
    [(["absent"], "not_found"), (["nothing"], "not_found"), (["labeled", "plain"], "bad_argument")],
)
def test_refusals(paths: list[str], code: str, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    write(tmp_path, "labeled/a/1.jpg", "plain/1.jpg")
    with pytest.raises(UsageError) as error:
        open_all_splits([tmp_path / name for name in paths])
    assert error.value.code == code
