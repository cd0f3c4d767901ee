"""Compare generated files of every layout with the arrays they were made of, and with independent decoders.

Lossless formats are exact up to rounding to 8 bits. If Pillow keeps the high byte of 16 bits, values differ by up to 1,
or more if they are combined with an alpha or a black channel. Lossy formats are compared with the pixels of another
decoder. `tests/data/generated.py` states the tolerance of each case.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import png as pypng
import pytest
import pyvips
import tifffile

from tessella.data.decode import decode
from tessella.errors import ImageError

from . import generated
from .generated import Array, Case

FAMILIES: dict[str, tuple[Callable[[], Iterator[Case]], int, int]] = {
    # cases, minimum number decoded, minimum number compared with another decoder
    "PNG": (generated.png_cases, 250, 250),
    "BMP": (generated.bmp_cases, 600, 280),
    "GIF": (generated.gif_cases, 192, 192),
    "WebP": (generated.webp_cases, 20, 20),
    "AVIF": (generated.avif_cases, 30, 26),
    "JPEG": (generated.jpeg_cases, 130, 126),
    "TIFF": (generated.tiff_cases, 1300, 1200),
}


def decode_with_vips(data: bytes) -> Array:
    """Return (H,W,3) in 0..255, composited on white."""
    image = pyvips.Image.new_from_buffer(data, "")
    if image.interpretation in ("grey16", "rgb16"):
        image = image.cast("float") * (255 / 65535)
    if image.hasalpha():
        image = image.flatten(background=255, max_alpha=255)
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return image.cast("double").numpy()


def read_with_pypng(data: bytes) -> Array:
    width, height, rows, _ = pypng.Reader(bytes=data).read()
    return np.array([list(row) for row in rows]).reshape(height, width, -1)


def read_with_tifffile(data: bytes) -> Array:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        pixels = page.asarray()
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            return np.moveaxis(pixels.reshape(-1, *page.shape[-2:]), 0, -1)
        return pixels.reshape(page.imagelength, page.imagewidth, -1)


PICTURES = {"vips": decode_with_vips, "opencv": generated.decode_with_opencv}
SAMPLES = {"pypng": read_with_pypng, "tifffile": read_with_tifffile}


def difference_from(case: Case) -> str | None:
    """Return how the result of `decode` differs from the case, "" if it does not, None if the refusal is allowed."""
    try:
        actual = decode(case.data)
    except ImageError as error:
        if case.may_be_refused and error.code == "unsupported_format":
            return None
        return f"{error.code}: {error.message}"
    if actual.shape != case.expected.shape:
        return f"shape {actual.shape}, expected {case.expected.shape}"
    difference = np.abs(actual - case.expected)
    if difference.max() > case.tolerance + 1e-6 or difference.mean() > case.mean:
        return f"off by up to {difference.max():.2f}, {difference.mean():.2f} on average"
    return ""


def check_with_other_decoders(case: Case) -> None:
    """Check with other decoders that the file of the case contains its samples or pixels."""
    for name in case.oracles:
        if name in SAMPLES:
            np.testing.assert_array_equal(SAMPLES[name](case.data), case.samples, err_msg=f"{name}: {case.name}")
        else:
            difference = np.abs(PICTURES[name](case.data) - case.expected).max()
            assert difference <= case.tolerance + 1.0, f"{name}: {case.name}"


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_equal_those_of_the_generated_files(family: str) -> None:
    cases, min_decoded, min_compared = FAMILIES[family]
    wrong, decoded, compared = [], 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of tifffile and pyvips
        for case in cases():
            problem = difference_from(case)
            if problem is None:
                continue
            decoded += 1
            if problem:
                wrong.append(f"{case.name}: {problem}")
            check_with_other_decoders(case)
            compared += bool(case.oracles)
    assert not wrong, "\n".join([f"{len(wrong)} of {decoded}", *wrong[:20]])
    assert decoded >= min_decoded
    assert compared >= min_compared


def test_at_least_500_generated_files_are_compared() -> None:
    assert sum(compared for _, _, compared in FAMILIES.values()) >= 2000
