"""Files, folders, globs, archives and lists: every input yields its images, or one error with the reason."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tessella.data.limits import Limits
from tessella.data.names import Skipped
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.errors import ImageError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make photos/{a1,a2,a10}.jpg, photos/b/{x.PNG,notes.txt}, hidden files and an empty folder; change to it."""
    for name in ("a10.jpg", "a2.jpg", "a1.jpg", "b/x.PNG", "b/notes.txt", ".hidden.jpg", ".cache/y.jpg", "z.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(*inputs: str, stdin: list[str] | None = None) -> list[str]:
    return [source.key for source in iter_sources(inputs, stdin)]


def test_folders_are_walked_in_natural_order(tree: Path) -> None:
    sources = list(iter_sources(["photos"]))
    assert [source.key for source in sources] == [
        "photos/a1.jpg", "photos/a2.jpg", "photos/a10.jpg", "photos/b/x.PNG", "photos/z.webp",
    ]  # fmt: skip
    assert [source.read() for source in sources] == [b"a1.jpg", b"a2.jpg", b"a10.jpg", b"b/x.PNG", b"z.webp"]


def test_a_named_file_is_accepted_whatever_its_suffix(tree: Path) -> None:
    assert keys("photos/b/notes.txt", "photos/a1.jpg", "photos/a1.jpg") == [
        "photos/b/notes.txt", "photos/a1.jpg", "photos/a1.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "TSV", "txt", "lst", "list"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_that_is_given_as_an_image_is_explained(tree: Path, suffix: str, encoding: str) -> None:
    name = f"images.{suffix}"
    Path(name).write_text("photos/a1.jpg\nphotos/ä.jpg\n", encoding)
    (source,) = iter_sources([name])
    with pytest.raises(ImageError, match="is a text file") as caught:
        source.read()
    assert caught.value.code == "unsupported_format"
    assert f"give '@{name}' instead" in caught.value.message
    assert keys(f"@{name}") == ["photos/a1.jpg", "photos/ä.jpg"]


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0", b"GIF89a", b"<svg xmlns=''/>", b"\0\1\2\3", bytes(600)])
def test_other_files_with_the_suffix_of_a_list_are_read(tree: Path, content: bytes) -> None:
    Path("a.txt").write_bytes(content)
    (source,) = iter_sources(["a.txt"])
    assert source.read() == content


def test_globs(tree: Path) -> None:
    assert keys("photos/*.jpg") == ["photos/a1.jpg", "photos/a2.jpg", "photos/a10.jpg"]
    assert keys("photos/a[12].jpg") == ["photos/a1.jpg", "photos/a2.jpg"]
    assert keys("**/*.PNG") == ["photos/b/x.PNG"]
    assert keys("photos/**") == keys("photos")
    (tree / "photos" / "[1].jpg").write_bytes(b"brackets")
    assert keys("photos/[1].jpg") == ["photos/[1].jpg"]  # a file of this name takes precedence


def test_standard_input(tree: Path) -> None:
    lines = ["photos/a2.jpg\n", "\n", "photos/b\r\n", "absent.jpg"]
    assert keys("-", "photos/a1.jpg", stdin=lines) == ["photos/a2.jpg", "photos/b/x.PNG", "absent.jpg", "photos/a1.jpg"]
    assert keys("-", stdin=[]) == []


def test_each_input_without_an_image_is_one_error(tree: Path) -> None:
    sources = list(iter_sources(["absent.jpg", "empty", "photos/*.gif", "photos/a1.jpg", "absent.tar"]))
    assert [source.key for source in sources] == ["absent.jpg", "empty", "photos/*.gif", "photos/a1.jpg", "absent.tar"]
    for source in sources[:3] + sources[4:]:
        with pytest.raises(ImageError) as error:
            source.read()
        assert error.value.code == "not_found"
    assert sources[3].read() == b"a1.jpg"


def make_tar(path: Path, tar_format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name in (
            "b/2.jpg",
            "b/10.png",
            "notes.txt",
            "b/._2.jpg",
            "__MACOSX/2.jpg",
            "../up.jpg",
            "é" * 120 + ".jpg",
        ):
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            archive.addfile(info, io.BytesIO(name.encode()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"odd{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_members_are_read_in_place(tree: Path, tar_format: int) -> None:
    make_tar(tree / "some.tar", tar_format)
    before = sorted(tree.rglob("*"))
    sources = list(iter_sources(["some.tar"]))
    names = ["b/2.jpg", "b/10.png", "../up.jpg", "é" * 120 + ".jpg"]
    assert [source.key for source in sources] == [f"some.tar::{name}" for name in names]
    assert [source.read() for source in reversed(sources)] == [name.encode() for name in reversed(names)]
    assert sorted(tree.rglob("*")) == before
    with pytest.raises(ImageError) as error:
        sources[0].read(Limits(bytes=3))
    assert error.value.code == "too_many_bytes"


def test_damaged_archives(tree: Path) -> None:
    make_tar(tree / "some.tar")
    complete = (tree / "some.tar").read_bytes()
    (tree / "text.tar").write_bytes(b"this is not an archive" * 100)
    (tree / "none.tar").write_bytes(bytes(10_240))
    (tree / "zero.tar").touch()
    (tree / "cut.tar").write_bytes(complete[:1100])
    for name, code in (("text", "corrupt_archive"), ("none", "not_found"), ("zero", "corrupt_archive")):
        (source,) = iter_sources([f"{name}.tar"])
        with pytest.raises(ImageError) as error:
            source.read()
        assert error.value.code == code, name
    sources = list(iter_sources(["cut.tar", "photos/a1.jpg"]))
    assert sources[0].read() == b"b/2.jpg"
    assert sources[-1].key == "photos/a1.jpg"
    with pytest.raises(ImageError):
        sources[-2].read()
    source = next(iter(iter_sources(["some.tar"])))
    (tree / "some.tar").write_bytes(complete[:514])
    with pytest.raises(ImageError, match="ends inside"):
        source.read()
    (tree / "some.tar").unlink()
    with pytest.raises(ImageError) as error:
        source.read()
    assert error.value.code == "not_found"


def test_links_to_folders_above_are_not_followed(tree: Path) -> None:
    (tree / "photos" / "b" / "back").symlink_to(tree / "photos")
    (tree / "photos" / "b" / "link.jpg").symlink_to(tree / "photos" / "a1.jpg")
    skipped = Skipped()
    assert [source.key for source in iter_sources(["photos/b"], skipped=skipped)] == [
        "photos/b/link.jpg", "photos/b/x.PNG",
    ]  # fmt: skip
    assert skipped.counts == {"link_loop": 1, "other_suffix": 1}
    assert [key for key in keys("photos") if "back" in key] == []


def test_a_folder_that_cannot_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_scandir(path: str) -> Any:
        if path == "photos/b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", failing_scandir)
    sources = list(iter_sources(["photos"]))
    assert [(source.key, source.error.code) for source in sources if source.error] == [("photos/b", "unreadable")]
    assert len(sources) == 5


def test_sources_are_small_and_picklable(tree: Path) -> None:
    make_tar(tree / "some.tar")
    for source in iter_sources(["some.tar", "photos", "absent"]):
        copy = pickle.loads(pickle.dumps(source))
        assert (copy.key, copy.path, copy.offset) == (source.key, source.path, source.offset)
        if source.error is None and source.key != "absent":
            assert copy.read() == source.read()


def test_a_long_list_is_read_in_constant_memory() -> None:
    tracemalloc.start()
    try:
        count = sum(1 for _ in iter_sources(["-"], (f"folder/{i}.jpg\n" for i in range(5_000))))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 5_000
    assert peak < 300_000
    assert isinstance(next(iter_sources(["x"])), Source)


def test_a_folder_of_archives(tree: Path) -> None:
    folder = tree / "shards"
    for name in ("a10.tar", "deep/a2.tar"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / name, "w") as archive:
            archive.add(tree / "photos" / "a1.jpg", "x.jpg")
    assert keys("shards") == ["shards/a10.tar::x.jpg", "shards/deep/a2.tar::x.jpg"]
    (folder / "y.jpg").write_bytes(b"y")
    assert keys("shards") == ["shards/a10.tar::x.jpg", "shards/deep/a2.tar::x.jpg", "shards/y.jpg"]


def test_a_list_in_a_file(tree: Path) -> None:
    (tree / "some.list").write_text("photos/a2.jpg\n\nphotos/b\r\nabsent.jpg\n")
    assert keys("@some.list") == ["photos/a2.jpg", "photos/b/x.PNG", "absent.jpg"]
    (tree / "some.list").write_text("\n")
    for name in ("@some.list", "@absent.list"):
        (source,) = iter_sources([name])
        assert source.error is not None
    (tree / "@file.jpg").write_bytes(b"at")  # a file of this name takes precedence
    assert keys("@file.jpg") == ["@file.jpg"]
