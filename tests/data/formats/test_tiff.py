"""Test TIFF: layouts, compressions, pages, tags, missing strips and limits on work."""

from __future__ import annotations

import io
import struct
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from PIL import Image

from tessella.data.decode import decode, open_image
from tessella.errors import ImageError

from ..generated import Array, rgb_of_grey, smooth, tiff, uints
from ..test_decode_rules import encoded
from .common import NOISE, PHOTO, RNG, error_code, refusal_message


def tiff_file(array: Array, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        (tiff_file(RNG.random((8, 9, 3)).astype("f4"), photometric="rgb"), "3 samples of 32-bit floats (RGB)"),
        (tiff_file(RNG.random((8, 9))), "1 sample of 64-bit floats (gray)"),
        (tiff_file(RNG.random((8, 9)).astype("c8")), "complex"),
        (tiff(uints(RNG, (8, 9, 2), 16), 16, 1, tags={338: ("H", (2,))}), "2 samples of 16-bit unsigned integers"),
        (
            tiff_file(NOISE.repeat(5, 2)[..., :13].copy(), photometric="minisblack", planarconfig="contig"),
            "13 samples",
        ),
        (tiff_file(NOISE, photometric="rgb", compression="jpeg2000"), "JPEG 2000"),
        (tiff_file(NOISE[..., 0].copy(), compression="lerc"), "LERC"),
        (tiff_file(NOISE, photometric="rgb", compression="jpegxl"), "JPEG XL"),
        (tiff(NOISE, 8, 6, tags={530: ("H", (2, 2))}), "YCbCr"),
        (tiff(NOISE, 8, 9), "ICCLab"),
        (tiff(uints(RNG, (8, 9, 4), 8), 8, 5, tags={332: ("H", (2,))}), "CMYK"),
        (tiff(uints(RNG, (8, 9, 3), 16), 16, 2, planar=2), "3 samples of 16-bit"),
    ],
)
def test_tiff_refusals_name_the_layout(data: bytes, layout: str) -> None:
    assert layout in refusal_message(data)
    assert error_code(data, "timm") == "unsupported_format"


@pytest.mark.parametrize("compression", ["jpeg", "zstd", "lzma", "deflate", "lzw", "packbits"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_tiff_compressions(compression: str, tile: tuple[int, int] | None) -> None:
    for photometric, array in (("rgb", PHOTO), ("minisblack", PHOTO[..., 0]), ("miniswhite", PHOTO[..., 0])):
        data = tiff_file(array, photometric=photometric, compression=compression, tile=tile)
        expected = tifffile.imread(io.BytesIO(data))
        expected = 255 - expected if photometric == "miniswhite" else expected
        np.testing.assert_array_equal(decode(data), rgb_of_grey(expected) if expected.ndim == 2 else expected)
    data = tiff_file(PHOTO, photometric="ycbcr", compression="jpeg", subsampling=(2, 2), tile=tile)
    np.testing.assert_allclose(decode(data), tifffile.imread(io.BytesIO(data)), atol=3)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_tiff_fax_compressions(compression: str) -> None:
    bits = smooth(RNG, 33, 47, 1)[..., 0] > 128
    data = encoded(Image.fromarray(bits), "TIFF", compression=compression)
    np.testing.assert_array_equal(decode(data), rgb_of_grey(tifffile.imread(io.BytesIO(data)) * 255))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tiff_page_that_is_decoded(order: Literal["<", ">"], big: bool) -> None:
    small = PHOTO[::4, ::4].copy()

    def pages(*each: tuple[Array, dict[str, Any]]) -> bytes:
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, byteorder=order, bigtiff=big) as writer:
            for array, options in each:
                writer.write(array, photometric="rgb", **options)
        return buffer.getvalue()

    thumbnail = {"subfiletype": 1}
    np.testing.assert_array_equal(decode(pages((PHOTO, {}), (small, {}))), PHOTO)
    np.testing.assert_array_equal(decode(pages((PHOTO, {}), (small, thumbnail))), PHOTO)
    np.testing.assert_array_equal(decode(pages((small, thumbnail), (PHOTO, {}))), PHOTO)
    np.testing.assert_array_equal(decode(pages((small, thumbnail), (PHOTO, {})), policy="timm"), small)
    np.testing.assert_array_equal(decode(pages((small, thumbnail))), small)  # there is no other page
    raw = pages((small, thumbnail | {"subifds": 1}), (PHOTO, {}))
    assert "thumbnail" in refusal_message(raw)


def test_tiff_orientations() -> None:
    for orientation in range(1, 9):
        data = tiff(PHOTO, 8, 2, tags={274: ("H", (orientation,))})
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(image.convert("RGB"))  # Pillow applies the orientation
        np.testing.assert_array_equal(decode(data), expected)
        opened = open_image(data)
        assert (opened.height, opened.width) == expected.shape[:2]


def test_tiff_orientation_in_xmp() -> None:
    xmp = b'<x tiff:Orientation="3"/>'
    for big in (False, True):
        data = tiff(PHOTO, 8, 2, big=big, tags={700: ("B", tuple(xmp))})
        np.testing.assert_array_equal(decode(data), PHOTO[::-1, ::-1])
    large = tuple(xmp) + (32,) * 1_100_000
    np.testing.assert_array_equal(decode(tiff(PHOTO, 8, 2, tags={700: ("B", large)})), PHOTO)


def test_tiff_palettes() -> None:
    table = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    indices = RNG.integers(0, 256, (8, 9, 1), dtype=np.uint8)
    for factor in (1, 256, 257):  # 1: as written by some old programs
        values = tuple(int(v) * factor for v in table.T.ravel())
        data = tiff(indices, 8, 3, tags={320: ("H", values)})
        np.testing.assert_array_equal(decode(data), table[indices[..., 0]])
    assert error_code(tiff(indices, 8, 3)) == "corrupt_image"
    assert error_code(tiff(indices, 8, 3, tags={320: ("H", (1, 2, 3))})) == "corrupt_image"


def entry_offsets(data: bytes) -> dict[int, int]:
    """Return the offset of each entry in the directory of a small TIFF."""
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    return {struct.unpack_from("<H", data, at + 2 + 12 * i)[0]: at + 2 + 12 * i for i in range(count)}


def test_tiff_missing_strips() -> None:
    grey = uints(RNG, (20, 9, 1), 8)
    data = tiff(grey, 8, 1, rows=5)
    np.testing.assert_array_equal(decode(data), rgb_of_grey(grey[..., 0]))
    offsets = {tag: struct.unpack_from("<I", data, at + 8)[0] for tag, at in entry_offsets(data).items()}
    for tag, value in ((273, 0), (273, len(data) + 5), (279, 3)):
        broken = bytearray(data)
        struct.pack_into("<I", broken, offsets[tag], value)
        assert error_code(bytes(broken)) == "corrupt_image", (tag, value)
    fewer = bytearray(data)
    struct.pack_into("<I", fewer, entry_offsets(data)[273] + 4, 3)
    assert error_code(bytes(fewer)) == "corrupt_image"
    for compression in (5, 8, 32773):
        packed = bytearray(tiff(uints(RNG, (64, 64, 1), 8), 8, 1, rows=8, compression=compression))
        packed[2000:2600] = bytes(600)
        assert error_code(bytes(packed)) == "corrupt_image", compression


def test_tiff_tags_that_do_not_affect_pixels() -> None:
    private = {65_000: ("H", tuple(range(60_000))), 34_675: ("B", tuple(b"no profile")), 33_723: ("B", (1, 2, 3))}
    np.testing.assert_array_equal(decode(tiff(PHOTO, 8, 2, tags=private)), PHOTO)
    broken = bytearray(tiff(PHOTO, 8, 2, tags={700: ("B", tuple(b"<xmp>"))}))
    struct.pack_into("<I", broken, entry_offsets(bytes(broken))[700] + 8, 2**31)  # points beyond the file
    np.testing.assert_array_equal(decode(bytes(broken)), PHOTO)
    many: dict[int, tuple[str, tuple[int, ...]]] = dict.fromkeys(range(40_000, 45_000), ("H", (1,)))
    assert error_code(tiff(PHOTO, 8, 2, tags=many)) == "too_complex"
    assert error_code(tiff(uints(RNG, (51_000, 2, 4), 8), 8, 5, planar=2, rows=1)) == "too_complex"  # too many strips
    long: dict[int, tuple[str, tuple[int, ...]]] = {320: ("H", tuple(range(600)) * 1000)}
    assert error_code(tiff(PHOTO, 8, 2, tags=long)) == "too_complex"


@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 4}, {"tile": (16, 16)}, {"planarconfig": "separate"}], ids=str)
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_tiff_truncated_at_any_byte_never_gives_other_pixels(layout: dict[str, Any], compression: str | None) -> None:
    pixels = NOISE[:9, :11]
    stored = pixels.transpose(2, 0, 1).copy() if "planarconfig" in layout else pixels
    file = io.BytesIO()
    tifffile.imwrite(file, stored, photometric="rgb", compression=compression, metadata=None, **layout)
    data = file.getvalue()
    for end in range(len(data)):
        try:
            decoded = decode(data[:end])
        except ImageError:
            continue
        assert np.array_equal(decoded, pixels), end
    assert np.array_equal(decode(data), pixels)
