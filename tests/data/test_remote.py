"""URLs of object stores: inputs read by URL equal those read from disk, and missing objects are errors."""

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
    """A store with a folder of images, an archive and two Parquet files."""
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


@pytest.mark.parametrize("name", ["images", "images/", "images/**", "some.tar", "some.parquet", "paths.parquet"])
def test_every_kind_of_input_is_read_by_url(url: str, name: str) -> None:
    sources = list(iter_sources([f"{url}/{name}"]))
    assert [source.read() for source in sources] == [name.encode() for name in NAMES]
    assert all(source.key.startswith(url) for source in sources)


def test_a_folder_of_archives(url: str) -> None:
    store, path = fsspec.core.url_to_fs(url)
    store.makedirs(f"{path}/shards", exist_ok=True)
    store.copy(f"{path}/some.tar", f"{path}/shards/a.tar")
    store.copy(f"{path}/some.parquet", f"{path}/shards/b.parquet")
    sources = list(iter_sources([f"{url}/shards"]))
    assert [source.read() for source in sources] == [name.encode() for name in NAMES] * 2


def test_objects_and_patterns(url: str) -> None:
    (notes,) = iter_sources([f"{url}/images/b/notes.txt"])  # accepted whatever its suffix, because it is named directly
    assert notes.read() == b"b/notes.txt"
    assert [source.key for source in iter_sources([f"{url}/images/a*.jpg"])] == [
        f"{url}/images/a1.jpg", f"{url}/images/a2.jpg",
    ]  # fmt: skip


def test_patterns_match_as_on_disk_and_objects_may_be_named_like_patterns(url: str) -> None:
    for pattern in ("a?.jpg", "a[12].jpg"):
        assert [source.read() for source in iter_sources([f"{url}/images/{pattern}"])] == [b"a1.jpg", b"a2.jpg"]
    store, path = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{path}/images/a[1]?.jpg", b"odd")
    assert [source.read() for source in iter_sources([f"{url}/images/a[1]?.jpg"])] == [b"odd"]


def test_an_object_costs_one_request_or_two_if_the_range_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, path = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{path}/images/empty.jpg", b"")
    (photo,), (empty,) = iter_sources([f"{url}/images/a1.jpg"]), iter_sources([f"{url}/images/empty.jpg"])
    requests = []
    read, size = type(store).cat_file, type(store).size

    def cat_file(self: object, path: str, start: int | None = None, end: int | None = None) -> object:
        requests.append("cat_file")
        if end is not None and end > size(store, path):
            raise OSError("InvalidRange")
        return read(store, path, start=start, end=end)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "size", lambda self, path: requests.append("size"))
        assert photo.read() == b"a1.jpg"
    assert requests == []
    monkeypatch.setattr(type(store), "cat_file", cat_file)
    assert (photo.read(), empty.read()) == (b"a1.jpg", b"")
    assert requests == ["cat_file"] * 4


def test_missing_objects(url: str) -> None:
    for name in ("absent", "absent/*.jpg"):
        (source,) = iter_sources([f"{url}/{name}"])
        assert source.error is not None
        assert source.error.code == "not_found"
    (removed,) = iter_sources([f"{url}/images/a1.jpg"])
    store, path = fsspec.core.url_to_fs(removed.path)
    store.rm(path)
    with pytest.raises(ImageError) as caught:
        removed.read()
    assert caught.value.code == "not_found"


def test_at_most_one_byte_more_than_the_limit_is_read(url: str) -> None:
    limits = Limits(bytes=3)
    (source,) = iter_sources([f"{url}/images/a1.jpg"])
    assert source.read(limits) == b"a1.j"  # one byte more than the limit, which decode refuses
    for name in ("some.tar", "some.parquet"):
        with pytest.raises(ImageError) as caught:
            next(iter_sources([f"{url}/{name}"])).read(limits)
        assert caught.value.code == "too_many_bytes"


def test_a_damaged_archive_and_a_damaged_table(url: str) -> None:
    store, path = fsspec.core.url_to_fs(url)
    for name, cut in (("some.tar", 1100), ("some.parquet", -100)):
        store.pipe_file(f"{path}/{name}", store.cat_file(f"{path}/{name}")[:cut])
        errors = [source.error for source in iter_sources([f"{url}/{name}"]) if source.error]
        assert [error.code for error in errors] == ["corrupt_archive"]


def test_an_unknown_scheme_and_a_missing_package_are_refused() -> None:
    with pytest.raises(UsageError, match="no store") as caught:
        list(iter_sources(["nowhere://bucket/a.jpg"]))
    assert caught.value.code == "bad_argument"
    with pytest.raises(UsageError, match="dropboxdrivefs") as caught:
        list(iter_sources(["dropbox://a.jpg"]))
    assert caught.value.code == "missing_dependency"


def test_names_that_are_not_urls() -> None:
    assert is_url("s3://bucket/a.jpg")
    for name in ("a.jpg", "a/b://c", "://x", "C:/a.jpg", "2024-01-01 12://x"):
        assert not is_url(name)


def test_a_local_path_that_resembles_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "a.jpg").write_bytes(b"here")
    (source,) = iter_sources(["./s3://a.jpg"])
    assert source.read() == b"here"
