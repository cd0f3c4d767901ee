"""Decode untrusted bytes to RGB uint8 pixels, or raise an ImageError. No other module opens images.

Formats: JPEG (the first frame of an MPO), PNG, WebP, GIF, BMP, TIFF, AVIF; the first frame of an animation.
Limits are checked on the header, before any pixel is decoded. ICC profiles are not applied.

The modules in `formats/` read the structure of a file first. They drop metadata, so that it cannot affect the pixels,
correct or refuse layouts that Pillow reads wrongly (`unsupported_format`), and refuse structures that would take long
to decode (`too_complex`). A file with missing pixels is `corrupt_image`.

Policy "tessella" (the default) converts each Pillow mode as follows:

    mode                     rule
    RGB, RGBX, HSV, YCbCr    converted to RGB
    1, L, P                  converted to RGB: white is 255
    CMYK                     converted to RGB by subtraction, without a profile; inverted JPEGs of Adobe are corrected
    LAB                      converted to sRGB through littlecms
    LA, La, PA, RGBA, RGBa   composited on white
    transparent color       (tRNS of PNG, GIF, in 1, L, P, RGB, I;16): composited on white
    canvas around the first frame of a GIF: its background color, white if the frame has a transparent color
    alpha of a BMP           opaque if it is 0 everywhere
    I;16, I;16B, I;16L       round(v / 257): the full 16-bit range, even if fewer bits were used; 12 bits: v / 4095
    16 bits per channel      the high byte, which is v / 257 to within 1 (Pillow has no such mode)
    I                        as 16 bits: values under 0 become 0, values over 65,535 become 255
    F                        0..1 is black to white if no value is over 1, else 0..255; clipped; NaN is black
    EXIF orientation 1..8    applied; a damaged tag counts as 1

Policy "timm" is `Image.open(...).convert("RGB")` and nothing else: no orientation except that of TIFF (which Pillow
applies itself), alpha dropped, 16-bit values clipped at 255. Formats, limits and error codes are the same.

`turbo` decodes JPEGs, with the same pixels as Pillow.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal, NamedTuple, TypeAlias

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

from ..checks import check_type
from ..errors import ImageError, TessellaError, UsageError
from ..text import any_of
from .files import read_file
from .formats import bmp, gif, jpeg, png, tiff
from .formats.signatures import FORMATS, detect_format
from .limits import DEFAULT_LIMITS, Limits
from .resample import Span
from .turbo import Mode as Mode
from .turbo import Pixels as Pixels
from .turbo import decode_jpeg

# Pillow warns of damaged metadata, which does not affect the pixels
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Policy: TypeAlias = Literal["tessella", "timm"]
PillowImage: TypeAlias = Image.Image
ImageSource: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | PillowImage | NDArray[np.generic]"


class Reduced(NamedTuple):
    """An image that was decoded at a smaller size, upright.

    The sides of the original need not be multiples of the reduction, so it may begin or end within a pixel.
    """

    pixels: Pixels  # (height, width, 3)
    rows: Span
    columns: Span


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header is within the limits; `pixels()` decodes it.

    height, width: in pixels, as displayed; those of a PNG with an orientation are as stored. reduced: decodes the image
    at 1/2, 1/4 or 1/8 of its size, if the format allows that.
    """

    height: int
    width: int
    pixels: Callable[[], Pixels]
    reduced: Callable[[int], Reduced] | None = None


def decode(
    source: ImageSource, *, policy: Policy = "tessella", mode: Mode = "exact", limits: Limits = DEFAULT_LIMITS
) -> Pixels:
    """Decode one image to (height, width, 3) uint8 RGB, by the rules at the top of this file.

    source: the bytes of a file, a path, a Pillow image, or an array of uint8 or of floats in 0..1 with the shape (H,W),
    (H,W,1), (H,W,3) or (H,W,4), where the fourth channel is alpha. mode "fast" uses libjpeg-turbo even if Pillow was
    built with another JPEG library, whose pixels differ. Raises ImageError with a fixed code if the image cannot be
    decoded, and UsageError `bad_argument` if `source` is not an image source.
    """
    return open_image(source, policy=policy, mode=mode, limits=limits).pixels()


def open_image(
    source: ImageSource, *, policy: Policy = "tessella", mode: Mode = "exact", limits: Limits = DEFAULT_LIMITS
) -> OpenedImage:
    """Check the header of an image now, and decode its pixels on request.

    Sources and errors are those of `decode`: ImageError, and UsageError `bad_argument`.
    """
    if not isinstance(policy, str) or policy not in ("tessella", "timm"):
        raise UsageError("bad_argument", f"policy is {policy!r}, expected 'tessella' or 'timm'")
    if not isinstance(mode, str) or mode not in ("exact", "fast"):
        raise UsageError("bad_argument", f"mode is {mode!r}, expected 'exact' or 'fast'")
    check_type("limits", limits, Limits)
    if isinstance(source, np.ndarray):
        return _open_array(source, policy, limits)
    if isinstance(source, Image.Image):
        with translate_errors():
            data_of_file = _undecoded_file(source, limits)
        if data_of_file is not None:
            return _open_bytes(data_of_file, policy, mode, limits)
        with translate_errors():
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


def encode_png(pixels: Pixels) -> bytes:
    """Return (height, width, 3) uint8 RGB as a PNG file, from which `decode` returns the same pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _undecoded_file(image: Image.Image, limits: Limits) -> bytes | None:
    """Return the file of a Pillow image that is opened but not decoded, if Pillow can misread its format, else None.

    The image is left unchanged, so that it can be decoded again.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format not in ("TIFF", "BMP", "GIF"):
        return None
    if not image.tile or image.fp is None or image.tell() != 0:  # decoded, closed, or at another frame
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read(limits.bytes + 1)
    image.fp.seek(position)
    return data if detect_format(data) in FORMATS else None


# The plugins rather than Image.open, which tries others and warns of large images before our limit applies
_PLUGINS: dict[str, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
    "WebP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
# --- opening ----------------------------------------------------------------------------------------------------------


def _open_bytes(data: bytes, policy: Policy, mode: Mode, limits: Limits) -> OpenedImage:
    if not data:
        raise ImageError("empty", "the image file is empty")
    if len(data) > limits.bytes:
        raise ImageError("too_many_bytes", f"the image file is larger than the limit of {limits.bytes:,} bytes")
    name = detect_format(data)
    if name not in FORMATS:
        raise ImageError(
            "unsupported_format",
            f"this is {name or 'not a known image format'}, expected {any_of(FORMATS)}",
            hint="convert it to one of them first",
        )
    with translate_errors():
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
) -> OpenedImage:
    """Open an image of Pillow; `to_rgb` converts the loaded image by policy "tessella" (default: `_to_rgb`)."""
    width, height = image.size
    _check_size(height, width, limits)
    if policy == "tessella" and _swaps_sides(_orientation(image, loaded=False)):
        height, width = width, height

    def pixels() -> Pixels:
        with translate_errors():
            image.load()
            if policy == "timm":
                return np.array(image.convert("RGB"))
            return _apply_orientation((to_rgb or _to_rgb)(image), _orientation(image, loaded=True))

    return OpenedImage(height, width, pixels)


def _open_jpeg(data: bytes, policy: Policy, mode: Mode, limits: Limits) -> OpenedImage:
    header = jpeg.read(data)
    clean = data if header is None else header.data
    orientation = 1
    if header is None or (header.oriented and policy == "tessella"):  # parsing the header with Pillow takes 0.25 ms
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(clean))
        width, height = image.size
        orientation = 1 if policy == "timm" else _orientation(image, loaded=True)
    else:
        height, width = header.height, header.width
    _check_size(height, width, limits)

    def stored(reduction: int = 1) -> Pixels:
        with translate_errors():
            return decode_jpeg(clean, header, mode, reduction)

    def reduced(reduction: int) -> Reduced:
        stored_pixels = stored(reduction)
        rows, columns = (
            Span(0, side / reduction, length)
            for side, length in zip((height, width), stored_pixels.shape[:2], strict=True)
        )
        if _swaps_sides(orientation):
            rows, columns = columns, rows
        if orientation in _UPSIDE_DOWN:
            rows = rows.reversed()
        if orientation in _MIRRORED:
            columns = columns.reversed()
        return Reduced(_apply_orientation(stored_pixels, orientation), rows, columns)

    sides = (width, height) if _swaps_sides(orientation) else (height, width)
    can_reduce = mode == "fast" and header is not None and len(header.identifiers) < 4
    return OpenedImage(*sides, lambda: _apply_orientation(stored(), orientation), reduced if can_reduce else None)


def _open_png(structure: png.Png, policy: Policy, limits: Limits) -> OpenedImage:
    _check_size(structure.height, structure.width, limits)
    if not structure.has_valid_checksums:
        structure.check_rows(checksum=True)
    image = PngImagePlugin.PngImageFile(io.BytesIO(structure.data))
    if structure.color == 0 and structure.bits in (2, 4) and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2**structure.bits - 1)  # Pillow scales only the pixels
    opened = _open_pillow(image, policy, limits)

    def pixels() -> Pixels:
        with translate_errors():
            image.load()
            last_row = image.crop((0, image.height - 1, image.width, image.height))
            if structure.interlaced or not np.asarray(last_row).any():  # missing rows stay 0
                structure.check_rows()
        return opened.pixels()

    return OpenedImage(opened.height, opened.width, pixels)


def _open_gif(structure: gif.Gif, policy: Policy, limits: Limits) -> OpenedImage:
    top, left, bottom, right = structure.frame  # may extend beyond the canvas, which Pillow enlarges
    _check_size(max(bottom, structure.height), max(right, structure.width), limits)

    def to_rgb(image: Image.Image) -> Pixels:
        rgb = _to_rgb(image)
        for margin in (rgb[:top], rgb[bottom:], rgb[:, :left], rgb[:, right:]):
            margin[:] = structure.background
        return rgb

    return _open_pillow(GifImagePlugin.GifImageFile(io.BytesIO(structure.data)), policy, limits, to_rgb)


def _open_bmp(data: bytes, structure: bmp.Bmp, limits: Limits) -> OpenedImage:
    _check_size(structure.height, structure.width, limits)

    def pixels() -> Pixels:
        with translate_errors():
            rgb, alpha = structure.pixels(data)
            if alpha is None:
                return np.ascontiguousarray(rgb)
            return _to_rgb(Image.fromarray(np.dstack([rgb, alpha])))

    return OpenedImage(structure.height, structure.width, pixels)


def _open_tiff(data: bytes, policy: Policy, limits: Limits) -> OpenedImage:
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
            rgb = _gray_to_rgb((np.asarray(image).view(np.uint32).clip(0, 65_535) + 128) // 257)
        elif structure.bits == 8 and structure.sample_format == 2:
            rgb = _gray_to_rgb(np.asarray(image).view(np.int8).clip(0))
        else:
            rgb = _to_rgb(image, structure.bits)
        return 255 - rgb if structure.inverted else rgb

    return _open_pillow(TiffImagePlugin.TiffImageFile(io.BytesIO(structure.data)), policy, limits, to_rgb)


def _open_array(array: NDArray[np.generic], policy: Policy, limits: Limits) -> OpenedImage:
    shape = array.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        channels_first = len(shape) == 3 and shape[0] in (1, 3, 4)
        raise ImageError(
            "bad_array",
            f"an array of shape {shape} is not an image, expected (H,W), (H,W,1), (H,W,3) or (H,W,4)",
            hint="channels come last: use array.transpose(1, 2, 0)" if channels_first else "",
        )
    _check_size(shape[0], shape[1], limits)
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise ImageError(
                "bad_array", "a float array must have values in 0..1", hint="or convert it to uint8 in 0..255"
            )
        array = np.rint(np.multiply(array, np.float32(255))).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(
            "bad_array",
            f"an array of {array.dtype} is not an image, expected uint8 or float in 0..1",
            hint=_DTYPE_HINTS.get(array.dtype.kind, ""),
        )
    if array.ndim == 3 and array.shape[2] == 3:
        return OpenedImage(shape[0], shape[1], lambda: np.ascontiguousarray(array))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _open_pillow(Image.fromarray(np.ascontiguousarray(array)), policy, limits)


_DTYPE_HINTS = {  # by dtype.kind
    "b": "for a black and white mask: array.astype(numpy.uint8) * 255",
    "u": "for 0..65535: (array / 65535).astype(numpy.float32); for 0..255: array.astype(numpy.uint8)",
    "i": "for 0..255: array.astype(numpy.uint8); for other ranges, scale them to 0..1 as float32",
}


def _check_size(height: int, width: int, limits: Limits) -> None:
    size = f"the image has {width:,} x {height:,} pixels (width x height)"
    if height < 1 or width < 1:
        raise ImageError("corrupt_image", size)
    if max(height, width) > limits.side:
        raise ImageError("side_too_long", f"{size}, the longest side allowed is {limits.side:,}")
    if height * width > limits.pixels:
        raise ImageError("too_many_pixels", f"{size}, the limit is {limits.pixels:,} pixels")


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn any exception of the image libraries into an ImageError, without its text, which can hold addresses."""
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
        message = "the image is damaged, truncated, or not in the format that its first bytes indicate"
        raise ImageError("corrupt_image", message) from None


# --- pixels -----------------------------------------------------------------------------------------------------------


def _to_rgb(image: Image.Image, bits: int = 0) -> Pixels:
    """Convert a loaded image by policy "tessella", as listed at the top of this file.

    bits: bits per sample in the file, 0 if unknown.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        gray = (values * 255 + 2047) // 4095 if bits == 12 else (values + 128) // 257
        if (transparent := image.info.get("transparency")) is not None:
            gray[values == transparent] = 255
        return _gray_to_rgb(gray)
    if image.mode == "I":
        return _gray_to_rgb((np.asarray(image).clip(0, 65_535) + 128) // 257)
    if image.mode == "F":
        levels = np.nan_to_num(np.asarray(image), nan=0.0, posinf=np.inf, neginf=0.0)
        scale = 255 if levels.max() <= 1 else 1
        return _gray_to_rgb(np.rint(levels.clip(0, 255 / scale) * scale))
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow cannot convert premultiplied gray directly
            image = image.convert("LA")
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer)
    return np.array(image.convert("RGB"))


def _gray_to_rgb(gray_HW: NDArray[np.generic]) -> Pixels:
    return np.repeat(gray_HW.astype(np.uint8)[:, :, None], 3, axis=2)


def _orientation(image: Image.Image, *, loaded: bool) -> int:
    """Return the EXIF orientation still to be applied, 1 if there is none or it cannot be read.

    Pillow applies that of a TIFF while loading. A PNG may store it after its pixels, so reading it before they are
    loaded would decode them.
    """
    if image.format == "TIFF" or (image.format == "PNG" and not loaded):
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


_UPSIDE_DOWN, _MIRRORED = (3, 4, 7, 8), (2, 3, 6, 7)  # orientations, after the sides were swapped


def _swaps_sides(orientation: int) -> bool:
    return 5 <= orientation <= 8


def _apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels upright, given the EXIF orientation they were stored with."""
    if not 2 <= orientation <= 8:
        return pixels
    if _swaps_sides(orientation):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in _UPSIDE_DOWN:
        pixels = pixels[::-1]
    if orientation in _MIRRORED:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
