"""Class lists: how labels are matched with them, and Unicode forms of class names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tessella.data.datasets import open_labelled, open_split

from ..labelled import CLASSES, class_names, refusal, samples, write, write_parquet, write_tar

E_COMPOSED, E_DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_labels_follow_the_class_list_of_the_caller(image_folder: Path) -> None:
    data = open_labelled(image_folder, classes=("b", "z", "a10", "a2"))
    assert data.classes == ("b", "z", "a10", "a2")
    assert class_names(data) == ["a2", "a2", "a2", "a10", "a10", "b"]
    assert "images of 'a10', which" in refusal("bad_argument", lambda: open_labelled(image_folder, classes=("a2", "b")))
    assert "two classes are called 'b'" in refusal(
        "bad_argument", lambda: open_labelled(image_folder, classes=("a2", "b", "a10", "b"))
    )


def test_numbers_are_indices_unless_the_class_names_are_numbers(tmp_path: Path) -> None:
    write(tmp_path, "0/1.jpg", "2/1.jpg")
    assert open_labelled(tmp_path).classes == ("0", "2")
    assert open_labelled(tmp_path, classes=CLASSES).labels.tolist() == [0, 2]
    assert open_labelled(tmp_path, classes=("2", "1", "0")).labels.tolist() == [2, 0]
    refusal("bad_argument", lambda: open_labelled(tmp_path, classes=("0", "1")))
    refusal("bad_argument", lambda: open_labelled(tmp_path, classes=("x", "y")))


def test_validation_images_use_the_class_list_of_the_training_images(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg", "val/c/1.jpg", "other/b/2.jpg")
    assert "images of 'c', which" in refusal("bad_argument", lambda: open_split(tmp_path / "train"))
    train, val = open_split(tmp_path / "train", val=tmp_path / "other")
    assert (train.classes, val.classes, val.labels.tolist()) == (("a", "b"), ("a", "b"), [1])


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [0, 0, 1, 1] * 9)
    assert open_labelled(file).classes == CLASSES
    assert "'b' of the class list has no training" in refusal("bad_argument", lambda: open_split(file))


# --- Unicode ----------------------------------------------------------------------------------------------------------


def test_unicode_forms_of_one_name_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, f"train/{E_COMPOSED}/1.jpg", "train/dog/1.jpg", f"val/{E_DECOMPOSED}/1.jpg", "val/dog/1.jpg")
    train, val = open_split(tmp_path)
    assert train.classes == val.classes == (E_COMPOSED, "dog")
    assert val.labels.tolist() == [0, 1]
    for name in (E_COMPOSED, E_DECOMPOSED):  # as in the class list of an earlier run
        data = open_labelled(tmp_path, "train", classes=("dog", name))
        assert (data.classes, data.labels.tolist()) == (("dog", name), [1, 0])


def test_two_class_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, f"{E_COMPOSED}/1.jpg", f"{E_DECOMPOSED}/1.jpg", "dog/1.jpg")
    assert "different Unicode forms" in refusal("bad_argument", lambda: open_labelled(tmp_path))


@pytest.mark.parametrize("layout", ["list", "tar", "parquet"])
def test_unicode_forms_of_one_label_are_one_class(tmp_path: Path, layout: str) -> None:
    labels = [E_COMPOSED, "dog", E_DECOMPOSED]
    if layout == "list":
        write(tmp_path, "0.jpg", "1.jpg", "2.jpg")
        text = "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels))
        (tmp_path / "x.csv").write_text("path,label\n" + text, encoding="utf-8")
    elif layout == "tar":
        write_tar(tmp_path / "x.tar", samples(labels))
    else:
        write_parquet(tmp_path / "x.parquet", labels, names=None)
    data = open_labelled(next(tmp_path.glob("x.*")))
    assert (data.classes, class_names(data)) == ((E_COMPOSED, "dog"), [E_COMPOSED, "dog", E_COMPOSED])


def test_class_lists_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(f"dog\n{E_DECOMPOSED}\n", encoding="utf-16")
    data = open_labelled(write_tar(tmp_path / "x.tar", samples([E_COMPOSED, "dog"])))
    assert (data.classes, data.labels.tolist()) == (("dog", E_COMPOSED), [1, 0])


def test_a_class_folder_that_is_not_utf_8_gets_an_escaped_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xe9b\xe9")
    write(tmp_path, "dog/1.jpg", "odd/1.jpg")
    (tmp_path / "odd").rename(tmp_path / name)
    data = open_labelled(tmp_path)
    assert set(data.classes) == {r"b\xe9b\xe9", "dog"}
    assert "".join(data.classes).encode()
    assert [data.read(i) for i in range(2)]
    assert data.fingerprint
