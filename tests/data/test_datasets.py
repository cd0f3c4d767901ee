"""Labelled images: every layout gives the same map, splits are found by name, and what does not fit is refused."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessella.data import labelled_rows
from tessella.data.datasets import LabelledImages, open_labelled, open_split
from tessella.data.limits import Limits
from tessella.data.sources import Source
from tessella.errors import ImageError, UsageError

CLASSES = ("a2", "a10", "b")


def content(name: str) -> bytes:
    """Stands for an image: these bytes are handed on, not decoded."""
    return b"bytes of " + name.encode()


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return root


def write_parquet(
    path: Path,
    labels: Sequence[Any],
    names: Sequence[str] | None = CLASSES,
    *,
    plain: bool = False,
    kind: Any = None,
    images: Sequence[bytes | None] | None = None,
    rows_a_group: int = 2,
) -> Path:
    """Row i of x.parquet holds content("x:i"); `plain` without the struct around it."""
    data = [content(f"{path.stem}:{i}") for i in range(len(labels))] if images is None else list(images)
    if plain:
        column = pa.array(data, pa.binary())
    else:
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([dict(bytes=one, path=f"{i}.jpg") for i, one in enumerate(data)], struct)
    table = pa.table(dict(image=column, label=pa.array(labels, kind)))
    if names is not None:
        features = dict(image=dict(_type="Image"), label=dict(_type="ClassLabel", names=list(names)))
        table = table.replace_schema_metadata({"huggingface": json.dumps(dict(info=dict(features=features)))})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_a_group)
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard(labels: Iterable[str], first: int = 0, **others: bytes) -> dict[str, bytes]:
    members = {name.replace("_", "."): data for name, data in others.items()}
    for i, label in enumerate(labels, first):
        members |= {f"{i}.jpg": content(f"{i}"), f"{i}.cls": f"{label}\n".encode()}
    return members


def keys(data: LabelledImages) -> list[str]:
    return [data.key(i) for i in range(len(data))]


def named(data: LabelledImages) -> list[str]:
    return [data.classes[label] for label in data.labels]


def refused(code: str, call: Callable[[], Any]) -> str:
    """The message and the hint of the UsageError that the call must end with."""
    with pytest.raises(UsageError) as error:
        call()
    assert error.value.code == code, str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, one image of them deeper, and files that are none."""
    return write(
        tmp_path / "photos", "a10/1.jpg", "a10/2.PNG", "a2/x/y/3.webp", "a2/10.jpg", "a2/9.jpg", "b/4.jpg",
        "b/notes.txt", "b/.5.jpg", ".cache/6.jpg", "__MACOSX/7.jpg", "labels.csv",
    )  # fmt: skip


# --- folders ----------------------------------------------------------------------------------------------------------


def test_an_image_folder(folder: Path) -> None:
    data = open_labelled(folder)
    assert data.classes == CLASSES  # a2 before a10
    assert keys(data) == ["a2/9.jpg", "a2/10.jpg", "a2/x/y/3.webp", "a10/1.jpg", "a10/2.PNG", "b/4.jpg"]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert data.labels.dtype == np.int64
    assert len(data) == 6
    for i in range(6):
        assert data.read(i) == content(data.key(i))
        source = data.source(i)
        assert isinstance(source, Source)
        assert (source.key, source.read()) == (data.key(i), data.read(i))
    with pytest.raises(IndexError):
        data.key(6)
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 1
    assert keys(open_labelled(str(folder), "train")) == keys(data)


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "val"), ("training", "validation"), ("Train", "Eval"), ("TRAIN", "VALID"),
     ("train", "evaluation"), ("training", "test")],
)  # fmt: skip
def test_splits_are_found_by_the_names_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str, val: str
) -> None:
    write(tmp_path, f"{train}/cat/1.jpg", f"{train}/dog/2.jpg", f"{val}/dog/3.jpg", "devkit/readme.txt")
    assert keys(open_labelled(tmp_path, "train")) == [f"{train}/cat/1.jpg", f"{train}/dog/2.jpg"]
    assert set(keys(open_labelled(tmp_path))) == {f"{train}/cat/1.jpg", f"{train}/dog/2.jpg", f"{val}/dog/3.jpg"}
    learned, judged = open_split(tmp_path)
    assert learned.classes == judged.classes == ("cat", "dog")
    assert (keys(judged), judged.labels.tolist()) == ([f"{val}/dog/3.jpg"], [1])
    # from a folder that is itself called train, the other is beside it
    monkeypatch.chdir(tmp_path / train)
    for given in (tmp_path / train, "."):
        beside = open_split(given)[1]
        assert (keys(beside), beside.labels.tolist()) == (["dog/3.jpg"], [1])


def test_test_is_for_where_there_is_no_val(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val", "test") for name in "xy"))
    assert keys(open_split(tmp_path)[1]) == ["val/x/1.jpg", "val/y/1.jpg"]
    assert len(open_labelled(tmp_path)) == 6
    assert "no val split, only 'train'" in refused(
        "not_found", lambda: open_labelled(write(tmp_path / "2", "train/x/1.jpg", "train/y/1.jpg"), "val")
    )
    refused("not_found", lambda: open_labelled(write(tmp_path / "3", "test/x/1.jpg", "test/y/1.jpg"), "train"))


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    write(tmp_path, "bus/1.jpg", "train/1.jpg", "train/steam/2.jpg")
    assert named(open_labelled(tmp_path, "train")) == ["bus", "train", "train"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/a/1.jpg", "train/b/1.jpg", "more/1.jpg"], "'train' and 'more'"),
        (["a/1.jpg", "b/1.jpg", "c.tar"], "'a/1.jpg', and 'c.tar'"),
        (["train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"], "'val', 'validation'"),
        (["a/1.jpg", "b/1.jpg", "2.jpg"], "'2.jpg' is in no class folder"),
        (["train/1.jpg", "val/2.jpg"], "'train/1.jpg' is in no class folder"),
        (["train/a/1.jpg", "train/b/1.jpg", "train/2.jpg"], "'train/2.jpg' is in no class folder"),
        (["a.tar", "b.parquet"], "several kinds"),
        (["x-train.tar", "y.tar"], "'y.tar' of none"),
        (["only/1.jpg"], "one class only, 'only'"),
    ],
)
def test_layouts_that_are_mixed_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    assert words in refused("bad_argument", lambda: open_labelled(write(tmp_path, *names), "train"))


def test_nothing_to_read(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "none").mkdir()
    refused("not_found", lambda: open_labelled(tmp_path / "none"))
    refused("not_found", lambda: open_labelled(tmp_path / "absent"))
    refused("not_found", lambda: open_labelled(tmp_path / "*.tar"))
    assert "4.jpg" in refused("bad_argument", lambda: open_labelled(folder / "b" / "4.jpg"))
    refused("bad_argument", lambda: open_labelled(folder, "test"))  # type: ignore[arg-type]


def test_empty_class_folders_are_refused(folder: Path) -> None:
    (folder / "c" / "deep").mkdir(parents=True)
    assert "'c' has no images" in refused("bad_argument", lambda: open_labelled(folder))
    assert len(open_labelled(folder, classes=CLASSES)) == 6  # a class list was decided on before
    write(folder, "c/deep/1.jpg")
    assert open_labelled(folder).classes == (*CLASSES, "c")


def test_links_are_followed_but_not_round(folder: Path, tmp_path: Path) -> None:
    (folder / "b" / "back").symlink_to(folder)
    (folder / "b" / "gone.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "few").mkdir()
    for name in ("a2", "b"):
        (tmp_path / "few" / name).symlink_to(folder / name)
    data = open_labelled(tmp_path / "few")
    assert [key for key in keys(data) if "back" not in key] == [
        "a2/9.jpg", "a2/10.jpg", "a2/x/y/3.webp", "b/4.jpg", "b/gone.jpg",
    ]  # fmt: skip
    with pytest.raises(ImageError) as error:
        data.read(keys(data).index("b/gone.jpg"))
    assert error.value.code == "not_found"
    assert len(open_labelled(folder)) == 7


def test_a_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(path: str) -> Any:
        if path.endswith("a10"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", guarded)
    assert "Permission denied" in refused("unreadable", lambda: open_labelled(folder))


# --- class lists ------------------------------------------------------------------------------------------------------


def test_a_class_list_that_is_given_is_the_mapping(folder: Path) -> None:
    data = open_labelled(folder, classes=("b", "z", "a10", "a2"))
    assert data.classes == ("b", "z", "a10", "a2")
    assert named(data) == ["a2", "a2", "a2", "a10", "a10", "b"]
    assert "images of 'a10', which" in refused("bad_argument", lambda: open_labelled(folder, classes=("a2", "b")))
    assert "two classes are called 'b'" in refused(
        "bad_argument", lambda: open_labelled(folder, classes=("a2", "b", "a10", "b"))
    )


def test_numbers_are_indices_unless_classes_are_called_by_numbers(tmp_path: Path) -> None:
    write(tmp_path, "0/1.jpg", "2/1.jpg")
    assert open_labelled(tmp_path).classes == ("0", "2")
    assert open_labelled(tmp_path, classes=CLASSES).labels.tolist() == [0, 2]
    assert open_labelled(tmp_path, classes=("2", "1", "0")).labels.tolist() == [2, 0]
    refused("bad_argument", lambda: open_labelled(tmp_path, classes=("0", "1")))
    refused("bad_argument", lambda: open_labelled(tmp_path, classes=("x", "y")))


def test_validation_images_have_the_classes_of_the_training_images(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg", "val/c/1.jpg", "other/b/2.jpg")
    assert "images of 'c', which" in refused("bad_argument", lambda: open_split(tmp_path / "train"))
    learned, judged = open_split(tmp_path / "train", val=tmp_path / "other")
    assert (learned.classes, judged.classes, judged.labels.tolist()) == (("a", "b"), ("a", "b"), [1])


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [0, 0, 1, 1] * 9)
    assert open_labelled(file).classes == CLASSES
    assert "'b' of the class list has no training" in refused("bad_argument", lambda: open_split(file))


# --- splitting off ----------------------------------------------------------------------------------------------------


def test_a_hash_of_the_key_splits(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/{i}.jpg" for name in "xy" for i in range(200)))
    train, val = open_split(tmp_path, val_fraction=0.25)
    assert sorted(keys(train) + keys(val)) == sorted(keys(open_labelled(tmp_path)))
    assert 70 < len(val) < 130
    assert train.classes == val.classes
    assert all(data.key(i).startswith(data.classes[data.labels[i]]) for data in (train, val) for i in range(len(data)))
    assert keys(open_split(tmp_path, val_fraction=0.25)[1]) == keys(val)
    assert set(keys(open_split(tmp_path, val_fraction=0.1)[1])) < set(keys(val))
    write(tmp_path, *(f"{name}/new{i}.jpg" for name in "xyz" for i in range(50)))
    after = open_split(tmp_path, val_fraction=0.25)
    assert [key for key in keys(after[1]) if "new" not in key] == keys(val)
    assert [key for key in keys(after[0]) if "new" not in key] == keys(train)


def test_a_split_leaves_every_class_something_to_learn_from(tmp_path: Path) -> None:
    write(tmp_path, "x/1.jpg", "y/1.jpg", "y/2.jpg", *(f"z/{i}.jpg" for i in range(30)))
    train, _ = open_split(tmp_path, val_fraction=0.98)
    assert set(named(train)) == {"x", "y", "z"}
    assert len(train) < 9
    assert "too few" in refused("bad_argument", lambda: open_split(tmp_path, val_fraction=1e-9))
    for fraction in (0, 1, -0.5, 2):
        refused("bad_argument", functools.partial(open_split, tmp_path, val_fraction=fraction))


def test_no_file_is_learned_from_and_judged_on(tmp_path: Path, folder: Path) -> None:
    assert "6 files are in both" in refused("bad_argument", lambda: open_split(folder, val=folder))
    file = write_parquet(tmp_path / "p" / "x-train.parquet", [0, 1, 2])
    assert "1 files" in refused("bad_argument", lambda: open_split(tmp_path / "p", val=file))


# --- Parquet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_parquet(tmp_path: Path, plain: bool) -> None:
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
            assert data.read(i) == content(f"{stem}:{row}")
            assert data.source(i).read() == data.read(i)
    assert len(open_labelled(tmp_path)) == 10


def test_a_parquet_file_finds_the_other_split_beside_it(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "cifar-train.parquet", [0, 1, 2] * 20)
    assert "by a hash" in open_split(train)[1].origin
    test = write_parquet(tmp_path / "cifar-test.parquet", [0, 1, 2] * 15)
    assert open_split(train)[1].origin == str(test)
    assert len(open_split(train)[1]) == 45
    whole = open_split(test)  # what is given is taken, whatever its name
    assert len(whole[0]) + len(whole[1]) == 45
    assert len(open_labelled(test, "val")) == len(open_labelled(test, "train")) == len(open_labelled(test)) == 45
    refused("not_found", lambda: open_labelled(train, "val"))


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
def test_labels_of_parquet(tmp_path: Path, labels: Any, kind: Any, names: Any, classes: tuple[str, ...]) -> None:
    data = open_labelled(write_parquet(tmp_path / "x.parquet", labels, names, kind=kind))
    assert data.classes == classes
    assert named(data) == [str(label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "kind", "words"),
    [
        (
            [0, 3, 7],
            pa.int64(),
            "2 images have a label that is not in the class list, the first is 'x.parquet:1' with '3'",
        ),
        ([0, -1, 1], pa.int64(), "1 images have the label -1"),
        ([0, None, 1], pa.int64(), "1 of 3 images have no label"),
        ([0.0, 1.0], pa.float64(), "double"),
        (["a2", "wolf"], pa.string(), "'x.parquet:1' with 'wolf'"),
    ],
)
def test_labels_of_parquet_that_are_refused(tmp_path: Path, labels: Any, kind: Any, words: str) -> None:
    file = write_parquet(tmp_path / "x.parquet", labels, kind=kind)
    assert words in refused("bad_argument", lambda: open_labelled(file))


def test_parquet_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_parquet(tmp_path / "a.parquet", [0, 1, 2])
    (tmp_path / "bad.parquet").write_bytes(good.read_bytes()[:-9])
    refused("corrupt_archive", lambda: open_labelled(tmp_path / "bad.parquet"))
    write_parquet(tmp_path / "two" / "a.parquet", [0, 1, 2])
    write_parquet(tmp_path / "two" / "b.parquet", [0, 1, 2], CLASSES[::-1])
    assert "other columns or class names" in refused("bad_argument", lambda: open_labelled(tmp_path / "two"))
    pq.write_table(pa.table(dict(x=["x"], label=[1])), tmp_path / "x.parquet")
    message = refused("bad_argument", lambda: open_labelled(tmp_path / "x.parquet"))
    assert "x (string), label (int64)" in message
    assert "rename" in message
    for told in (b"{", b'{"info": 3}', b'{"info": {"features": {"label": {"names": [1, 2]}}}}'):
        table = pq.read_table(good).replace_schema_metadata({"huggingface": told})
        pq.write_table(table, tmp_path / "meta.parquet")
        refused("bad_argument", lambda: open_labelled(tmp_path / "meta.parquet"))
    monkeypatch.setattr(labelled_rows, "_memory", lambda: 100)
    assert "WebDataset" in refused("bad_argument", lambda: open_labelled(good))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refused("missing_dependency", lambda: open_labelled(good))


def test_rows_without_an_image(tmp_path: Path) -> None:
    data = open_labelled(write_parquet(tmp_path / "x.parquet", [0, 1, 2], images=[b"abc", None, b""], plain=True))
    assert data.read(0, Limits(bytes=3)) == b"abc"
    for index, limits, code in ((1, Limits(), "empty"), (2, Limits(), "empty"), (0, Limits(bytes=2), "too_many_bytes")):
        with pytest.raises(ImageError) as error:
            data.read(index, limits)
        assert error.value.code == code


def test_rows_without_bytes_name_a_file(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    data = open_labelled(write_parquet(tmp_path / "x.parquet", [0, 1, 2], images=[b"abc", None, None]))
    assert (data.read(0), data.read(1)) == (b"abc", content("1.jpg"))
    with pytest.raises(ImageError) as error:
        data.read(2)
    assert error.value.code == "not_found"


def test_parquet_that_changes_meanwhile(tmp_path: Path) -> None:
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


# --- WebDataset -------------------------------------------------------------------------------------------------------


def test_webdataset_archives(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", shard("0212"))
    write_tar(tmp_path / "train-1.tar", shard("01", first=4) | {"d/7.PNG": content("7"), "d/7.json": b'{"label": 2}'})
    write_tar(tmp_path / "val-0.tar", shard(["2"]))
    (tmp_path / "classes.txt").write_text("a2\n\na10\nb\n")
    train, val = open_split(tmp_path)
    assert train.classes == CLASSES
    assert train.labels.tolist() == [0, 2, 1, 2, 0, 1, 2]
    assert keys(train)[3:] == ["train-0.tar::3.jpg", "train-1.tar::4.jpg", "train-1.tar::5.jpg", "train-1.tar::d/7.PNG"]
    assert [train.read(i) for i in (6, 0, 3)] == [content("7"), content("0"), content("3")]
    assert (val.labels.tolist(), keys(val)) == ([2], ["val-0.tar::0.jpg"])
    assert keys(open_split(tmp_path / "train-*.tar")[1]) == ["val-0.tar::0.jpg"]
    write_tar(tmp_path / "x" / "train-2.tar", shard("20"))
    deep = open_labelled(tmp_path / "**" / "train-[12].tar")
    assert (deep.classes, len(deep), deep.key(4)) == (CLASSES, 5, "x/train-2.tar::1.jpg")
    assert deep.read(4) == content("1")
    assert len(open_labelled(tmp_path / "train-0.tar")) == 4


@pytest.mark.parametrize("last", [False, True])
def test_a_class_list_inside_an_archive(tmp_path: Path, last: bool) -> None:
    classes = {"classes.txt": b"wolf\ndog\ncat"}
    members = shard(["dog", "cat"])
    data = open_labelled(write_tar(tmp_path / "x.tar", {**members, **classes} if last else {**classes, **members}))
    assert (data.classes, data.labels.tolist()) == (("wolf", "dog", "cat"), [1, 2])
    write_tar(tmp_path / "y.tar", {"classes.txt": b"dog\ncat"} | shard("01"))
    assert "differ" in refused("bad_argument", lambda: open_labelled(tmp_path))


def test_names_in_archives_need_no_class_list(tmp_path: Path) -> None:
    members = {"a/1.jpg": b"1", "a/1.json": b'{"label": "dog", "x": [1]}', "b/1.jpg": b"2", "b/1.cls": b"cat"}
    data = open_labelled(write_tar(tmp_path / "x.tar", members | {"b/1.json": b"{}", "._c.jpg": b"", "readme": b""}))
    assert (data.classes, data.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert [data.read(0), data.read(1)] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (shard("01") | {"9.jpg": b""}, "1 images have no label, such as '9.jpg'"),
        (shard("01") | {"9.jpg": b"", "9.json": b'{"label": true}'}, "'9.jpg'"),
        (shard("01") | {"9.jpg": b"", "9.json": b'{"label": '}, "x.tar::9.json is not JSON"),
        (shard("01") | {"9.jpg": b"", "9.cls": b"\xff"}, "x.tar::9.cls is not text"),
        (shard("01") | {"9.cls": b"1"}, "1 labels have no image, such as that of '9'"),
        (shard("01") | {"1.png": b""}, "'1.png' has two images"),
        (shard("01") | {"9.jpg": b"", "9.cls": bytes(2 << 20)}, "which is no label"),
        (shard("0123", classes_txt=b"a2\na10\nb"), "'x.tar::3.jpg' with '3'"),
        (shard(["a2", "wolf"], classes_txt=b"a2\na10\nb"), "'x.tar::1.jpg' with 'wolf'"),
        (shard("01", classes_txt=b"\xff"), "expected a class name a line"),
        (shard("11"), "one class only, '1'"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    file = write_tar(tmp_path / "x.tar", members)
    assert words in refused("bad_argument", lambda: open_labelled(file))


def test_damaged_archives(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", shard("01")).read_bytes()
    for name, part in (("cut", whole[:1100]), ("half", whole[:700]), ("text", b"no archive" * 99), ("zero", b"")):
        (tmp_path / f"{name}.tar").write_bytes(part)
        refused("corrupt_archive", functools.partial(open_labelled, tmp_path / f"{name}.tar"))
    refused("not_found", lambda: open_labelled(write_tar(tmp_path / "none.tar", {"1.cls": b"1"})))
    data = open_labelled(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(whole[:514])
    with pytest.raises(ImageError) as error:
        data.read(0)
    assert error.value.code == "corrupt_archive"


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,label\nimg/1.jpg,dog\nimg/2.jpg,cat\n"),
        ("list.csv", "img/1.jpg,dog\r\n\r\nimg/2.jpg, cat\r\n"),
        ("list.csv", '\ufeffLabel,split,File_Name\ndog,x,"img/1.jpg"\ncat,y,img/2.jpg'),
        ("list.tsv", "class\tpath\ndog\timg/1.jpg\ncat\timg/2.jpg"),
    ],
)
def test_lists(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, "img/1.jpg", "img/2.jpg")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    data = open_labelled(tmp_path / name)
    assert (keys(data), data.classes, named(data)) == (["img/1.jpg", "img/2.jpg"], ("cat", "dog"), ["dog", "cat"])
    assert data.read(1) == content("img/2.jpg")


def test_lists_of_two_splits(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "train.csv").write_text(f"path,label\n1.jpg,x\n{tmp_path}/2.jpg,y")
    (tmp_path / "val.csv").write_text("path,label\n3.jpg,y")
    train, val = open_split(tmp_path / "train.csv")
    assert (keys(train), keys(val), val.labels.tolist()) == (["1.jpg", f"{tmp_path}/2.jpg"], ["3.jpg"], [1])
    assert train.read(1) == content("2.jpg")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("1.jpg,x\n2.jpg,y\n1.jpg,y", "bad_argument", "'1.jpg' more than once"),
        ("1.jpg,x\n2.jpg", "bad_argument", "line 2"),
        ("1.jpg,x\n2.jpg,", "bad_argument", "line 2"),
        ("name,kind\n1.jpg,x", "bad_argument", "first line"),
        ("1.jpg,x,0\n2.jpg,y,1", "bad_argument", "first line"),
        ("1.jpg,x\n2.jpg,x", "bad_argument", "one class only"),
        ("path,label\n8.jpg,x\n9.jpg,y", "not_found", "none of the 2 files"),
        ("path,label\n", "not_found", "no images"),
        ('1.jpg,x\n"2.jpg,y', "unreadable", "list.csv"),
        ("1.jpg,x\n2.jpg,\udcff", "unreadable", "UTF-8"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, text: str, code: str, words: str) -> None:
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert words in refused(code, lambda: open_labelled(tmp_path / "list.csv"))


def test_a_file_that_a_list_names_may_be_gone(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("1.jpg,x\nnul\0.jpg,y\n2.jpg,y")
    data = open_labelled(tmp_path / "list.csv")
    assert data.read(0) == content("1.jpg")
    for i, code in ((1, "unreadable"), (2, "not_found")):
        with pytest.raises(ImageError) as error:
            data.read(i)
        assert error.value.code == code


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "parquet", "tar", "list"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same three classes in each layout."""
    if request.param == "parquet":
        return write_parquet(tmp_path / "x.parquet", [0, 1, 2, 0])
    if request.param == "tar":
        return write_tar(tmp_path / "x.tar", shard("0120"))
    write(tmp_path / "x", "a2/1.jpg", "a10/1.jpg", "b/1.jpg", "b/é2.jpg")
    if request.param == "folder":
        return tmp_path / "x"
    (tmp_path / "x" / "x.csv").write_text("a2/1.jpg,a\na10/1.jpg,b\nb/1.jpg,c\nb/é2.jpg,a", encoding="utf-8")
    return tmp_path / "x" / "x.csv"


def test_other_processes_read_the_same(data: Path) -> None:
    images = open_labelled(data)
    expected = [images.read(i) for i in range(4)]
    again = pickle.loads(pickle.dumps(images))
    assert [again.read(i) for i in range(4)] == expected
    assert (keys(again), again.fingerprint, again.classes) == (keys(images), images.fingerprint, images.classes)
    assert (again.labels == images.labels).all()
    sources = pickle.loads(pickle.dumps([images.source(i) for i in range(4)]))
    assert [source.read() for source in sources] == expected
    for start in ("fork", "spawn"):
        with multiprocessing.get_context(start).Pool(1) as pool:
            assert pool.map(images.read, range(4)) == expected


def test_what_is_pickled_is_small(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [0, 1] * 500, images=[bytes(10_000)] * 1000)
    images = open_labelled(file)
    before = len(pickle.dumps(images))
    assert len(images.read(5)) == 10_000
    assert images.fingerprint
    assert len(pickle.dumps(images)) < before + 100 < 30_000


def test_a_subset(data: Path) -> None:
    images = open_labelled(data)
    few = images.subset([3, 1])
    assert (keys(few), few.labels.tolist()) == ([images.key(3), images.key(1)], images.labels[[3, 1]].tolist())
    assert few.read(0) == images.read(3)
    assert few.classes == images.classes
    assert keys(few.subset(np.array([1]))) == [images.key(1)]
    assert len({few.fingerprint, images.fingerprint, images.subset([1, 3]).fingerprint}) == 3
    assert images.subset(range(4)).fingerprint == images.fingerprint == open_labelled(data).fingerprint


def test_the_fingerprint_tells_changed_data(folder: Path) -> None:
    seen = {open_labelled(folder).fingerprint}

    def differs() -> bool:
        new = open_labelled(folder).fingerprint
        assert len(new) == 16
        int(new, 16)
        known = new in seen
        seen.add(new)
        return not known

    assert not differs()
    (folder / "b" / "notes.txt").write_text("of no account")
    assert not differs()
    write(folder, "b/new.jpg")
    assert differs()
    (folder / "b" / "new.jpg").write_bytes(b"of another size")
    assert differs()
    (folder / "b" / "new.jpg").rename(folder / "b" / "newer.jpg")
    assert differs()
    (folder / "b").rename(folder / "c")
    assert differs()
    assert open_labelled(folder, classes=("c", "a2", "a10")).fingerprint not in seen


def test_rows_of_parquet_count_with_their_size(tmp_path: Path) -> None:
    seen = {
        open_labelled(write_parquet(tmp_path / "x.parquet", [0, 1, 2], images=images)).fingerprint
        for images in ([b"1", b"2", b"3"], [b"1", b"2", b"33"], [b"1", b"2", None], [b"1", b"2", b""])
    }
    assert len(seen) == 4


def test_the_fingerprint_tells_changed_labels(tmp_path: Path) -> None:
    one, other = (open_labelled(write_parquet(tmp_path / "x.parquet", labels)) for labels in ([0, 1, 2], [0, 2, 1]))
    assert keys(one) == keys(other)
    assert one.fingerprint != other.fingerprint


def test_no_torch_is_imported() -> None:
    code = "import sys, tessella.data.datasets; assert not {'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cifar10(shared_data: Path) -> None:
    train, test = open_split(shared_data / "cifar10-train.parquet")
    assert (len(train), len(test)) == (50_000, 10_000)  # the test file lies beside
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.classes[:3] == ("airplane", "automobile", "bird")
    assert train.read(49_999)[:3] == test.read(0)[:3] == b"\xff\xd8\xff"
