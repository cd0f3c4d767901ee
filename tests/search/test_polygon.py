"""Points in polygons: compared with an exact reference, on edges, with crossings, and with hostile polygons."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.errors import UsageError
from tessella.search import polygon as module
from tessella.search.polygon import PointSet


def reference(points: Any, vertices: Any) -> list[bool]:
    """Decide with fractions, one point and one edge at a time."""
    exact = [tuple(map(Fraction, vertex)) for vertex in vertices]
    result = []
    for x, y in [tuple(map(Fraction, map(float, point))) for point in points]:
        inside = on_edge = False
        for (ax, ay), (bx, by) in zip(exact, [*exact[1:], exact[0]], strict=True):
            turn = (bx - ax) * (y - ay) - (x - ax) * (by - ay)
            if turn == 0 and min(ax, bx) <= x <= max(ax, bx) and min(ay, by) <= y <= max(ay, by):
                on_edge = True
            if (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay):
                inside = not inside
        result.append(inside or on_edge)
    return result


def contained(points: Any, vertices: Any) -> list[bool]:
    found: list[bool] = PointSet(np.array(points, np.float32).reshape(-1, 2)).inside(np.array(vertices)).tolist()
    return found


SMALL = st.integers(-4, 4).map(lambda n: n / 4)  # so that points often lie on edges and vertices
ANY = st.floats(-1, 1, width=32)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(SMALL, SMALL), max_size=20),
    st.lists(st.tuples(SMALL, SMALL), min_size=3, max_size=8),
)
def test_points_of_a_grid(points: Any, vertices: Any) -> None:
    assert contained(points, vertices) == reference(points, vertices)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(ANY, ANY), max_size=12),
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=3, max_size=8),
)
def test_any_points(points: Any, vertices: Any) -> None:
    points = [*points, *(np.float32(vertex).tolist() for vertex in vertices)]
    assert contained(points, vertices) == reference(points, vertices)


def test_points_on_a_slanted_edge_are_inside() -> None:
    points = [(t / 64, t / 192) for t in range(65)]  # rounded: on the edge, or a hair beside it
    vertices = [(0, 0), (1, 1 / 3), (0, 1)]
    expected = reference(np.array(points, np.float32), vertices)
    assert contained(points, vertices) == expected
    exact = [(t / 64, t / 64) for t in range(65)]
    assert all(contained(exact, [(0, 0), (1, 1), (0, 1)]))
    assert all(contained(exact, [(0, 0), (1, 1), (1, 0)]))


def test_a_polygon_that_crosses_itself_follows_the_even_odd_rule() -> None:
    star = [(np.sin(4 * np.pi * i / 5), np.cos(4 * np.pi * i / 5)) for i in range(5)]
    assert contained([(0, 0), (0, 0.9), (0, -0.9)], star) == [False, True, False]
    twice = [(-1, -1), (1, -1), (1, 1), (-1, 1)] * 2
    assert contained([(0, 0), (1, 0), (2, 0)], twice) == [False, True, False]


def test_a_polygon_without_area_contains_its_edges() -> None:
    assert contained([(0, 0), (0.5, 0.5), (0.5, 0.25)], [(0, 0), (1, 1), (0, 0)]) == [True, True, False]
    assert contained([(0, 0), (0.5, 0)], [(0, 0)] * 3) == [True, False]


def test_no_points() -> None:
    assert contained([], [(0, 0), (1, 0), (0, 1)]) == []


@pytest.mark.parametrize(
    "vertices",
    [
        [],
        [(0, 0), (1, 1)],
        [(0, 0)] * 10_001,
        [(0, 0, 0)] * 3,
        [(np.nan, 0)] * 3,
        [(np.inf, 0)] * 3,
        [(-np.inf, 0), (0, 0), (1, 1)],
        [(1e7, 0)] * 3,
    ],
)
def test_what_is_no_polygon(vertices: Any) -> None:
    with pytest.raises(UsageError) as caught:
        contained([(0, 0)], np.array(vertices, np.float64))
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize("tiny", [5e-324, 1e-310, 1e-200])
def test_tiny_polygons_do_not_underflow(tiny: float) -> None:
    vertices = [(-tiny, -tiny), (tiny, -tiny), (0, tiny)]
    assert contained([(0, 0), (1e-30, 0)], vertices) == reference(np.array([(0, 0), (1e-30, 0)], np.float32), vertices)


def test_the_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    points = PointSet(np.random.default_rng(0).uniform(-1, 1, (1_000, 2)).astype(np.float32))
    zigzag = np.array([(i / 5_000 - 1, (-1) ** i) for i in range(10_000)])
    assert points.inside(zigzag).shape == (1_000,)
    monkeypatch.setattr(module, "MAX_PAIRS", 1_000_000)
    with pytest.raises(UsageError, match="too many points"):
        points.inside(zigzag)
    monkeypatch.setattr(module, "MAX_EXACT", 10)
    diagonal = PointSet(np.repeat(np.arange(100, dtype=np.float32)[:, None] / 128, 2, 1))
    with pytest.raises(UsageError, match="too many points"):
        diagonal.inside(np.array([(0, 0), (1, 1), (0, 1)], np.float64))
