"""Decode JPEGs to RGB with libjpeg-turbo, at full size or reduced.

The settings are the slow but accurate ones that Pillow uses, too. The pixels are identical (tests compare them), and
unlike Pillow, simplejpeg reports missing pixels. Pillow decodes the files that it rejects.

libjpeg-turbo can decode an image at a half, a quarter or an eighth of its size, from the lower frequencies of each
block. Reading the compressed data takes as long as at full size, everything after it a fraction.
"""

from __future__ import annotations

import io
import re
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, features

from ..errors import ImageError
from .formats import jpeg

try:
    import simplejpeg
except ImportError:  # no wheel for this Python: Pillow decodes the same pixels, a little slower
    simplejpeg = None

Pixels: TypeAlias = NDArray[np.uint8]  # (height, width, 3) RGB
Mode: TypeAlias = Literal["exact", "fast"]

# If Pillow was built with another JPEG library, its pixels differ, and mode "exact" decodes with Pillow
_PILLOW_USES_TURBO = bool(features.check_feature("libjpeg_turbo"))
_END_OF_JPEG = b"\xff\xd9"
_FILLERS = (
    bytes(64),
    b"\xaa\x55" * 32,
    b"\xf0\x6b\x93" * 21,
    b"\x5a\x0c\xe1" * 21,
)  # as Huffman codes, they differ early
# The first warning of libjpeg-turbo for a file with missing data or restart markers
_PIXELS_ARE_MISSING = re.compile(r"remature end|instead of RST|before marker 0xd[0-7]")


def decode_jpeg(data: bytes, header: jpeg.Jpeg | None, mode: Mode, reduction: int = 1) -> Pixels:
    """Return the RGB pixels (H,W,3), as stored; both sides are divided by `reduction`, rounded up.

    header: of `data`; None if its structure is not understood. reduction: 1, 2, 4 or 8. Raises ImageError if pixels are
    missing, and any exception of the libraries.
    """
    rgb, is_complete = _turbo_jpeg(data, header, mode, reduction)
    return _pillow_jpeg(data, header, is_complete, reduction) if rgb is None else rgb


def _turbo_jpeg(data: bytes, header: jpeg.Jpeg | None, mode: Mode, reduction: int) -> tuple[Pixels | None, bool]:
    """Return RGB by libjpeg-turbo, or None if it warns, and whether the file is known to have all its pixels.

    It comes first because Pillow fills missing pixels with gray silently. Raises ImageError if pixels are missing.
    """
    if simplejpeg is None or header is None or not (mode == "fast" or _PILLOW_USES_TURBO):
        return None, False
    cmyk = len(header.identifiers) == 4
    space = "CMYK" if cmyk else "RGB"
    size = (-(-header.height // reduction), -(-header.width // reduction)) if reduction > 1 else (0, 0)
    pixels, warning = _turbo(data, space, size)
    missing = _PIXELS_ARE_MISSING.search(warning) is not None
    if warning.startswith("Premature end of JPEG file") and header.has_all_scans:
        pixels, warning = _turbo(data + _END_OF_JPEG, space, size)
        missing = pixels is None and not warning.endswith("before marker 0xd9")  # that is, after all pixels
    if missing or not header.has_all_components:
        raise ImageError("corrupt_image", "the JPEG file is damaged: pixels are missing")
    return None if cmyk else pixels, pixels is not None


def _turbo(data: bytes, space: str, size: tuple[int, int]) -> tuple[Pixels | None, str]:
    """Return the pixels by libjpeg-turbo and "", or None and its first warning.

    size: the smallest (height, width) allowed; it takes the largest reduction with at least that size, 0 is none.
    """
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, space, fastdct=False, fastupsample=False, min_height=size[0], min_width=size[1], strict=True
        )
    except (ValueError, RuntimeError, MemoryError) as error:
        return None, str(error) or "unknown"
    return pixels, ""


def _pillow_jpeg(data: bytes, header: jpeg.Jpeg | None, is_complete: bool, reduction: int) -> Pixels:
    """Return RGB by Pillow. Raises ImageError if pixels are missing, unless the file is known to be complete.

    Different fillers replace whatever follows the pixels. If pixels are missing, the fillers are decoded in their
    place, and the results differ. Two fillers are too few: both may be decoded to the same pixels, or be invalid and
    replaced by gray. Arithmetic coding reads ahead, so there the file is trusted.
    """
    if header is None or (header.arithmetic and not is_complete):
        return _to_rgb(data, reduction)
    end = header.end
    if is_complete:
        return _to_rgb(data[:end] + _END_OF_JPEG, reduction)
    if end < len(data) or header.has_all_scans:
        first, *others = (data[:end] + filler + _END_OF_JPEG for filler in _FILLERS)
        pixels = _to_rgb(first)
        if all(np.array_equal(pixels, _to_rgb(other)) for other in others):
            return pixels if reduction == 1 else _to_rgb(first, reduction)
    raise ImageError("corrupt_image", "the JPEG file is damaged: pixels are missing")


def _to_rgb(data: bytes, reduction: int = 1) -> Pixels:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    if reduction > 1:
        image.draft(None, (max(image.width // reduction, 1), max(image.height // reduction, 1)))
    return np.array(image.convert("RGB"))


def encode_jpeg(pixels: Pixels, quality: int = 85) -> bytes:
    """Return a JPEG file of RGB pixels (H,W,3) without any metadata."""
    pixels = np.ascontiguousarray(pixels)
    if simplejpeg is not None:
        data: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
        return data
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
