"""Test untrusted files: refused with a code or decoded correctly, quickly, in little memory, without library texts."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data.decode import Mode, Policy, decode
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.errors import ImageError, TessellaError

from . import hostile
from .test_decode_rules import encoded

LEAK = re.compile(r"0x[0-9a-f]{6,}| at /|Traceback|object at|/site-packages|PIL|BytesIO")
RNG = np.random.default_rng(1)


def error_code(data: bytes, policy: Policy = "tessella", mode: Mode = "exact") -> str:
    """Return "ok" or the error code, and check that the message contains no text of a library."""
    try:
        pixels = decode(data, policy=policy, mode=mode)
    except ImageError as failure:
        error = failure
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        return "ok"
    text = f"{error} {error!r} {error.__cause__!r}"
    assert not LEAK.search(text), text
    assert error.__suppress_context__ or error.__context__ is None, "the traceback would show the library's exception"
    return error.code


# All run in one process: memory shows as growth of the peak the first time that it is allocated.
MEASURE = """
import json, resource, time
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.data.decode import decode
from tessella.errors import ImageError
from tests.data import hostile

load_pixels(hostile.png(64, 64, pixels=True), InputSpec())
for form in (hostile.gif(4, 4), hostile.bmp(2, 2), hostile.tiff(4, 2), hostile.webp(4, 4), hostile.jpeg(8, 8)):
    try:
        decode(form)
    except ImageError:
        pass
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def run(name, data):
    before, start = peak(), time.perf_counter()
    try:
        result = list(load_pixels(data, InputSpec()).shape)
    except ImageError as error:
        result = error.code
    print(json.dumps([name, result, time.perf_counter() - start, peak() - before]), flush=True)
for name, data in hostile.HEADERS.items():
    run(name, data)
for width, height in hostile.ELONGATED:
    run(f"{width}x{height}", hostile.png(width, height, color=2, pixels=True))
"""


NEAR_THE_LIMIT = ("7x1700", "1708x7")


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[object, float, float]]:
    """Return (output shape or code, seconds, growth of the memory peak in MB) by name."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=200,
        check=True,
    )
    assert "Warning" not in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (result, seconds, growth) for name, result, seconds, growth in rows}


@pytest.mark.quiet
def test_decompression_bombs_cost_no_time_or_memory(measured: dict[str, tuple[object, float, float]]) -> None:
    assert len(measured) == len(hostile.HEADERS) + len(hostile.ELONGATED) >= 40
    for name, (result, seconds, growth) in measured.items():
        resized = name in NEAR_THE_LIMIT  # an intermediate image of 16 million pixels takes a quarter of a second
        assert seconds < (1.0 if resized else 0.2), (name, result, seconds)
        assert growth < 100, (name, result, growth)


def test_decompression_bombs_are_refused_for_their_size(measured: dict[str, tuple[object, float, float]]) -> None:
    for name, (result, _, _) in measured.items():
        if re.search(r"(51|88|180) MP|squared(?!, truncated)|upside", name):
            assert result == "too_many_pixels", (name, result)
        if re.search(r"2\^\d+|65,536", name) and "frames" not in name:
            assert result in ("side_too_long", "too_many_pixels", "corrupt_image"), (name, result)


@pytest.mark.parametrize(("width", "height"), hostile.ELONGATED)
def test_elongated_images(width: int, height: int, measured: dict[str, tuple[object, float, float]]) -> None:
    result = measured[f"{width}x{height}"][0]
    long, short = max(width, height), min(width, height)
    fits = 256 * int(256 * long / short) <= 16_000_000
    assert result == ([224, 224, 3] if fits else "too_elongated")


def test_the_largest_image_within_the_limit_is_decoded() -> None:
    pixels = decode(hostile.png(7_000, 7_000, pixels=True))  # 49 MP
    assert pixels.shape == (7_000, 7_000, 3)
    assert not pixels.any()


def test_large_images_cause_no_warnings() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for name in (
            "png 88 MP",
            "png 180 MP",
            "gif 10,000 squared frame",
            "webp 16,383 squared",
            "bmp 30,000 squared",
        ):
            assert error_code(hostile.HEADERS[name]) == "too_many_pixels"
    assert not seen


def test_refusals_name_the_format() -> None:
    for data, word in (
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns=''/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "MP4"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%!PS-Adobe", "PostScript"),
        (b"PK\3\4", "ZIP"),
        (b"<html>", "HTML"),
        (b"nothing at all", "not a known image format"),
        (b"\0", "not a known"),
    ):
        with pytest.raises(ImageError) as error:
            decode(data)
        assert error.value.code == "unsupported_format"
        assert word in error.value.message


def test_file_names_do_not_decide_the_format(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (3, 2), "red"), "PNG")
    (tmp_path / "picture.pdf").write_bytes(data)
    assert decode(tmp_path / "picture.pdf").shape == (2, 3, 3)
    (tmp_path / "picture.jpg").write_bytes(b"%PDF-1.7")
    with pytest.raises(ImageError, match="PDF"):
        decode(tmp_path / "picture.jpg")
    assert decode(data + b"PK\3\4 and a ZIP after it").shape == (2, 3, 3)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    locked, empty = tmp_path / "locked.png", tmp_path / "empty.png"
    locked.write_bytes(b"x")
    locked.chmod(0)
    empty.touch()
    cases = {
        str(tmp_path / "absent.png"): "not_found",
        str(empty / "below.png"): "not_found",
        str(tmp_path): "unreadable",
        "/dev/null": "special_file",
        "a\0b": "unreadable",
        "x" * 5000: "unreadable",
        str(empty): "empty",
    }
    if os.geteuid() != 0:
        cases[str(locked)] = "unreadable"
    for path, code in cases.items():
        with pytest.raises(ImageError) as error:
            decode(path)
        assert error.value.code == code, path
        assert not LEAK.search(str(error.value).replace(str(tmp_path), ""))
    with pytest.raises(ImageError) as error:
        decode(b"")
    assert error.value.code == "empty"


def samples() -> dict[str, bytes]:
    photo = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((48, 36), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "JPEG": encoded(photo, "JPEG", quality=90),
        "JPEG progressive": encoded(photo, "JPEG", progressive=True, exif=exif),
        "JPEG CMYK": encoded(photo.convert("CMYK"), "JPEG"),
        "PNG": encoded(photo, "PNG", exif=exif),
        "PNG palette": encoded(photo.convert("P"), "PNG", transparency=3),
        "WebP": encoded(photo, "WEBP"),
        "WebP lossless": encoded(photo.convert("RGBA"), "WEBP", lossless=True),
        "GIF": encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(90)]),
        "BMP": encoded(photo, "BMP"),
        "TIFF": encoded(photo, "TIFF", exif=exif),
        "TIFF LZW": encoded(photo, "TIFF", compression="tiff_lzw"),
        "TIFF JPEG": encoded(photo, "TIFF", compression="jpeg"),
        "AVIF": encoded(photo, "AVIF", speed=10),
    }


@pytest.mark.parametrize("name", sorted(samples()))
def test_truncated_files(name: str) -> None:
    data = samples()[name]
    assert error_code(data) == "ok"
    for sixteenth in range(16):
        cut = data[: len(data) * sixteenth // 16]
        codes = {error_code(cut, mode=mode) for mode in ("exact", "fast")}
        assert len(codes) == 1, (name, sixteenth, codes)
        if "JPEG" in name and "TIFF" not in name:
            assert codes != {"ok"}, (name, sixteenth)


@pytest.mark.parametrize("name", sorted(samples()))
def test_damaged_files(name: str) -> None:
    """Flip bits, replace bytes, repeat and remove pieces: the result is pixels or a code, never another exception."""
    data = samples()[name]
    rng = np.random.default_rng(len(data))
    deadline, done = time.perf_counter() + 1.0, 0
    while done < 250 and time.perf_counter() < deadline:
        mutant = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            at, kind = int(rng.integers(len(mutant))), int(rng.integers(4))
            if kind == 0:
                mutant[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                mutant[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
            elif kind == 2:
                mutant[at:at] = mutant[at : at + int(rng.integers(1, 32))]
            else:
                del mutant[at : at + int(rng.integers(1, 32))]
            if not mutant:
                break
        policy, mode = ("tessella", "timm")[done % 2], ("exact", "fast")[done // 2 % 2]
        error_code(bytes(mutant), policy, mode)  # type: ignore[arg-type]
        done += 1
    assert done >= 30


def test_only_decode_opens_images() -> None:
    package = Path(__file__).resolve().parents[2] / "src" / "tessella"
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) (PIL|simplejpeg|cv2|torchvision|imageio)\b", path.read_text(), re.M)
    }
    working_on_pixels = {"data/resize.py", "data/augment.py", "data/operations.py"}  # they open nothing
    assert users == {"data/decode.py", "data/turbo.py"} | working_on_pixels
    assert not any("Image.open(" in (package / name).read_text() for name in working_on_pixels)
    # in a docstring, and in the examples of model cards
    mentioned = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if "Image.open(" in path.read_text()
    }
    assert mentioned == {"data/decode.py", "weights/card_text.py"}
    assert (package / "data/decode.py").read_text().count("Image.open(") == 1


# Files that are refused by Pillow and decoded here, or the other way round
REVIEWED = {
    "23d30eddeda9d0ca.jpg": "59,400 x 3 pixels, most of which are missing",
    "1189b16fadec897b.bmp": "4 bits per color, with color masks that Pillow does not support",
    "51c89919fc6b85cc.bmp": "a palette of 300 colors, of which 256 can be used",
    "2a80a5b6bfecc0a1.bmp": "run-length coded with empty rows, which Pillow omits",
    "305443eb2aceae1f.bmp": "the same",
    "d1251f1c9fb5df3f.bmp": "the same",
    "c76009a8070ba0f2.png": "the chunks of its animation are damaged, but not its picture",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_the_shared_odd_files_decode_as_listed(shared_data: Path) -> None:
    """The list has Pillow's results: sizes before orientation, so height and width of rotated images are swapped."""
    with (shared_data / "odd-images.tsv").open(newline="") as table:
        rows = {row["file"]: row for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)}
    seen = set()
    with tarfile.open(shared_data / "odd-images.tar.gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            row, data = rows[Path(member.name).name], file.read()
            seen.add(row["file"])
            for policy, mode in (("timm", "exact"), ("tessella", "exact"), ("tessella", "fast")):
                code = error_code(data, policy, mode)  # type: ignore[arg-type]
                if row["file"] in REVIEWED:
                    assert (code == "ok") == (row["outcome"] == "rejected") or policy == "timm", (row, code)
                    continue
                assert (code == "ok") == (row["outcome"] == "decoded"), (row, policy, mode, code)
            if row["outcome"] == "decoded" and row["file"] not in REVIEWED:
                size = (int(row["height"]), int(row["width"]))
                assert decode(data, policy="timm").shape[:2] == size
                assert decode(data).shape[:2] in (size, size[::-1])
    assert seen == set(rows)
    assert len(seen) == 647


def test_load_pixels_raises_tessella_errors_only(golden_dir: Path) -> None:
    data = (golden_dir / "images" / "landscape.jpg").read_bytes()
    with pytest.raises(TessellaError):
        load_pixels(data[:1000], InputSpec())
