"""Test the augmentation: random choices by their distributions, crops and transforms against explicit arithmetic."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessella.data.augment import Augmentation, Cut, TrainTransform, cut_out, draw_box, draw_cut, draw_steps
from tessella.data.limits import Limits
from tessella.data.mix import Erasing
from tessella.data.resize import prepare, resize_exact
from tessella.data.spec import InputSpec
from tessella.data.transforms import normalise
from tessella.errors import ImageError, UsageError

from .distributions import apply, assert_even, assert_fraction, picture

SPEC = InputSpec(height=32, width=32, mean=(0.5, 0.25, 1.0), std=(0.5, 0.5, 0.5))
CROP_ONLY: dict[str, Any] = dict(hflip=0.0, interpolation="bicubic")  # nothing is random except the crop
NOTHING_RANDOM: dict[str, Any] = dict(crop="none", **CROP_ONLY)


# --- random resized crop ----------------------------------------------------------------------------------------------


def test_boxes_have_the_configured_areas_and_ratios() -> None:
    rng = np.random.default_rng(0)
    boxes = [draw_box(800, 1000, (0.1, 0.4), (0.5, 2.0), rng) for _ in range(3000)]
    heights = [rows.stop - rows.start for rows, _ in boxes]
    widths = [columns.stop - columns.start for _, columns in boxes]
    assert_even([h * w / 800_000 for h, w in zip(heights, widths, strict=True)], 0.0995, 0.4015)
    assert_even([math.log(w / h) for h, w in zip(heights, widths, strict=True)], -0.70, 0.70)
    assert_even([rows.start / max(800 - h, 1) for (rows, _), h in zip(boxes, heights, strict=True)], 0, 1)
    assert_even([columns.start / (1000 - w) for (_, columns), w in zip(boxes, widths, strict=True)], 0, 1)


def test_boxes_reach_every_position() -> None:
    rng = np.random.default_rng(1)
    starts = Counter(draw_box(4, 6, (1 / 6, 1 / 6), (1.0, 1.0), rng)[1].start for _ in range(2000))
    assert sorted(starts) == [0, 1, 2, 3, 4]  # a box of 2 x 2
    for start in range(5):
        assert_fraction(starts[start], 2000, 0.2)


@pytest.mark.parametrize(
    ("height", "width", "ratio", "box"),
    [
        (1000, 10, (3 / 4, 4 / 3), (493, 506, 0, 10)),  # 10 / (3/4) = 13.3 rows
        (10, 1000, (3 / 4, 4 / 3), (0, 10, 493, 506)),  # 10 * (4/3) = 13.3 columns
        (100, 100, (1.2, 1.3), (8, 91, 0, 100)),  # 100 / 1.2 = 83.3 rows
        (100, 100, (0.5, 0.7), (0, 100, 15, 85)),
        (1, 1, (3.0, 4.0), (0, 1, 0, 1)),
        (1, 20_000, (3 / 4, 4 / 3), (0, 1, 9999, 10_000)),
    ],
)
def test_if_no_box_fits_the_centre_is_cropped(
    height: int, width: int, ratio: tuple[float, float], box: tuple[int, int, int, int]
) -> None:
    rows, columns = draw_box(height, width, (1.0, 1.0), ratio, np.random.default_rng(2))
    assert (rows.start, rows.stop, columns.start, columns.stop) == box


def test_if_no_box_fits_an_image_with_an_allowed_ratio_is_used_whole() -> None:
    assert draw_box(30, 40, (2.0, 3.0), (3 / 4, 4 / 3), np.random.default_rng(3)) == (slice(0, 30), slice(0, 40))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
def test_boxes_are_inside_and_not_empty(height: int, width: int, seed: int) -> None:
    rows, columns = draw_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), np.random.default_rng(seed))
    assert 0 <= rows.start < rows.stop <= height
    assert 0 <= columns.start < columns.stop <= width


def test_the_box_is_cropped_and_then_resized() -> None:
    """Pixels outside of the box do not affect the result."""
    pixels, config = picture(90, 70), Augmentation(**CROP_ONLY)
    transform = TrainTransform(SPEC, config)
    for seed in range(10):
        cut = draw_cut(90, 70, SPEC, config, np.random.default_rng(seed))
        box = np.ascontiguousarray(pixels[cut.rows, cut.columns])
        expected = resize_exact(box, 32, 32, slice(0, 32), slice(0, 32), "bicubic")
        np.testing.assert_array_equal(transform.pixels(pixels, np.random.default_rng(seed)), expected)


def test_random_interpolation_is_bilinear_or_bicubic() -> None:
    pixels, rng = picture(50, 50), np.random.default_rng(4)
    transform = TrainTransform(SPEC, Augmentation(hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0)))
    full = slice(0, 32)
    linear, cubic = (resize_exact(pixels, 32, 32, full, full, name) for name in ("bilinear", "bicubic"))
    actual = [transform.pixels(pixels, rng) for _ in range(400)]
    linears = sum(np.array_equal(image, linear) for image in actual)
    assert linears + sum(np.array_equal(image, cubic) for image in actual) == 400
    assert_fraction(linears, 400, 0.5)


# --- the other crops --------------------------------------------------------------------------------------------------

LARGE = InputSpec(height=4000, width=4000)  # so large that rounding does not matter; nothing is resized to it


@pytest.mark.parametrize("crop", ["rkrc", "rkrr"])
def test_rkrc_and_rkrr_zoom_and_stretch_half_of_the_time(crop: Any) -> None:
    rng = np.random.default_rng(5)
    cuts = [draw_cut(1000, 1000, LARGE, Augmentation(crop=crop), rng) for _ in range(4000)]
    areas = [cut.height * cut.width / 4000**2 for cut in cuts]
    logs = [math.log(cut.width / cut.height) for cut in cuts]
    zoomed, stretched = [area > 1.0005 for area in areas], [abs(log) > 0.0005 for log in logs]
    assert_fraction(sum(zoomed), 4000, 0.5)
    assert_fraction(sum(stretched), 4000, 0.5)
    assert_fraction(sum(z and s for z, s in zip(zoomed, stretched, strict=True)), 4000, 0.25)
    assert_even([1 / area for area, z in zip(areas, zoomed, strict=True) if z], 0.7995, 1.0005)
    assert_even([log for log, s in zip(logs, stretched, strict=True) if s], math.log(0.8995), -math.log(0.8995))
    assert all(cut.rows == cut.columns == slice(0, 1000) for cut in cuts)
    for cut in cuts:
        for start, size in ((cut.top, cut.height), (cut.left, cut.width)):
            if crop == "rkrc":
                assert abs(start - (size - 4000) / 2) <= 0.5
            else:
                assert min(size - 4000, 0) <= start <= max(size - 4000, 0)
    if crop == "rkrr":
        assert_even([cut.left / (cut.width - 4000) for cut in cuts if abs(cut.width - 4000) > 100], 0, 1)


@pytest.mark.parametrize("crop", ["rkrc", "rkrr", "pad", "none"])
def test_the_image_is_resized_to_cover_the_input(crop: Any) -> None:
    config = Augmentation(crop=crop, scale=(1.0, 1.0), ratio=(1.0, 1.0), padding=0)
    for (height, width), size in (
        ((64, 128), (32, 64)),
        ((20, 10), (64, 32)),
        ((32, 32), (32, 32)),
        ((1, 3), (32, 96)),
    ):
        cut = draw_cut(height, width, SPEC, config, np.random.default_rng(6))
        assert (cut.height, cut.width) == size


def test_pad_crops_every_window_of_the_reflected_image() -> None:
    pixels, config = picture(32, 32), Augmentation(crop="pad", padding=4, **CROP_ONLY)
    transform, offsets = TrainTransform(SPEC, config), Counter[int]()
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    for seed in range(2000):
        cut = draw_cut(32, 32, SPEC, config, np.random.default_rng(seed))
        offsets[cut.top] += 1
        if seed < 200:
            expected = padded[cut.top + 4 : cut.top + 36, cut.left + 4 : cut.left + 36]
            np.testing.assert_array_equal(transform.pixels(pixels, np.random.default_rng(seed)), expected)
    assert sorted(offsets) == list(range(-4, 5))
    for offset in offsets:
        assert_fraction(offsets[offset], 2000, 1 / 9)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 4)])
def test_borders_wider_than_the_image_are_reflected_repeatedly(size: tuple[int, int]) -> None:
    pixels, (height, width) = picture(*size), size
    cut = Cut(slice(0, height), slice(0, width), height, width, top=-9, left=-6)
    actual = cut_out(pixels, cut, InputSpec(height=height + 20, width=width + 13), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(actual, np.pad(pixels, ((9, 11), (6, 7), (0, 0)), mode="reflect"))


def test_crop_none_equals_the_evaluation_transform() -> None:
    transform = TrainTransform(SPEC, Augmentation(**NOTHING_RANDOM))
    for size in ((50, 70), (31, 90), (32, 32), (3, 2)):
        expected = prepare(picture(*size), InputSpec(height=32, width=32, crop_pct=1.0))
        np.testing.assert_array_equal(transform.pixels(picture(*size), np.random.default_rng(7)), expected)


@pytest.mark.parametrize("crop", ["rrc", "rkrc", "rkrr", "pad", "none"])
def test_flips(crop: Any) -> None:
    rng, config = np.random.default_rng(21), Augmentation(crop=crop, hflip=0.3, vflip=0.2)
    cuts = [draw_cut(32, 32, SPEC, config, rng) for _ in range(1000)]
    assert_fraction(sum(cut.hflip for cut in cuts), 1000, 0.3)
    assert_fraction(sum(cut.vflip for cut in cuts), 1000, 0.2)
    assert_fraction(sum(cut.hflip and cut.vflip for cut in cuts), 1000, 0.06)
    for size in ((32, 32), (50, 40)):  # with and without resizing
        pixels = picture(*size)
        plain, mirrored, upended = (
            TrainTransform(SPEC, Augmentation(crop=crop, hflip=h, vflip=v, interpolation="bicubic"))
            for h, v in ((0, 0), (1, 0), (0, 1))
        )
        for seed in range(10):
            expected = plain.pixels(pixels, np.random.default_rng(seed))
            np.testing.assert_array_equal(mirrored.pixels(pixels, np.random.default_rng(seed)), expected[:, ::-1])
            np.testing.assert_array_equal(upended.pixels(pixels, np.random.default_rng(seed)), expected[::-1])


# --- random operations ------------------------------------------------------------------------------------------------


def test_each_step_is_drawn_with_its_probability() -> None:
    config = Augmentation(color_jitter=(0.4, 0, 0), color_jitter_prob=0.8, grayscale_prob=0.1, blur_prob=0.6)
    rng = np.random.default_rng(8)
    drawn = [draw_steps(config, rng) for _ in range(4000)]
    counts = Counter(step.name for steps in drawn for step in steps)
    probabilities = dict(Brightness=0.8, Color=0.1, GaussianBlur=0.6)
    assert counts.keys() == probabilities.keys()
    for name, probability in probabilities.items():
        assert_fraction(counts[name], 4000, probability)
    order = list(probabilities)
    assert all(steps == sorted(steps, key=lambda step: order.index(step.name)) for steps in drawn)
    assert all(step.argument == 0 for steps in drawn for step in steps if step.name == "Color")  # grayscale
    assert_even([step.argument for steps in drawn for step in steps if step.name == "GaussianBlur"], 0.1, 2.0)


def test_jitter_comes_after_the_policy() -> None:
    config = Augmentation(auto_augment="3a", color_jitter=0.4, grayscale_prob=1, blur_prob=1)
    names = [step.name for step in draw_steps(config, np.random.default_rng(9))]
    assert names[0] in ("Solarize", "Desaturate", "GaussianBlurRand")
    assert set(names[1:4]) == {"Brightness", "Contrast", "Color"}
    assert names[4:] == ["Color", "GaussianBlur"]


def test_jitter_factors_are_uniform_around_one_in_random_order() -> None:
    config, rng = Augmentation(color_jitter=(0.4, 0.2, 1.5, 0.1)), np.random.default_rng(10)
    drawn = [draw_steps(config, rng) for _ in range(2400)]
    arguments = {name: [s.argument for steps in drawn for s in steps if s.name == name] for name, _ in drawn[0]}
    bounds = dict(Brightness=(0.6, 1.4), Contrast=(0.8, 1.2), Color=(0.0, 2.5), Hue=(-0.1, 0.1))
    assert arguments.keys() == bounds.keys()
    for name, (low, high) in bounds.items():
        assert len(arguments[name]) == 2400
        assert_even(arguments[name], low, high)
    orders = Counter(tuple(step.name for step in steps) for steps in drawn)
    assert len(orders) == 24
    for order in orders:
        assert_fraction(orders[order], 2400, 1 / 24)
    three = draw_steps(Augmentation(color_jitter=0.4), rng)
    assert {step.name for step in three} == {"Brightness", "Contrast", "Color"}


@pytest.mark.parametrize(
    ("fields", "jitters"),
    [
        (dict(), True),
        (dict(auto_augment="rand-m9"), False),
        (dict(auto_augment="rand-m9", force_color_jitter=True), True),
        (dict(auto_augment="3a"), True),
        (dict(auto_augment="rand-m9-t3aw"), True),
    ],
)
def test_policies_replace_jitter_unless_forced(fields: dict[str, Any], jitters: bool) -> None:
    config, rng = Augmentation(color_jitter=(0, 0, 0, 0.5), **fields), np.random.default_rng(11)
    drawn = [any(step.name == "Hue" for step in draw_steps(config, rng)) for _ in range(20)]
    assert drawn == [jitters] * 20


def test_pixels_outside_of_the_image_are_filled_with_the_mean() -> None:
    """Rotations with "lanczos", which Pillow supports only for resizing, are bicubic."""
    for interpolation in ("random", "lanczos", "nearest"):
        config = Augmentation(crop="none", hflip=0, interpolation=interpolation, auto_augment="rand-m10-n1-p1-tweights")
        transform, white = TrainTransform(SPEC, config), np.full((32, 32, 3), 255, np.uint8)
        turned = [transform.pixels(white, np.random.default_rng(seed)) for seed in range(40)]
        cornered = [image for image in turned if (image != 255).any()]
        assert len(cornered) > 20
        for image in cornered:  # edges lie between white and the fill, corners or a side have the fill
            assert image.reshape(-1, 3).min(0).tolist() == [128, 64, 255]


def test_steps_are_applied_in_the_order_drawn() -> None:
    config = Augmentation(
        crop="none", interpolation="bilinear", hflip=0, color_jitter=(0.5, 0.5, 0.5, 0.3), blur_prob=1
    )
    pixels, transform, rng = picture(32, 32), TrainTransform(SPEC, config), np.random.default_rng(20)
    draw_cut(32, 32, SPEC, config, rng)
    image = pixels
    for name, argument in draw_steps(config, rng):
        image = apply(name, argument, image)
    np.testing.assert_array_equal(transform.pixels(pixels, np.random.default_rng(20)), image)


# --- the transform ----------------------------------------------------------------------------------------------------

ALL_OPERATIONS = Augmentation(
    auto_augment="rand-m9-mstd0.5-inc1-p1", force_color_jitter=True, color_jitter=0.4, vflip=0.5, blur_prob=0.5
)


def test_a_sample_depends_only_on_image_and_generator(tmp_path: Path) -> None:
    pixels, transform = picture(60, 50), TrainTransform(SPEC, ALL_OPERATIONS)
    once = [transform.pixels(pixels, np.random.default_rng(seed)) for seed in range(8)]
    torch.manual_seed(1)
    again = [pickle.loads(pickle.dumps(transform)).pixels(pixels, np.random.default_rng(s)) for s in reversed(range(8))]
    for first, second in zip(once, reversed(again), strict=True):
        np.testing.assert_array_equal(first, second)
    assert len({image.tobytes() for image in once}) == 8
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    for source in (file.getvalue(), tmp_path / "a.png", Image.fromarray(pixels)):
        np.testing.assert_array_equal(transform.pixels(source, np.random.default_rng(3)), once[3])


@pytest.mark.parametrize("crop", ["rrc", "rkrc", "rkrr", "pad", "none"])
@pytest.mark.parametrize("auto_augment", ["", "rand-m9-mstd0.5-inc1-p1-n4", "rand-m10-p1-t3aw", "3a"])
def test_odd_sizes(crop: Any, auto_augment: str) -> None:
    config = Augmentation(crop=crop, auto_augment=auto_augment, color_jitter=(0.4, 0.4, 0.4, 0.1), blur_prob=0.5)
    for height, width in ((32, 40), (1, 1), (2, 3)):
        spec = InputSpec(height=height, width=width)
        for size in ((1, 1), (1, 7), (3, 200), (5, 2), (37, 91), (32, 40)):
            pixels = picture(*size)
            actual = TrainTransform(spec, config).pixels(pixels, np.random.default_rng(size[1]))
            assert actual.shape == (height, width, 3)
            assert actual.dtype == np.uint8
            assert actual.flags.c_contiguous
            assert actual.flags.writeable
            assert not np.shares_memory(actual, pixels)
            np.testing.assert_array_equal(pixels, picture(*size))


def test_the_decoding_policy_is_used() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (32, 32), (10, 20, 30, 0)).save(file, "PNG")
    colours = {}
    for policy in ("tessella", "timm"):
        transform = TrainTransform(SPEC, Augmentation(**NOTHING_RANDOM), policy=policy)
        colours[policy] = transform.pixels(file.getvalue(), np.random.default_rng(0))[0, 0].tolist()
    assert colours == dict(tessella=[255, 255, 255], timm=[10, 20, 30])


def test_image_errors_pass_through() -> None:
    transform = TrainTransform(SPEC, Augmentation())
    for source, code in ((b"", "empty"), (b"no image", "unsupported_format"), (Path("nowhere.png"), "not_found")):
        with pytest.raises(ImageError) as caught:
            transform.pixels(source, np.random.default_rng(0))
        assert caught.value.code == code
    small = TrainTransform(SPEC, Augmentation(), limits=Limits(pixels=100))
    with pytest.raises(ImageError) as caught:
        small.pixels(picture(20, 20), np.random.default_rng(0))
    assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize("crop", ["rkrc", "rkrr", "pad", "none"])
def test_elongated_images_are_refused_before_they_grow(crop: Any) -> None:
    """They would have 32 x 640,000 pixels."""
    line, rng = np.zeros((1, 20_000, 3), np.uint8), np.random.default_rng(0)
    with pytest.raises(ImageError) as caught:
        TrainTransform(SPEC, Augmentation(crop=crop)).pixels(line, rng)
    assert caught.value.code == "too_elongated"
    assert TrainTransform(SPEC, Augmentation()).pixels(line, rng).shape == (32, 32, 3)


def test_tensors_are_normalised_and_erased() -> None:
    pixels = picture(40, 40)
    transform = TrainTransform(SPEC, Augmentation(**NOTHING_RANDOM))
    intact = transform(pixels)
    assert torch.equal(intact, normalise(transform.pixels(pixels, np.random.default_rng(0))[None], SPEC)[0])
    torch.manual_seed(0)
    erased = TrainTransform(SPEC, Augmentation(**NOTHING_RANDOM), erasing=Erasing(prob=1, area=(0.2, 0.2)))(pixels)
    changed = (erased != intact).any(0)
    assert float(changed.float().mean()) == pytest.approx(0.2, abs=0.05)
    assert bool((erased[:, changed] == 0).all())


def test_transforms_draw_from_torchs_random_numbers() -> None:
    transform = TrainTransform(SPEC, ALL_OPERATIONS, erasing=Erasing(prob=1, mode="pixel"))
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(torch.stack([transform(picture(40, 40)) for _ in range(3)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1])


@pytest.mark.parametrize(
    "fields",
    [
        dict(crop="center"),
        dict(scale=(0.5, 0.1)),
        dict(scale=(0.0, 1.0)),
        dict(scale=(0.5,)),
        dict(ratio=(1.0, math.inf)),
        dict(padding=-1),
        dict(interpolation="cubic"),
        dict(hflip=1.5),
        dict(vflip=-0.5),
        dict(grayscale_prob=math.nan),
        dict(blur_prob=2),
        dict(color_jitter_prob=-1),
        dict(color_jitter=-0.4),
        dict(color_jitter=(0.4, 0.4)),
        dict(color_jitter=(0.4, 0.4, 0.4, 0.6)),
        dict(color_jitter=(0.4, 0.4, math.nan)),
    ],
)
def test_invalid_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Augmentation(**fields)
    assert caught.value.code == "bad_argument"
    assert next(iter(fields)) in caught.value.message


def test_models_without_three_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="1 channels"):
        TrainTransform(InputSpec(channels=1, mean=(0.5,), std=(0.5,)))


def test_importing_does_not_import_torch() -> None:
    code = "import tessella.data.augment, tessella.data.mix, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
