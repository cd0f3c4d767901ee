"""Test the geometry of resizing and cropping against timm's steps on Pillow images, and the bound of mode "fast"."""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessella.data.limits import DEFAULT_LIMITS, Limits
from tessella.data.resize import geometry, prepare
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.errors import ImageError, UsageError

RNG = np.random.default_rng(3)


def picture(height: int, width: int) -> np.ndarray:
    """Return smooth color with hard edges and a little noise, on which resizing filters differ."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), 255 * ((x // 9 + y // 7) % 2)], -1)
    return np.clip(base + RNG.normal(0, 8, base.shape), 0, 255).astype(np.uint8)


def prepare_with_pillow(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Return the result of timm's evaluation steps, applied one by one to Pillow images."""
    image, resample = Image.fromarray(pixels), Image.Resampling[spec.interpolation.upper()]
    scale_w, scale_h = (math.floor(side / spec.crop_pct) for side in (spec.width, spec.height))
    width, height = image.size
    if spec.crop_mode == "squash":
        image = image.resize((scale_w, scale_h), resample)
    elif spec.crop_mode == "center" and scale_w == scale_h:
        if width <= height:
            image = image.resize((scale_w, int(scale_w * height / width)), resample)
        else:
            image = image.resize((int(scale_w * width / height), scale_w), resample)
    else:
        ratios = (height / scale_h, width / scale_w)
        ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
        image = image.resize((round(width / ratio), round(height / ratio)), resample)
    fill = tuple(round(255 * m) for m in spec.mean) if spec.crop_mode == "border" else (0, 0, 0)
    width, height = image.size
    padded_w, padded_h = max(width, spec.width), max(height, spec.height)
    canvas = Image.new("RGB", (padded_w, padded_h), fill)
    canvas.paste(image, ((padded_w - width) // 2, (padded_h - height) // 2))
    left, top = round((padded_w - spec.width) / 2), round((padded_h - spec.height) / 2)
    return np.asarray(canvas.crop((left, top, left + spec.width, top + spec.height)))


SIZES = [(40, 60), (61, 40), (33, 33), (20, 90), (90, 20), (7, 5), (1, 1), (1, 3), (64, 64), (200, 131)]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (50, 30)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.96, 1.0, 1.2, 0.5])
def test_geometry_equals_timms(crop_mode: str, height: int, width: int, crop_pct: float) -> None:
    for interpolation in ("bicubic", "bilinear", "nearest", "lanczos"):
        spec = InputSpec(
            height=height, width=width, crop_mode=crop_mode, crop_pct=crop_pct, interpolation=interpolation
        )
        for size in SIZES:
            pixels = picture(*size)
            exact = prepare(pixels, spec)
            assert exact.shape == (height, width, 3)
            np.testing.assert_array_equal(exact, prepare_with_pillow(pixels, spec), err_msg=f"{size} {spec}")
            fast = prepare(pixels, spec, "fast")
            assert np.abs(fast.astype(int) - exact).max() <= 2, (size, spec)


def test_published_recipes_resize_to_known_sides() -> None:
    for size, crop_pct, side in ((224, 0.96, 233), (224, 0.875, 256), (240, 0.875, 274), (408, 1.0, 408)):
        plan = geometry(500, 700, InputSpec(height=size, width=size, crop_pct=crop_pct))
        assert (plan.height, plan.width) == (side, int(side * 700 / 500))
        assert (plan.top, plan.left) == (round((side - size) / 2), round((plan.width - size) / 2))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 500),
    st.integers(1, 500),
    st.floats(0.1, 2),
    st.sampled_from(["center", "squash", "border"]),
)
def test_the_window_always_overlaps_the_image(h: int, w: int, height: int, width: int, pct: float, mode: str) -> None:
    plan = geometry(h, w, InputSpec(height=height, width=width, crop_pct=pct, crop_mode=mode))
    for offset, size, window in ((plan.top, plan.height, height), (plan.left, plan.width, width)):
        assert size >= 1
        assert abs(offset - (size - window) / 2) < 1  # centered
        assert (offset <= 0) if size <= window else (offset >= 0 and offset + window <= size)


def test_fast_if_an_axis_keeps_its_size() -> None:
    """Sizes at which a kernel could skip an axis that has to be scaled."""
    for size in ((32, 50), (50, 32), (32, 32), (45, 41), (41, 37), (38, 64)):
        for crop_pct in (1.0, 0.875, 0.8, 0.7):
            spec = InputSpec(height=32, width=32, crop_pct=crop_pct)
            pixels = picture(*size)
            exact, fast = prepare(pixels, spec), prepare(pixels, spec, "fast")
            assert np.abs(fast.astype(int) - exact).max() <= 2, (size, crop_pct)


def test_fast_is_within_its_bound_at_many_sizes() -> None:
    """Including tall images, whose rows Pillow resizes first; at most about one value in a million differs by 2."""
    off_by_two = values = 0
    for i in range(60):
        height, width = (int(n) for n in RNG.integers(20, 500, 2))
        spec = InputSpec(height=96, width=96, interpolation=("bicubic", "bilinear")[i % 2])
        pixels = picture(height, width)
        difference = np.abs(prepare(pixels, spec).astype(int) - prepare(pixels, spec, "fast"))
        assert difference.max() <= 2, (height, width)
        off_by_two += int((difference > 1).sum())
        values += difference.size
    assert off_by_two <= 2e-5 * values


def test_input_arrays_are_not_modified() -> None:
    pixels = picture(40, 50)
    pixels.setflags(write=False)
    copy = pixels.copy()
    for mode in ("exact", "fast"):
        result = prepare(pixels, InputSpec(height=32, width=32), mode)
        assert result.flags.writeable
        assert result.flags.c_contiguous
    np.testing.assert_array_equal(pixels, copy)


def test_prepare_refuses_elongated_arrays() -> None:
    for source in (np.zeros((20_000, 1, 3), np.uint8), np.zeros((1, 20_000, 3), np.uint8)):
        for call in (prepare, load_pixels):
            with pytest.raises(ImageError) as error:
                call(source, InputSpec())
            assert error.value.code == "too_elongated"
    assert load_pixels(np.zeros((1000, 10, 3), np.uint8), InputSpec(), limits=DEFAULT_LIMITS).shape == (224, 224, 3)
    with pytest.raises(ImageError):
        load_pixels(np.zeros((1000, 10, 3), np.uint8), InputSpec(), limits=Limits(intermediate=256 * 25_599))


def test_models_without_three_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="channels"):
        prepare(picture(4, 4), InputSpec(channels=1, mean=(0.5,), std=(0.5,)))


@pytest.mark.slow
def test_fast_is_within_its_bound_on_photographs(shared_data: Path) -> None:
    """Every 20th of the shared photographs (the benchmark uses all): at most 2 gray levels, mostly none."""
    specs = [InputSpec(), InputSpec(interpolation="bilinear"), InputSpec(height=408, width=408, crop_pct=1.0)]
    off_by_two = values = 0
    with tarfile.open(shared_data / "photos.tar") as archive:
        photos = [m for m in archive if m.name.endswith(".jpg")][::20]
        for member in photos:
            file = archive.extractfile(member)
            assert file is not None
            data = io.BytesIO(file.read()).getvalue()
            for spec in specs:
                exact = load_pixels(data, spec, policy="timm")
                difference = np.abs(exact.astype(int) - load_pixels(data, spec, policy="timm", mode="fast"))
                assert difference.max() <= 2, (member.name, spec)
                off_by_two += int((difference > 1).sum())
                values += difference.size
    assert len(photos) == 50
    assert off_by_two <= 1e-5 * values
