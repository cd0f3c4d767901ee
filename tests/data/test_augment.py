"""Augmentation: what is drawn by its distribution, what is done by arithmetic written out here."""

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
from tessella.data.operations import INCREASING_OPS, OPERATIONS, RAND_OPS, WEIGHTS, RandomPolicy, Warp, read_policy
from tessella.data.resize import prepare, resize_exact
from tessella.data.spec import InputSpec
from tessella.data.transforms import normalise
from tessella.errors import ImageError, UsageError

SPEC = InputSpec(height=32, width=32, mean=(0.5, 0.25, 1.0), std=(0.5, 0.5, 0.5))
PLAIN: dict[str, Any] = dict(hflip=0.0, interpolation="bicubic")  # nothing but the crop is drawn
STILL: dict[str, Any] = dict(crop="none", **PLAIN)  # nothing is drawn


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_share(hits: int, trials: int, share: float) -> None:
    """Within four standard deviations of what that probability gives."""
    assert abs(hits - trials * share) <= 4 * math.sqrt(trials * share * (1 - share)), (hits / trials, share)


def assert_even(values: list[float], low: float, high: float) -> None:
    """From low to high, with every quarter between having its share."""
    assert low <= min(values)
    assert max(values) <= high
    quarters = Counter(min(int(4 * (value - low) / (high - low)), 3) for value in values)
    for quarter in range(4):
        assert_share(quarters[quarter], len(values), 0.25)


def apply(
    name: str, argument: float, pixels: np.ndarray, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    warp = Warp(resample, fillcolor=(7, 8, 9))
    return np.asarray(OPERATIONS[name].apply(Image.fromarray(pixels), argument, warp))


# --- random resized crop ----------------------------------------------------------------------------------------------


def test_boxes_have_the_areas_and_ratios_asked_for() -> None:
    rng = np.random.default_rng(0)
    boxes = [draw_box(800, 1000, (0.1, 0.4), (0.5, 2.0), rng) for _ in range(3000)]
    heights = [rows.stop - rows.start for rows, _ in boxes]
    widths = [columns.stop - columns.start for _, columns in boxes]
    assert_even([h * w / 800_000 for h, w in zip(heights, widths, strict=True)], 0.0995, 0.4015)
    assert_even([math.log(w / h) for h, w in zip(heights, widths, strict=True)], -0.70, 0.70)
    assert_even([rows.start / max(800 - h, 1) for (rows, _), h in zip(boxes, heights, strict=True)], 0, 1)
    assert_even([columns.start / (1000 - w) for (_, columns), w in zip(boxes, widths, strict=True)], 0, 1)


def test_boxes_reach_every_place() -> None:
    rng = np.random.default_rng(1)
    starts = Counter(draw_box(4, 6, (1 / 6, 1 / 6), (1.0, 1.0), rng)[1].start for _ in range(2000))
    assert sorted(starts) == [0, 1, 2, 3, 4]  # a box of 2 x 2
    for start in range(5):
        assert_share(starts[start], 2000, 0.2)


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
def test_where_no_box_fits_the_middle_is_taken(
    height: int, width: int, ratio: tuple[float, float], box: tuple[int, int, int, int]
) -> None:
    rows, columns = draw_box(height, width, (1.0, 1.0), ratio, np.random.default_rng(2))
    assert (rows.start, rows.stop, columns.start, columns.stop) == box


def test_where_no_box_fits_an_image_of_an_allowed_ratio_is_taken_whole() -> None:
    assert draw_box(30, 40, (2.0, 3.0), (3 / 4, 4 / 3), np.random.default_rng(3)) == (slice(0, 30), slice(0, 40))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
def test_boxes_are_inside_and_not_empty(height: int, width: int, seed: int) -> None:
    rows, columns = draw_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), np.random.default_rng(seed))
    assert 0 <= rows.start < rows.stop <= height
    assert 0 <= columns.start < columns.stop <= width


def test_the_box_is_cut_out_and_then_resized() -> None:
    """Pixels outside the box have no part in it."""
    pixels, config = picture(90, 70), Augmentation(**PLAIN)
    transform = TrainTransform(SPEC, config)
    for seed in range(10):
        cut = draw_cut(90, 70, SPEC, config, np.random.default_rng(seed))
        box = np.ascontiguousarray(pixels[cut.rows, cut.columns])
        want = resize_exact(box, 32, 32, slice(0, 32), slice(0, 32), "bicubic")
        np.testing.assert_array_equal(transform.pixels(pixels, np.random.default_rng(seed)), want)


def test_random_interpolation_is_bilinear_or_bicubic() -> None:
    pixels, rng = picture(50, 50), np.random.default_rng(4)
    transform = TrainTransform(SPEC, Augmentation(hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0)))
    all_of = slice(0, 32)
    linear, cubic = (resize_exact(pixels, 32, 32, all_of, all_of, name) for name in ("bilinear", "bicubic"))
    got = [transform.pixels(pixels, rng) for _ in range(400)]
    linears = sum(np.array_equal(one, linear) for one in got)
    assert linears + sum(np.array_equal(one, cubic) for one in got) == 400
    assert_share(linears, 400, 0.5)


# --- the other crops --------------------------------------------------------------------------------------------------

LARGE = InputSpec(height=4000, width=4000)  # only drawn, so that rounding hides nothing


@pytest.mark.parametrize("crop", ["rkrc", "rkrr"])
def test_keeping_the_ratio_zooms_and_stretches_half_of_the_time(crop: Any) -> None:
    rng = np.random.default_rng(5)
    cuts = [draw_cut(1000, 1000, LARGE, Augmentation(crop=crop), rng) for _ in range(4000)]
    areas = [cut.height * cut.width / 4000**2 for cut in cuts]
    logs = [math.log(cut.width / cut.height) for cut in cuts]
    zoomed, stretched = [area > 1.0005 for area in areas], [abs(log) > 0.0005 for log in logs]
    assert_share(sum(zoomed), 4000, 0.5)
    assert_share(sum(stretched), 4000, 0.5)
    assert_share(sum(z and s for z, s in zip(zoomed, stretched, strict=True)), 4000, 0.25)
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


def test_padding_takes_every_place_of_the_reflected_image() -> None:
    pixels, config = picture(32, 32), Augmentation(crop="pad", padding=4, **PLAIN)
    transform, places = TrainTransform(SPEC, config), Counter[int]()
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    for seed in range(2000):
        cut = draw_cut(32, 32, SPEC, config, np.random.default_rng(seed))
        places[cut.top] += 1
        if seed < 200:
            want = padded[cut.top + 4 : cut.top + 36, cut.left + 4 : cut.left + 36]
            np.testing.assert_array_equal(transform.pixels(pixels, np.random.default_rng(seed)), want)
    assert sorted(places) == list(range(-4, 5))
    for place in places:
        assert_share(places[place], 2000, 1 / 9)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 4)])
def test_borders_wider_than_the_image_are_reflected_again(size: tuple[int, int]) -> None:
    pixels, (height, width) = picture(*size), size
    cut = Cut(slice(0, height), slice(0, width), height, width, top=-9, left=-6)
    got = cut_out(pixels, cut, InputSpec(height=height + 20, width=width + 13), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got, np.pad(pixels, ((9, 11), (6, 7), (0, 0)), mode="reflect"))


def test_without_a_crop_it_is_the_evaluation_transform() -> None:
    transform = TrainTransform(SPEC, Augmentation(**STILL))
    for size in ((50, 70), (31, 90), (32, 32), (3, 2)):
        want = prepare(picture(*size), InputSpec(height=32, width=32, crop_pct=1.0))
        np.testing.assert_array_equal(transform.pixels(picture(*size), np.random.default_rng(7)), want)


@pytest.mark.parametrize("crop", ["rrc", "rkrc", "rkrr", "pad", "none"])
def test_flips(crop: Any) -> None:
    rng, config = np.random.default_rng(21), Augmentation(crop=crop, hflip=0.3, vflip=0.2)
    cuts = [draw_cut(32, 32, SPEC, config, rng) for _ in range(1000)]
    assert_share(sum(cut.hflip for cut in cuts), 1000, 0.3)
    assert_share(sum(cut.vflip for cut in cuts), 1000, 0.2)
    assert_share(sum(cut.hflip and cut.vflip for cut in cuts), 1000, 0.06)
    for size in ((32, 32), (50, 40)):  # with and without resizing
        pixels = picture(*size)
        plain, mirrored, upended = (
            TrainTransform(SPEC, Augmentation(crop=crop, hflip=h, vflip=v, interpolation="bicubic"))
            for h, v in ((0, 0), (1, 0), (0, 1))
        )
        for seed in range(10):
            want = plain.pixels(pixels, np.random.default_rng(seed))
            np.testing.assert_array_equal(mirrored.pixels(pixels, np.random.default_rng(seed)), want[:, ::-1])
            np.testing.assert_array_equal(upended.pixels(pixels, np.random.default_rng(seed)), want[::-1])


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_each_step_is_drawn_as_often_as_asked() -> None:
    config = Augmentation(color_jitter=(0.4, 0, 0), color_jitter_prob=0.8, grayscale_prob=0.1, blur_prob=0.6)
    rng = np.random.default_rng(8)
    drawn = [draw_steps(config, rng) for _ in range(4000)]
    counts = Counter(step.name for steps in drawn for step in steps)
    shares = dict(Brightness=0.8, Color=0.1, GaussianBlur=0.6)
    assert counts.keys() == shares.keys()
    for name, share in shares.items():
        assert_share(counts[name], 4000, share)
    order = list(shares)
    assert all(steps == sorted(steps, key=lambda step: order.index(step.name)) for steps in drawn)
    assert all(step.argument == 0 for steps in drawn for step in steps if step.name == "Color")  # no colour is left
    assert_even([step.argument for steps in drawn for step in steps if step.name == "GaussianBlur"], 0.1, 2.0)


def test_jitter_comes_after_the_policy() -> None:
    config = Augmentation(auto_augment="3a", color_jitter=0.4, grayscale_prob=1, blur_prob=1)
    names = [step.name for step in draw_steps(config, np.random.default_rng(9))]
    assert names[0] in ("Solarize", "Desaturate", "GaussianBlurRand")
    assert set(names[1:4]) == {"Brightness", "Contrast", "Color"}
    assert names[4:] == ["Color", "GaussianBlur"]


def test_jitter_is_even_around_one_in_every_order() -> None:
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
        assert_share(orders[order], 2400, 1 / 24)
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
def test_jitter_gives_way_to_other_policies(fields: dict[str, Any], jitters: bool) -> None:
    config, rng = Augmentation(color_jitter=(0, 0, 0, 0.5), **fields), np.random.default_rng(11)
    drawn = [any(step.name == "Hue" for step in draw_steps(config, rng)) for _ in range(20)]
    assert drawn == [jitters] * 20


# --- RandAugment and 3-Augment ----------------------------------------------------------------------------------------


def test_policies_are_read() -> None:
    assert read_policy("rand") == RandomPolicy(ops=RAND_OPS, levels=(10.0,) * 15)
    usual = read_policy("rand-m9-mstd0.5-inc1")
    assert usual == RandomPolicy(ops=INCREASING_OPS, levels=(9.0,) * 15, level_std=0.5)
    full = read_policy("rand-n3-p0.7-mmax30-m20-mstd101-inc0")
    assert full == RandomPolicy(ops=RAND_OPS, levels=(20.0,) * 15, count=3, prob=0.7, level_std=101.0, max_level=30.0)
    three = read_policy("rand-m6-t3a")
    assert three.ops == ("SolarizeIncreasing", "Desaturate", "GaussianBlur")
    assert three.weights is None
    assert read_policy("3a-mstd2").level_std == 2.0
    assert len(set(RAND_OPS)) == len(set(INCREASING_OPS)) == 15
    assert {op for op in INCREASING_OPS if op not in RAND_OPS} == {
        f"{op}Increasing" for op in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    }


@pytest.mark.parametrize(("name", "total"), [("weights", 10.1), ("3aw", 33.0)])
def test_weighted_policies(name: str, total: float) -> None:
    policy = read_policy(f"rand-n1-p1-t{name}")
    assert dict(zip(policy.ops, policy.weights or (), strict=True)) == WEIGHTS[name]
    assert sum(WEIGHTS[name].values()) == pytest.approx(total)
    rng = np.random.default_rng(12)
    counts = Counter(policy.draw(rng)[0].name for _ in range(4000))
    for op, weight in WEIGHTS[name].items():
        assert_share(counts[op], 4000, weight / total)


def test_without_weights_operations_repeat_and_with_weights_they_do_not() -> None:
    rng, plain, weighted = np.random.default_rng(13), read_policy("rand-p1"), read_policy("rand-p1-tweights")
    picks = [[step.name for step in plain.draw(rng)] for _ in range(3000)]
    assert_share(sum(first == second for first, second in picks), 3000, 1 / 15)
    counts = Counter(name for names in picks for name in names)
    for op in RAND_OPS:
        assert_share(counts[op], 6000, 1 / 15)
    pairs = Counter(tuple(step.name for step in weighted.draw(rng)) for _ in range(6000))
    assert all(first != second for first, second in pairs)
    for first, second in (("Rotate", "ShearX"), ("ShearX", "Rotate"), ("ShearX", "ShearY")):  # the second of the rest
        of = WEIGHTS["weights"]
        assert_share(pairs[first, second], 6000, of[first] / 10.1 * of[second] / (10.1 - of[first]))


def test_operations_are_done_with_their_probability() -> None:
    rng, policy = np.random.default_rng(14), read_policy("rand-n3-p0.3")
    counts = Counter(len(policy.draw(rng)) for _ in range(3000))
    for done in range(4):
        assert_share(counts[done], 3000, math.comb(3, done) * 0.3**done * 0.7 ** (3 - done))


def levels(std: float, mean: float, max_level: float = 10.0) -> np.ndarray:
    """Levels as drawn, read from the radius of a blur."""
    policy = RandomPolicy(ops=("GaussianBlur",), levels=(mean,), count=1, prob=1.0, level_std=std, max_level=max_level)
    rng = np.random.default_rng(15)
    return np.array([(policy.draw(rng)[0].argument - 0.1) / 0.19 for _ in range(3000)])


def test_levels_are_spread_and_clipped() -> None:
    np.testing.assert_allclose(levels(0, 7), 7)
    usual = levels(0.5, 5)
    assert abs(usual.mean() - 5) < 4 * 0.5 / math.sqrt(3000)
    assert usual.std() == pytest.approx(0.5, rel=0.06)
    assert_share(int((np.abs(usual - 5) < 0.5).sum()), 3000, math.erf(1 / math.sqrt(2)))
    wide = levels(3, 9)
    assert wide.max() == pytest.approx(10)
    assert_share(int((wide > 9.9999).sum()), 3000, (1 - math.erf(1 / 3 / math.sqrt(2))) / 2)
    assert_share(int((levels(3, 0) < 1e-4).sum()), 3000, 0.5)
    assert levels(0, 15).max() == pytest.approx(10)
    assert levels(0, 15, 30).min() == pytest.approx(15)
    assert_even(list(levels(101, 8)), 0, 8)


MAPPING = [  # operation, level, argument; "+-" where the sign is drawn
    ("Rotate", 10, "+-30"),
    ("Rotate", 9, "+-27"),
    ("Rotate", 20, "+-60"),
    ("ShearX", 9, "+-0.27"),
    ("ShearY", 10, "+-0.3"),
    ("TranslateXRel", 10, "+-0.45"),
    ("TranslateYRel", 4, "+-0.18"),
    ("Posterize", 10, 4),
    ("Posterize", 4.9, 1),
    ("PosterizeIncreasing", 10, 0),
    ("PosterizeIncreasing", 4.9, 3),
    ("PosterizeIncreasing", 0, 4),
    ("Solarize", 10, 256),
    ("Solarize", 9, 230),
    ("Solarize", 20, 256),
    ("SolarizeIncreasing", 9, 26),
    ("SolarizeIncreasing", 20, 0),
    ("SolarizeAdd", 10, 110),
    ("SolarizeAdd", 9, 99),
    ("SolarizeAdd", 20, 128),
    *((op, 9, 1.72) for op in ("Color", "Contrast", "Brightness", "Sharpness")),
    *((op, 0, 0.1) for op in ("Color", "Contrast", "Brightness", "Sharpness")),
    ("Desaturate", 10, 0),
    ("Desaturate", 4, 0.3),
    ("GaussianBlur", 0, 0.1),
    ("GaussianBlur", 5, 1.05),
    *((op, 7, 0) for op in ("AutoContrast", "Equalize", "Invert")),
]


@pytest.mark.parametrize(("name", "level", "argument"), MAPPING)
def test_levels_become_arguments(name: str, level: float, argument: float | str) -> None:
    rng = np.random.default_rng(16)
    drawn = [OPERATIONS[name].draw_argument(level / 10, rng) for _ in range(200)]
    if isinstance(argument, str):
        np.testing.assert_allclose(np.abs(drawn), float(argument.removeprefix("+-")))
        assert_share(sum(value > 0 for value in drawn), 200, 0.5)
    else:
        np.testing.assert_allclose(drawn, argument, atol=1e-12)


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_increasing_factors_lie_around_one(name: str) -> None:
    rng = np.random.default_rng(17)
    for level, factors in ((0, {1.0}), (5, {0.55, 1.45}), (10, {0.1, 1.9}), (20, {0.1, 2.8})):
        drawn = [round(OPERATIONS[f"{name}Increasing"].draw_argument(level / 10, rng), 9) for _ in range(200)]
        assert set(drawn) == factors
        if len(factors) == 2:
            assert_share(drawn.count(min(factors)), 200, 0.5)


def test_random_blurs_are_even_up_to_their_level() -> None:
    rng = np.random.default_rng(18)
    for share, most in ((1.0, 2.0), (0.5, 1.0)):
        assert_even([OPERATIONS["GaussianBlurRand"].draw_argument(share, rng) for _ in range(2000)], 0.1, most)


def test_three_augment_takes_one_of_three() -> None:
    rng, policy = np.random.default_rng(19), read_policy("3a")
    drawn = [policy.draw(rng) for _ in range(3000)]
    assert all(len(steps) == 1 for steps in drawn)
    counts = Counter(steps[0].name for steps in drawn)
    for name in ("Solarize", "Desaturate", "GaussianBlurRand"):
        assert_share(counts[name], 3000, 1 / 3)
    assert {steps[0].argument for steps in drawn if steps[0].name == "Solarize"} == {128}
    assert {steps[0].argument for steps in drawn if steps[0].name == "Desaturate"} == {0.0}


@pytest.mark.parametrize(
    "text",
    [
        *("original", "originalr", "v0", "v0r-mstd0.5", "augmix-m3-w3", "Rand-m9", "randm9", "r", "-", "3a-m5", "3aw"),
        *("rand-", "rand-m", "rand-mx", "rand-m9-m8", "rand-q3", "rand-m-9", "rand-inc2", "rand-n0", "rand-n1.5"),
        *("rand-p1.5", "rand-mmax0", "rand-t3", "rand-tRotate", "rand-mstdinf", "rand-m9 ", "rand-n16-tweights"),
    ],
)
def test_other_policies_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Augmentation(auto_augment=text)
    assert caught.value.code == "bad_argument"
    assert repr(text) in caught.value.message
    assert all(known in caught.value.hint for known in ("rand-m9-mstd0.5-inc1", "-tweights", "3a-mstd0.5"))


@pytest.mark.parametrize("text", ["original", "v0r", "augmix-m3"])
def test_refusals_say_what_is_left_out(text: str) -> None:
    with pytest.raises(UsageError, match="AutoAugment's tables and AugMix are left out"):
        Augmentation(auto_augment=text)


# --- what is done -----------------------------------------------------------------------------------------------------


def test_operations_on_values() -> None:
    pixels = picture(16, 24)
    np.testing.assert_array_equal(apply("Invert", 0, pixels), 255 - pixels)
    np.testing.assert_array_equal(apply("Posterize", 3, pixels), pixels & 0b11100000)
    np.testing.assert_array_equal(apply("Posterize", 8, pixels), pixels)
    np.testing.assert_array_equal(apply("Posterize", 12, pixels), pixels)
    assert apply("PosterizeIncreasing", -4, pixels).max() == 0
    np.testing.assert_array_equal(apply("Solarize", 100, pixels), np.where(pixels < 100, pixels, 255 - pixels))
    np.testing.assert_array_equal(apply("Solarize", 256, pixels), pixels)
    added = np.minimum(pixels.astype(int) + 50, 255)
    np.testing.assert_array_equal(apply("SolarizeAdd", 50, pixels), np.where(pixels < 128, added, pixels))
    narrow = pixels // 4 + 60
    assert (apply("AutoContrast", 0, narrow).min(), apply("AutoContrast", 0, narrow).max()) == (0, 255)
    assert apply("Equalize", 0, narrow).std() > 2 * narrow.std()


def test_enhancements_move_away_from_what_they_take() -> None:
    pixels = picture(16, 24)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        np.testing.assert_array_equal(apply(name, 1.0, pixels), pixels)
        np.testing.assert_array_equal(apply(f"{name}Increasing", 0.4, pixels), apply(name, 0.4, pixels))
    grey = apply("Color", 0.0, pixels)
    assert np.ptp(grey, axis=2).max() == 0
    np.testing.assert_array_equal(grey, apply("Desaturate", 0.0, pixels))
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[:, :, 0] - luma).max() <= 1
    assert np.abs(apply("Brightness", 0.5, pixels) - pixels / 2).max() <= 1
    assert apply("Contrast", 0.0, pixels).std() == 0
    assert apply("Sharpness", 0.0, pixels).std() < pixels.std()
    assert apply("GaussianBlur", 2.0, pixels).std() < apply("GaussianBlur", 1.0, pixels).std() < pixels.std()


def test_geometric_operations_move_and_fill() -> None:
    pixels, fill = picture(20, 20), np.array([7, 8, 9])
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        np.testing.assert_array_equal(apply(name, 0.0, pixels), pixels)
    np.testing.assert_array_equal(apply("Rotate", 90.0, pixels), np.rot90(pixels))
    assert (apply("Rotate", 45.0, pixels)[0, 0] == fill).all()
    right = apply("TranslateXRel", 0.25, pixels)
    np.testing.assert_array_equal(right[:, :15], pixels[:, 5:])
    assert (right[:, 15:] == fill).all()
    down = apply("TranslateYRel", -0.25, pixels)
    np.testing.assert_array_equal(down[5:], pixels[:15])
    assert (down[:5] == fill).all()
    sheared = apply("ShearX", 1.0, pixels, resample=Image.Resampling.NEAREST)
    for y in (0, 7, 18):  # each row begins one pixel further than the one above
        np.testing.assert_array_equal(sheared[y, : 19 - y], pixels[y, y + 1 :])
        assert (sheared[y, 19 - y :] == fill).all()
    turned = apply("ShearY", 1.0, pixels.transpose(1, 0, 2), resample=Image.Resampling.NEAREST)
    np.testing.assert_array_equal(turned, sheared.transpose(1, 0, 2))


def test_hue() -> None:
    red = np.full((1, 1, 3), [255, 0, 0], np.uint8)
    assert apply("Hue", 1 / 3, red)[0, 0].tolist() == [0, 255, 0]
    assert apply("Hue", -1 / 3, red)[0, 0].tolist() == [6, 0, 255]  # hues are of 256 steps, and 85 is rounded down
    assert apply("Hue", 0.0, red)[0, 0].tolist() == [255, 0, 0]


def test_what_leaves_the_image_has_the_colour_of_the_mean() -> None:
    """And rotations of "lanczos", which Pillow has only for resizing, are bicubic."""
    for interpolation in ("random", "lanczos", "nearest"):
        config = Augmentation(crop="none", hflip=0, interpolation=interpolation, auto_augment="rand-m10-n1-p1-tweights")
        transform, white = TrainTransform(SPEC, config), np.full((32, 32, 3), 255, np.uint8)
        turned = [transform.pixels(white, np.random.default_rng(seed)) for seed in range(40)]
        cornered = [image for image in turned if (image != 255).any()]
        assert len(cornered) > 20
        for image in cornered:  # edges are between white and the fill, corners or a side are the fill
            assert image.reshape(-1, 3).min(0).tolist() == [128, 64, 255]


def test_steps_are_done_in_the_order_drawn() -> None:
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

EVERYTHING = Augmentation(
    auto_augment="rand-m9-mstd0.5-inc1-p1", force_color_jitter=True, color_jitter=0.4, vflip=0.5, blur_prob=0.5
)


def test_a_sample_is_a_function_of_image_and_generator(tmp_path: Path) -> None:
    pixels, transform = picture(60, 50), TrainTransform(SPEC, EVERYTHING)
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
            got = TrainTransform(spec, config).pixels(pixels, np.random.default_rng(size[1]))
            assert got.shape == (height, width, 3)
            assert got.dtype == np.uint8
            assert got.flags.c_contiguous
            assert got.flags.writeable
            assert not np.shares_memory(got, pixels)
            np.testing.assert_array_equal(pixels, picture(*size))


def test_the_input_policy_is_kept() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (32, 32), (10, 20, 30, 0)).save(file, "PNG")
    colours = {}
    for policy in ("tessella", "timm"):
        transform = TrainTransform(SPEC, Augmentation(**STILL), policy=policy)
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
def test_elongated_images_are_not_grown(crop: Any) -> None:
    """32 x 640,000 pixels they would be."""
    line, rng = np.zeros((1, 20_000, 3), np.uint8), np.random.default_rng(0)
    with pytest.raises(ImageError) as caught:
        TrainTransform(SPEC, Augmentation(crop=crop)).pixels(line, rng)
    assert caught.value.code == "too_elongated"
    assert TrainTransform(SPEC, Augmentation()).pixels(line, rng).shape == (32, 32, 3)


def test_tensors_are_normalised_and_erased() -> None:
    pixels = picture(40, 40)
    transform = TrainTransform(SPEC, Augmentation(**STILL))
    whole = transform(pixels)
    assert torch.equal(whole, normalise(transform.pixels(pixels, np.random.default_rng(0))[None], SPEC)[0])
    torch.manual_seed(0)
    erased = TrainTransform(SPEC, Augmentation(**STILL), erasing=Erasing(prob=1, area=(0.2, 0.2)))(pixels)
    changed = (erased != whole).any(0)
    assert float(changed.float().mean()) == pytest.approx(0.2, abs=0.05)
    assert bool((erased[:, changed] == 0).all())


def test_a_transform_follows_torchs_seed() -> None:
    transform = TrainTransform(SPEC, EVERYTHING, erasing=Erasing(prob=1, mode="pixel"))
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
def test_impossible_configs(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Augmentation(**fields)
    assert caught.value.code == "bad_argument"
    assert next(iter(fields)) in caught.value.message


def test_models_of_other_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="1 channels"):
        TrainTransform(InputSpec(channels=1, mean=(0.5,), std=(0.5,)))


def test_importing_needs_no_torch() -> None:
    code = "import tessella.data.augment, tessella.data.mix, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_operation_is_of_some_policy_or_of_the_augmentation_itself() -> None:
    names = {*RAND_OPS, *INCREASING_OPS, *WEIGHTS["weights"], *WEIGHTS["3aw"], *read_policy("3a").ops}
    assert OPERATIONS.keys() - names == {"Hue"}
    assert names < OPERATIONS.keys()
