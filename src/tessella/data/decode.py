"""The only door to the image libraries: untrusted bytes in, RGB uint8 pixels or an ImageError out.

Formats: JPEG (an MPO is its first frame), PNG, WebP, GIF, BMP, TIFF, AVIF; of an animation, the first frame.
Limits are checked on the header, before any pixel is decoded. ICC profiles are not applied.

What policy "tessella" (the default) does with each Pillow mode:

    mode                     rule
    RGB, RGBX, HSV, YCbCr    converted to RGB
    1, L, P                  converted to RGB: white is 255
    CMYK                     converted to RGB by subtraction, without a profile; Adobe's inverted JPEGs are turned back
    LAB                      converted to sRGB through littlecms
    LA, La, PA, RGBA, RGBa   composited on white
    transparent colour       (tRNS of PNG, GIF, in 1, L, P, RGB, I;16): composited on white
    I;16, I;16B, I;16L       round(v / 257): all of the 16 bits count, also where fewer were used
    16 bits a colour channel the high byte, which is v / 257 to within 1 (Pillow has no such mode)
    I                        as 16 bits: values under 0 are 0, over 65,535 are 255
    F                        0..1 is black to white if no value is over 1, else 0..255; clipped; NaN is black
    EXIF orientation 1..8    applied; a damaged tag counts as 1

Policy "timm" is `Image.open(...).convert("RGB")` and nothing else: no orientation except TIFF's own (Pillow applies
that itself), alpha dropped, 16-bit values clipped at 255. The formats, the limits and the error codes stay.

Mode "exact" decodes everything with Pillow, as timm does. Mode "fast" hands plain JPEGs to libjpeg-turbo directly,
with the same slow-but-accurate settings as Pillow's; the pixels are the same ones (tests hold it).
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..checks import checked
from ..errors import ImageError, TessellaError, UsageError

try:
    import simplejpeg
except ImportError:  # no wheel for this Python: Pillow decodes the same pixels, a little slower
    simplejpeg = None

# Pillow's remarks on damaged metadata: the pixels are judged on their own
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Pixels: TypeAlias = NDArray[np.uint8]  # (height, width, 3) RGB
Policy: TypeAlias = Literal["tessella", "timm"]
Mode: TypeAlias = Literal["exact", "fast"]
PillowImage: TypeAlias = Image.Image
ImageSource: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | PillowImage | NDArray[Any]"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused before it costs anything; a server should lower `bytes`."""

    bytes: int = 256 * 1024 * 1024  # of the file: room for any 50 MP image, also an uncompressed 16-bit one
    pixels: int = 50_000_000  # width x height; decoding takes about 7 bytes of memory a pixel
    side: int = 65_535  # pixels
    intermediate: int = 16_000_000  # pixels after the resize, before the crop: 1x20,000 would grow to a gigapixel


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Opened:
    """An image whose header has passed the limits; `pixels()` decodes it.

    Height and width are as displayed, except of a PNG that is to be turned: as stored.
    """

    height: int
    width: int
    pixels: Callable[[], Pixels]


@checked
def decode(
    source: ImageSource, *, policy: Policy = "tessella", mode: Mode = "exact", limits: Limits = DEFAULT_LIMITS
) -> Pixels:
    """One image -> (height, width, 3) uint8 RGB, by the rules at the top of this file.

    source: the bytes of a file, a path, a Pillow image, or an array: uint8 or float in 0..1, of shape (H,W), (H,W,1),
    (H,W,3) or (H,W,4) with alpha. Raises ImageError with a fixed code, UsageError for what is no image source at all.
    """
    return open_image(source, policy=policy, mode=mode, limits=limits).pixels()


def open_image(
    source: ImageSource, *, policy: Policy = "tessella", mode: Mode = "exact", limits: Limits = DEFAULT_LIMITS
) -> Opened:
    """`decode` in two steps: check the header now, and decode the pixels when asked."""
    if policy not in ("tessella", "timm"):
        raise UsageError("bad_argument", f"policy is {policy!r}, expected 'tessella' or 'timm'")
    if mode not in ("exact", "fast"):
        raise UsageError("bad_argument", f"mode is {mode!r}, expected 'exact' or 'fast'")
    if isinstance(source, np.ndarray):
        return _open_array(source, policy, limits)
    if isinstance(source, Image.Image):
        with _coded_errors():
            return _open_pillow(source, policy, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        data = read_file(source, limits)
    else:
        raise UsageError(
            "bad_argument",
            f"cannot read an image from a {type(source).__name__}",
            hint="give bytes, a path, a Pillow image or a NumPy array; for an open file, its read()",
        )
    return _open_bytes(data, policy, mode, limits)


def read_file(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a regular file, at most `limits.bytes` of them; ImageError otherwise."""
    name = os.fsdecode(path)
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path may also be bytes-like
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError("unreadable", f"{name!r} is not a regular file")
            data = file.read(limits.bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("not_found", f"there is no file {name!r}") from None
    except IsADirectoryError:
        raise ImageError("unreadable", f"{name!r} is a folder, expected an image file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or "not a valid file name"
        raise ImageError("unreadable", f"{name!r} could not be read: {reason}") from None
    return data


def resize_exact(pixels: Pixels, height: int, width: int, rows: slice, cols: slice, interpolation: str) -> Pixels:
    """The part [rows, cols] of Pillow's resize to (height, width), which is the one timm uses.

    interpolation: a name of Pillow's `Resampling`, in lower case.
    """
    with _coded_errors():
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()])
        return np.array(resized.crop((cols.start, rows.start, cols.stop, rows.stop)))


# --- what the first bytes say -----------------------------------------------------------------------------------------

_OPENERS: dict[str, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
    # the plugins themselves rather than Image.open: it tries others, and warns about large images before our limit acts
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
FORMATS = tuple(_OPENERS)

_FIRST_BYTES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    *((prefix, "TIFF") for prefix in (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")),
    # refused, but by name
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"DDS ", "DDS"),
    (b"PK\3\4", "ZIP"),
    (b"\x1f\x8b", "gzip"),
)


def _format_of(data: bytes) -> str:
    """A name for what the first bytes announce, "" if they announce nothing known; an extension is never asked."""
    for prefix, name in _FIRST_BYTES:
        if data.startswith(prefix):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if brands[:4] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1") else "MP4 or QuickTime"
    return ""


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG whose header needs none of Pillow's judgement (a quarter of a millisecond), else None.

    Plain: 8-bit, grey or of three components; no APP1 or APP2 segment, where an orientation or an MPO's frames would
    be told; nothing irregular between the segments before the first scan.
    """
    at, size = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the scan begins
            return size
        if marker in (0xC0, 0xC1, 0xC2) and size is None:  # frame header: bits, height, width, components
            frame = data[at + 4 : at + 10]
            if length < 11 or len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3):
                return None
            size = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
        elif marker not in (0xC4, 0xDB, 0xDD, 0xE0, 0xFE) and not 0xE3 <= marker <= 0xEF:
            return None  # not tables, restart interval, JFIF, comment or a vendor's segment
        at += 2 + length
    return None


def _check_gif_frame(data: bytes, limits: Limits) -> None:
    """The first frame may reach beyond the canvas that the header states, and Pillow would make room for it."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)  # after the colour table
    while data[at] == 0x21:  # an extension: two bytes, then blocks that begin with their length, the last of length 0
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    if data[at] == 0x2C:
        left, top, width, height = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (1, 3, 5, 7))
        _check_size(max(top + height, 1), max(left + width, 1), limits)


# --- opening ----------------------------------------------------------------------------------------------------------


_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags


def _open_bytes(data: bytes, policy: Policy, mode: Mode, limits: Limits) -> Opened:
    if not data:
        raise ImageError("empty", "the image has no bytes")
    if len(data) > limits.bytes:
        raise ImageError("too_many_bytes", f"the image file is larger than the limit of {limits.bytes:,} bytes")
    name = _format_of(data)
    if name not in _OPENERS:
        raise ImageError(
            "unsupported_format",
            f"this is {name or 'not a known image format'}, expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
            hint="convert it to one of them first",
        )
    turbo = mode == "fast" and name == "JPEG" and simplejpeg is not None
    with _coded_errors():
        if name == "GIF":
            _check_gif_frame(data, limits)
        if not turbo:
            return _open_pillow(_OPENERS[name](io.BytesIO(data)), policy, limits)
        size = _plain_jpeg_size(data)
        if size is None:
            return _open_pillow(_OPENERS[name](io.BytesIO(data)), policy, limits, jpeg=data)
    _check_size(*size, limits)

    def pixels() -> Pixels:
        decoded = _turbo(data)
        return _open_bytes(data, policy, "exact", limits).pixels() if decoded is None else decoded

    return Opened(*size, pixels)


def _open_pillow(image: Image.Image, policy: Policy, limits: Limits, jpeg: bytes | None = None) -> Opened:
    """jpeg: the file itself, to be given to libjpeg-turbo where Pillow would decode to RGB or grey."""
    width, height = image.size
    _check_size(height, width, limits)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile is decoded whole, however little of it is shown
        _check_size(image.tag_v2.get(_TILE_LENGTH, 1), image.tag_v2.get(_TILE_WIDTH, 1), limits)
    if policy == "tessella" and _is_turned(_orientation(image, loaded=False)):
        height, width = width, height

    def pixels() -> Pixels:
        with _coded_errors():
            if jpeg is not None and image.mode in ("RGB", "L") and (decoded := _turbo(jpeg)) is not None:
                rgb = decoded
            else:
                image.load()
                rgb = np.array(image.convert("RGB")) if policy == "timm" else _to_rgb(image)
            return rgb if policy == "timm" else _turn(rgb, _orientation(image, loaded=True))

    return Opened(height, width, pixels)


def _open_array(array: NDArray[Any], policy: Policy, limits: Limits) -> Opened:
    shape = array.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        chw = len(shape) == 3 and shape[0] in (1, 3, 4)
        raise ImageError(
            "bad_array",
            f"an array of shape {shape} is not an image, expected (H,W), (H,W,1), (H,W,3) or (H,W,4)",
            hint="channels come last: use array.transpose(1, 2, 0)" if chw else "",
        )
    _check_size(shape[0], shape[1], limits)
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise ImageError("bad_array", "a float array must hold 0..1", hint="or convert it to uint8 of 0..255")
        array = np.rint(array * np.float32(255)).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError("bad_array", f"an array of {array.dtype} is not an image, expected uint8 or float in 0..1")
    if array.ndim == 3 and array.shape[2] == 3:
        return Opened(shape[0], shape[1], lambda: np.ascontiguousarray(array))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _open_pillow(Image.fromarray(np.ascontiguousarray(array)), policy, limits)


def _check_size(height: int, width: int, limits: Limits) -> None:
    shown = f"the image has {width:,} x {height:,} pixels (width x height)"
    if height < 1 or width < 1:
        raise ImageError("corrupt_image", shown)
    if max(height, width) > limits.side:
        raise ImageError("side_too_long", f"{shown}, the longest side allowed is {limits.side:,}")
    if height * width > limits.pixels:
        raise ImageError("too_many_pixels", f"{shown}, the limit is {limits.pixels:,} in all")


@contextmanager
def _coded_errors() -> Iterator[None]:
    """Whatever the libraries raise becomes an ImageError without their words, which can hold memory addresses."""
    try:
        yield
    except TessellaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            "too_many_pixels", "a part of the image has more pixels than the image decoder allows"
        ) from None
    except MemoryError:
        raise ImageError("too_many_pixels", "there is not enough memory to decode the image") from None
    except Exception:
        raise ImageError("corrupt_image", "the image is damaged, cut off, or not what its first bytes say") from None


# --- pixels -----------------------------------------------------------------------------------------------------------


def _turbo(data: bytes) -> Pixels | None:
    """libjpeg-turbo's pixels, or None at the smallest irregularity: then Pillow judges the file."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except (ValueError, RuntimeError, MemoryError):
        return None


def _to_rgb(image: Image.Image) -> Pixels:
    """Policy "tessella" for a loaded image; the table at the top of this file says why each line is there."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        grey = (values + 128) // 257
        if (clear := image.info.get("transparency")) is not None:
            grey[values == clear] = 255
        return _grey_to_rgb(grey)
    if image.mode == "I":
        return _grey_to_rgb((np.asarray(image).clip(0, 65_535) + 128) // 257)
    if image.mode == "F":
        levels = np.nan_to_num(np.asarray(image), nan=0.0, posinf=np.inf, neginf=0.0)
        scale = 255 if levels.max() <= 1 else 1
        return _grey_to_rgb(np.rint(levels.clip(0, 255 / scale) * scale))
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow has no direct way from premultiplied grey
            image = image.convert("LA")
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer)
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey_HW: NDArray[Any]) -> Pixels:
    return np.repeat(grey_HW.astype(np.uint8)[:, :, None], 3, axis=2)


def _orientation(image: Image.Image, *, loaded: bool) -> int:
    """The EXIF orientation that is still to be applied, 1 if there is none or it cannot be read.

    Pillow applies a TIFF's own while loading; a PNG may tell it after its pixels, and asking early would decode them.
    """
    if image.format == "TIFF" or (image.format == "PNG" and not loaded):
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _is_turned(orientation: int) -> bool:
    return 5 <= orientation <= 8


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Show upright what was stored with this EXIF orientation."""
    if not 2 <= orientation <= 8:
        return pixels
    if _is_turned(orientation):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
