"""Test each line of the table in data/decode.py on generated images, whose pixels are computed here."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tessella.data.decode import Mode, decode, open_image
from tessella.data.limits import DEFAULT_LIMITS, Limits
from tessella.errors import ImageError, UsageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, color: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Return a PNG of color type 0 gray, 2 RGB, 4 gray + alpha or 6 RGBA; `rows` are without filter bytes."""
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND")
    )


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def over_white(color: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    opacity = alpha[..., None] / 255
    return color * opacity + 255 * (1 - opacity)


def rgb_of_gray(gray: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(gray[..., None], 3, axis=2)


def assert_near(actual: NDArray[np.uint8], expected: NDArray[Any], tolerance: float) -> None:
    assert actual.dtype == np.uint8
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(float) - expected).max() <= tolerance


def test_color_gray_and_palette() -> None:
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(RGB), "PNG")), RGB)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(GREY), "PNG")), rgb_of_gray(GREY))
    bits = GREY > 127
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits), "PNG")), rgb_of_gray(bits * 255))
    palette = Image.fromarray(GREY % 3)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])[GREY % 3]
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(palette, form)), expected, err_msg=form)


def test_alpha_is_composited_on_white() -> None:
    rgba, la = np.dstack([RGB, ALPHA]), np.dstack([GREY, ALPHA])
    for form in ("PNG", "TIFF"):
        assert_near(decode(encoded(Image.fromarray(rgba), form)), over_white(RGB, ALPHA), 0.5)
        assert_near(decode(encoded(Image.fromarray(la), form)), over_white(rgb_of_gray(GREY), ALPHA), 0.5)
    assert_near(decode(encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)), over_white(RGB, ALPHA), 0.5)
    clear = np.dstack([RGB, np.zeros_like(ALPHA)])  # fully transparent pixels become white, whatever their color
    assert (decode(encoded(Image.fromarray(clear), "PNG")) == 255).all()
    assert (decode(encoded(Image.fromarray(clear), "PNG"), policy="timm") == RGB).all()


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_pillow_images_with_alpha(mode: str) -> None:
    colors = Image.fromarray(GREY % 3)
    colors.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    if mode == "PA":
        image = Image.merge("PA", (Image.fromarray(GREY % 3), Image.fromarray(ALPHA)))
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        expected = over_white(np.asarray(colors.convert("RGB")), ALPHA)
    elif mode[0] == "L":
        image = Image.fromarray(np.dstack([GREY, ALPHA])).convert(mode)
        expected = over_white(rgb_of_gray(GREY), ALPHA)
    else:
        image = Image.fromarray(np.dstack([RGB, ALPHA])).convert(mode)
        expected = over_white(RGB, ALPHA)
    assert image.mode == mode
    assert_near(decode(image), expected, 2 if mode.endswith("a") else 0.5)  # premultiplied values have lost bits


def test_transparent_colors_become_white() -> None:
    palette = Image.fromarray(GREY % 3)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])[GREY % 3]
    for form in ("PNG", "GIF"):
        np.testing.assert_array_equal(decode(encoded(palette, form, transparency=1)), expected, err_msg=form)
    half = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])[GREY % 3].astype(np.uint8)
    alphas = np.array([255, 128, 0], np.uint8)[GREY % 3]
    assert_near(decode(encoded(palette, "PNG", transparency=bytes([255, 128, 0]))), over_white(half, alphas), 0.5)
    tone = int(GREY[0, 0])
    actual = decode(encoded(Image.fromarray(GREY), "PNG", transparency=tone))
    np.testing.assert_array_equal(actual, rgb_of_gray(np.where(tone == GREY, 255, GREY)))
    color = tuple(int(v) for v in RGB[0, 0])
    actual = decode(encoded(Image.fromarray(RGB), "PNG", transparency=color))
    assert (actual[0, 0] == 255).all()
    np.testing.assert_array_equal(actual[1:], RGB[1:])
    wide = np.array([[0, 1000, 65535]], ">u2")
    actual = decode(png(3, 1, 16, 0, wide.tobytes(), chunk(b"tRNS", struct.pack(">H", 1000))))
    np.testing.assert_array_equal(actual[0, :, 0], [0, 255, 255])


def test_sixteen_bits_are_scaled_not_clipped(golden_dir: Path) -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    expected = ramp / 257
    cases = {
        "PNG I;16": png(32, 32, 16, 0, ramp.astype(">u2").tobytes()),
        "TIFF I;16": encoded(Image.fromarray(ramp), "TIFF"),
        "TIFF I;16B": encoded(Image.frombytes("I;16B", (32, 32), ramp.astype(">u2").tobytes()), "TIFF"),
        "TIFF I": encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF"),
        "PNG gray + alpha": png(32, 32, 16, 4, np.dstack([ramp, ramp * 0 + 65535]).astype(">u2").tobytes()),
        "PNG RGB": png(32, 32, 16, 2, rgb_of_gray(ramp).astype(">u2").tobytes()),
        "PNG RGBA": png(32, 32, 16, 6, np.dstack([ramp, ramp, ramp, ramp * 0 + 65535]).astype(">u2").tobytes()),
    }
    for name, data in cases.items():
        actual = decode(data)
        assert_near(actual, rgb_of_gray(expected), 0.5 if " I" in name else 1)
        assert len(np.unique(actual)) == 256, name
    golden = decode(golden_dir / "images" / "ramp16.png")
    assert len(np.unique(golden)) >= 200
    assert len(np.unique(decode(golden_dir / "images" / "ramp16.png", policy="timm"))) <= 3  # timm clips it


def test_integers_beyond_sixteen_bits_are_clipped() -> None:
    values = np.array([[-5, 0, 257, 65535, 70000]], np.int32)
    np.testing.assert_array_equal(decode(Image.fromarray(values))[0, :, 0], [0, 0, 1, 255, 255])


def test_floats() -> None:
    unit = np.array([[-1, 0, 0.5, 1, np.nan]], np.float32)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(unit), "TIFF"))[0, :, 0], [0, 0, 128, 255, 0])
    levels = np.array([[-1, 0, 0.5, 127.4, 300, np.nan]], np.float32)
    np.testing.assert_array_equal(decode(Image.fromarray(levels))[0, :, 0], [0, 0, 0, 127, 255, 0])


def test_cmyk_ycbcr_and_lab() -> None:
    cmyk = np.zeros((4, 4, 4), np.uint8)
    cmyk[..., 0], cmyk[..., 3] = 255, 51  # full cyan, 20 % black
    tiff = encoded(Image.frombytes("CMYK", (4, 4), cmyk.tobytes()), "TIFF")
    assert_near(decode(tiff), np.broadcast_to([0, 204, 204], (4, 4, 3)), 1)
    jpeg = encoded(
        Image.frombytes("CMYK", (4, 4), cmyk.tobytes()), "JPEG", quality=100
    )  # stored inverted, like Adobe's
    for mode in ("exact", "fast"):
        assert_near(decode(jpeg, mode=mode), np.broadcast_to([0, 204, 204], (4, 4, 3)), 4)
    flat = Image.new("RGB", (4, 4), (200, 100, 50))
    assert_near(decode(flat.convert("YCbCr")), np.broadcast_to([200, 100, 50], (4, 4, 3)), 2)
    # CIE L*a*b* of pure sRGB red, D50 (ICC): 54.3, 80.8, 69.9; stored as L*255/100, a+128, b+128
    red = Image.frombytes("LAB", (1, 1), bytes([round(54.3 * 2.55), 81, 70]))
    assert_near(decode(encoded(red, "TIFF")), np.array([[[255, 0, 0]]]), 12)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_orientation(form: str, mode: Mode) -> None:
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:20, :32], picture[:20, 32:], picture[20:, :32] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        step = stored_transpose(orientation)
        stored = Image.fromarray(picture) if step is None else Image.fromarray(picture).transpose(step)
        data = encoded(stored, form, exif=exif, **({"lossless": True} if form == "WEBP" else {"quality": 95}))
        actual = decode(data, mode=mode)
        assert actual.shape == picture.shape, orientation
        assert np.abs(actual.astype(int) - picture).mean() <= 4, orientation
        opened = open_image(data, mode=mode)
        assert form == "PNG" or (opened.height, opened.width) == (40, 64)
        if form != "TIFF":  # Pillow itself applies the orientation of a TIFF, also for timm
            raw = decode(data, policy="timm", mode=mode)
            assert raw.shape[:2] == stored.size[::-1]
            np.testing.assert_array_equal(raw, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def stored_transpose(orientation: int) -> Image.Transpose | None:
    """Return the transpose from the upright picture to the stored one: the inverse of the orientation."""
    return {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)


def test_a_damaged_orientation_counts_as_upright() -> None:
    plain = encoded(Image.fromarray(RGB), "PNG")
    expected = decode(plain)
    for body in (
        b"",
        b"MM",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ):
        actual = decode(plain[:33] + chunk(b"eXIf", body) + plain[33:])
        np.testing.assert_array_equal(actual, expected, err_msg=repr(body))


def test_orientation_after_the_pixels_of_a_png() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(Image.fromarray(RGB), "PNG")
    late = plain[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + plain[-12:]
    np.testing.assert_array_equal(decode(late), np.rot90(RGB, -1))


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    first, second = Image.new("RGB", (6, 4), (255, 0, 0)), Image.new("RGB", (6, 4), (0, 0, 255))
    for form, options in (
        ("GIF", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("AVIF", {}),
        ("MPO", {}),
    ):
        data = encoded(first, form, save_all=True, append_images=[second], **options)
        assert_near(decode(data), np.broadcast_to([255, 0, 0], (4, 6, 3)), 3)
        assert_near(decode(data, mode="fast"), np.broadcast_to([255, 0, 0], (4, 6, 3)), 3)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_fast_jpeg_pixels_equal_pillows(subsampling: int, progressive: bool) -> None:
    smooth = Image.fromarray(RNG.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize(
        (83, 61), Image.Resampling.BICUBIC
    )
    for image in (smooth, smooth.convert("L")):
        for quality in (30, 75, 95):
            data = encoded(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
            np.testing.assert_array_equal(decode(data, mode="fast"), decode(data))


def test_policy_timm_equals_pillows_convert(golden_dir: Path) -> None:
    for path in sorted((golden_dir / "images").iterdir()):
        with Image.open(path) as image:
            np.testing.assert_array_equal(decode(path, policy="timm"), np.asarray(image.convert("RGB")))


def test_pillow_images_follow_the_same_rules(golden_dir: Path) -> None:
    for path in sorted((golden_dir / "images").iterdir()):
        with Image.open(path) as image:
            np.testing.assert_array_equal(decode(image), decode(path), err_msg=path.name)


def test_the_orientation_of_the_golden_photo_is_applied(golden_dir: Path) -> None:
    path = golden_dir / "images" / "exif6.jpg"
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    for mode in ("exact", "fast"):
        np.testing.assert_array_equal(decode(path, mode=mode), expected)


def test_arrays() -> None:
    np.testing.assert_array_equal(decode(RGB), RGB)
    np.testing.assert_array_equal(decode(RGB[::-1, ::-1]), RGB[::-1, ::-1])
    np.testing.assert_array_equal(decode(GREY), rgb_of_gray(GREY))
    np.testing.assert_array_equal(decode(GREY[..., None]), rgb_of_gray(GREY))
    assert_near(decode(np.dstack([RGB, ALPHA])), over_white(RGB, ALPHA), 0.5)
    for kind in (np.float16, np.float32, np.float64):
        assert_near(decode((RGB / 255).astype(kind)), RGB, 1 if kind is np.float16 else 0)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 20, 30), np.uint8),
        np.zeros((20, 30, 2), np.uint8),
        np.zeros((1, 20, 30, 3), np.uint8),
        np.zeros(20, np.uint8),
        np.zeros((0, 30, 3), np.uint8),
        np.zeros((20, 30, 3), np.int64),
        np.zeros((20, 30, 3), bool),
        np.full((20, 30, 3), 1.5),
        np.full((20, 30, 3), -0.1, np.float32),
        np.full((20, 30, 3), np.nan),
        np.full((20, 30, 3), "x"),
    ],
)
def test_arrays_that_are_not_images_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ImageError) as error:
        decode(array)
    assert error.value.code == "bad_array"
    if array.shape == (3, 20, 30):
        assert "transpose(1, 2, 0)" in error.value.hint


def test_other_sources_and_settings_are_refused() -> None:
    for thing in (None, 3, io.BytesIO(b""), [RGB]):
        with pytest.raises(UsageError) as error:
            decode(thing)  # type: ignore[arg-type]
        assert error.value.code == "bad_argument"
    with pytest.raises(UsageError):
        decode(RGB, policy="opencv")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        decode(RGB, mode="quick")  # type: ignore[arg-type]


def test_the_limits_of_the_caller_apply() -> None:
    data = encoded(Image.fromarray(RGB), "PNG")
    for limits, code in (
        (Limits(bytes=len(data) - 1), "too_many_bytes"),
        (Limits(pixels=34), "too_many_pixels"),
        (Limits(side=6), "side_too_long"),
    ):
        for source in (data, RGB, Image.fromarray(RGB))[: 1 if code == "too_many_bytes" else 3]:
            with pytest.raises(ImageError) as error:
                decode(source, limits=limits)
            assert error.value.code == code
    decode(data, limits=Limits(bytes=len(data), pixels=35, side=7))
    assert DEFAULT_LIMITS.pixels == 50_000_000


def test_threads_decode_the_same_pixels(golden_dir: Path) -> None:
    paths = sorted((golden_dir / "images").iterdir()) * 6
    with ThreadPoolExecutor(8) as pool:
        for path, actual in zip(paths, pool.map(lambda p: decode(p, mode="fast"), paths), strict=True):
            np.testing.assert_array_equal(actual, decode(path))


def test_without_simplejpeg_fast_equals_pillow(monkeypatch: pytest.MonkeyPatch, golden_dir: Path) -> None:
    path = golden_dir / "images" / "landscape.jpg"
    expected = decode(path, mode="fast")
    monkeypatch.setattr("tessella.data.turbo.simplejpeg", None)
    np.testing.assert_array_equal(decode(path, mode="fast"), expected)
