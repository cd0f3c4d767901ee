"""Test policies by their distributions, and operations against explicit arithmetic."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tessella.data.augment import Augmentation
from tessella.data.operations import INCREASING_OPS, OPERATIONS, RAND_OPS, WEIGHTS, RandomPolicy, read_policy
from tessella.errors import UsageError

from .distributions import apply, assert_even, assert_fraction, picture


def test_policy_strings_are_parsed() -> None:
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
def test_weighted_policies_pick_in_proportion_to_their_weights(name: str, total: float) -> None:
    policy = read_policy(f"rand-n1-p1-t{name}")
    assert dict(zip(policy.ops, policy.weights or (), strict=True)) == WEIGHTS[name]
    assert sum(WEIGHTS[name].values()) == pytest.approx(total)
    rng = np.random.default_rng(12)
    counts = Counter(policy.draw(rng)[0].name for _ in range(4000))
    for op, weight in WEIGHTS[name].items():
        assert_fraction(counts[op], 4000, weight / total)


def test_without_weights_operations_repeat_and_with_weights_they_do_not() -> None:
    rng, plain, weighted = np.random.default_rng(13), read_policy("rand-p1"), read_policy("rand-p1-tweights")
    picks = [[step.name for step in plain.draw(rng)] for _ in range(3000)]
    assert_fraction(sum(first == second for first, second in picks), 3000, 1 / 15)
    counts = Counter(name for names in picks for name in names)
    for op in RAND_OPS:
        assert_fraction(counts[op], 6000, 1 / 15)
    pairs = Counter(tuple(step.name for step in weighted.draw(rng)) for _ in range(6000))
    assert all(first != second for first, second in pairs)
    for first, second in (
        ("Rotate", "ShearX"),
        ("ShearX", "Rotate"),
        ("ShearX", "ShearY"),
    ):  # the second is picked from the rest
        of = WEIGHTS["weights"]
        assert_fraction(pairs[first, second], 6000, of[first] / 10.1 * of[second] / (10.1 - of[first]))


def test_operations_are_applied_with_their_probability() -> None:
    rng, policy = np.random.default_rng(14), read_policy("rand-n3-p0.3")
    counts = Counter(len(policy.draw(rng)) for _ in range(3000))
    for done in range(4):
        assert_fraction(counts[done], 3000, math.comb(3, done) * 0.3**done * 0.7 ** (3 - done))


def levels(std: float, mean: float, max_level: float = 10.0) -> np.ndarray:
    """Return 3,000 drawn levels, derived from the radius of a blur."""
    policy = RandomPolicy(ops=("GaussianBlur",), levels=(mean,), count=1, prob=1.0, level_std=std, max_level=max_level)
    rng = np.random.default_rng(15)
    return np.array([(policy.draw(rng)[0].argument - 0.1) / 0.19 for _ in range(3000)])


def test_levels_are_normally_distributed_and_clipped() -> None:
    np.testing.assert_allclose(levels(0, 7), 7)
    usual = levels(0.5, 5)
    assert abs(usual.mean() - 5) < 4 * 0.5 / math.sqrt(3000)
    assert usual.std() == pytest.approx(0.5, rel=0.06)
    assert_fraction(int((np.abs(usual - 5) < 0.5).sum()), 3000, math.erf(1 / math.sqrt(2)))
    wide = levels(3, 9)
    assert wide.max() == pytest.approx(10)
    assert_fraction(int((wide > 9.9999).sum()), 3000, (1 - math.erf(1 / 3 / math.sqrt(2))) / 2)
    assert_fraction(int((levels(3, 0) < 1e-4).sum()), 3000, 0.5)
    assert levels(0, 15).max() == pytest.approx(10)
    assert levels(0, 15, 30).min() == pytest.approx(15)
    assert_even(list(levels(101, 8)), 0, 8)


ARGUMENTS = [  # operation, level, argument; "+-" if the sign is drawn
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


@pytest.mark.parametrize(("name", "level", "argument"), ARGUMENTS)
def test_levels_map_to_arguments(name: str, level: float, argument: float | str) -> None:
    rng = np.random.default_rng(16)
    drawn = [OPERATIONS[name].draw_argument(level / 10, rng) for _ in range(200)]
    if isinstance(argument, str):
        np.testing.assert_allclose(np.abs(drawn), float(argument.removeprefix("+-")))
        assert_fraction(sum(value > 0 for value in drawn), 200, 0.5)
    else:
        np.testing.assert_allclose(drawn, argument, atol=1e-12)


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_increasing_factors_are_symmetric_around_one(name: str) -> None:
    rng = np.random.default_rng(17)
    for level, factors in ((0, {1.0}), (5, {0.55, 1.45}), (10, {0.1, 1.9}), (20, {0.1, 2.8})):
        drawn = [round(OPERATIONS[f"{name}Increasing"].draw_argument(level / 10, rng), 9) for _ in range(200)]
        assert set(drawn) == factors
        if len(factors) == 2:
            assert_fraction(drawn.count(min(factors)), 200, 0.5)


def test_random_blurs_are_uniform_up_to_their_level() -> None:
    rng = np.random.default_rng(18)
    for level, most in ((1.0, 2.0), (0.5, 1.0)):
        assert_even([OPERATIONS["GaussianBlurRand"].draw_argument(level, rng) for _ in range(2000)], 0.1, most)


def test_three_augment_picks_one_of_three() -> None:
    rng, policy = np.random.default_rng(19), read_policy("3a")
    drawn = [policy.draw(rng) for _ in range(3000)]
    assert all(len(steps) == 1 for steps in drawn)
    counts = Counter(steps[0].name for steps in drawn)
    for name in ("Solarize", "Desaturate", "GaussianBlurRand"):
        assert_fraction(counts[name], 3000, 1 / 3)
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
def test_unknown_policies_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Augmentation(auto_augment=text)
    assert caught.value.code == "bad_argument"
    assert repr(text) in caught.value.message
    assert all(known in caught.value.hint for known in ("rand-m9-mstd0.5-inc1", "-tweights", "3a-mstd0.5"))


@pytest.mark.parametrize("text", ["original", "v0r", "augmix-m3"])
def test_unsupported_policies_are_named(text: str) -> None:
    with pytest.raises(UsageError, match="AutoAugment and AugMix are not supported"):
        Augmentation(auto_augment=text)


def test_operations_on_pixel_values() -> None:
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


def test_enhancements_by_their_definition() -> None:
    pixels = picture(16, 24)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        np.testing.assert_array_equal(apply(name, 1.0, pixels), pixels)
        np.testing.assert_array_equal(apply(f"{name}Increasing", 0.4, pixels), apply(name, 0.4, pixels))
    gray = apply("Color", 0.0, pixels)
    assert np.ptp(gray, axis=2).max() == 0
    np.testing.assert_array_equal(gray, apply("Desaturate", 0.0, pixels))
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray[:, :, 0] - luma).max() <= 1
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
    for y in (0, 7, 18):  # each row starts one pixel further than the one above
        np.testing.assert_array_equal(sheared[y, : 19 - y], pixels[y, y + 1 :])
        assert (sheared[y, 19 - y :] == fill).all()
    turned = apply("ShearY", 1.0, pixels.transpose(1, 0, 2), resample=Image.Resampling.NEAREST)
    np.testing.assert_array_equal(turned, sheared.transpose(1, 0, 2))


def test_hue() -> None:
    red = np.full((1, 1, 3), [255, 0, 0], np.uint8)
    assert apply("Hue", 1 / 3, red)[0, 0].tolist() == [0, 255, 0]
    assert apply("Hue", -1 / 3, red)[0, 0].tolist() == [6, 0, 255]  # hue has 256 steps, and 85 is rounded down
    assert apply("Hue", 0.0, red)[0, 0].tolist() == [255, 0, 0]


def test_every_operation_is_used() -> None:
    names = {*RAND_OPS, *INCREASING_OPS, *WEIGHTS["weights"], *WEIGHTS["3aw"], *read_policy("3a").ops}
    assert OPERATIONS.keys() - names == {"Hue"}
    assert names < OPERATIONS.keys()
