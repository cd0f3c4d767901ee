"""The only door to the image libraries: untrusted bytes in, RGB uint8 pixels or an ImageError out.

Formats: JPEG (an MPO is its first frame), PNG, WebP, GIF, BMP, TIFF, AVIF; of an animation, the first frame.
Limits are checked on the header, before any pixel is decoded. ICC profiles are not applied.

The modules in `formats/` read the structure of a file first. Metadata is dropped there, so that it cannot decide about
pixels; layouts that Pillow reads wrongly are corrected or refused (`unsupported_format`); structures that would take
long to decode are refused (`too_complex`). A file whose pixels are not all there is `corrupt_image`.

What policy "tessella" (the default) does with each Pillow mode:

    mode                     rule
    RGB, RGBX, HSV, YCbCr    converted to RGB
    1, L, P                  converted to RGB: white is 255
    CMYK                     converted to RGB by subtraction, without a profile; Adobe's inverted JPEGs are turned back
    LAB                      converted to sRGB through littlecms
    LA, La, PA, RGBA, RGBa   composited on white
    transparent colour       (tRNS of PNG, GIF, in 1, L, P, RGB, I;16): composited on white
    canvas around the first frame of a GIF: its background colour, white if the frame has a transparent colour
    alpha of a BMP           that is 0 everywhere: opaque
    I;16, I;16B, I;16L       round(v / 257): all of the 16 bits count, also where fewer were used; 12 bits: v / 4095
    16 bits a colour channel the high byte, which is v / 257 to within 1 (Pillow has no such mode)
    I                        as 16 bits: values under 0 are 0, over 65,535 are 255
    F                        0..1 is black to white if no value is over 1, else 0..255; clipped; NaN is black
    EXIF orientation 1..8    applied; a damaged tag counts as 1

Policy "timm" is `Image.open(...).convert("RGB")` and nothing else: no orientation except TIFF's own (Pillow applies
that itself), alpha dropped, 16-bit values clipped at 255. The formats, the limits and the error codes stay.

JPEGs are decoded by libjpeg-turbo directly, with the same slow-but-accurate settings as Pillow's: the pixels are the
same (tests compare them), and unlike Pillow it reports missing pixels. What it does not accept, Pillow decodes.
"""

from __future__ import annotations

import functools
import io
import os
import re
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
    features,
)

from ..checks import check_type
from ..errors import ImageError, TessellaError, UsageError
from ..storage import SpecialFileError, open_regular
from .formats import bmp, gif, jpeg, png, tiff

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
    if not isinstance(policy, str) or policy not in ("tessella", "timm"):
        raise UsageError("bad_argument", f"policy is {policy!r}, expected 'tessella' or 'timm'")
    if not isinstance(mode, str) or mode not in ("exact", "fast"):
        raise UsageError("bad_argument", f"mode is {mode!r}, expected 'exact' or 'fast'")
    check_type("limits", limits, Limits)
    if isinstance(source, np.ndarray):
        return _open_array(source, policy, limits)
    if isinstance(source, Image.Image):
        with _coded_errors():
            unread = _bytes_of_unread(source, limits)
        if unread is not None:
            return _open_bytes(unread, policy, mode, limits)
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
    """The bytes of a regular file, at most `limits.bytes` + 1 of them; ImageError otherwise."""
    name = os.fsdecode(path)
    try:
        with open_regular(path) as file:
            return file.read(limits.bytes + 1)
    except (OSError, ValueError) as error:
        raise unreadable_file(name, error) from None


def unreadable_file(name: str, error: OSError | ValueError) -> ImageError:
    """Why a file could not be opened or read, as the error of that one input."""
    if isinstance(error, SpecialFileError):
        return ImageError("special_file", f"{name!r} was not opened: {error.strerror}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageError("not_found", f"there is no file {name!r}")
    if isinstance(error, IsADirectoryError):
        return ImageError("unreadable", f"{name!r} is a folder, expected an image file")
    reason = getattr(error, "strerror", None) or "not a valid file name"  # ValueError: a NUL in the name
    return ImageError("unreadable", f"{name!r} could not be read: {reason}")


def _bytes_of_unread(image: Image.Image, limits: Limits) -> bytes | None:
    """The file of an opened Pillow image that is not decoded yet, if Pillow reads its format wrongly at times.

    The image stays as it is, so that it gives the same pixels again.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format not in ("TIFF", "BMP", "GIF"):
        return None
    if not image.tile or image.fp is None or image.tell() != 0:  # decoded, closed, or at a frame that was chosen
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read(limits.bytes + 1)
    image.fp.seek(place)
    return data if _format_of(data) in FORMATS else None


def resize_exact(pixels: Pixels, height: int, width: int, rows: slice, cols: slice, interpolation: str) -> Pixels:
    """The part [rows, cols] of Pillow's resize to (height, width), which is the one timm uses.

    interpolation: a name of Pillow's `Resampling`, in lower case.
    """
    with _coded_errors():
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()])
        return np.array(resized.crop((cols.start, rows.start, cols.stop, rows.stop)))


# --- what the first bytes say -----------------------------------------------------------------------------------------

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF")
# The plugins themselves rather than Image.open: it tries others, and warns about large images before our limit acts.
_PLUGINS: dict[str, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
    "WebP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
# Another JPEG library gives other pixels than libjpeg-turbo: then mode "exact" leaves the decoding to Pillow
_PILLOW_USES_TURBO = bool(features.check_feature("libjpeg_turbo"))
_END_OF_JPEG = b"\xff\xd9"
_FILLERS = (bytes(64), b"\xaa\x55" * 32)  # they differ from the first bit on
# What libjpeg-turbo says first of a file whose data or restart markers are not all there
_PIXELS_ARE_MISSING = re.compile(r"remature end|instead of RST|before marker 0xd[0-7]")

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


# --- opening ----------------------------------------------------------------------------------------------------------


def _open_bytes(data: bytes, policy: Policy, mode: Mode, limits: Limits) -> Opened:
    if not data:
        raise ImageError("empty", "the image has no bytes")
    if len(data) > limits.bytes:
        raise ImageError("too_many_bytes", f"the image file is larger than the limit of {limits.bytes:,} bytes")
    name = _format_of(data)
    if name not in FORMATS:
        raise ImageError(
            "unsupported_format",
            f"this is {name or 'not a known image format'}, expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
            hint="convert it to one of them first",
        )
    with _coded_errors():
        if name == "JPEG":
            return _open_jpeg(data, policy, mode, limits)
        if name == "PNG":
            return _open_png(png.read(data), policy, limits)
        if name == "GIF":
            return _open_gif(gif.read(data), policy, limits)
        if name == "TIFF":
            return _open_tiff(data, policy, limits)
        if name == "BMP" and policy == "tessella":
            return _open_bmp(data, bmp.read(data), limits)
        return _open_pillow(_PLUGINS[name](io.BytesIO(data)), policy, limits)


def _open_pillow(
    image: Image.Image, policy: Policy, limits: Limits, to_rgb: Callable[[Image.Image], Pixels] | None = None
) -> Opened:
    """to_rgb: what policy "tessella" does with the loaded image, None for `_to_rgb`."""
    width, height = image.size
    _check_size(height, width, limits)
    if policy == "tessella" and _is_turned(_orientation(image, loaded=False)):
        height, width = width, height

    def pixels() -> Pixels:
        with _coded_errors():
            image.load()
            if policy == "timm":
                return np.array(image.convert("RGB"))
            return _turn((to_rgb or _to_rgb)(image), _orientation(image, loaded=True))

    return Opened(height, width, pixels)


def _open_jpeg(data: bytes, policy: Policy, mode: Mode, limits: Limits) -> Opened:
    header = jpeg.read(data)
    clean = data if header is None else header.data
    orientation = 1
    if header is None or (header.oriented and policy == "tessella"):  # Pillow's own header costs a quarter of a ms
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(clean))
        width, height = image.size
        orientation = 1 if policy == "timm" else _orientation(image, loaded=True)
    else:
        height, width = header.height, header.width
    _check_size(height, width, limits)

    def pixels() -> Pixels:
        with _coded_errors():
            rgb, judged = _turbo_jpeg(clean, header, mode)
            if rgb is None:
                rgb = _pillow_jpeg(clean, header, judged)
            return _turn(rgb, orientation)

    return Opened(*((width, height) if _is_turned(orientation) else (height, width)), pixels)


def _turbo_jpeg(data: bytes, header: jpeg.Jpeg | None, mode: Mode) -> tuple[Pixels | None, bool]:
    """Decode to RGB with libjpeg-turbo unless it warns; also return whether it found all pixels. ImageError if not.

    It is asked first because Pillow fills missing pixels with grey and reports nothing.
    """
    if simplejpeg is None or header is None or not (mode == "fast" or _PILLOW_USES_TURBO):
        return None, False
    cmyk = len(header.identifiers) == 4
    space = "CMYK" if cmyk else "RGB"
    pixels, complaint = _turbo(data, space)
    missing = _PIXELS_ARE_MISSING.search(complaint) is not None
    if complaint.startswith("Premature end of JPEG file") and header.has_all_scans:
        pixels, complaint = _turbo(data + _END_OF_JPEG, space)
        missing = pixels is None and not complaint.endswith("before marker 0xd9")  # that is: after all the pixels
    if missing or not header.has_all_components:
        raise ImageError("corrupt_image", "the JPEG file is damaged: pixels are missing")
    return None if cmyk else pixels, pixels is not None


def _pillow_jpeg(data: bytes, header: jpeg.Jpeg | None, judged: bool) -> Pixels:
    """RGB by Pillow; unless `judged`, ImageError if pixels are missing.

    Two different fillers take the place of whatever follows the pixels: where some are missing, they are decoded in
    their place, and the results differ. Arithmetic coding reads ahead and has to be believed.
    """

    def rgb_of(whole: bytes) -> Pixels:
        return np.array(JpegImagePlugin.JpegImageFile(io.BytesIO(whole)).convert("RGB"))

    if header is None or (header.arithmetic and not judged):
        return rgb_of(data)
    end = header.end
    if judged:
        return rgb_of(data[:end] + _END_OF_JPEG)
    if end < len(data) or header.has_all_scans:
        first, second = (rgb_of(data[:end] + filler + _END_OF_JPEG) for filler in _FILLERS)
        if np.array_equal(first, second):
            return first
    raise ImageError("corrupt_image", "the JPEG file is damaged: pixels are missing")


def _open_png(structure: png.Png, policy: Policy, limits: Limits) -> Opened:
    _check_size(structure.height, structure.width, limits)
    if not structure.sound:
        structure.check_rows(checksum=True)
    image = PngImagePlugin.PngImageFile(io.BytesIO(structure.data))
    if structure.colour == 0 and structure.bits in (2, 4) and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2**structure.bits - 1)  # Pillow scales the pixels only
    opened = _open_pillow(image, policy, limits)

    def pixels() -> Pixels:
        with _coded_errors():
            image.load()
            last_row = image.crop((0, image.height - 1, image.width, image.height))
            if structure.interlaced or not np.asarray(last_row).any():  # rows that are missing stay 0
                structure.check_rows()
        return opened.pixels()

    return Opened(opened.height, opened.width, pixels)


def _open_gif(structure: gif.Gif, policy: Policy, limits: Limits) -> Opened:
    top, left, bottom, right = structure.frame  # may reach beyond the canvas; Pillow makes room for it
    _check_size(max(bottom, structure.height), max(right, structure.width), limits)

    def to_rgb(image: Image.Image) -> Pixels:
        rgb = _to_rgb(image)
        for around in (rgb[:top], rgb[bottom:], rgb[:, :left], rgb[:, right:]):
            around[:] = structure.background
        return rgb

    return _open_pillow(GifImagePlugin.GifImageFile(io.BytesIO(structure.data)), policy, limits, to_rgb)


def _open_bmp(data: bytes, structure: bmp.Bmp, limits: Limits) -> Opened:
    _check_size(structure.height, structure.width, limits)

    def pixels() -> Pixels:
        with _coded_errors():
            rgb, alpha = structure.pixels(data)
            if alpha is None:
                return np.ascontiguousarray(rgb)
            return _to_rgb(Image.fromarray(np.dstack([rgb, alpha])))

    return Opened(structure.height, structure.width, pixels)


def _open_tiff(data: bytes, policy: Policy, limits: Limits) -> Opened:
    check_size = functools.partial(_check_size, limits=limits)
    structure = tiff.read(data, check_size, corrected=policy == "tessella")

    def to_rgb(image: Image.Image) -> Pixels:
        if structure.palette is not None:
            image.putpalette(structure.palette)
        if structure.swapped and image.mode in ("I", "F"):
            values = np.asarray(image)
            values = values.astype(np.int16).byteswap().astype(np.int32) if structure.bits == 16 else values.byteswap()
            image = Image.fromarray(values)
        if structure.bits == 32 and structure.sample_format == 1:
            rgb = _grey_to_rgb((np.asarray(image).view(np.uint32).clip(0, 65_535) + 128) // 257)
        elif structure.bits == 8 and structure.sample_format == 2:
            rgb = _grey_to_rgb(np.asarray(image).view(np.int8).clip(0))
        else:
            rgb = _to_rgb(image, structure.bits)
        return 255 - rgb if structure.inverted else rgb

    return _open_pillow(TiffImagePlugin.TiffImageFile(io.BytesIO(structure.data)), policy, limits, to_rgb)


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
        raise ImageError(
            "bad_array",
            f"an array of {array.dtype} is not an image, expected uint8 or float in 0..1",
            hint=_DTYPE_HINTS.get(array.dtype.kind, ""),
        )
    if array.ndim == 3 and array.shape[2] == 3:
        return Opened(shape[0], shape[1], lambda: np.ascontiguousarray(array))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _open_pillow(Image.fromarray(np.ascontiguousarray(array)), policy, limits)


_DTYPE_HINTS = {  # by NumPy's letter for a kind of type
    "b": "for a mask of black and white: array.astype(numpy.uint8) * 255",
    "u": "for all of 16 bits: (array / 65535).astype(numpy.float32); for values of 0..255: array.astype(numpy.uint8)",
    "i": "for values of 0..255: array.astype(numpy.uint8); for others, scale them to 0..1 as float32",
}


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


def _turbo(data: bytes, space: str) -> tuple[Pixels | None, str]:
    """Decode with libjpeg-turbo; None and its warning at the smallest irregularity."""
    try:
        return simplejpeg.decode_jpeg(data, space, fastdct=False, fastupsample=False, strict=True), ""
    except (ValueError, RuntimeError, MemoryError) as error:
        return None, str(error) or "unknown"


def _to_rgb(image: Image.Image, bits: int = 0) -> Pixels:
    """Policy "tessella" for a loaded image; the table at the top of this file says why each line is there.

    bits: of a sample in the file, 0 if not known.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        grey = (values * 255 + 2047) // 4095 if bits == 12 else (values + 128) // 257
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
