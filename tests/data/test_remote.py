"""URLs of object stores: what files give, the same files give by URL; and what is not there is an error."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessella.data.limits import Limits
from tessella.data.remote import is_url
from tessella.data.sources import iter_sources
from tessella.errors import ImageError, UsageError

NAMES = ("a1.jpg", "a2.jpg", "a10.png", "b/c.webp")


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of images, an archive and two Parquet files."""
    root = f"file://{tmp_path}/store" if request.param == "file" else f"memory:///{tmp_path.name}/store"
    store, path = fsspec.core.url_to_fs(root)
    for name in (*NAMES, "b/notes.txt", ".hidden.jpg", ".git/x.jpg"):
        store.makedirs(f"{path}/images/{name}".rpartition("/")[0], exist_ok=True)
        store.pipe_file(f"{path}/images/{name}", name.encode())
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in NAMES:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    store.pipe_file(f"{path}/some.tar", archive.getvalue())
    for name, table in dict(
        some=pa.table(dict(image=[name.encode() for name in NAMES])),
        paths=pa.table(dict(image=pa.array([f"images/{name}" for name in NAMES], pa.large_string()))),
    ).items():
        data = io.BytesIO()
        pq.write_table(table, data, row_group_size=3)
        store.pipe_file(f"{path}/{name}.parquet", data.getvalue())
    return root


@pytest.mark.parametrize("given", ["images", "images/", "images/**", "some.tar", "some.parquet", "paths.parquet"])
def test_all_kinds_of_sources(url: str, given: str) -> None:
    found = list(iter_sources([f"{url}/{given}"]))
    assert [source.read() for source in found] == [name.encode() for name in NAMES]
    assert all(source.key.startswith(url) for source in found)


def test_a_folder_of_archives(url: str) -> None:
    store, path = fsspec.core.url_to_fs(url)
    store.makedirs(f"{path}/shards", exist_ok=True)
    store.copy(f"{path}/some.tar", f"{path}/shards/a.tar")
    store.copy(f"{path}/some.parquet", f"{path}/shards/b.parquet")
    found = list(iter_sources([f"{url}/shards"]))
    assert [source.read() for source in found] == [name.encode() for name in NAMES] * 2


def test_one_object_and_a_pattern(url: str) -> None:
    (one,) = iter_sources([f"{url}/images/b/notes.txt"])  # named, so taken whatever it is
    assert one.read() == b"b/notes.txt"
    assert [source.key for source in iter_sources([f"{url}/images/a*.jpg"])] == [
        f"{url}/images/a1.jpg", f"{url}/images/a2.jpg",
    ]  # fmt: skip


def test_patterns_as_of_files_on_disk_and_an_object_of_such_a_name(url: str) -> None:
    for pattern in ("a?.jpg", "a[12].jpg"):
        assert [source.read() for source in iter_sources([f"{url}/images/{pattern}"])] == [b"a1.jpg", b"a2.jpg"]
    store, path = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{path}/images/a[1]?.jpg", b"odd")
    assert [source.read() for source in iter_sources([f"{url}/images/a[1]?.jpg"])] == [b"odd"]


def test_an_object_costs_one_request_and_one_more_where_the_store_refuses_the_range(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{path}/images/empty.jpg", b"")
    (one,), (empty,) = iter_sources([f"{url}/images/a1.jpg"]), iter_sources([f"{url}/images/empty.jpg"])
    asked = []
    read, size = type(store).cat_file, type(store).size

    def cat_file(self: object, path: str, start: int | None = None, end: int | None = None) -> object:
        asked.append("cat_file")
        if end is not None and end > size(store, path):
            raise OSError("InvalidRange")
        return read(store, path, start=start, end=end)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "size", lambda self, path: asked.append("size"))
        assert one.read() == b"a1.jpg"
    assert asked == []
    monkeypatch.setattr(type(store), "cat_file", cat_file)
    assert (one.read(), empty.read()) == (b"a1.jpg", b"")
    assert asked == ["cat_file"] * 4


def test_what_is_not_there(url: str) -> None:
    for given in ("absent", "absent/*.jpg"):
        (source,) = iter_sources([f"{url}/{given}"])
        assert source.error is not None
        assert source.error.code == "not_found"
    (gone,) = iter_sources([f"{url}/images/a1.jpg"])
    store, path = fsspec.core.url_to_fs(gone.path)
    store.rm(path)
    with pytest.raises(ImageError) as caught:
        gone.read()
    assert caught.value.code == "not_found"


def test_no_more_is_read_than_the_limit(url: str) -> None:
    limits = Limits(bytes=3)
    (source,) = iter_sources([f"{url}/images/a1.jpg"])
    assert source.read(limits) == b"a1.j"  # one more: decode refuses it
    for given in ("some.tar", "some.parquet"):
        with pytest.raises(ImageError) as caught:
            next(iter_sources([f"{url}/{given}"])).read(limits)
        assert caught.value.code == "too_many_bytes"


def test_a_damaged_archive_and_a_damaged_table(url: str) -> None:
    store, path = fsspec.core.url_to_fs(url)
    for name, cut in (("some.tar", 1100), ("some.parquet", -100)):
        store.pipe_file(f"{path}/{name}", store.cat_file(f"{path}/{name}")[:cut])
        errors = [source.error for source in iter_sources([f"{url}/{name}"]) if source.error]
        assert [error.code for error in errors] == ["corrupt_archive"]


def test_a_store_that_is_unknown_or_whose_package_is_missing() -> None:
    with pytest.raises(UsageError, match="no store") as caught:
        list(iter_sources(["nowhere://bucket/a.jpg"]))
    assert caught.value.code == "bad_argument"
    with pytest.raises(UsageError, match="dropboxdrivefs") as caught:
        list(iter_sources(["dropbox://a.jpg"]))
    assert caught.value.code == "missing_dependency"


def test_what_is_no_url() -> None:
    assert is_url("s3://bucket/a.jpg")
    for name in ("a.jpg", "a/b://c", "://x", "C:/a.jpg", "2024-01-01 12://x"):
        assert not is_url(name)


def test_a_file_of_such_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "a.jpg").write_bytes(b"here")
    (source,) = iter_sources(["./s3://a.jpg"])
    assert source.read() == b"here"
