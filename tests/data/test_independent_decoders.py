"""Generated files of every layout, against the arrays they were made of and against independent decoders.

Lossless formats are exact up to rounding to 8 bits; where Pillow keeps the high byte of 16 bits, to within 1 of each
value, more where that value is combined with an alpha or a black channel. Lossy formats are compared with another
decoder's pixels. `tests/data/generated.py` states each tolerance beside its cases.
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
    # cases, how many must be decoded, how many must be compared with another decoder
    "PNG": (generated.png_cases, 250, 250),
    "BMP": (generated.bmp_cases, 600, 280),
    "GIF": (generated.gif_cases, 192, 192),
    "WebP": (generated.webp_cases, 20, 20),
    "AVIF": (generated.avif_cases, 30, 26),
    "JPEG": (generated.jpeg_cases, 130, 126),
    "TIFF": (generated.tiff_cases, 1300, 1200),
}


def by_vips(data: bytes) -> Array:
    """(H, W, 3) of 0..255 on white."""
    image = pyvips.Image.new_from_buffer(data, "")
    if image.interpretation in ("grey16", "rgb16"):
        image = image.cast("float") * (255 / 65535)
    if image.hasalpha():
        image = image.flatten(background=255, max_alpha=255)
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return image.cast("double").numpy()


def by_pypng(data: bytes) -> Array:
    width, height, rows, _ = pypng.Reader(bytes=data).read()
    return np.array([list(row) for row in rows]).reshape(height, width, -1)


def by_tifffile(data: bytes) -> Array:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        pixels = page.asarray()
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            return np.moveaxis(pixels.reshape(-1, *page.shape[-2:]), 0, -1)
        return pixels.reshape(page.imagelength, page.imagewidth, -1)


PICTURES = {"vips": by_vips, "opencv": generated.by_opencv}
SAMPLES = {"pypng": by_pypng, "tifffile": by_tifffile}


def complaint_about(case: Case) -> str | None:
    """What is wrong with the decoder's answer, "" if nothing is, None if it is a refusal that is allowed."""
    try:
        got = decode(case.data)
    except ImageError as error:
        if case.refusable and error.code == "unsupported_format":
            return None
        return f"{error.code}: {error.message}"
    if got.shape != case.want.shape:
        return f"shape {got.shape}, expected {case.want.shape}"
    difference = np.abs(got - case.want)
    if difference.max() > case.tolerance + 1e-6 or difference.mean() > case.mean:
        return f"off by up to {difference.max():.2f}, {difference.mean():.2f} on average"
    return ""


def check_case(case: Case) -> None:
    """The case itself: its file holds what it says, in the eyes of other decoders."""
    for name in case.oracles:
        if name in SAMPLES:
            np.testing.assert_array_equal(SAMPLES[name](case.data), case.samples, err_msg=f"{name}: {case.name}")
        else:
            difference = np.abs(PICTURES[name](case.data) - case.want).max()
            assert difference <= case.tolerance + 1.0, f"{name}: {case.name}"


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_file(family: str) -> None:
    cases, least_decoded, least_compared = FAMILIES[family]
    wrong, decoded, compared = [], 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tifffile's and pyvips' own
        for case in cases():
            complaint = complaint_about(case)
            if complaint is None:
                continue
            decoded += 1
            if complaint:
                wrong.append(f"{case.name}: {complaint}")
            check_case(case)
            compared += bool(case.oracles)
    assert not wrong, "\n".join([f"{len(wrong)} of {decoded}", *wrong[:20]])
    assert decoded >= least_decoded
    assert compared >= least_compared


def test_at_least_500_generated_files_are_compared() -> None:
    assert sum(compared for _, _, compared in FAMILIES.values()) >= 2000
