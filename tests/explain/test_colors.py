"""Colors and overlays: readable without hues, by everyone, at any size."""

from __future__ import annotations

import numpy as np
import pytest

from tessella.data.decode import Pixels
from tessella.explain.colors import (
    ANCHORS,
    NEGATIVE,
    POSITIVE,
    color_table,
    colorize,
    enlarge,
    is_averaged,
    luminance,
    overlay,
    scale_of,
)
from tessella.explain.maps import cell_means
from tessella.results import FloatArray

# From linear RGB to what people without one kind of cone see: Viénot, Brettel and Mollon 1999 for protan and deutan,
# and for tritan the same construction with white and the primaries blue and red (Brettel, Viénot and Mollon 1997).
DEFICIENCIES = {
    "protan": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deutan": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
    "tritan": ((1.0, 0.14461, -0.14461), (0.0, 0.85924, 0.14076), (0.0, 0.85924, 0.14076)),
}


def to_linear(colors: Pixels) -> FloatArray:
    share = colors.astype(np.float32) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_pixels(linear: FloatArray) -> Pixels:
    share = np.clip(linear, 0, 1)
    return np.round(255 * np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


def test_luminance_of_known_colors() -> None:
    colors = np.array([[0, 0, 0], [255, 255, 255], [119, 119, 119], [0, 0, 255]], np.uint8)
    assert np.allclose(luminance(colors), [0, 100, 50.03, 32.30], atol=0.01)  # CIE 1976 of sRGB


def test_the_table_becomes_steadily_lighter() -> None:
    """In a gray print, the sign and the order of all values remain: dark is negative, light is positive."""
    lightness = luminance(color_table())
    assert (np.diff(lightness) > 0).all()
    middle = len(lightness) // 2
    assert lightness[0] < 20
    assert lightness[-1] > 90
    assert abs(lightness[middle] - lightness[[0, -1]].mean()) < 5  # both signs have the same range


@pytest.mark.parametrize("kind", DEFICIENCIES)
def test_signs_differ_for_color_blind_people(kind: str) -> None:
    seen = to_pixels(to_linear(color_table()) @ np.array(DEFICIENCIES[kind], np.float32).T)
    lightness = luminance(seen)
    assert (np.diff(lightness[::16]) > 0).all()
    quarter = len(lightness) // 4
    assert lightness[-quarter] - lightness[quarter] > 25  # half of the largest value, positive and negative


def test_zero_is_gray() -> None:
    red, green, blue = color_table()[len(color_table()) // 2]
    assert red == green == blue


def test_the_legend_has_colors_of_the_table() -> None:
    table = {"#{:02x}{:02x}{:02x}".format(*anchor) for anchor in ANCHORS}
    assert {NEGATIVE, POSITIVE} < table


def test_values_are_colored_symmetrically_about_zero() -> None:
    table = color_table()
    colors = colorize(np.array([[-2, 0, 1, 2, 9]], np.float32), scale=2)[0]
    assert [table.tolist().index(color.tolist()) for color in colors] == [0, 80, 120, 160, 160]


def test_the_scale_is_the_largest_value_of_a_coarse_map() -> None:
    assert scale_of(np.array([[-3.0, 1.0]], np.float32)) == 3
    assert scale_of(np.zeros((4, 4), np.float32)) == 1


def test_single_pixels_do_not_set_the_scale_of_a_fine_map() -> None:
    values = np.ones((100, 100), np.float32)
    values[5, 5] = 1000
    assert scale_of(values) == 1
    values = np.zeros((100, 100), np.float32)
    values[5, 5] = 7
    assert scale_of(values) == 7  # unless all others are zero


def test_an_overlay_is_light_where_values_are_positive_and_dark_where_they_are_negative() -> None:
    gray = np.full((32, 32, 3), 128, np.uint8)
    values = np.zeros((8, 8), np.float32)
    values[2, 2], values[5, 5] = 1, -1
    shown = luminance(overlay(gray, values, side=320))
    background = shown[20, 300]
    assert shown[100, 100] > background + 20
    assert shown[220, 220] < background - 20


def test_lines_enclose_strong_values_only() -> None:
    """Solid around positive values: no gaps; dashed around negative ones."""
    gray = np.full((32, 32, 3), 128, np.uint8)
    values = np.zeros((8, 8), np.float32)
    values[3:5, 3:5] = 1
    shown = overlay(gray, values, side=320).astype(int)
    black = (shown == 0).all(-1)
    assert black.any()
    negative = overlay(gray, -values, side=320).astype(int)
    white = (negative == 255).all(-1)
    assert 0.3 < white.sum() / black.sum() < 0.8  # the outer line of the same region, with gaps
    weak = np.zeros((8, 8), np.float32)
    weak[3, 3], weak[6, 6] = 1, 0.4
    shown = overlay(gray, weak, side=320)
    assert (shown[:180, :180] == 0).all(-1).any()
    assert not (shown[200:, 200:] == 0).all(-1).any()


def test_a_map_of_zeros_shows_the_image_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    shown = overlay(pixels, np.zeros((8, 8), np.float32), side=64)
    assert (shown[..., 0] == shown[..., 1]).all()
    assert (shown[..., 0] == shown[..., 2]).all()


def test_a_fine_map_is_averaged() -> None:
    values = np.random.default_rng(0).normal(size=(224, 224)).astype(np.float32)
    assert is_averaged(values)
    assert not is_averaged(values[:28, :28])
    pixels = np.full((224, 224, 3), 128, np.uint8)
    assert np.array_equal(overlay(pixels, values), overlay(pixels, cell_means(values, 8, 8)))


@pytest.mark.parametrize(
    ("height", "width", "side", "expected"),
    [(32, 32, 448, (448, 448)), (20, 40, 400, (200, 400)), (300, 150, 100, (100, 50)), (1, 300, 60, (1, 60))],
)
def test_the_longer_side_is_as_requested(height: int, width: int, side: int, expected: tuple[int, int]) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    assert enlarge(pixels, side).shape == (*expected, 3)
    assert overlay(pixels, np.ones((2, 3), np.float32), side).shape == (*expected, 3)


def test_small_images_are_enlarged_in_blocks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    assert np.array_equal(enlarge(pixels, 60), pixels.repeat(10, 0).repeat(10, 1))
