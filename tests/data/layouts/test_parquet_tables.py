"""Parquet tables of labelled images: splits, labels, and tables that change or are damaged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessella.data.datasets import open_labelled, open_split
from tessella.data.layouts import parquet_tables
from tessella.data.limits import Limits
from tessella.errors import ImageError

from ..labelled import CLASSES, class_names, image_bytes, keys, refusal, write, write_parquet


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_files_in_splits(tmp_path: Path, plain: bool) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [2, 0, 1, 2, 0], plain=plain)
    write_parquet(tmp_path / "deep" / "train-00001-of-00002.parquet", [1, 1, 0], plain=plain)
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", [1, 2], plain=plain)
    train, val = open_split(tmp_path)
    assert train.classes == val.classes == CLASSES  # in the order of the file
    assert keys(train)[:4] == [
        *(f"deep/train-00001-of-00002.parquet:{i}" for i in range(3)),
        "train-00000-of-00002.parquet:0",
    ]
    assert train.labels.tolist() == [1, 1, 0, 2, 0, 1, 2, 0]
    assert val.labels.tolist() == [1, 2]
    for data in (train, val):
        for i in np.random.default_rng(0).permutation(len(data)).tolist():
            stem, row = Path(data.key(i)).name.split(".parquet:")
            assert data.read(i) == image_bytes(f"{stem}:{row}")
            assert data.source(i).read() == data.read(i)
    assert len(open_labelled(tmp_path)) == 10


def test_the_other_split_of_a_parquet_file_is_found_beside_it(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "cifar-train.parquet", [0, 1, 2] * 20)
    assert "by a hash" in open_split(train)[1].origin
    test = write_parquet(tmp_path / "cifar-test.parquet", [0, 1, 2] * 15)
    assert open_split(train)[1].origin == str(test)
    assert len(open_split(train)[1]) == 45
    halves = open_split(test)  # a file that is named directly is used, whatever its name
    assert len(halves[0]) + len(halves[1]) == 45
    assert len(open_labelled(test, "val")) == len(open_labelled(test, "train")) == len(open_labelled(test)) == 45
    refusal("not_found", lambda: open_labelled(train, "val"))


@pytest.mark.parametrize(
    ("labels", "kind", "names", "classes"),
    [
        (["dog", "cat", "dog"], pa.string(), None, ("cat", "dog")),
        (["dog", "cat", "dog"], pa.large_string(), None, ("cat", "dog")),
        (["dog", "cat", "dog"], pa.dictionary(pa.int32(), pa.string()), None, ("cat", "dog")),
        ([10, 9, 10], pa.int32(), None, ("9", "10")),
        ([10, 9, 10], pa.uint8(), None, ("9", "10")),
        (["dog", "cat", "dog"], pa.string(), ["wolf", "dog", "cat"], ("wolf", "dog", "cat")),
    ],
)
def test_label_types(tmp_path: Path, labels: Any, kind: Any, names: Any, classes: tuple[str, ...]) -> None:
    data = open_labelled(write_parquet(tmp_path / "x.parquet", labels, names, kind=kind))
    assert data.classes == classes
    assert class_names(data) == [str(label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (
            [0, 3, 7],
            pa.int64(),
            "2 images with a label that is not in the class list, the first is 'x.parquet:1' with '3'",
        ),
        ([0, -1, 1], pa.int64(), "1 image with the label -1"),
        ([0, None, 1], pa.int64(), "1 of 3 labels are null"),
        ([0.0, 1.0], pa.float64(), "double"),
        (["a2", "wolf"], pa.string(), "'x.parquet:1' with 'wolf'"),
    ],
)
def test_invalid_labels_are_refused(tmp_path: Path, labels: Any, kind: Any, message: str) -> None:
    file = write_parquet(tmp_path / "x.parquet", labels, kind=kind)
    assert message in refusal("bad_argument", lambda: open_labelled(file))


def test_unusable_tables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_parquet(tmp_path / "a.parquet", [0, 1, 2])
    (tmp_path / "bad.parquet").write_bytes(good.read_bytes()[:-9])
    refusal("corrupt_archive", lambda: open_labelled(tmp_path / "bad.parquet"))
    write_parquet(tmp_path / "two" / "a.parquet", [0, 1, 2])
    write_parquet(tmp_path / "two" / "b.parquet", [0, 1, 2], CLASSES[::-1])
    assert "whose columns or class names differ" in refusal("bad_argument", lambda: open_labelled(tmp_path / "two"))
    pq.write_table(pa.table(dict(x=["x"], label=[1])), tmp_path / "x.parquet")
    message = refusal("bad_argument", lambda: open_labelled(tmp_path / "x.parquet"))
    assert "x (string), label (int64)" in message
    assert "rename" in message
    for metadata in (b"{", b'{"info": 3}', b'{"info": {"features": {"label": {"names": [1, 2]}}}}'):
        table = pq.read_table(good).replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table, tmp_path / "meta.parquet")
        refusal("bad_argument", lambda: open_labelled(tmp_path / "meta.parquet"))
    monkeypatch.setattr(parquet_tables, "total_memory", lambda: 100)
    assert "WebDataset" in refusal("bad_argument", lambda: open_labelled(good))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal("missing_dependency", lambda: open_labelled(good))


def test_rows_without_an_image_are_errors(tmp_path: Path) -> None:
    data = open_labelled(write_parquet(tmp_path / "x.parquet", [0, 1, 2], images=[b"abc", None, b""], plain=True))
    assert data.read(0, Limits(bytes=3)) == b"abc"
    for index, limits, code in ((1, Limits(), "empty"), (2, Limits(), "empty"), (0, Limits(bytes=2), "too_many_bytes")):
        with pytest.raises(ImageError) as error:
            data.read(index, limits)
        assert error.value.code == code


def test_rows_without_bytes_refer_to_a_file(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    data = open_labelled(write_parquet(tmp_path / "x.parquet", [0, 1, 2], images=[b"abc", None, None]))
    assert (data.read(0), data.read(1)) == (b"abc", image_bytes("1.jpg"))
    with pytest.raises(ImageError) as error:
        data.read(2)
    assert error.value.code == "not_found"


def test_a_table_that_changes_after_opening_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    changes: list[tuple[Callable[[], Any], str]] = [
        (lambda: write_parquet(file, [0, 1]), "changed_input"),
        (file.unlink, "not_found"),
        (lambda: file.write_bytes(b"PAR1"), "corrupt_archive"),
    ]
    for change, code in changes:
        data = open_labelled(write_parquet(file, [0, 1, 2]))
        change()
        with pytest.raises(ImageError) as error:
            data.read(0)
        assert error.value.code == code


@pytest.mark.parametrize("empty", ["path", "bytes"])
def test_fields_without_any_value_can_have_the_null_type(tmp_path: Path, empty: str) -> None:
    """Arrow gives this type to a column of nothing but None."""
    write(tmp_path, "0.jpg", "1.jpg")
    images = [dict(bytes=image_bytes(f"{i}.jpg"), path=f"{i}.jpg") | {empty: None} for i in range(2)]
    pq.write_table(pa.table(dict(image=images, label=["a", "b"])), tmp_path / "x.parquet")
    data = open_labelled(tmp_path / "x.parquet")
    assert data.sizes.tolist() == [len(image_bytes("0.jpg")) if empty == "path" else len("0.jpg")] * 2
    if empty == "path":
        assert [data.read(i) for i in range(2)] == [image_bytes("0.jpg"), image_bytes("1.jpg")]
    assert len(data.fingerprint) == 16
