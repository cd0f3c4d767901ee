"""Labelled images: every layout behaves the same, and splits are reproducible."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.data.datasets import open_labelled, open_split
from tessella.data.layouts import parquet_tables

from .labelled import class_names, keys, refusal, samples, write, write_parquet, write_tar

# --- validation split -------------------------------------------------------------------------------------------------


def test_the_validation_split_follows_a_hash_of_the_key(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/{i}.jpg" for name in "xy" for i in range(200)))
    train, val = open_split(tmp_path, val_fraction=0.25)
    assert sorted(keys(train) + keys(val)) == sorted(keys(open_labelled(tmp_path)))
    assert 70 < len(val) < 130
    assert train.classes == val.classes
    assert all(data.key(i).startswith(data.classes[data.labels[i]]) for data in (train, val) for i in range(len(data)))
    assert keys(open_split(tmp_path, val_fraction=0.25)[1]) == keys(val)
    assert set(keys(open_split(tmp_path, val_fraction=0.1)[1])) < set(keys(val))
    write(tmp_path, *(f"{name}/new{i}.jpg" for name in "xyz" for i in range(50)))
    larger_train, larger_val = open_split(tmp_path, val_fraction=0.25)
    assert [key for key in keys(larger_train) if "new" not in key] == keys(train)
    assert [key for key in keys(larger_val) if "new" not in key] == keys(val)


def test_the_validation_split_leaves_every_class_a_training_image(tmp_path: Path) -> None:
    write(tmp_path, "x/1.jpg", "y/1.jpg", "y/2.jpg", *(f"z/{i}.jpg" for i in range(30)))
    train, _ = open_split(tmp_path, val_fraction=0.98)
    assert set(class_names(train)) == {"x", "y", "z"}
    assert len(train) < 9
    assert "too few" in refusal("bad_argument", lambda: open_split(tmp_path, val_fraction=1e-9))
    for fraction in (0, 1, -0.5, 2):
        refusal("bad_argument", functools.partial(open_split, tmp_path, val_fraction=fraction))


def test_a_file_in_both_sets_is_refused(tmp_path: Path, image_folder: Path) -> None:
    assert "share 6 files" in refusal("bad_argument", lambda: open_split(image_folder, val=image_folder))
    file = write_parquet(tmp_path / "p" / "x-train.parquet", [0, 1, 2])
    assert "share 1 file," in refusal("bad_argument", lambda: open_split(tmp_path / "p", val=file))


# --- every layout -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "parquet", "tar", "list"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three classes in each layout."""
    if request.param == "parquet":
        return write_parquet(tmp_path / "x.parquet", [0, 1, 2, 0])
    if request.param == "tar":
        return write_tar(tmp_path / "x.tar", samples("0120"))
    write(tmp_path / "x", "a2/1.jpg", "a10/1.jpg", "b/1.jpg", "b/é2.jpg")
    if request.param == "folder":
        return tmp_path / "x"
    (tmp_path / "x" / "x.csv").write_text("a2/1.jpg,a\na10/1.jpg,b\nb/1.jpg,c\nb/é2.jpg,a", encoding="utf-8")
    return tmp_path / "x" / "x.csv"


def test_other_processes_read_the_same_images(data: Path) -> None:
    images = open_labelled(data)
    expected = [images.read(i) for i in range(4)]
    copy = pickle.loads(pickle.dumps(images))
    assert [copy.read(i) for i in range(4)] == expected
    assert (keys(copy), copy.fingerprint, copy.classes) == (keys(images), images.fingerprint, images.classes)
    assert (copy.labels == images.labels).all()
    sources = pickle.loads(pickle.dumps([images.source(i) for i in range(4)]))
    assert [source.read() for source in sources] == expected
    for start in ("fork", "spawn"):
        with multiprocessing.get_context(start).Pool(1) as pool:
            assert pool.map(images.read, range(4)) == expected


def test_rows_that_are_sent_to_a_process_one_by_one_do_not_read_the_table_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_labelled(write_parquet(tmp_path / "x.parquet", [0, 1, 2]))
    sent = [pickle.dumps(images.source(i)) for i in range(3)]
    reads = []

    def read_images(*args: Any) -> Any:
        reads.append(args)
        return read(*args)

    read = parquet_tables._read_images
    monkeypatch.setattr(parquet_tables, "_read_images", read_images)
    assert [pickle.loads(data).read() for data in sent] == [images.read(i) for i in range(3)]
    assert len(reads) <= 2  # once by the copies, once by the original


def test_pickling_transfers_no_images(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [0, 1] * 500, images=[bytes(10_000)] * 1000)
    images = open_labelled(file)
    before = len(pickle.dumps(images))
    assert len(images.read(5)) == 10_000
    assert images.fingerprint
    assert len(pickle.dumps(images)) < before + 100 < 30_000


def test_a_subset_keeps_classes_and_order(data: Path) -> None:
    images = open_labelled(data)
    subset = images.subset([3, 1])
    assert (keys(subset), subset.labels.tolist()) == ([images.key(3), images.key(1)], images.labels[[3, 1]].tolist())
    assert subset.read(0) == images.read(3)
    assert subset.classes == images.classes
    assert keys(subset.subset(np.array([1]))) == [images.key(1)]
    assert len({subset.fingerprint, images.fingerprint, images.subset([1, 3]).fingerprint}) == 3
    assert images.subset(range(4)).fingerprint == images.fingerprint == open_labelled(data).fingerprint


def test_the_fingerprint_depends_on_names_and_sizes(image_folder: Path) -> None:
    seen = {open_labelled(image_folder).fingerprint}

    def is_new() -> bool:
        fingerprint = open_labelled(image_folder).fingerprint
        assert len(fingerprint) == 16
        int(fingerprint, 16)
        known = fingerprint in seen
        seen.add(fingerprint)
        return not known

    assert not is_new()
    (image_folder / "b" / "notes.txt").write_text("irrelevant")
    assert not is_new()
    write(image_folder, "b/new.jpg")
    assert is_new()
    (image_folder / "b" / "new.jpg").write_bytes(b"another size")
    assert is_new()
    (image_folder / "b" / "new.jpg").rename(image_folder / "b" / "newer.jpg")
    assert is_new()
    (image_folder / "b").rename(image_folder / "c")
    assert is_new()
    assert open_labelled(image_folder, classes=("c", "a2", "a10")).fingerprint not in seen


def test_the_fingerprint_depends_on_the_sizes_of_rows(tmp_path: Path) -> None:
    seen = {
        open_labelled(write_parquet(tmp_path / "x.parquet", [0, 1, 2], images=images)).fingerprint
        for images in ([b"1", b"2", b"3"], [b"1", b"2", b"33"], [b"1", b"2", None], [b"1", b"2", b""])
    }
    assert len(seen) == 4


def test_the_fingerprint_depends_on_the_labels(tmp_path: Path) -> None:
    first, second = (open_labelled(write_parquet(tmp_path / "x.parquet", labels)) for labels in ([0, 1, 2], [0, 2, 1]))
    assert keys(first) == keys(second)
    assert first.fingerprint != second.fingerprint


def test_importing_datasets_imports_neither_torch_nor_pyarrow() -> None:
    code = "import sys, tessella.data.datasets; assert not {'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cifar_10(shared_data: Path) -> None:
    train, test = open_split(shared_data / "cifar10-train.parquet")
    assert (len(train), len(test)) == (50_000, 10_000)  # the test file lies beside the training file
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.classes[:3] == ("airplane", "automobile", "bird")
    assert train.read(49_999)[:3] == test.read(0)[:3] == b"\xff\xd8\xff"


def test_arguments_of_other_types_are_refused(image_folder: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: open_split(3),  # type: ignore[arg-type]
        lambda: open_split(image_folder, val=["x"]),  # type: ignore[arg-type]
        lambda: open_split(image_folder, val_fraction="0.1"),  # type: ignore[arg-type]
        lambda: open_split(image_folder, val_fraction=float("nan")),
        lambda: open_split(image_folder, val_fraction=10**400),
        lambda: open_labelled(None),  # type: ignore[arg-type]
        lambda: open_labelled(image_folder, classes="abc"),
    ]
    for call in calls:
        refusal("bad_argument", call)


# --- images in both sets ----------------------------------------------------------------------------------------------


def write_list(path: Path, *names: str) -> Path:
    labels = (name.rpartition("/")[2][0] for name in names)
    path.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True)))
    return path


def test_an_image_of_both_sets_is_refused_wherever_a_list_names_it(tmp_path: Path) -> None:
    root = write(tmp_path / "images", *(f"{label}/{label}{i}.jpg" for label in "xy" for i in range(3)))
    (tmp_path / "linked").symlink_to(root)
    (tmp_path / "x9.jpg").symlink_to(root / "x" / "x0.jpg")
    train = write_list(tmp_path / "one.csv", "images/x/x0.jpg", "images/x/x1.jpg", "images/y/y0.jpg")
    for val, shared in (
        (root, 3),
        (write_list(tmp_path / "two.csv", "images/../images/x/x0.jpg", "images/y/y2.jpg"), 1),
        (write_list(tmp_path / "three.csv", "linked/x/x1.jpg", "images/y/y0.jpg"), 2),
        (write_list(tmp_path / "four.csv", "x9.jpg", "images/y/y2.jpg"), 1),
    ):
        for pair in ((train, val), (val, train)):
            message = refusal("bad_argument", functools.partial(open_split, pair[0], val=pair[1]))
            assert f"share {shared} file" in message
            assert str(root / "x") in message or str(root / "y") in message
    other = write_list(tmp_path / "other.csv", "images/x/x2.jpg", "images/y/y1.jpg")
    assert len(open_split(train, val=other)[1]) == 2
    (tmp_path / "split").mkdir()
    rows = "".join(f"../images/{k}/{k}{i}.jpg,{k},{'val' if i else 'train'}\n" for k in "xy" for i in range(2))
    (tmp_path / "split" / "all.csv").write_text("path,label,split\n" + rows)
    assert len(open_split(tmp_path / "split" / "all.csv")[1]) == 2


def test_an_image_inside_a_file_is_refused_in_both_sets(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", samples("xyxy"))
    names = sorted(key.partition("::")[2] for key in keys(open_labelled(archive)))
    table = write_parquet(tmp_path / "t.parquet", ["x", "y", "x", "y"], names=None)
    for inside, whole in (
        ([f"a.tar::{name}" for name in names], archive),
        ([f"t.parquet:{i}" for i in range(4)], table),
    ):
        rows = "".join(f"{name},{'xy'[i % 2]}\n" for i, name in enumerate(inside[:2]))
        (tmp_path / "list.csv").write_text("path,label\n" + rows)
        message = refusal("bad_argument", functools.partial(open_split, whole, val=tmp_path / "list.csv"))
        assert "share 2 files" in message
