"""Lists of the images that remain: what they leave out, and that `train` reads them."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tessella.data.all_splits import SplitImages, open_all_splits
from tessella.data.datasets import open_labelled, open_split
from tessella.errors import UsageError
from tessella.inspection.clean_list import check_list, removed_images, write_clean_list
from tessella.inspection.findings import Finding
from tessella.inspection.inspector import inspect
from tessella.inspection.kinds import REMOVED
from tessella.predictor import Predictor

from ..data.labelled import image_bytes, samples, write, write_parquet, write_tar


def finding(images: SplitImages, index: int, kind: str) -> Finding:
    return Finding(images.images.key(index), images.split_of(index), "", kind, 1.0, "", index=index)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_copies_leave_the_training_split_and_the_test_split_stays(
    data: Path, predictor: Predictor, tmp_path: Path
) -> None:
    result = inspect(data, predictor)
    assert "label_error" not in REMOVED
    count = write_clean_list(tmp_path / "clean.csv", result.images, result.findings)
    rows = read(tmp_path / "clean.csv")
    assert len(rows) == count
    assert set(rows[0]) == {"path", "label", "split"}
    kept = {row["path"] for row in rows}
    everything = {f"data/{result.images.images.key(i)}" for i in range(len(result.images))}
    left_out = {"cat/0", "cat/2", "cat/5", "dog/3", "dog/4", "dog/6"}
    assert everything - kept == {f"data/train/{name}.png" for name in left_out}
    train, val = open_split(tmp_path / "clean.csv")
    assert (len(train), len(val)) == (22, 8)
    assert train.classes == ("cat", "dog")


def test_only_unreadable_images_leave_the_test_split(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "test/b/4.jpg")
    images = open_all_splits([tmp_path])
    kinds = ["unreadable", "exact_leak", "near_duplicate", "label_error", "outlier"]
    for kind in kinds:
        removed = removed_images([finding(images, i, kind) for i in range(4)], kinds)
        tests = {i for i in range(4) if images.split_of(i) == "test"}
        assert removed == ({0, 1, 2, 3} if kind == "unreadable" else {0, 1, 2, 3} - tests)


def test_outliers_and_label_errors_stay_unless_asked(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg", "b/2.jpg")
    images = open_all_splits([tmp_path])
    findings = [finding(images, 0, "outlier"), finding(images, 1, "similar"), finding(images, 1, "label_error")]
    assert removed_images(findings) == set()
    assert removed_images(findings, ["outlier"]) == {0}


def test_rows_of_parquet_files_in_another_folder(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "deep" / "x-train.parquet", [0, 2, 1])
    test = write_parquet(tmp_path / "deep" / "x-test.parquet", [1, 1])
    images = open_all_splits([train, test])
    write_clean_list(tmp_path / "clean.csv", images, [finding(images, 1, "unreadable")])
    assert [tuple(row.values()) for row in read(tmp_path / "clean.csv")] == [
        ("deep/x-train.parquet:0", "a2", "train"),
        ("deep/x-train.parquet:2", "a10", "train"),
        ("deep/x-test.parquet:0", "a10", "test"),
        ("deep/x-test.parquet:1", "a10", "test"),
    ]
    first, second = open_split(tmp_path / "clean.csv")
    assert [first.read(i) for i in range(2)] == [image_bytes("x-train:0"), image_bytes("x-train:2")]
    assert [second.read(i) for i in range(2)] == [image_bytes("x-test:0"), image_bytes("x-test:1")]


def test_members_of_archives(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", samples("abab"))
    images = open_all_splits([tmp_path / "x.tar"])
    write_clean_list(tmp_path / "clean.csv", images, [finding(images, 2, "near_duplicate")])
    rows = read(tmp_path / "clean.csv")
    assert [tuple(row.values()) for row in rows] == [
        ("x.tar::0.jpg", "a"),
        ("x.tar::1.jpg", "b"),
        ("x.tar::3.jpg", "b"),
    ]
    again = open_labelled(tmp_path / "clean.csv")
    assert again.read(2) == image_bytes("3")


def test_archives_of_class_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is read again with the same keys, labels, splits and bytes, wherever it is written."""
    names = ("c/train/a/1.jpg", "./c/train/b/2.jpg", "c/test/b/3.jpg", "c/test/a/4.jpg")
    write_tar(tmp_path / "deep" / "x.tar", {name: image_bytes(name) for name in names})
    for folder, archive, clean in (
        (tmp_path, "deep/x.tar", "clean.csv"),
        (tmp_path / "deep", "x.tar", "clean.csv"),
        (tmp_path, tmp_path / "deep" / "x.tar", "deep/other.csv"),
    ):
        monkeypatch.chdir(folder)
        write_clean_list(clean, open_all_splits([archive]), [])
        for before, after in zip(open_split(archive), open_split(clean), strict=True):
            keys = [after.key(i).removeprefix("deep/") for i in range(len(after))]
            assert keys == [before.key(i) for i in range(len(before))]
            assert (after.classes, after.labels.tolist()) == (before.classes, before.labels.tolist())
            assert [after.read(i) for i in range(2)] == [before.read(i) for i in range(2)]


def test_any_name_can_be_listed(tmp_path: Path) -> None:
    names = ["a/ edge.jpg", "a/new\nline.jpg", "b/" + os.fsdecode(b"\xff.jpg"), "b/back\\x.jpg", 'b/"q", x.jpg']
    write(tmp_path / "data", "a/0.jpg", "b/0.jpg")
    for name in names:
        (tmp_path / "data" / name).write_bytes(os.fsencode(name))
    images = open_all_splits([tmp_path / "data"])
    assert write_clean_list(tmp_path / "clean.csv", images, []) == 7
    assert list(read(tmp_path / "clean.csv")[0]) == ["escaped_path", "label"]
    again = open_labelled(tmp_path / "clean.csv")
    assert {again.read(i) for i in range(7)} >= {os.fsencode(name) for name in names}


def test_a_list_of_a_list(tmp_path: Path) -> None:
    write(tmp_path, "img/1.jpg", "img/2.jpg", "img/3.jpg")
    (tmp_path / "list.csv").write_text("path,label,split\nimg/1.jpg,a,train\nimg/2.jpg,b,train\nimg/3.jpg,b,val\n")
    images = open_all_splits([tmp_path / "list.csv"])
    (tmp_path / "lists").mkdir()
    write_clean_list(tmp_path / "lists" / "clean.csv", images, [])
    assert [tuple(row.values()) for row in read(tmp_path / "lists" / "clean.csv")] == [
        ("../img/1.jpg", "a", "train"),
        ("../img/2.jpg", "b", "train"),
        ("../img/3.jpg", "b", "val"),
    ]
    assert open_labelled(tmp_path / "lists" / "clean.csv", "train").read(1) == image_bytes("img/2.jpg")


@pytest.mark.parametrize(
    ("name", "remove", "message"),
    [
        ("clean.txt", REMOVED, "cannot write"),
        ("absent/clean.csv", REMOVED, "no folder"),
        ("clean.csv", ("exact_duplicates",), "not a kind"),
        ("clean.csv", ("small_class",), "not a kind"),
        ("clean.csv", ("unreadable",), "no image remains"),
    ],
)
def test_refusals(name: str, remove: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg", "b/2.jpg")
    images = open_all_splits([tmp_path])
    findings = [finding(images, i, "unreadable") for i in range(2)]
    with pytest.raises(UsageError) as error:
        write_clean_list(tmp_path / name, images, findings, remove)
    assert error.value.code == "bad_argument"
    assert message in error.value.message


def test_classes_that_a_list_cannot_name_are_refused(tmp_path: Path) -> None:
    """Cells of a list are read without the white space around them, so ' b ' and 'b' would become one class."""
    write(tmp_path, "b/1.jpg", " b /2.jpg")
    with pytest.raises(UsageError, match="white space at its ends") as error:
        check_list(tmp_path / "clean.csv", open_all_splits([tmp_path]))
    assert "' b '" in error.value.message
    assert "rename" in error.value.hint


def test_images_without_labels_have_no_list(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    with pytest.raises(UsageError, match="no labels"):
        write_clean_list(tmp_path / "clean.csv", open_all_splits([tmp_path]), [])
