"""Test that an open Pillow image is decoded like its file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tessella.data.decode import decode

from ..generated import tiff, uints
from ..test_decode_rules import encoded
from .common import RNG


def test_an_open_pillow_image_is_decoded_like_its_file(tmp_path: Path) -> None:
    grey = uints(RNG, (8, 9, 1), 16)
    (tmp_path / "white-is-zero.tif").write_bytes(tiff(grey, 16, 0))
    expected = decode(tmp_path / "white-is-zero.tif")
    with Image.open(tmp_path / "white-is-zero.tif") as image:
        np.testing.assert_array_equal(decode(image), expected)
        np.testing.assert_array_equal(decode(image), expected)  # the image is unchanged
        assert image.size == (9, 8)
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    with Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))) as animation:
        animation.seek(1)
        assert decode(animation)[0, 0].tolist() == [0, 0, 255]  # the selected frame
