"""Test PNG: metadata, endings, missing rows, chunks and refused layouts."""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from tessella.data.decode import Policy, decode

from .. import generated, hostile
from ..generated import png_chunk, uints
from .common import NOISE, PHOTO, RNG, error_code, refusal_message


def png(**options: Any) -> bytes:
    return generated.png(PHOTO, 8, 2, **options)


def break_checksum(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes((chunk[-1] ^ 1,))


PNG_HEADER = generated.PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 40, 8, 2, 0, 0, 0))


PNG_ROWS = b"".join(b"\0" + row.tobytes() for row in PHOTO)


ANCILLARY = [
    *(b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME"),
    *(b"eXIf", b"bKGD", b"hIST", b"sBIT", b"sPLT", b"acTL", b"fcTL", b"caBX", b"abCd"),
]


@pytest.mark.parametrize("kind", ANCILLARY)
@pytest.mark.parametrize("policy", ["tessella", "timm"])
def test_png_ancillary_chunks_do_not_affect_pixels(kind: bytes, policy: Policy) -> None:
    for body, position, wrong in itertools.product((b"", b"a\0\0b", bytes(26)), ("before", "after"), (False, True)):
        chunk = png_chunk(kind, body)
        data = png(**{position: break_checksum(chunk) if wrong else chunk})
        np.testing.assert_array_equal(decode(data, policy=policy), PHOTO)


def test_png_large_metadata() -> None:
    text = RNG.integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    packed, bomb = zlib.compress(text, 1), hostile.zeros(100_000_000)
    for kind, body in (
        (b"iCCP", b"a\0\0" + packed),
        (b"zTXt", b"a\0\0" + packed),
        (b"iTXt", b"a\0\1\0\0\0" + packed),
        (b"tEXt", b"a\0" + text),
        (b"zTXt", b"a\0\0" + bomb),
        (b"zTXt", b"Raw profile type exif\0\0" + bomb),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
    ):
        for position in ("before", "after"):
            np.testing.assert_array_equal(decode(png(**{position: png_chunk(kind, body)})), PHOTO)


def test_png_orientation_in_text_chunks_is_applied() -> None:
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="3"/>'
    np.testing.assert_array_equal(decode(png(before=png_chunk(b"iTXt", xmp))), PHOTO[::-1, ::-1])
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="3"/>')
    np.testing.assert_array_equal(decode(png(before=png_chunk(b"iTXt", packed))), PHOTO[::-1, ::-1])


def test_png_endings_and_checksums() -> None:
    data = png()
    at = data.index(b"IDAT")
    length = struct.unpack(">I", data[at - 4 : at])[0]
    end = at + 4 + length
    for name, intact in {
        "no IEND": data[:-12],
        "half of IEND": data[:-5],
        "no checksum of IDAT": data[:end],
        "no checksum of the stream": data[: end - 4],
        "garbage": data + b"garbage",
        "wrong checksum of IDAT, right one of the stream": data[:end] + b"abcd" + data[end + 4 :],
    }.items():
        np.testing.assert_array_equal(decode(intact), PHOTO, err_msg=name)
    flipped = bytearray(data)
    flipped[at + 4 + length // 2] ^= 1
    assert error_code(bytes(flipped)) == "corrupt_image"
    assert error_code(data[: len(data) * 3 // 4]) == "corrupt_image"
    for kind, chunk in ((b"IHDR", 29), (b"PLTE", 0), (b"tRNS", 0)):
        if kind == b"IHDR":
            broken = data[:chunk] + b"abcd" + data[chunk + 4 :]
        else:
            broken = png(before=break_checksum(png_chunk(kind, bytes(6))))
        assert error_code(broken) == "corrupt_image", kind


def test_png_missing_rows() -> None:
    def of(rows: bytes, interlaced: bool = False) -> bytes:
        header = struct.pack(">IIBBBBB", 60, 40, 8, 2, 0, 0, interlaced)
        chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND")
        return generated.PNG_SIGNATURE + chunks

    np.testing.assert_array_equal(decode(of(PNG_ROWS + bytes(1000))), PHOTO)
    for policy in ("tessella", "timm"):
        for length in (0, 181, 20 * 181, 39 * 181, 40 * 181 - 1):
            assert error_code(of(PNG_ROWS[:length]), policy) == "corrupt_image", length
    interlaced = generated.png(PHOTO, 8, 2, interlaced=True)
    at = interlaced.index(b"IDAT")
    stream = zlib.decompress(interlaced[at + 4 :])
    np.testing.assert_array_equal(decode(of(stream, True)), PHOTO)
    for missing in (1, 181, 1000, len(stream) // 2):
        assert error_code(of(stream[:-missing], True)) == "corrupt_image", missing
    black = PHOTO.copy()
    black[-3:] = 0  # looks like missing rows
    np.testing.assert_array_equal(decode(generated.png(black, 8, 2)), black)


def test_png_many_chunks() -> None:
    body = zlib.compress(PNG_ROWS)
    pieces = [body[i : i + 1] for i in range(len(body))]
    text = png_chunk(b"tEXt", b"a\0b")
    for between in (b"", text):  # chunks between them violate the format, but are harmless
        chunks = between.join(png_chunk(b"IDAT", piece) for piece in pieces)
        np.testing.assert_array_equal(decode(PNG_HEADER + chunks + png_chunk(b"IEND")), PHOTO)
    bomb = PNG_HEADER + png_chunk(b"IDAT", zlib.compress(PNG_ROWS + bytes(100_000_000)))
    np.testing.assert_array_equal(decode(bomb), PHOTO)
    assert error_code(bomb[:-1] + b"x") == "corrupt_image"  # the checksum is too far after the rows
    empty = png_chunk(b"IDAT") * 600_000
    assert error_code(PNG_HEADER + empty + png_chunk(b"IDAT", body)) == "too_complex"


def test_png_refused_layouts() -> None:
    wide = uints(RNG, (4, 5, 3), 16)
    assert "16 bits" in refusal_message(generated.png(wide, 16, 2, before=png_chunk(b"tRNS", bytes(6))))
    assert "iOS" in refusal_message(generated.PNG_SIGNATURE + png_chunk(b"CgBI", bytes(4)) + png()[8:])
    assert error_code(generated.png(NOISE[..., :1], 8, 3)) == "corrupt_image"  # has no palette
