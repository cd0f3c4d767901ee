"""Test GIF: data around the first frame, and limits on work."""

from __future__ import annotations

import struct

import numpy as np

from tessella.data.decode import decode

from .. import generated
from .common import RNG, error_code


def test_gif_data_around_the_first_frame() -> None:
    indices = RNG.integers(0, 8, (20, 30), dtype=np.uint8)
    table = RNG.integers(0, 256, (8, 3), dtype=np.uint8)
    screen = b"GIF89a" + struct.pack("<HHBBB", 30, 20, 0x82, 0, 0) + table.tobytes()
    frame = generated.gif_frame(indices, 3, 0, 0, None, False, None, 0)
    data = screen + frame + b";"
    for name, intact in {
        "no trailer": data[:-1],
        "garbage": data + b"garbage",
        "zeros": screen + bytes(10) + frame + b";",
        "a long comment": screen + b"\x21\xfe" + (b"\xff" + b"a" * 255) * 10_000 + b"\0" + frame + b";",
        "frames": screen + frame * 2000 + b";",
    }.items():
        np.testing.assert_array_equal(decode(intact), table[indices], err_msg=name)
    for ninth in range(9):
        assert error_code(data[: len(data) * ninth // 9]) != "ok"
    half = bytearray(generated.gif_frame(indices[:10], 3, 0, 0, None, False, None, 0))
    at = half.index(b",")
    half[at + 7 : at + 9] = struct.pack("<H", 20)  # declares twice the height
    assert error_code(screen + bytes(half) + b";") == "corrupt_image"
    assert error_code(screen + b"\x21\xfe" + b"\1a" * 300_000 + b"\0" + frame) == "too_complex"
    assert error_code(screen + b"\x21\xfe\0" * 300_000 + frame) == "too_complex"
