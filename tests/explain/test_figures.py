"""Figures: they contain what they promise, whatever the size of the image and the names."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tessella.explain import figures
from tessella.explain.faithfulness import Curve
from tessella.explain.figures import draw_explanation
from tessella.explain.maps import AttributionMap
from tessella.plots.figures import render
from tessella.results import Prediction

from .made import CAT, DOG, make_branches, make_explanation, make_scores

LONG = "Tyrolean traditional handmade leather trousers with embroidered suspenders, Lederhose"


def drawn_figure(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Figure:
    """Draw an explanation; return the figure before it becomes a file."""
    drawn: list[Figure] = []

    def keep(figure: Figure, suffix: str = ".png", dpi: int = 100) -> bytes:
        drawn.append(figure)
        return render(figure, suffix, dpi)

    monkeypatch.setattr(figures, "render", keep)
    draw_explanation(make_explanation(**changes))
    (figure,) = drawn
    return figure


def texts(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[str]:
    """Draw an explanation; return every text in the figure."""
    figure = drawn_figure(monkeypatch, **changes)
    labels = [label for axes in figure.axes for label in (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel())]
    return [text.get_text() for text in figure.texts] + labels


def test_a_faithful_map(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts(monkeypatch)
    assert "Why cat?" in shown
    assert "photos/cat.jpg, a_model, method: exact" in shown
    assert {"image, 40×32 px", "map, 5×4", "map over the image"} <= set(shown)
    assert {"supports cat", "contradicts it", "contribution to the logit, 1.25"} <= set(shown)
    assert {"75.0 %", "cat", "12.5 %", "dog", "6.2 %", "deer"} <= set(shown)
    assert {"faithful", "deletion", "insertion", "logit"} <= set(shown)
    assert {"deletion ↓", "0.50", "1.00 to 2.00", "better than random", "correlation ↑", "−0.50 to 0.50"} <= set(shown)
    assert "no better than random" in shown
    assert "not faithful here" not in shown


def test_a_map_that_is_no_better_than_random_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts(monkeypatch, faithfulness=make_scores(faithful=False))
    assert "not faithful here" in shown
    assert "faithful" not in shown


def test_two_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts(monkeypatch, versus=DOG)
    assert {"Why cat and not dog?", "supports cat", "supports dog", "difference of logits"} <= set(shown)
    assert "contribution to the difference of logits, 1.25" in shown


def test_a_class_that_is_not_predicted_is_shown_with_its_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts(monkeypatch, target=Prediction(9, "truck", 0.001))
    assert {"Why truck?", "truck", "0.1 %", "cat", "dog"} <= set(shown)
    assert "deer" not in shown


def test_without_scores_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts(monkeypatch, faithfulness=None)
    assert not {"faithful", "not faithful here", "deletion"} & set(shown)
    assert "photos/cat.jpg, a_model, method: exact, not scored" in shown


def test_the_parts_of_a_map_are_drawn_with_their_grids_scales_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"branch 0, 6×4", "branch 1, 3×2", "colors to ±0.75", "colors to ±0.25"}
    shown = texts(monkeypatch, map=make_branches(), faithfulness=None)
    assert parts | {"75 % of the logit", "−25 % of the logit"} <= set(shown)
    shown = texts(monkeypatch, map=make_branches(), versus=DOG)
    assert parts | {"75 % of the difference", "−25 % of the difference"} <= set(shown)
    unweighted = texts(monkeypatch, map=dataclasses.replace(make_branches(), method="grad-cam", shares={}))
    assert parts <= set(unweighted)
    assert not [text for text in unweighted if text.endswith("of the logit")]


def test_figures_of_maps_without_parts_have_no_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dataclasses.replace(make_branches(), parts={}, shares={})
    for scores in (make_scores(), None):
        narrow = drawn_figure(monkeypatch, map=whole, faithfulness=scores)
        wide = drawn_figure(monkeypatch, map=make_branches(), faithfulness=scores)
        assert len(wide.axes) == len(narrow.axes) + 2
        assert wide.get_figheight() == narrow.get_figheight()
        assert wide.get_figwidth() == pytest.approx(narrow.get_figwidth() + 1.35)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_overlaps_the_parts(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {f"branch {number}": np.eye(8, dtype=np.float32) for number in range(count)}
    map = AttributionMap(np.eye(8, dtype=np.float32), "attention", parts=parts, shares=dict.fromkeys(parts, -0.125))
    figure = drawn_figure(monkeypatch, map=map, versus=DOG, pixels=np.zeros((32, 32, 3), np.uint8))
    panels = [axes.get_window_extent() for axes in figure.axes]
    written = [(text.get_text(), text.get_window_extent()) for text in figure.texts]
    ours = [box for text, box in written if text.startswith(("branch", "colors to", "−12 % of"))]
    assert len(ours) == 3 * count
    boxes = [*panels, *(box for text, box in written if text)]
    for box in ours:
        assert [other for other in boxes if other is not box and box.overlaps(other)] == []
        assert 0 <= box.x0 < box.x1 <= figure.get_figwidth() * figure.dpi
        assert box.y0 >= 0


def test_the_colors_of_a_part_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strongest cell has the strongest color, however weak the part is beside the other one."""
    figure = drawn_figure(monkeypatch, map=make_branches(), faithfulness=None)
    fine, coarse = (np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes[-2:])
    assert fine[150, 190].tolist() == [255, 243, 166]
    assert coarse[300, 50].tolist() == [10, 40, 96]
    assert (coarse[:150] == 0x8C).all()


def test_long_and_hostile_names_stay_inside_the_figure() -> None:
    plain = draw_explanation(make_explanation())
    hostile = draw_explanation(
        make_explanation(
            key="a/" * 300 + "\x1b[31m\n$x$.jpg",
            model="$\\frac$" * 20,
            target=Prediction(1, f"{LONG} {LONG}", 0.5),
            versus=Prediction(2, "猫 $\\alpha$ <b>", 0.25),
        )
    )
    assert Image.open(io.BytesIO(hostile)).size == Image.open(io.BytesIO(plain)).size


@pytest.mark.parametrize("label", [LONG, "W" * 60])
def test_titles_do_not_run_into_the_scores(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn_figure(monkeypatch, target=Prediction(1, label, 0.5), versus=Prediction(2, label, 0.25))
    ends = {text.get_text(): text.get_window_extent().x1 / figure.dpi for text in figure.texts}
    (title,) = [end for text, end in ends.items() if text.startswith("Why ")]
    starts = [text.get_window_extent().x0 / figure.dpi for text in figure.texts if text.get_text() == "faithful"]
    assert title < starts[0]
    assert max(ends.values()) <= figure.get_figwidth()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 96), (224, 224), (224, 60), (20, 300)])
def test_every_size_of_image_and_map(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (7, 7), (height, width)):
        map = AttributionMap(rng.normal(size=(rows, columns)).astype(np.float32), "occlusion")
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        picture = Image.open(io.BytesIO(draw_explanation(make_explanation(pixels=pixels, map=map))))
        assert picture.size[0] / picture.size[1] > 2.5


def test_the_colors_of_the_map_are_in_the_figure() -> None:
    """A map with one positive and one negative cell: light yellow and dark blue blocks of equal size."""
    map = AttributionMap(np.array([[1, -1]], np.float32), "exact", total=0.0)
    explanation = make_explanation(pixels=np.zeros((32, 32, 3), np.uint8), map=map, faithfulness=None)
    colors = np.asarray(Image.open(io.BytesIO(draw_explanation(explanation))).convert("RGB")).astype(int)
    colors = colors[: int(colors.shape[0] * 0.75), colors.shape[1] // 3 : 2 * colors.shape[1] // 3]  # the map alone
    yellow = (np.abs(colors - [255, 243, 166]).max(-1) < 12).sum()
    blue = (np.abs(colors - [10, 40, 96]).max(-1) < 12).sum()
    assert yellow > 20_000
    assert 0.95 < yellow / blue < 1.05


def test_the_same_explanation_gives_the_same_bytes() -> None:
    assert draw_explanation(make_explanation()) == draw_explanation(make_explanation())


def curves(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_title("left") in ("deletion", "insertion")]


def test_equal_scores_are_a_flat_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences by rounding are not enlarged, and the numbers beside the axis are the scores themselves."""
    ramp = np.linspace(0, 1, 5, dtype=np.float32)
    noise = np.float32(1.02602) + np.array([0, 1, -1, 2, 0], np.float32) * np.float32(1.2e-7)
    flat = Curve(ramp, noise, noise - np.float32(3e-7), noise + np.float32(3e-7), noise)
    scores = dataclasses.replace(make_scores(faithful=False), deletion_curve=flat, insertion_curve=flat)
    figure = drawn_figure(monkeypatch, faithfulness=scores)
    for axes in curves(figure):
        low, high = axes.get_ylim()
        assert low < 1.02602 < high
        assert high - low >= 0.1
        assert axes.yaxis.get_offset_text().get_text() == ""
        for tick in axes.get_yticklabels():
            assert float(tick.get_text()) == pytest.approx(tick.get_position()[1], abs=1e-6)


def test_numbers_beside_the_axis_are_scores_even_if_these_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    large = dataclasses.replace(make_scores().deletion_curve)
    large = Curve(large.fractions, *(one + np.float32(2000) for one in dataclasses.astuple(large)[1:]))
    figure = drawn_figure(monkeypatch, faithfulness=dataclasses.replace(make_scores(), deletion_curve=large))
    assert [axes.yaxis.get_offset_text().get_text() for axes in curves(figure)] == ["", ""]


def test_curves_of_different_scores_fill_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    deletion, _ = curves(drawn_figure(monkeypatch))
    low, high = deletion.get_ylim()
    assert (low, high) == pytest.approx((-0.15, 3.15), abs=0.01)  # the band from 0 to 3, and a margin


def test_all_lines_of_the_curves_are_in_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"this map", "95 % of random maps", "their mean"} <= set(texts(monkeypatch))


def test_a_map_of_zeros_has_no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = AttributionMap(np.zeros((4, 4), np.float32), "occlusion", parts={"branch 0": np.zeros((2, 2), np.float32)})
    figure = drawn_figure(monkeypatch, map=zeros)
    (scale,) = (axes for axes in figure.axes if [tick.get_text() for tick in axes.get_xticklabels()] == ["0"])
    assert scale.get_xticks().tolist() == [0]
    shown = [text.get_text() for text in figure.texts]
    assert {"the map is zero everywhere", "zero everywhere"} <= set(shown)
    assert not [text for text in shown if text.startswith(("supports", "contradicts", "lines", "colors"))]


def test_constant_maps_are_drawn() -> None:
    for value in (0, 1):
        flat = AttributionMap(np.full((3, 3), value, np.float32), "exact", total=1.0)
        assert draw_explanation(dataclasses.replace(make_explanation(), map=flat, target=CAT)).startswith(b"\x89PNG")
