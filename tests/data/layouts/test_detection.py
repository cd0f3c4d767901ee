"""Detection of layouts: the files at a path, their splits, and the validation data beside training data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.data.layouts.detection import find_files, find_sibling, lacks_classes
from tessella.data.names import Skipped
from tessella.errors import UsageError

from ..labelled import write, write_parquet


def splits_of(path: Path) -> dict[str, list[str]]:
    """Return the names of the files at a path by split."""
    return {split: [file.name for file in files] for split, files in find_files(str(path), Skipped()).splits.items()}


def test_the_split_is_in_the_name_or_in_a_folder_above(tmp_path: Path) -> None:
    write(tmp_path, "train-0.tar", "x/Validation/0.tar", "cifar_test.tar", "train/eval/1.tar")
    assert splits_of(tmp_path) == {
        "test": ["cifar_test.tar"],
        "train": ["train-0.tar"],
        "val": ["train/eval/1.tar", "x/Validation/0.tar"],
    }


@pytest.mark.parametrize("name", ["data.tar", "train-test.tar", "training2set.tar", "trainer.tar"])
def test_names_of_no_split_or_of_several(tmp_path: Path, name: str) -> None:
    expected = {"training2set.tar": "train"}.get(name, "")
    write(tmp_path, f"all/{name}")
    assert splits_of(tmp_path / "all") == {expected: [name]}


def test_the_folder_of_a_split_gives_its_name_to_files_without_one(tmp_path: Path) -> None:
    write(tmp_path, "valid/0.tar", "valid/1.tar")
    files = find_files(str(tmp_path / "valid"), Skipped())
    assert (files.kind, files.single, list(files.splits)) == ("tar", True, ["val"])


def test_choosing_a_split(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "test") for name in "ab"))
    files = find_files(str(tmp_path), Skipped())
    assert (files.kind, files.depth) == ("folder", 1)
    assert (files.choose("train"), files.choose("val"), files.require(None)) == (["train"], ["test"], ["test", "train"])
    assert files.class_folders("train") == ["a", "b"]
    training_only = find_files(str(tmp_path / "train"), Skipped())
    assert training_only.choose("val") is None
    with pytest.raises(UsageError, match="has no val split, only 'train'") as error:
        training_only.require("val")
    assert error.value.code == "not_found"


def test_a_single_file_serves_for_training_whatever_its_split(tmp_path: Path) -> None:
    files = find_files(str(write_parquet(tmp_path / "x-test.parquet", [0, 1])), Skipped())
    assert (files.single, files.choose("train"), files.require("train")) == (True, None, ["test"])


@pytest.mark.parametrize(
    ("train", "sibling"),
    [
        ("train.tar", "val.tar"),
        ("x-Training-1.tar", "x-Valid-1.tar"),
        ("TRAIN.tar", "EVAL.tar"),
        ("train.csv", "test.csv"),
    ],
)
def test_the_sibling_has_another_word_in_the_same_capitals(tmp_path: Path, train: str, sibling: str) -> None:
    write(tmp_path, train)
    assert find_sibling(find_files(str(tmp_path / train), Skipped())) is None
    write(tmp_path, sibling, "unrelated.tar")
    sibling_files = find_sibling(find_files(str(tmp_path / train), Skipped()))
    assert sibling_files is not None
    assert sibling_files.path == str(tmp_path / sibling)


def test_only_data_called_train_have_a_sibling(tmp_path: Path) -> None:
    write(tmp_path, "val.tar", "test.tar", "data.tar")
    for name in ("val.tar", "data.tar"):
        assert find_sibling(find_files(str(tmp_path / name), Skipped())) is None


def test_a_test_folder_without_known_classes(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/unknown/1.jpg")
    files = find_files(str(tmp_path), Skipped())
    assert lacks_classes(files, ["test"], ("a", "b"))
    assert not lacks_classes(files, ["test"], ("unknown", "b"))
    assert not lacks_classes(files, ["train"], ("x", "y"))  # only test folders may be unlabelled
