"""WebDataset archives: samples, class lists, and archives that are invalid or damaged."""

from __future__ import annotations

import functools
import io
import tarfile
from pathlib import Path

import pytest

from tessella.data.datasets import open_labelled, open_split
from tessella.errors import ImageError, UsageError

from ..labelled import CLASSES, image_bytes, keys, refusal, samples, write_tar
from ..test_tar import END, header, member


def test_archives_in_splits(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", samples("0212"))
    write_tar(
        tmp_path / "train-1.tar",
        samples("01", first=4) | {"d/7.PNG": image_bytes("7"), "d/7.json": b'{"label": 2}'},
    )
    write_tar(tmp_path / "val-0.tar", samples(["2"]))
    (tmp_path / "classes.txt").write_text("a2\n\na10\nb\n")
    train, val = open_split(tmp_path)
    assert train.classes == CLASSES
    assert train.labels.tolist() == [0, 2, 1, 2, 0, 1, 2]
    assert keys(train)[3:] == [
        "train-0.tar::3.jpg",
        "train-1.tar::4.jpg",
        "train-1.tar::5.jpg",
        "train-1.tar::d/7.PNG",
    ]
    assert [train.read(i) for i in (6, 0, 3)] == [image_bytes("7"), image_bytes("0"), image_bytes("3")]
    assert (val.labels.tolist(), keys(val)) == ([2], ["val-0.tar::0.jpg"])
    assert keys(open_split(tmp_path / "train-*.tar")[1]) == ["val-0.tar::0.jpg"]
    write_tar(tmp_path / "x" / "train-2.tar", samples("20"))
    deep = open_labelled(tmp_path / "**" / "train-[12].tar")
    assert (deep.classes, len(deep), deep.key(4)) == (CLASSES, 5, "x/train-2.tar::1.jpg")
    assert deep.read(4) == image_bytes("1")
    assert len(open_labelled(tmp_path / "train-0.tar")) == 4


def test_an_archive_of_class_folders(tmp_path: Path) -> None:
    names = [f"{split}/{name}/{i}.jpg" for split in ("train", "val") for name in ("dog", "cat") for i in range(2)]
    members = {name: image_bytes(name) for name in names}
    others = {"README.md": b"", "train/._x.jpg": b""}
    for prefix in ("", "./", "pets/", "a/pets/"):
        path = write_tar(tmp_path / "x.tar", {prefix + name: data for name, data in (members | others).items()})
        train, val = open_split(path)
        assert (train.classes, train.labels.tolist()) == (("cat", "dog"), [1, 1, 0, 0])
        assert val.labels.tolist() == [1, 1, 0, 0]
        assert keys(train)[0] == f"x.tar::{prefix}train/dog/0.jpg"
        assert [val.read(i) for i in range(4)] == [image_bytes(name) for name in names[4:]]
        assert train.skipped.counts == {"other_suffix": 1, "by_product": 1}


def test_members_that_later_ones_replace_are_counted(tmp_path: Path) -> None:
    """As when the archive is unpacked, the last one of a name stays."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, text in (("a/1.jpg", b"one"), ("b/1.jpg", b"two"), ("./a/1.jpg", b"three"), ("a/1.jpg", b"four")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    data = open_labelled(tmp_path / "x.tar")
    assert [data.read(i) for i in range(2)] == [b"four", b"two"]
    assert data.skipped.counts == {"replaced_member": 2}
    (line,) = data.skipped.lines()
    assert "2 members of archives that later ones of the same name replace" in line


def test_archives_of_class_folders_without_splits(tmp_path: Path) -> None:
    folders = {f"{name}/{i}.jpg": image_bytes(f"{i}") for name in ("dog", "cat") for i in range(2)}
    data = open_labelled(write_tar(tmp_path / "x.tar", {f"pets/{name}": image for name, image in folders.items()}))
    assert (data.classes, len(data)) == (("cat", "dog"), 4)
    write_tar(tmp_path / "val.tar", folders)
    train, val = open_split(write_tar(tmp_path / "train.tar", folders))
    assert (len(train), len(val), val.key(0)) == (4, 4, "val.tar::dog/0.jpg")
    for other in ({"0.jpg": b""}, {"dog/0.cls": b"0"}):  # an image outside of the folders, a label beside an image
        path = write_tar(tmp_path / "mixed.tar", folders | other)
        with pytest.raises(UsageError, match="without a label") as caught:
            open_labelled(path)
        assert caught.value.code == "bad_argument"


def test_the_shared_archive_of_clothing(shared_data: Path) -> None:
    train, val = open_split(shared_data / "clothing.tar")
    assert (len(train), len(val), len(train.classes)) == (3068, 341, 10)
    assert train.key(0).startswith("clothing.tar::clothing/train/dress/")
    assert train.read(3067)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("last", [False, True])
def test_a_class_list_inside_an_archive(tmp_path: Path, last: bool) -> None:
    classes = {"classes.txt": b"wolf\ndog\ncat"}
    members = samples(["dog", "cat"])
    data = open_labelled(write_tar(tmp_path / "x.tar", {**members, **classes} if last else {**classes, **members}))
    assert (data.classes, data.labels.tolist()) == (("wolf", "dog", "cat"), [1, 2])
    write_tar(tmp_path / "y.tar", {"classes.txt": b"dog\ncat"} | samples("01"))
    assert "differ" in refusal("bad_argument", lambda: open_labelled(tmp_path))


def test_names_in_archives_need_no_class_list(tmp_path: Path) -> None:
    members = {"a/1.jpg": b"1", "a/1.json": b'{"label": "dog", "x": [1]}', "b/1.jpg": b"2", "b/1.cls": b"cat"}
    data = open_labelled(write_tar(tmp_path / "x.tar", members | {"b/1.json": b"{}", "._c.jpg": b"", "readme": b""}))
    assert (data.classes, data.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert [data.read(0), data.read(1)] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (samples("01") | {"9.jpg": b""}, "1 image without a label, such as '9.jpg'"),
        (samples("01") | {"9.jpg": b"", "9.json": b'{"label": true}'}, "'9.jpg'"),
        (samples("01") | {"9.jpg": b"", "9.json": b'{"label": '}, "x.tar::9.json is not JSON"),
        (samples("01") | {"9.jpg": b"", "9.cls": b"\xff"}, "x.tar::9.cls is not text"),
        (samples("01") | {"9.cls": b"1"}, "1 label without an image, such as that of '9'"),
        (samples("01") | {"1.png": b""}, "'1.png' has two images"),
        (samples("01") | {"9.jpg": b"", "9.cls": bytes(2 << 20)}, "too large for a label"),
        (samples("0123", classes_txt=b"a2\na10\nb"), "'x.tar::3.jpg' with '3'"),
        (samples(["a2", "wolf"], classes_txt=b"a2\na10\nb"), "'x.tar::1.jpg' with 'wolf'"),
        (samples("01", classes_txt=b"\xff"), "expected one class name per line"),
        (samples("11"), "only one class, '1'"),
    ],
)
def test_invalid_archives_are_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    file = write_tar(tmp_path / "x.tar", members)
    assert message in refusal("bad_argument", lambda: open_labelled(file))


def test_damaged_archives(tmp_path: Path) -> None:
    complete = write_tar(tmp_path / "x.tar", samples("01")).read_bytes()
    for name, part in (
        ("truncated", complete[:1100]),
        ("half", complete[:700]),
        ("text", b"no archive" * 99),
        ("zero", b""),
    ):
        (tmp_path / f"{name}.tar").write_bytes(part)
        refusal("corrupt_archive", functools.partial(open_labelled, tmp_path / f"{name}.tar"))
    refusal("not_found", lambda: open_labelled(write_tar(tmp_path / "none.tar", {"1.cls": b"1"})))
    data = open_labelled(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(complete[:514])
    with pytest.raises(ImageError) as error:
        data.read(0)
    assert error.value.code == "corrupt_archive"


# --- samples of several files -----------------------------------------------------------------------------------------


def test_the_image_with_a_plain_suffix_is_used(tmp_path: Path) -> None:
    members = {
        "1.seg.png": b"mask", "1.jpg": b"one", "1.cls": b"x", "1.txt": b"a caption",
        "2.jpg": b"two", "2.depth.png": b"depth", "2.thumb.jpg": b"thumb", "2.cls": b"y",
        "3.rgb.jpg": b"three", "3.cls": b"x",
    }  # fmt: skip
    data = open_labelled(write_tar(tmp_path / "x.tar", members))
    assert [data.read(i) for i in range(3)] == [b"one", b"two", b"three"]
    assert data.skipped.counts == {"second_image": 3, "other_suffix": 1}
    for extra in ({"1.png": b"again"}, {"3.nir.png": b"another"}):
        file = write_tar(tmp_path / "y.tar", members | extra)
        assert "two images" in refusal("bad_argument", functools.partial(open_labelled, file))


def test_samples_in_hidden_and_by_product_folders_are_skipped(tmp_path: Path) -> None:
    members = samples("01") | {"@eaDir/0.jpg": b"x", "__MACOSX/._0.jpg": b"x", "._1.jpg": b"x", ".x/9.jpg": b""}
    data = open_labelled(write_tar(tmp_path / "x.tar", members))
    assert (len(data), data.skipped.counts) == (2, {"by_product": 3, "hidden": 1})


@pytest.mark.parametrize("field", ["size", "names"])
def test_hostile_archives_are_refused(tmp_path: Path, field: str) -> None:
    hostile = {"size": header(b"b.jpg", b"\xff" * 10 + b"\xfe\x00"), "names": member(b"l", b"n", b"L") * 1500}[field]
    (tmp_path / "x.tar").write_bytes(member() + member(b"a.cls", b"1") + hostile + END)
    refusal("corrupt_archive", lambda: open_labelled(tmp_path / "x.tar"))
    with pytest.raises(UsageError):
        open_split(tmp_path)
