"""Test BMP: truncated files, limits on work and refused layouts."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tessella.data.decode import decode

from .. import generated
from .common import NOISE, RNG, error_code, refusal_message


def test_bmp_truncated_or_refused() -> None:
    rows = [row.tobytes() for row in NOISE[..., ::-1]]
    data = generated.bmp(rows, 30, 24)
    np.testing.assert_array_equal(decode(data), NOISE)
    np.testing.assert_array_equal(decode(data[:-2]), NOISE)  # without the padding of the last row
    for missing in (3, 100, len(data) // 2, len(data) - 30):
        assert error_code(data[:-missing]) == "corrupt_image", missing
    indices = np.sort(RNG.integers(0, 9, (20, 30), dtype=np.uint8))
    body = generated.rle(indices, 8, False)
    options: dict[str, Any] = {"compression": 1, "palette": NOISE[0, :9], "colors": 9}
    coded = generated.bmp([b""] * 20, 30, 8, body=body, **options)
    np.testing.assert_array_equal(decode(coded), NOISE[0][indices])
    assert error_code(coded[: len(coded) - len(body) // 2]) == "corrupt_image"
    steps = generated.bmp([b""] * 20, 30, 8, body=b"\0\2\0\0" * 2_100_000, **options)
    assert error_code(steps) == "too_complex"
    assert "JPEG inside" in refusal_message(generated.bmp(rows, 30, 24, compression=4))
    assert "masks" in refusal_message(generated.bmp(rows, 30, 32, compression=3, masks=(0x5, 0xFF00, 0xFF0000)))
    assert "header of" in refusal_message(data[:14] + struct.pack("<I", 16) + data[18:])
