"""Test JPEG: endings, missing pixels, segments, scans and refused codings."""

from __future__ import annotations

import itertools
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tessella.data import isolated
from tessella.data.decode import Mode, decode
from tessella.data.source import Source
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.errors import ImageError

from .. import generated
from ..generated import Array, smooth, tiff, uints
from ..test_decode_rules import encoded
from .common import RNG, error_code, refusal_message


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpegs() -> dict[str, bytes]:
    large = Image.fromarray(smooth(RNG, 96, 120, 3))
    return {
        "sequential": encoded(large, "JPEG", quality=90),
        "progressive": encoded(large, "JPEG", quality=90, progressive=True),
        "gray": encoded(large.convert("L"), "JPEG", quality=90),
        "restarts": encoded(large, "JPEG", quality=90, restart_marker_rows=1),
        "CMYK": encoded(large.convert("CMYK"), "JPEG", quality=90),
    }


@pytest.mark.parametrize("mode", ["exact", "fast", "without simplejpeg"])
@pytest.mark.parametrize("name", jpegs())
def test_jpeg_endings(name: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpegs()[name]
    if mode == "without simplejpeg":  # type: ignore[comparison-overlap]
        monkeypatch.setattr("tessella.data.turbo.simplejpeg", None)
        mode = "exact"
    expected = decode(data, mode=mode)
    for policy in ("tessella", "timm"):
        for intact in (data[:-2], data[:-1], data + b"garbage", data[:-2] + bytes(500)):
            np.testing.assert_array_equal(decode(intact, policy=policy, mode=mode), expected)
        for missing in (1, 2, 3, 10, 100, len(data) // 4, len(data) // 2):
            for end in (b"", b"\xff\xd9"):
                assert error_code(data[: -2 - missing] + end, policy, mode) == "corrupt_image", (missing, end)


def test_jpeg_missing_pixels_with_samplings_that_libjpeg_turbo_rejects() -> None:
    """4:1:0, and chroma with a higher resolution than luma: only Pillow decodes these."""
    planes = [np.ascontiguousarray(smooth(RNG, 64, 64, 1)[..., 0]) for _ in range(3)]
    for factors in (((4, 2), (1, 1), (1, 1)), ((1, 1), (2, 2), (1, 1)), ((3, 1), (1, 1), (1, 1))):
        data = sequential_jpeg(planes, factors)
        assert simplejpeg_refuses(data)
        expected = decode(data)
        assert len(np.unique(expected)) > 20
        np.testing.assert_array_equal(decode(data[:-2]), expected)
        for missing in (3, 5, 30, len(data) // 4):  # the last byte is padding, or has no effect
            for end in (b"", b"\xff\xd9"):
                assert error_code(data[: -2 - missing] + end) == "corrupt_image", (factors, missing, end)


@pytest.mark.parametrize("factors", [((4, 2), (1, 1), (1, 1)), ((1, 1), (2, 2), (1, 1)), ((3, 1), (1, 1), (1, 1))])
def test_the_last_bytes_of_a_jpeg_are_never_replaced_silently(factors: tuple[tuple[int, int], ...]) -> None:
    """Cut by a few bytes, a file gives an error or the same pixels; two fillers alone accepted 9 % of these cuts."""
    for seed in range(60):
        planes = [np.ascontiguousarray(smooth(np.random.default_rng(seed), 64, 64, 1)[..., 0]) for _ in range(3)]
        data = sequential_jpeg(planes, factors)
        expected = decode(data)
        for missing in (1, 2, 3, 5):
            cut = data[: -2 - missing]
            code = error_code(cut)
            assert code in ("ok", "corrupt_image")
            if code == "ok":
                np.testing.assert_array_equal(decode(cut), expected)


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
    single_scan = encoded(photo, "JPEG", quality=90, subsampling=0)
    assert error_code(single_scan.replace(b"\xff\xda\0\x0c\3", b"\xff\xda\0\x08\1")) != "ok"


def test_jpeg_missing_restart_intervals() -> None:
    data = jpegs()["restarts"]
    first, second = data.index(b"\xff\xd0"), data.index(b"\xff\xd2")
    assert error_code(data[:first] + data[second:]) == "corrupt_image"
    assert error_code(data[:first] + data[first + 2 :]) == "corrupt_image"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest drops the filter that tessella.data.decode sets
@pytest.mark.parametrize("name", jpegs())
def test_jpeg_segments_do_not_affect_pixels(name: str) -> None:
    data = jpegs()[name]
    expected = decode(data)
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
            actual = decode(data[:2] + part + data[2:], policy=policy, mode=mode)  # type: ignore[arg-type]
            np.testing.assert_array_equal(actual, expected, err_msg=repr(part[:20]))
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
        begin = time.process_time()  # other processes do not count
        for policy, mode in itertools.product(("tessella", "timm"), ("exact", "fast")):
            assert error_code(data, policy, mode) == "too_complex"  # type: ignore[arg-type]
            with pytest.raises(ImageError, match="scans"):
                load_pixels(data, InputSpec(), policy=policy, mode=mode)  # type: ignore[arg-type]
        assert time.process_time() - begin < 2
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
        begin = time.process_time()  # other processes do not count
        np.testing.assert_array_equal(decode(data[:2] + fill + data[2:]), decode(data))
        assert time.process_time() - begin < 5
    for junk in (b"\xff\0" * 1_000_000, b"\xff\0" + b"\xff" * 1_000_000):
        assert error_code(data[:2] + junk + data[2:]) in ("too_complex", "corrupt_image")
    hidden = many_scans(2000, 2000, 2000)
    assert error_code(hidden[:2] + b"\xff\0" + hidden[2:]) == "too_complex"  # the frame header is not read


def test_jpeg_refusals_name_the_coding() -> None:
    names = {case.name: refusal_message(case.data) for case in generated.jpeg_cases() if case.may_be_refused}
    assert "12 bits" in names["JPEG 12 bits"]
    assert "lossless" in names["JPEG lossless"]
    assert "JPEG-LS" in names["JPEG JPEG-LS"]
