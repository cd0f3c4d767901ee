"""A source reads its file or its part of an archive, and refuses what cannot be a part of one."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tessella.data.limits import Limits
from tessella.data.source import Source
from tessella.errors import ImageError


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file of ten bytes."""
    (tmp_path / "x.bin").write_bytes(b"0123456789")
    return str(tmp_path / "x.bin")


def code_of(source: Source, limits: Limits | None = None) -> str:
    with pytest.raises(ImageError) as error:
        source.read(limits or Limits())
    return error.value.code


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_and_a_member(file: str, prefix: str) -> None:
    path = prefix + file
    assert Source("x", path).read() == b"0123456789"
    assert Source("x", path, offset=3, size=4).read() == b"3456"
    assert Source("x", path, offset=10, size=0).read() == b""


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize(("offset", "size"), [(8, 5), (100, 1), (-1, 3), (0, -1), (1 << 63, 1)])
def test_a_member_outside_the_archive_is_corrupt(file: str, prefix: str, offset: int, size: int) -> None:
    assert code_of(Source("x", prefix + file, offset, size)) == "corrupt_archive"


def test_limits(file: str) -> None:
    assert code_of(Source("x", file, 0, 10), Limits(bytes=9)) == "too_many_bytes"
    assert Source("x", file, 0, 9).read(Limits(bytes=9)) == b"012345678"


def test_missing_files(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert code_of(Source("x", missing)) == "not_found"
    assert code_of(Source("x", missing, 0, 1)) == "not_found"


def test_a_source_with_an_error_raises_it(file: str) -> None:
    source = Source("x", file, error=ImageError("empty", "nothing in it"))
    for copy in (source, pickle.loads(pickle.dumps(source))):
        with pytest.raises(ImageError, match="nothing in it") as error:
            copy.read()
        assert error.value.code == "empty"
