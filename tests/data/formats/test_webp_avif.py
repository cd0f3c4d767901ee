"""Test WebP and AVIF: metadata and missing data."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tessella.data.decode import decode

from ..generated import smooth
from ..test_decode_rules import encoded
from .common import RNG, error_code


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_webp_and_avif_metadata_and_missing_data(form: str) -> None:
    image = Image.fromarray(smooth(RNG, 48, 64, 3))
    plain = encoded(image, form, quality=90)
    expected = decode(plain)
    metadata: list[dict[str, bytes]] = [
        {"icc_profile": b"no profile"},
        {"xmp": b"<x"},
        {"exif": b"Exif\0\0II*\0" + bytes(60_000), "xmp": bytes(2_000_000)},
    ]
    if form == "WEBP":  # Pillow does not write broken EXIF to AVIF
        metadata += [{"exif": b"Exif\0\0" + b"\xff" * 100}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"}]
    for options in metadata:
        np.testing.assert_array_equal(decode(encoded(image, form, quality=90, **options)), expected)
    np.testing.assert_array_equal(decode(plain + b"garbage"), expected)
    for eighth in range(8):
        assert error_code(plain[: len(plain) * eighth // 8]) != "ok", eighth
