"""Figures of links: valid pictures with the right number of lines, legible at any similarity and in gray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tessella.data.decode import Pixels, decode
from tessella.errors import UsageError
from tessella.explain.link_figures import dimmed, draw_links
from tessella.explain.links import Links
from tessella.explain.subject import PreparedImage

GAP = (slice(30, 290), slice(280, 325))  # pixels between the two images, where there are only lines


def prepared(height: int = 64, width: int = 64, key: str = "a.jpg", level: int = 200) -> PreparedImage:
    return PreparedImage(key, np.full((height, width, 3), level, np.uint8), torch.zeros(1, 3, height, width))


def diagonal(strengths: list[float], agreement: float | None = None, cosine: float | None = None) -> Links:
    """Links of each position of a 4 x 4 grid with the same position of the other image."""
    values = np.diag([*strengths, *[0.0] * (16 - len(strengths))])
    total = float(values.sum()) if cosine is None else cosine
    return Links(values, total, values.sum(1).reshape(4, 4), values.sum(0).reshape(4, 4), agreement)


def draw(links: Links, a: PreparedImage | None = None, b: PreparedImage | None = None, **options: Any) -> Pixels:
    pixels = decode(draw_links(a or prepared(), b or prepared(), links, **options))
    assert isinstance(pixels, np.ndarray)
    return pixels


def markers(pixels: Pixels) -> int:
    """The number of places with a white disc on the first image, all of whose pixels are darker."""
    white = pixels[40:290, 12:260].min(2) > 250
    shares = [white[y : y + 9, x : x + 9].mean() for y in range(0, 240, 3) for x in range(0, 240, 3)]
    return int((np.array(shares) > 0.5).sum())


def test_figures_are_pngs_of_a_fixed_size_and_repeatable() -> None:
    links = diagonal([0.3, 0.2, 0.1])
    data = draw_links(prepared(), prepared(key="b.jpg"), links)
    assert data == draw_links(prepared(), prepared(key="b.jpg"), links)
    assert draw(links).shape == (336, 864, 3)
    assert len(data) < 60_000


def test_weak_links_are_left_out() -> None:
    assert np.array_equal(draw(diagonal([0.3, 0.2]), count=8), draw(diagonal([0.3, 0.2]), count=2))
    assert not np.array_equal(draw(diagonal([0.3, 0.2]), count=2), draw(diagonal([0.3, 0.2]), count=1))


def test_more_links_have_more_markers() -> None:
    numbers = [markers(draw(diagonal([0.3] * 16), count=count)) for count in (1, 4, 12)]
    assert numbers[0] < numbers[1] < numbers[2]


def test_stronger_links_are_wider() -> None:
    equal, weaker = (draw(diagonal([0.3, weight])) for weight in (0.3, 0.03))
    dark_equal, dark_weaker = ((pixels[GAP].max(2) < 120).sum() for pixels in (equal, weaker))
    assert dark_equal > 1.3 * dark_weaker


def test_lines_are_darker_than_the_paper_in_gray() -> None:
    gray = draw(diagonal([0.3]))[GAP].mean(2)
    assert gray.min() < 80
    assert gray.max() == 255


def test_similarities_without_positive_links() -> None:
    values = -np.eye(16)
    links = Links(values, -16.0, values.sum(1).reshape(4, 4), values.sum(0).reshape(4, 4))
    assert markers(draw(links)) == 0


@pytest.mark.parametrize("cosine", [0.9, 0.01, 0.0, -0.3])
def test_any_similarity(cosine: float) -> None:
    assert draw(diagonal([0.3, 0.1], cosine=cosine)).shape == (336, 864, 3)


def test_the_longest_similarity_is_not_cut_off() -> None:
    ends = [np.flatnonzero(draw(diagonal([0.3], cosine=cosine)).min((0, 2)) < 255).max() for cosine in (0.75, -0.8888)]
    assert ends[0] + 5 < ends[1] < 860  # of 864 pixels; the minus sign is wider than that


def test_measured_links_are_labeled_differently() -> None:
    exact, measured = draw(diagonal([0.3, 0.2])), draw(diagonal([0.3, 0.2], agreement=0.25))
    assert np.array_equal(exact[:, :600], measured[:, :600])
    assert not np.array_equal(exact[:, 600:], measured[:, 600:])


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (96, 384), (384, 96), (448, 448)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    assert draw(diagonal([0.3, 0.2]), prepared(*size), prepared()).shape == (336, 864, 3)


@pytest.mark.parametrize("key", ["$x$", "a" * 300, "名前.jpg", "line\nbreak", "\udcff.jpg", ""])
def test_names_of_all_kinds(key: str) -> None:
    draw(diagonal([0.3]), prepared(key=key))


@pytest.mark.parametrize("count", [0, 13, True, 2.5])
def test_counts(count: Any) -> None:
    with pytest.raises(UsageError) as caught:
        draw_links(prepared(), prepared(), diagonal([0.3]), count=count)
    assert caught.value.code == "bad_argument"


def test_dimming() -> None:
    pixels = np.full((4, 8, 3), 100, np.uint8)
    shown = dimmed(pixels, np.array([[1.0, -3.0]]))
    assert (shown[:, :2] == 100).all()
    assert (shown[:, -2:] == 40).all()
    assert (np.diff(shown[0, :, 0].astype(int)) <= 0).all()
    assert (dimmed(pixels, np.zeros((1, 2))) == 40).all()
