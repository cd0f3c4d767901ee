"""A row is returned only if it was written completely, and about the same pixels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tessella.data.row_cache import RowCache, RowKey, checksum, to_half
from tessella.errors import OutputError

ROW = np.arange(6, dtype=np.float16)


def test_rows_are_returned_as_they_were_written(tmp_path: Path) -> None:
    cache, other = (RowCache(tmp_path / "rows.bin", 6) for _ in range(2))
    assert cache.get(RowKey(0, 1)) is None
    cache.put(RowKey(5, 1), ROW)
    found = other.get(RowKey(5, 1))
    assert found is not None
    np.testing.assert_array_equal(found, ROW)
    for key in (RowKey(5, 2), RowKey(4, 1), RowKey(6, 1), RowKey(10**6, 1)):
        assert cache.get(key) is None
    cache.put(RowKey(5, 2), ROW + 1)
    assert cache.get(RowKey(5, 1)) is None
    assert cache.get(RowKey(5, 2)) is not None
    descriptor = cache._descriptor()
    cache.delete()
    cache.delete()
    assert not cache.path.exists()
    with pytest.raises(OSError, match="Bad file descriptor"):  # an open file would keep its space on the disk
        os.fstat(descriptor)


@pytest.mark.parametrize("zeros", [0, 7])
def test_rows_of_zeros_are_not_taken_for_a_hole_in_the_file(tmp_path: Path, zeros: int) -> None:
    cache = RowCache(tmp_path / "rows.bin", 6)
    cache.put(RowKey(9, 0), ROW)
    assert [cache.get(RowKey(i, zeros)) for i in range(9)] == [None] * 9


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    cache = RowCache(tmp_path / "rows.bin", 6)
    cache.put(RowKey(0, 1), ROW)
    content = cache.path.read_bytes()
    for i in range(len(content)):
        cache.path.write_bytes(content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :])
        assert RowCache(cache.path, 6).get(RowKey(0, 1)) is None
    cache.path.write_bytes(content[:-1])
    assert RowCache(cache.path, 6).get(RowKey(0, 1)) is None


def test_a_file_that_cannot_be_opened_has_no_rows(tmp_path: Path) -> None:
    cache = RowCache(tmp_path / "absent" / "rows.bin", 6)
    assert cache.get(RowKey(0, 1)) is None
    with pytest.raises(OSError, match="No such file"):
        cache.put(RowKey(0, 1), ROW)


def test_a_file_that_cannot_be_deleted_is_reported(tmp_path: Path) -> None:
    (tmp_path / "rows.bin").mkdir()  # a folder cannot be removed like a file
    with pytest.raises(OutputError, match="could not be removed") as caught:
        RowCache(tmp_path / "rows.bin", 6).delete()
    assert caught.value.code == "output_failed"


def test_a_forked_process_opens_the_file_itself(tmp_path: Path) -> None:
    cache = RowCache(tmp_path / "rows.bin", 6)
    cache.put(RowKey(0, 1), ROW)
    child = os.fork()
    if not child:
        cache.put(RowKey(1, 1), ROW)
        os._exit(0 if cache.get(RowKey(0, 1)) is not None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get(RowKey(1, 1)) is not None


def test_checksums_and_rounding() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert checksum(pixels) == checksum(pixels[:, ::-1]) != checksum(pixels + 1)
    half = to_half(np.array([[1e9, -1e9, 0.1]], np.float32))
    assert np.isfinite(half).all()
    assert half[0, 2] == np.float16(0.1)
