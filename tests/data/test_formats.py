"""Test what affects pixels and what does not: metadata, missing data, refused layouts, limits on work."""

from __future__ import annotations

import io
import itertools
import struct
import time
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image

from tessella.data import isolated
from tessella.data.decode import Mode, Policy, decode, open_image
from tessella.data.sources import Source
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.errors import ImageError

from . import generated, hostile
from .generated import Array, png_chunk, rgb_of_grey, smooth, tiff, uints
from .test_decode_rules import encoded

RNG = np.random.default_rng(11)
PHOTO = smooth(RNG, 40, 60, 3)
NOISE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def error_code(data: bytes, policy: Policy = "tessella", mode: Mode = "exact") -> str:
    try:
        decode(data, policy=policy, mode=mode)
    except ImageError as error:
        return error.code
    return "ok"


def refusal_message(data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        decode(data)
    assert error.value.code == "unsupported_format"
    return error.value.message


# --- PNG --------------------------------------------------------------------------------------------------------------


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
    for body, place, wrong in itertools.product((b"", b"a\0\0b", bytes(26)), ("before", "after"), (False, True)):
        chunk = png_chunk(kind, body)
        data = png(**{place: break_checksum(chunk) if wrong else chunk})
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
        for place in ("before", "after"):
            np.testing.assert_array_equal(decode(png(**{place: png_chunk(kind, body)})), PHOTO)


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
    for name, whole in {
        "no IEND": data[:-12],
        "half of IEND": data[:-5],
        "no checksum of IDAT": data[:end],
        "no checksum of the stream": data[: end - 4],
        "garbage": data + b"garbage",
        "wrong checksum of IDAT, right one of the stream": data[:end] + b"abcd" + data[end + 4 :],
    }.items():
        np.testing.assert_array_equal(decode(whole), PHOTO, err_msg=name)
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


# --- JPEG -------------------------------------------------------------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpegs() -> dict[str, bytes]:
    large = Image.fromarray(smooth(RNG, 96, 120, 3))
    return {
        "sequential": encoded(large, "JPEG", quality=90),
        "progressive": encoded(large, "JPEG", quality=90, progressive=True),
        "grey": encoded(large.convert("L"), "JPEG", quality=90),
        "restarts": encoded(large, "JPEG", quality=90, restart_marker_rows=1),
        "CMYK": encoded(large.convert("CMYK"), "JPEG", quality=90),
    }


@pytest.mark.parametrize("mode", ["exact", "fast", "without simplejpeg"])
@pytest.mark.parametrize("name", jpegs())
def test_jpeg_endings(name: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpegs()[name]
    if mode == "without simplejpeg":  # type: ignore[comparison-overlap]
        monkeypatch.setattr("tessella.data.decode.simplejpeg", None)
        mode = "exact"
    want = decode(data, mode=mode)
    for policy in ("tessella", "timm"):
        for whole in (data[:-2], data[:-1], data + b"garbage", data[:-2] + bytes(500)):
            np.testing.assert_array_equal(decode(whole, policy=policy, mode=mode), want)
        for missing in (1, 2, 3, 10, 100, len(data) // 4, len(data) // 2):
            for end in (b"", b"\xff\xd9"):
                assert error_code(data[: -2 - missing] + end, policy, mode) == "corrupt_image", (missing, end)


def test_jpeg_missing_pixels_with_samplings_that_libjpeg_turbo_rejects() -> None:
    """4:1:0, and chroma with a higher resolution than luma: only Pillow decodes these."""
    planes = [np.ascontiguousarray(smooth(RNG, 64, 64, 1)[..., 0]) for _ in range(3)]
    for factors in (((4, 2), (1, 1), (1, 1)), ((1, 1), (2, 2), (1, 1)), ((3, 1), (1, 1), (1, 1))):
        data = sequential_jpeg(planes, factors)
        assert simplejpeg_refuses(data)
        want = decode(data)
        assert len(np.unique(want)) > 20
        np.testing.assert_array_equal(decode(data[:-2]), want)
        for missing in (3, 5, 30, len(data) // 4):  # the last byte is padding, or has no effect
            for end in (b"", b"\xff\xd9"):
                assert error_code(data[: -2 - missing] + end) == "corrupt_image", (factors, missing, end)


def simplejpeg_refuses(data: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return True
    return False


def sequential_jpeg(planes: list[Array], factors: tuple[tuple[int, int], ...]) -> bytes:
    """Return a baseline JPEG with only the mean of each block; factors: (horizontal, vertical) per component."""
    wide, high = max(h for h, _ in factors), max(v for _, v in factors)
    height, width = planes[0].shape
    frame = struct.pack(">BHHB", 8, height, width, 3)
    frame += b"".join(bytes((i + 1, h << 4 | v, 0)) for i, (h, v) in enumerate(factors))
    # DC: size 0 has a code of 2 bits, sizes 1 to 6 have codes of 4 bits; AC: code 0 ends a block
    dc = segment(0xC4, b"\0" + bytes((0, 1, 0, 6)) + bytes(12) + bytes((0, 1, 2, 3, 4, 5, 6)))
    ac = segment(0xC4, b"\x10\1" + bytes(15) + b"\0")
    codes = {0: "00"} | {size: f"{3 + size:04b}" for size in range(1, 7)}
    bits, last = [], [0, 0, 0]
    for row, col in itertools.product(range(-(-height // (8 * high))), range(-(-width // (8 * wide)))):
        for i, (h, v) in enumerate(factors):
            for y, x in itertools.product(range(v), range(h)):
                across, down = 8 * wide // h, 8 * high // v
                top, left = (row * v + y) * down, (col * h + x) * across
                block = planes[i][min(top, height - 1) : top + down, min(left, width - 1) : left + across]
                level = int((block.mean() - 128) / 4.2)
                change, last[i] = level - last[i], level
                size = abs(change).bit_length()
                value = change if change > 0 else change + (1 << size) - 1
                bits.append(codes[size] + (f"{value:0{size}b}" if size else "") + "0")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    body = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0")
    table = segment(0xDB, b"\0" + b"\x20" * 64)
    return b"\xff\xd8" + table + segment(0xC0, frame) + dc + ac + scan + body + b"\xff\xd9"


def test_jpeg_missing_scans() -> None:
    data = jpegs()["progressive"]
    begins = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xda"]
    assert len(begins) > 5
    for begin in begins:
        assert error_code(data[:begin]) == "corrupt_image"  # cut between two scans: no end marker, and bits are missing
    photo = Image.fromarray(smooth(RNG, 16, 16, 3))
    one = encoded(photo, "JPEG", quality=90, subsampling=0)
    assert error_code(one.replace(b"\xff\xda\0\x0c\3", b"\xff\xda\0\x08\1")) != "ok"


def test_jpeg_missing_restart_intervals() -> None:
    data = jpegs()["restarts"]
    first, second = data.index(b"\xff\xd0"), data.index(b"\xff\xd2")
    assert error_code(data[:first] + data[second:]) == "corrupt_image"
    assert error_code(data[:first] + data[first + 2 :]) == "corrupt_image"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest drops the filter that tessella.data.decode sets
@pytest.mark.parametrize("name", jpegs())
def test_jpeg_segments_do_not_affect_pixels(name: str) -> None:
    data = jpegs()[name]
    want = decode(data)
    for part in (
        segment(0xE1, b"Exif\0\0" + b"\xff" * 500),
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
        segment(0xE2, b"ICC_PROFILE\0\1\3broken"),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 50,
        segment(0xE2, b"MPF\0" + b"\xff" * 50),
        segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0"),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 20),
        segment(0xFE, b"comment") * 1000,
        segment(0xE5, b""),
    ):
        for policy, mode in itertools.product(("tessella", "timm"), ("exact", "fast")):
            got = decode(data[:2] + part + data[2:], policy=policy, mode=mode)  # type: ignore[arg-type]
            np.testing.assert_array_equal(got, want, err_msg=repr(part[:20]))
    assert error_code(data[:2] + segment(0xFE, b"") * 150_000 + data[2:]) == "too_complex"


def many_scans(width: int, height: int, count: int) -> bytes:
    """Return a progressive JPEG with many scans of 14 or more bytes, each of which codes no coefficients."""
    blocks = (width // 8) * (height // 8)
    codes = segment(0xC4, b"\0\1" + bytes(15) + b"\0") + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    bits = ("0" * 15) * -(-blocks // (1 << 14))
    bits += "1" * (-len(bits) % 8)
    scan = segment(0xDA, b"\1\1\0\1\x3f\0") + int(bits, 2).to_bytes(len(bits) // 8, "big")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8 + 1)
    frame = segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    return b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + frame + codes + first + scan * count + b"\xff\xd9"


def test_jpeg_scans_are_limited_by_their_work(tmp_path: Path) -> None:
    for width, height, count in ((64, 64, 900), (4000, 4000, 30), (2000, 2000, 240)):
        assert decode(many_scans(width, height, count)).shape == (height, width, 3)
    for width, height, count in ((64, 64, 1001), (4000, 4000, 100), (8000, 6000, 2000)):
        data = many_scans(width, height, count)
        begin = time.perf_counter()
        for policy, mode in itertools.product(("tessella", "timm"), ("exact", "fast")):
            assert error_code(data, policy, mode) == "too_complex"  # type: ignore[arg-type]
            with pytest.raises(ImageError, match="scans"):
                load_pixels(data, InputSpec(), policy=policy, mode=mode)  # type: ignore[arg-type]
        assert time.perf_counter() - begin < 2
    private = segment(0xEF, b"\xff\xda" * 5000)  # markers in a private segment are not scans
    assert error_code(b"\xff\xd8" + private + many_scans(8, 8, 5)[2:]) == "ok"
    (tmp_path / "scans.jpg").write_bytes(many_scans(8000, 6000, 2000))
    with isolated.IsolatedDecoder(InputSpec(), processes=1) as decoder:
        (decoded,) = decoder.decoded([Source("scans.jpg", str(tmp_path / "scans.jpg"))])
    assert decoded.error is not None
    assert decoded.error.code == "too_complex"


def test_tiff_scans_of_jpeg_strips_are_limited() -> None:
    for count, code in ((20, "ok"), (200, "too_complex")):
        strip = many_scans(64, 64, count)
        assert error_code(tiff(uints(RNG, (64, 64, 1), 8), 8, 1, compression=7, parts=[strip])) == code


def test_jpeg_bytes_between_segments() -> None:
    data = jpegs()["sequential"]
    for fill in (b"\xff", b"\xff" * 10_000_000):
        begin = time.perf_counter()
        np.testing.assert_array_equal(decode(data[:2] + fill + data[2:]), decode(data))
        assert time.perf_counter() - begin < 5
    for junk in (b"\xff\0" * 1_000_000, b"\xff\0" + b"\xff" * 1_000_000):
        assert error_code(data[:2] + junk + data[2:]) in ("too_complex", "corrupt_image")
    hidden = many_scans(2000, 2000, 2000)
    assert error_code(hidden[:2] + b"\xff\0" + hidden[2:]) == "too_complex"  # the frame header is not read


def test_jpeg_refusals_name_the_coding() -> None:
    names = {case.name: refusal_message(case.data) for case in generated.jpeg_cases() if case.may_be_refused}
    assert "12 bits" in names["JPEG 12 bits"]
    assert "lossless" in names["JPEG lossless"]
    assert "JPEG-LS" in names["JPEG JPEG-LS"]


# --- GIF, BMP ---------------------------------------------------------------------------------------------------------


def test_gif_data_around_the_first_frame() -> None:
    indices = RNG.integers(0, 8, (20, 30), dtype=np.uint8)
    table = RNG.integers(0, 256, (8, 3), dtype=np.uint8)
    screen = b"GIF89a" + struct.pack("<HHBBB", 30, 20, 0x82, 0, 0) + table.tobytes()
    frame = generated.gif_frame(indices, 3, 0, 0, None, False, None, 0)
    data = screen + frame + b";"
    for name, whole in {
        "no trailer": data[:-1],
        "garbage": data + b"garbage",
        "zeros": screen + bytes(10) + frame + b";",
        "a long comment": screen + b"\x21\xfe" + (b"\xff" + b"a" * 255) * 10_000 + b"\0" + frame + b";",
        "frames": screen + frame * 2000 + b";",
    }.items():
        np.testing.assert_array_equal(decode(whole), table[indices], err_msg=name)
    for ninth in range(9):
        assert error_code(data[: len(data) * ninth // 9]) != "ok"
    half = bytearray(generated.gif_frame(indices[:10], 3, 0, 0, None, False, None, 0))
    at = half.index(b",")
    half[at + 7 : at + 9] = struct.pack("<H", 20)  # declares twice the height
    assert error_code(screen + bytes(half) + b";") == "corrupt_image"
    assert error_code(screen + b"\x21\xfe" + b"\1a" * 300_000 + b"\0" + frame) == "too_complex"
    assert error_code(screen + b"\x21\xfe\0" * 300_000 + frame) == "too_complex"


def test_bmp_truncated_or_refused() -> None:
    rows = [row.tobytes() for row in NOISE[..., ::-1]]
    data = generated.bmp(rows, 30, 24)
    np.testing.assert_array_equal(decode(data), NOISE)
    np.testing.assert_array_equal(decode(data[:-2]), NOISE)  # without the padding of the last row
    for missing in (3, 100, len(data) // 2, len(data) - 30):
        assert error_code(data[:-missing]) == "corrupt_image", missing
    indices = np.sort(RNG.integers(0, 9, (20, 30), dtype=np.uint8))
    body = generated.rle(indices, 8, False)
    options: dict[str, Any] = {"compression": 1, "palette": NOISE[0, :9], "colours": 9}
    coded = generated.bmp([b""] * 20, 30, 8, body=body, **options)
    np.testing.assert_array_equal(decode(coded), NOISE[0][indices])
    assert error_code(coded[: len(coded) - len(body) // 2]) == "corrupt_image"
    steps = generated.bmp([b""] * 20, 30, 8, body=b"\0\2\0\0" * 2_100_000, **options)
    assert error_code(steps) == "too_complex"
    assert "JPEG inside" in refusal_message(generated.bmp(rows, 30, 24, compression=4))
    assert "masks" in refusal_message(generated.bmp(rows, 30, 32, compression=3, masks=(0x5, 0xFF00, 0xFF0000)))
    assert "header of" in refusal_message(data[:14] + struct.pack("<I", 16) + data[18:])


# --- TIFF -------------------------------------------------------------------------------------------------------------


def tiff_file(array: Array, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        (tiff_file(RNG.random((8, 9, 3)).astype("f4"), photometric="rgb"), "3 samples of 32-bit floats (RGB)"),
        (tiff_file(RNG.random((8, 9))), "1 sample of 64-bit floats (grey)"),
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
        want = tifffile.imread(io.BytesIO(data))
        want = 255 - want if photometric == "miniswhite" else want
        np.testing.assert_array_equal(decode(data), rgb_of_grey(want) if want.ndim == 2 else want)
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
            want = np.asarray(image.convert("RGB"))  # Pillow applies the orientation
        np.testing.assert_array_equal(decode(data), want)
        opened = open_image(data)
        assert (opened.height, opened.width) == want.shape[:2]


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
    places = {tag: struct.unpack_from("<I", data, at + 8)[0] for tag, at in entry_offsets(data).items()}
    for tag, value in ((273, 0), (273, len(data) + 5), (279, 3)):
        broken = bytearray(data)
        struct.pack_into("<I", broken, places[tag], value)
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


# --- WebP, AVIF -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_webp_and_avif_metadata_and_missing_data(form: str) -> None:
    image = Image.fromarray(smooth(RNG, 48, 64, 3))
    plain = encoded(image, form, quality=90)
    want = decode(plain)
    metadata: list[dict[str, bytes]] = [
        {"icc_profile": b"no profile"},
        {"xmp": b"<x"},
        {"exif": b"Exif\0\0II*\0" + bytes(60_000), "xmp": bytes(2_000_000)},
    ]
    if form == "WEBP":  # Pillow does not write broken EXIF to AVIF
        metadata += [{"exif": b"Exif\0\0" + b"\xff" * 100}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"}]
    for options in metadata:
        np.testing.assert_array_equal(decode(encoded(image, form, quality=90, **options)), want)
    np.testing.assert_array_equal(decode(plain + b"garbage"), want)
    for eighth in range(8):
        assert error_code(plain[: len(plain) * eighth // 8]) != "ok", eighth


# --- Pillow images ----------------------------------------------------------------------------------------------------


def test_an_open_pillow_image_is_decoded_like_its_file(tmp_path: Path) -> None:
    grey = uints(RNG, (8, 9, 1), 16)
    (tmp_path / "white-is-zero.tif").write_bytes(tiff(grey, 16, 0))
    want = decode(tmp_path / "white-is-zero.tif")
    with Image.open(tmp_path / "white-is-zero.tif") as image:
        np.testing.assert_array_equal(decode(image), want)
        np.testing.assert_array_equal(decode(image), want)  # the image is unchanged
        assert image.size == (9, 8)
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    with Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))) as animation:
        animation.seek(1)
        assert decode(animation)[0, 0].tolist() == [0, 0, 255]  # the selected frame


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
            found = decode(data[:end])
        except ImageError:
            continue
        assert np.array_equal(found, pixels), end
    assert np.array_equal(decode(data), pixels)
