"""Test that our resize gives Pillow's pixels, bit for bit if it is exact, and only what is asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessella.data import resample as module
from tessella.data.resample import Span, can_resample, resample

from .test_resize import picture

INTERPOLATIONS = ("bilinear", "bicubic")


def by_pillow(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()]))


def resized(
    pixels: np.ndarray,
    size: tuple[int, int],
    interpolation: str,
    *,
    exact: bool = True,
    rows: slice | None = None,
    columns: slice | None = None,
    source: tuple[Span, Span] | None = None,
) -> np.ndarray:
    rows, columns = rows or slice(0, size[0]), columns or slice(0, size[1])
    out = np.full((rows.stop - rows.start, columns.stop - columns.start, 3), 77, np.uint8)
    resample(pixels, size, rows, columns, interpolation, exact=exact, out=out, source=source)
    return out


def window(size: int, first: int, last: int) -> slice:
    first, last = sorted((first % size, last % size))
    return slice(first, last + 1)


@settings(max_examples=250, deadline=None)
@given(
    *(st.integers(1, 260) for _ in range(4)),
    *(st.integers(0, 1000) for _ in range(4)),
    st.sampled_from(INTERPOLATIONS),
    st.booleans(),
)
def test_every_part_equals_pillows(
    old_h: int, old_w: int, h: int, w: int, r0: int, r1: int, c0: int, c1: int, interpolation: str, noise: bool
) -> None:
    if not can_resample((old_h, old_w), (h, w), interpolation, None):
        return
    rng = np.random.default_rng(old_h * old_w)
    pixels = rng.integers(0, 256, (old_h, old_w, 3), np.uint8) if noise else picture(old_h, old_w)
    rows, columns = window(h, r0, r1), window(w, c0, c1)
    expected = by_pillow(pixels, h, w, interpolation)[rows, columns]
    np.testing.assert_array_equal(resized(pixels, (h, w), interpolation, rows=rows, columns=columns), expected)
    fast = resized(pixels, (h, w), interpolation, exact=False, rows=rows, columns=columns)
    assert np.abs(fast.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_large_images_and_extreme_values_equal_pillows(interpolation: str) -> None:
    """Several chunks of rows, many weights per output, and pixels of 0 and 255 only, whose sums are the largest."""
    rng = np.random.default_rng(0)
    for size, new in (((1100, 1500), (256, 349)), ((2500, 2600), (24, 25)), ((700, 900), (1400, 1800))):
        pixels = (rng.integers(0, 2, (*size, 3)) * 255).astype(np.uint8)
        assert can_resample(size, new, interpolation, None)
        np.testing.assert_array_equal(resized(pixels, new, interpolation), by_pillow(pixels, *new, interpolation))


def test_an_image_of_one_color_keeps_it() -> None:
    for value in (0, 1, 127, 254, 255):
        pixels = np.full((311, 400, 3), value, np.uint8)
        for size in ((256, 329), (37, 48), (600, 771)):
            for exact in (True, False):
                assert (resized(pixels, size, "bicubic", exact=exact) == value).all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_sums_are_exact_in_float32(interpolation: str) -> None:
    """Weights are integers (high bits) or multiples of 2**-7 (low bits), and no sum needs more than 24 bits."""
    for old, new in ((500, 341), (60_000, 60 * (4 if interpolation == "bicubic" else 2)), (30, 500), (7, 7)):
        axis = module._axis(Span(0, old, old), new, 0, new, interpolation, True)
        for _, block in axis.blocks:
            high, low = block[: axis.outputs], block[axis.outputs :] * 2.0**7
            for integers in (high, low):
                np.testing.assert_array_equal(integers, np.round(integers))
                assert 255 * np.abs(integers.astype(float)).sum(1).max() < 2**24


def test_a_part_of_the_source() -> None:
    """A whole number of pixels gives what Pillow gives for its box; half a pixel at each end is a shift by half."""
    pixels = picture(64, 96)
    source = (Span(8, 56, 64), Span(16, 80, 96))
    expected = Image.fromarray(pixels).resize((32, 24), Image.Resampling.BICUBIC, box=(16, 8, 80, 56))
    np.testing.assert_array_equal(resized(pixels, (24, 32), "bicubic", source=source), np.asarray(expected))
    ramp = np.repeat(np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 60, 0), 3, 2)
    whole = resized(ramp, (30, 30), "bilinear").astype(int)
    shifted = resized(ramp, (30, 30), "bilinear", source=(Span(0, 60, 60), Span(0.5, 60, 60))).astype(int)
    np.testing.assert_array_equal((shifted - whole)[:, 1:6], 2)  # half a pixel is worth 2 gray levels at the left


def test_the_reversed_source_of_a_reversed_image() -> None:
    pixels = picture(47, 63)
    rows, columns = Span(0, 46.875, 47), Span(0, 62.5, 63)
    assert rows.reversed() == Span(0.125, 47, 47)
    assert rows.reversed().reversed() == rows
    plain = resized(pixels, (16, 21), "bicubic", source=(rows, columns)).astype(int)
    turned = pixels[::-1, ::-1]
    reversed_twice = resized(turned, (16, 21), "bicubic", source=(rows.reversed(), columns.reversed()))[::-1, ::-1]
    assert np.abs(plain - reversed_twice).max() <= 1  # 22-bit weights, in the other order
    assert np.abs(plain - resized(turned, (16, 21), "bicubic", source=(rows, columns))[::-1, ::-1]).max() > 5


def test_results_are_written_into_a_part_of_a_batch() -> None:
    pixels = picture(90, 120)
    batch = np.full((3, 40, 50, 3), 9, np.uint8)
    resample(pixels, (60, 80), slice(0, 20), slice(0, 30), "bicubic", exact=True, out=batch[1, 10:30, 15:45])
    np.testing.assert_array_equal(batch[1, 10:30, 15:45], by_pillow(pixels, 60, 80, "bicubic")[:20, :30])
    batch[1, 10:30, 15:45] = 9
    assert (batch == 9).all()


def test_threads_do_not_share_memory() -> None:
    images = [picture(100 + 7 * i, 140 + 11 * i) for i in range(8)] * 4
    expected = [by_pillow(image, 64, 80, "bicubic") for image in images]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(
            pool.map(lambda image: resized(image, (64, 80), "bicubic"), images), expected, strict=True
        ):
            np.testing.assert_array_equal(actual, wanted)


def test_memory_of_a_thread_is_limited() -> None:
    """A large image uses memory of its own, which is not kept."""
    resized(picture(300, 400), (64, 85), "bicubic")
    before = len(module._scratch._memory)
    assert 0 < before <= module._MOST_KEPT
    resized(np.zeros((3000, 4000, 3), np.uint8), (1500, 2000), "bicubic")
    assert len(module._scratch._memory) == before


def test_what_is_left_to_pillow() -> None:
    assert can_resample((375, 500), (256, 341), "bicubic", None)
    assert not can_resample((375, 500), (256, 341), "lanczos", None)
    assert not can_resample((1000, 100), (256, 64), "bicubic", None)  # Pillow 13 starts with the columns
    assert can_resample((1000, 100), (256, 64), "bicubic", (Span(0, 999.5, 1000), Span(0, 100, 100)))
    assert not can_resample((65_000, 65_000), (32, 32), "bicubic", None)  # too many weights for exact sums
