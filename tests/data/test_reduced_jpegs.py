"""Test JPEGs that mode "fast" decodes at a smaller size."""

from __future__ import annotations

import hashlib
import io
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data.decode import decode, open_image
from tessella.data.formats import jpeg
from tessella.data.isolated import IsolatedDecoder
from tessella.data.limits import Limits
from tessella.data.resample import Span
from tessella.data.resize import geometry, reduction
from tessella.data.samples import NAMES
from tessella.data.source import Source
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels, load_sized
from tessella.data.turbo import decode_jpeg

from ..base_install import run_code
from .formats.common import error_code
from .test_decode_rules import encoded
from .test_resize import picture

SMALL = InputSpec(height=32, width=32, crop_pct=1.0)
PHOTOGRAPHS = [(resources.files("tessella.data") / "photographs" / name).read_bytes() for name in NAMES]


def files() -> dict[str, bytes]:
    image = Image.fromarray(picture(301, 403))
    return {
        "4:4:4": encoded(image, "JPEG", quality=90, subsampling=0),
        "4:2:2": encoded(image, "JPEG", quality=90, subsampling=1),
        "4:2:0": encoded(image, "JPEG", quality=90, subsampling=2),
        "progressive": encoded(image, "JPEG", quality=90, progressive=True),
        "restarts": encoded(image, "JPEG", quality=90, restart_marker_rows=1),
        "gray": encoded(image.convert("L"), "JPEG", quality=90),
        "RGB": encoded(image, "JPEG", quality=90, keep_rgb=True),
    }


FILES = files()


@pytest.mark.parametrize("name", FILES)
def test_pillow_reduces_to_the_same_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES[name]
    header = jpeg.read(data)
    sizes = {n: decode_jpeg(data, header, "fast", n) for n in (1, 2, 4, 8)}
    assert [pixels.shape for pixels in sizes.values()] == [(-(-301 // n), -(-403 // n), 3) for n in sizes]
    monkeypatch.setattr("tessella.data.turbo.simplejpeg", None)
    for n, pixels in sizes.items():
        np.testing.assert_array_equal(decode_jpeg(data, header, "fast", n), pixels)


def test_how_much_smaller_an_image_may_be() -> None:
    small, default = SMALL, InputSpec()
    squashed = InputSpec(height=32, width=32, crop_mode="squash")
    for height, width, spec, expected in (
        (375, 500, small, 4),
        (512, 512, small, 8),
        (511, 511, small, 4),
        (375, 500, default, 1),
        (1023, 2000, default, 1),
        (1024, 2000, default, 2),
        (4000, 3000, default, 4),
        (100, 2000, squashed, 1),  # the height decides
    ):
        assert reduction(height, width, geometry(height, width, spec)) == expected, (height, width, spec)


def test_the_difference_from_the_exact_pixels_is_small() -> None:
    histogram = np.zeros(256, np.int64)
    for data in PHOTOGRAPHS:
        exact, fast = (load_pixels(data, SMALL, mode=mode).astype(int) for mode in ("exact", "fast"))
        histogram += np.bincount(np.abs(exact - fast).ravel(), minlength=256)
    share = histogram / histogram.sum()
    assert share[1:].sum() > 0.1  # they were reduced
    assert share @ np.arange(256) < 0.7  # gray levels on average
    assert share[5:].sum() < 0.01
    assert histogram.nonzero()[0].max() <= 20


def test_other_formats_are_not_reduced(tmp_path: Path) -> None:
    image = Image.fromarray(picture(301, 403))
    for data in (encoded(image, "PNG"), encoded(image.convert("CMYK"), "JPEG"), encoded(image, "WEBP", quality=80)):
        assert open_image(data, mode="fast").reduced is None
        exact, fast = (load_pixels(data, SMALL, mode=mode).astype(int) for mode in ("exact", "fast"))
        assert np.abs(exact - fast).max() <= 1
    assert open_image(FILES["4:2:0"], mode="exact").reduced is None
    np.testing.assert_array_equal(decode(FILES["4:2:0"], mode="fast"), decode(FILES["4:2:0"]))


def oriented(orientation: int) -> bytes:
    """Return a smooth JPEG whose sides are no multiples of 8, with an EXIF orientation."""
    y, x = np.mgrid[:301, :403]
    pixels = np.stack([x * 255 / 402, y * 255 / 300, 127 + 100 * np.sin(x / 40) * np.cos(y / 30)], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int) -> None:
    data = oriented(orientation)
    for spec in (SMALL, InputSpec(height=24, width=40, crop_mode="border"), InputSpec(height=30, width=33)):
        exact, fast = (load_sized_of(data, spec, mode) for mode in ("exact", "fast"))
        assert fast[1:] == exact[1:] == ((403, 301) if orientation > 4 else (301, 403))
        difference = np.abs(exact[0].astype(int) - fast[0])
        assert difference.max() <= 3
        assert difference.mean() < 0.35
    reduced = open_image(data, mode="fast").reduced
    assert reduced is not None
    decoded = reduced(8)
    assert (decoded.rows.length, decoded.columns.length) == decoded.pixels.shape[:2]
    height, width = Span(0, 301 / 8, 38), Span(0, 403 / 8, 51)
    rows, columns = (width, height) if orientation > 4 else (height, width)
    assert decoded.rows == (rows.reversed() if orientation in (3, 4, 7, 8) else rows)
    assert decoded.columns == (columns.reversed() if orientation in (2, 3, 6, 7) else columns)


def load_sized_of(data: bytes, spec: InputSpec, mode: str) -> tuple[np.ndarray, int, int]:
    return load_sized(data, spec, policy="tessella", mode=mode, limits=Limits())  # type: ignore[arg-type]


def test_missing_pixels_are_found_in_a_reduced_image() -> None:
    for name in ("4:4:4", "4:2:0", "progressive", "restarts", "gray"):
        data = FILES[name]
        for missing in (3, 100, len(data) // 4, len(data) // 2):
            damaged = data[: -2 - missing] + b"\xff\xd9"
            assert error_code(damaged, "tessella", "fast") == "corrupt_image"
            result = decode_alone(damaged)
            assert result == "corrupt_image", (name, missing)
        intact = load_pixels(data, SMALL, mode="fast")
        np.testing.assert_array_equal(load_pixels(data[:-2], SMALL, mode="fast"), intact)


def decode_alone(data: bytes, limits: Limits | None = None) -> str:
    from tessella.errors import ImageError

    try:
        load_pixels(data, SMALL, mode="fast", limits=limits or Limits())
    except ImageError as error:
        return error.code
    return "ok"


def test_limits_refer_to_the_full_image() -> None:
    data = FILES["4:2:0"]
    assert decode_alone(data, Limits(pixels=301 * 403)) == "ok"
    assert decode_alone(data, Limits(pixels=301 * 403 - 1)) == "too_many_pixels"
    assert decode_alone(data, Limits(side=402)) == "side_too_long"


def test_isolated_processes_report_the_size_of_the_full_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(oriented(6))
    with IsolatedDecoder(SMALL, mode="fast", processes=1) as decoder:
        (result,) = decoder.decoded([Source("a.jpg", str(path))])
    assert (result.width, result.height) == (301, 403)
    np.testing.assert_array_equal(result.pixels, load_pixels(path, SMALL, mode="fast"))


def test_torch_does_not_change_the_pixels(tmp_path: Path) -> None:
    """The hashes of the base install are those of this process, which has imported PyTorch."""
    paths = []
    for number, data in enumerate([*PHOTOGRAPHS, *FILES.values()]):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(data)
    code = f"""
import hashlib, sys
from tessella.data import InputSpec, load_pixels
for path in {[str(path) for path in paths]!r}:
    for size in (32, 96, 224):
        for mode in ("exact", "fast"):
            print(hashlib.sha256(load_pixels(path, InputSpec(height=size, width=size), mode=mode)).hexdigest())
assert "torch" not in sys.modules
"""
    done = run_code(code)
    assert done.returncode == 0, done.stderr
    expected = [
        hashlib.sha256(load_pixels(path, InputSpec(height=size, width=size), mode=mode).data).hexdigest()
        for path in paths
        for size in (32, 96, 224)
        for mode in ("exact", "fast")
    ]
    assert done.stdout.split() == expected
