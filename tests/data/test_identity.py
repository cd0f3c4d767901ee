"""File identities: changes are detected when a source is read, and are described in words."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from tessella.data.identity import (
    UNKNOWN,
    ListedSource,
    container_difference,
    difference,
    identity_of,
    listed_source,
)
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.errors import ImageError


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(name[:4].encode()))


def test_size_and_modification_time_identify_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"data")
    before = identity_of(str(path))
    assert tuple(before) == (4, path.stat().st_mtime_ns, None, None)
    assert difference(before, identity_of(str(path))) == ""
    path.write_bytes(b"longer")
    assert difference(before, identity_of(str(path))) == "it had 4 bytes, and has 6"
    path.write_bytes(b"last")
    os.utime(path, ns=(0, 0))
    assert "now 1970-01-01 00:00:00" in difference(before, identity_of(str(path)))
    assert difference(before, before._replace(mtime=2**90)).endswith("ns after 1970")
    path.unlink()
    assert difference(before, identity_of(str(path))) == "it no longer exists"
    assert identity_of("a\0b") == UNKNOWN


def test_a_changed_source_is_an_error_after_pickling_too(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"data")
    source = listed_source(Source("a", str(path)), identity_of(str(path)))
    assert pickle.loads(pickle.dumps(source)).read() == b"data"
    path.write_bytes(b"other data")
    with pytest.raises(ImageError, match="it had 4 bytes, and has 10") as caught:
        pickle.loads(pickle.dumps(source)).read()
    assert caught.value.code == "changed_input"
    path.unlink()
    with pytest.raises(ImageError) as caught:
        source.read()
    assert caught.value.code == "not_found"


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"data")

    class ChangingSource(Source):
        def read(self, *_: object) -> bytes:
            path.write_bytes(b"changed during the read")
            return b"part"

    with pytest.raises(ImageError, match="is not the file that was listed"):
        ListedSource("a", str(path), inner=ChangingSource("a", str(path)), identity=identity_of(str(path))).read()


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_members_are_compared_with_the_archive(tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives behind a URL are compared too: the store reports the size, and some stores a time."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.tar"
    write_tar(path, ["aaaa.png", "bbbb.png"])
    url = f"{prefix}{path}"
    before = identity_of(url, container=True)
    assert before.size == path.stat().st_size
    name = url if prefix else "some.tar"
    members = [(source.key, source.offset or 0, source.size or 0) for source in iter_sources([name])]
    assert len(members) == 2
    assert container_difference(url, before, members) == ""
    assert container_difference(url, before, []) == ""
    stat = path.stat()
    write_tar(path, ["bbbb.png", "aaaa.png"])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if not prefix:
        assert container_difference(url, before, members) == "'bbbb.png' is now where 'some.tar::aaaa.png' was"
        assert "moved or are missing" in container_difference(url, before, [("some.tar::x.png", 99, 4)])
    os.utime(path, ns=(0, 0))
    assert container_difference(url, before, members) != ""
