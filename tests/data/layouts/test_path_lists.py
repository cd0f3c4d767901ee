"""Lists of path,label: delimiters, headers, encodings and errors."""

from __future__ import annotations

import os
import pickle
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessella.data.datasets import open_labelled, open_split
from tessella.errors import ImageError
from tessella.records import csv_line
from tessella.text import escape

from ..labelled import class_names, image_bytes, keys, refusal, write, write_parquet, write_tar


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,label\nimg/1.jpg,dog\nimg/2.jpg,cat\n"),
        ("list.csv", "img/1.jpg,dog\r\n\r\nimg/2.jpg, cat\r\n"),
        ("list.csv", '\ufeffLabel,split,File_Name\ndog,x,"img/1.jpg"\ncat,y,img/2.jpg'),
        ("list.tsv", "class\tpath\ndog\timg/1.jpg\ncat\timg/2.jpg"),
    ],
)
def test_delimiters_and_headers(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, "img/1.jpg", "img/2.jpg")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    data = open_labelled(tmp_path / name)
    assert (keys(data), data.classes, class_names(data)) == (
        ["img/1.jpg", "img/2.jpg"],
        ("cat", "dog"),
        ["dog", "cat"],
    )
    assert data.read(1) == image_bytes("img/2.jpg")


def test_lists_of_two_splits(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "train.csv").write_text(f"path,label\n1.jpg,x\n{tmp_path}/2.jpg,y")
    (tmp_path / "val.csv").write_text("path,label\n3.jpg,y")
    train, val = open_split(tmp_path / "train.csv")
    assert (keys(train), keys(val), val.labels.tolist()) == (["1.jpg", f"{tmp_path}/2.jpg"], ["3.jpg"], [1])
    assert train.read(1) == image_bytes("2.jpg")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("1.jpg,x\n2.jpg,y\n1.jpg,y", "bad_argument", "'1.jpg' more than once"),
        ("1.jpg,x\n2.jpg", "bad_argument", "line 2"),
        ("1.jpg,x\n2.jpg,", "bad_argument", "line 2"),
        ("name,kind\n1.jpg,x", "bad_argument", "first line"),
        ("1.jpg,x,0\n2.jpg,y,1", "bad_argument", "first line"),
        ("1.jpg,x\n2.jpg,x", "bad_argument", "only one class"),
        ("path,label\n8.jpg,x\n9.jpg,y", "not_found", "none of the 2 files"),
        ("path,label\n", "not_found", "no images"),
        ('1.jpg,x\n"2.jpg,y', "unreadable", "list.csv"),
        ("1.jpg,x\n2.jpg,\udcff", "unreadable", "UTF-8"),
    ],
)
def test_invalid_lists_are_refused(tmp_path: Path, text: str, code: str, message: str) -> None:
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert message in refusal(code, lambda: open_labelled(tmp_path / "list.csv"))


def test_a_listed_file_that_does_not_exist_is_an_error_of_that_image(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("1.jpg,x\nnul\0.jpg,y\n2.jpg,y")
    data = open_labelled(tmp_path / "list.csv")
    assert data.read(0) == image_bytes("1.jpg")
    for i, code in ((1, "unreadable"), (2, "not_found")):
        with pytest.raises(ImageError) as error:
            data.read(i)
        assert error.value.code == code


# --- lists of other systems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_lists_of_other_systems(tmp_path: Path, encoding: str, end: str, delimiter: str) -> None:
    write(tmp_path, "é 1.jpg", "2.jpg")
    rows = [("File_Name", "class"), ("é 1.jpg", "dög"), ("2.jpg", "cat")]
    text = "".join(delimiter.join(row) + end for row in rows)
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    data = open_labelled(tmp_path / "list.csv")
    assert (keys(data), class_names(data)) == (["é 1.jpg", "2.jpg"], ["dög", "cat"])
    assert data.read(0) == image_bytes("é 1.jpg")


def test_the_error_for_a_list_that_is_not_utf_8_says_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("path,label\n1.jpg,é\n".encode("latin-1"))
    assert "UTF-16" in refusal("unreadable", lambda: open_labelled(tmp_path / "list.csv"))


def test_listed_names_may_have_another_unicode_form(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "ä.jpg")
    write(tmp_path, name, "b.jpg")
    (tmp_path / "list.csv").write_text("ä.jpg,x\nb.jpg,y\n", encoding="utf-8")
    assert open_labelled(tmp_path / "list.csv").read(0) == image_bytes(name)


# --- members, rows and splits -----------------------------------------------------------------------------------------


def test_members_and_rows_are_named_as_keys_are(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    write_tar(tmp_path / "deep" / "x.tar", {"a/2.jpg": image_bytes("2"), "a/3.jpg": image_bytes("3")})
    write_parquet(tmp_path / "y.parquet", [0, 1, 2])
    write_parquet(tmp_path / "z.parquet", [0, 1])
    names = ["z.parquet:1", "deep/x.tar::a/3.jpg", "1.jpg", "y.parquet:2", "z.parquet:0"]
    lines = "".join(f"{name},{'xy'[i % 2]}\n" for i, name in enumerate(names))
    (tmp_path / "list.csv").write_text(f"path,label\n{lines}")
    data = open_labelled(tmp_path / "list.csv")
    assert keys(data) == names
    expected = [image_bytes(name) for name in ("z:1", "3", "1.jpg", "y:2", "z:0")]
    assert [data.read(i) for i in range(5)] == expected
    assert data.sizes.tolist() == [len(image) for image in expected]
    copy = pickle.loads(pickle.dumps(data))
    assert [copy.read(i) for i in range(5)] == expected


def test_a_file_with_the_name_of_a_member_comes_first(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"1.jpg": image_bytes("member")})
    (tmp_path / "x.tar::1.jpg").write_bytes(b"file")
    (tmp_path / "y.parquet:0").write_bytes(b"row")
    (tmp_path / "list.csv").write_text("path,label\nx.tar::1.jpg,a\ny.parquet:0,b\n")
    data = open_labelled(tmp_path / "list.csv")
    assert [data.read(0), data.read(1)] == [b"file", b"row"]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("x.tar::9.jpg", "not_found", "no member '9.jpg'"),
        ("y.parquet:3", "not_found", "no row 3, only 3 rows"),
        ("broken.tar::1.jpg", "corrupt_archive", "broken.tar"),
        ("broken.parquet:0", "corrupt_archive", "broken.parquet"),
        ("labels.parquet:0", "bad_argument", "labels.parquet"),
    ],
)
def test_members_and_rows_that_do_not_exist(line: str, code: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    write_tar(tmp_path / "x.tar", {"1.jpg": image_bytes("1")})
    write_parquet(tmp_path / "y.parquet", [0, 1, 2])
    pq.write_table(pa.table(dict(number=[1, 2])), tmp_path / "labels.parquet")
    for name in ("broken.tar", "broken.parquet"):
        (tmp_path / name).write_bytes(b"broken" * 200)
    (tmp_path / "list.csv").write_text(f"path,label\n1.jpg,a\n{line},b\n")
    assert message in refusal(code, lambda: open_labelled(tmp_path / "list.csv"))


def test_a_missing_archive_is_an_error_of_its_images(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,a\nabsent.tar::2.jpg,b\n")
    data = open_labelled(tmp_path / "list.csv")
    with pytest.raises(ImageError):
        data.read(1)


def test_a_column_of_splits(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
    (tmp_path / "list.csv").write_text(
        "path,label,split\n1.jpg,a,train\n2.jpg,b,Training\n3.jpg,b,test\n4.jpg,a,validation\n5.jpg,a,test\n"
    )
    train, val = open_split(tmp_path / "list.csv")
    assert (keys(train), keys(val)) == (["1.jpg", "2.jpg"], ["4.jpg"])
    assert keys(open_labelled(tmp_path / "list.csv")) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert keys(open_labelled(tmp_path / "list.csv", "val", classes=("a", "b"))) == ["4.jpg"]


def test_a_test_split_serves_for_validation_and_a_missing_training_split_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "list.csv").write_text("path,label,split\n1.jpg,a,train\n2.jpg,b,train\n3.jpg,b,test\n")
    assert [keys(part) for part in open_split(tmp_path / "list.csv")] == [["1.jpg", "2.jpg"], ["3.jpg"]]
    (tmp_path / "list.csv").write_text("path,label,split\n1.jpg,a,test\n2.jpg,b,test\n")
    assert "no train split" in refusal("not_found", lambda: open_split(tmp_path / "list.csv"))


def test_a_column_with_other_words_is_no_column_of_splits(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text("path,label,split\n1.jpg,a,train\n2.jpg,b,left\n")
    assert keys(open_labelled(tmp_path / "list.csv", "train")) == ["1.jpg", "2.jpg"]


def test_escaped_paths_name_any_file(tmp_path: Path) -> None:
    names = [" a.jpg ", "b\nc.jpg", "d\\x.jpg", os.fsdecode(b"\xff.jpg")]
    for name in names:
        (tmp_path / name).write_bytes(image_bytes("x") + os.fsencode(name))
    lines = "".join(f"{csv_line([escape(name), 'ab'[i % 2]])}\n" for i, name in enumerate(names))
    (tmp_path / "list.csv").write_text(f"escaped_path,label\n{lines}")
    data = open_labelled(tmp_path / "list.csv")
    assert keys(data) == names
    assert [data.read(i) for i in range(4)] == [image_bytes("x") + os.fsencode(name) for name in names]


@pytest.mark.parametrize("name", ["b\\x41.jpg", "\\ud800.jpg"])
def test_an_escape_of_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text(f"escaped_path,label\n1.jpg,a\n{name},b\n")
    message = refusal("bad_argument", lambda: open_labelled(tmp_path / "list.csv"))
    assert "line 3" in message
    assert "is not an escaped path" in message
