"""A file of rows about crops that are expensive to compute, such as a teacher's outputs.

A row that is damaged, or about another crop, is never returned.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..storage import remove_file

_CHECKSUM_BYTES = 4
HALF_MAX = float(np.finfo(np.float16).max)


class RowKey(NamedTuple):
    """The row of a crop. number: from 0; pixels: `checksum` of the crop that the row is about."""

    number: int
    pixels: int


def checksum(values: NDArray[np.uint8]) -> int:
    """Return the CRC-32 of (H,W,C) uint8 pixels."""
    return zlib.crc32(values.tobytes())


class RowCache:
    """Rows of `width` float16 numbers in a file that grows as they are written.

    Each row ends with a checksum of itself and of the pixels it is about. A row that was not written, was cut off by a
    power failure, or is about other pixels is therefore absent rather than wrong. Several processes may read and write
    the same file.
    """

    def __init__(self, path: Path, width: int):
        self.path, self.width = path, width
        self.row_bytes = 2 * width + _CHECKSUM_BYTES
        self._file: tuple[int, int] | None = None  # process and descriptor, as worker processes inherit this object

    def _descriptor(self) -> int:
        if self._file is None or self._file[0] != os.getpid():
            self._file = os.getpid(), os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self._file[1]

    def get(self, key: RowKey) -> NDArray[np.float16] | None:
        """Return the (W,) row of a crop, W the width of the cache, or None if it cannot be read."""
        try:
            data = os.pread(self._descriptor(), self.row_bytes, key.number * self.row_bytes)
        except OSError:  # the row is computed again; if the file cannot be written either, `put` says so
            return None
        if len(data) < self.row_bytes or data[-_CHECKSUM_BYTES:] != self._seal(data[:-_CHECKSUM_BYTES], key):
            return None
        return np.frombuffer(data[:-_CHECKSUM_BYTES], np.float16).copy()

    def put(self, key: RowKey, row: NDArray[np.float16]) -> None:
        """Write the (W,) row of a crop, W the width of the cache. Raises OSError, for example if the disk is full."""
        values = np.ascontiguousarray(row, np.float16).tobytes()
        data = values + self._seal(values, key)
        if os.pwrite(self._descriptor(), data, key.number * self.row_bytes) != len(data):
            raise OSError("the row was written only in part")

    @staticmethod
    def _seal(values: bytes, key: RowKey) -> bytes:
        return zlib.crc32(values, key.pixels).to_bytes(_CHECKSUM_BYTES, "little")

    def delete(self) -> None:
        """Delete the file, if there is one, and close it in this process. Raises OutputError `output_failed`."""
        if self._file is not None and self._file[0] == os.getpid():
            os.close(self._file[1])
        self._file = None
        remove_file(self.path)


def to_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return (N,W) float32 numbers as float16; those out of its range become its largest number."""
    return np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16)
