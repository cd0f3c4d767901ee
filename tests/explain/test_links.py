"""Links between two images: exact ones sum to the cosine of the embeddings; others are what masking measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tessella
from tessella.errors import TessellaError, UsageError, WeightsError
from tessella.explain.ledger import Doubles
from tessella.explain.links import Link, Links, link_images, links_problem, strongest
from tessella.explain.subject import Subject

from ..models.tiny import images, tiny

EXACT = ("convmixer", "convmixer_relu", "mixer", "gmixer", "resmlp", "gmlp", "convit")
MASKED: list[tuple[str, dict[str, Any], tuple[int, int]]] = [  # case, arguments, grid that is masked
    ("convit", {}, (4, 4)),
    ("convit", {"img_size": (16, 32)}, (2, 4)),
    ("crossvit", {}, (7, 7)),
    ("crossvit_dagger", {"global_pool": "avg"}, (7, 7)),
    ("convmixer", {"global_pool": "max"}, (8, 8)),
    ("convmixer", {"global_pool": "catavgmax"}, (8, 8)),
]


def pooled(case: str, **overrides: Any) -> Any:
    """A tiny model whose embedding is the mean over positions."""
    return tiny(case, **({"global_pool": "avg"} if case == "convit" else {}), **overrides)


def pair(model: Any) -> tuple[Tensor, Tensor]:
    x_BCHW = images(model, 2)
    return x_BCHW[:1], x_BCHW[1:]


@torch.no_grad()
def embedding(model: Any, x_1CHW: Tensor) -> Doubles:
    """The unit embedding (D,) in float64 of the model's own forward pass."""
    vector: Doubles = model.forward_head(model.forward_features(x_1CHW), pre_logits=True)[0].double().numpy()
    return vector / np.linalg.norm(vector)


def of_values(values: list[list[float]], grid_a: tuple[int, int], grid_b: tuple[int, int]) -> Links:
    array = np.array(values, float)
    return Links(array, float(array.sum()), array.sum(1).reshape(grid_a), array.sum(0).reshape(grid_b))


# --- exact links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EXACT)
@pytest.mark.parametrize("classes", [5, 0])
def test_links_sum_to_the_cosine(case: str, classes: int) -> None:
    model = pooled(case, num_classes=classes)
    a, b = pair(model)
    links = link_images(model, a, b)
    assert links.exact
    assert links.agreement is None
    assert links.cosine == pytest.approx(float(embedding(model, a) @ embedding(model, b)), abs=1e-6)
    assert links.values.sum() == pytest.approx(links.cosine, abs=1e-12)
    assert links.map_a.sum() == pytest.approx(links.cosine, abs=1e-12)
    assert links.map_b.sum() == pytest.approx(links.cosine, abs=1e-12)
    assert abs(links.cosine) < 0.9999  # the images differ


def test_links_of_photographs_sum_to_the_similarity_of_the_predictor() -> None:
    predictor = tessella.load("convmixer_384_8_ks5_p8.photographs")
    subject = Subject(predictor)
    paths = ["examples/cat.jpg", "examples/coffee.jpg"]
    a, b = (image.x for _, image in subject.prepare(paths))  # type: ignore[union-attr]
    links = link_images(subject.model, a, b)
    first, second = (predictor.embed(path) for path in paths)
    assert links.values.shape == (144, 144)
    assert links.values.sum() == pytest.approx(float(first @ second), abs=1e-4)


def test_an_image_and_itself() -> None:
    model = tiny("convmixer")
    a, _ = pair(model)
    links = link_images(model, a, a)
    assert links.cosine == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(links.values, links.values.T)


def test_values_of_a_model_that_averages_colors() -> None:
    model = tiny("mixer", img_size=(16, 24), embed_dim=8, num_classes=0)
    model.blocks, model.norm = nn.Sequential(), nn.Identity()
    with torch.no_grad():
        model.stem.proj.weight.zero_()
        model.stem.proj.bias.zero_()
        model.stem.proj.weight[0, 0] = model.stem.proj.weight[1, 1] = 1 / 64  # the features are mean red and green
    a, b = torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 16, 24)
    a[0, 0, :8, :8] = 6.0  # red at position 0: the embedding is (1, 0)
    b[0, 0, 8:, 16:] = 3 * 6.0  # red at position 5 and green at position 1: the embedding is (3, 4)
    b[0, 1, :8, 8:16] = 4 * 6.0
    links = link_images(model, a, b)
    expected = np.zeros((6, 6))
    expected[0, 5] = 0.6
    np.testing.assert_allclose(links.values, expected, atol=1e-6)
    (link,) = strongest(links, 3)
    assert (link.a, link.b) == ((0, 0), (1, 2))
    assert links.grids == ((2, 3), (2, 3))


def test_images_of_different_sizes() -> None:
    model = tiny("convmixer")
    a, b = torch.randn(1, 3, 16, 24), torch.randn(1, 3, 33, 12)
    links = link_images(model, a, b)
    assert links.grids == ((4, 6), (8, 3))
    assert links.values.shape == (24, 24)
    assert links.values.sum() == pytest.approx(float(embedding(model, a) @ embedding(model, b)), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = tiny("gmlp")
    a, b = pair(model)
    expected = link_images(model, a, b)
    links = link_images(model.to(dtype), a, b)
    assert links.values.sum() == pytest.approx(links.cosine, abs=1e-12)
    assert links.cosine == pytest.approx(expected.cosine, abs=8 * torch.finfo(dtype).eps)


# --- regions and the strongest links ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (3, 2), (4, 4), (5, 99)])
def test_regions_sum_their_positions(rows: int, columns: int) -> None:
    model = tiny("convmixer")
    links = link_images(model, *pair(model))
    regions = links.regions(rows, columns)
    grid = (min(rows, 8), min(columns, 8))
    assert regions.grids == (grid, grid)
    assert regions.cosine == links.cosine
    for value, whole in ((regions.values, links.values), (regions.map_a, links.map_a), (regions.map_b, links.map_b)):
        assert value.sum() == pytest.approx(whole.sum(), abs=1e-12)
    np.testing.assert_allclose(regions.map_a.ravel(), regions.values.sum(1), atol=1e-12)


def test_regions_of_known_values() -> None:
    links = of_values([[1, 2, 3, 4], [5, 6, 7, 8]], (1, 2), (2, 2))
    regions = links.regions(1, 2)
    assert regions.grids == ((1, 2), (1, 2))
    assert regions.values.tolist() == [[1 + 3, 2 + 4], [5 + 7, 6 + 8]]
    assert links.regions(2, 1).values.tolist() == [[1 + 2 + 5 + 6, 3 + 4 + 7 + 8]]


def test_the_strongest_links_share_no_position() -> None:
    links = of_values([[9, 8, 1], [8, 7, 3], [-1, 2, -5]], (1, 3), (3, 1))
    found = strongest(links, 5)
    assert found == [Link((0, 0), (0, 0), 9), Link((0, 1), (1, 0), 7)]  # the third would be negative
    assert strongest(links, 1) == found[:1]


def test_no_positive_links() -> None:
    assert strongest(of_values([[-1, 0], [0, -2]], (2, 1), (1, 2)), 3) == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(1, 12), shape=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_the_strongest_links_are_greedy(seed: int, n: int, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(seed).integers(-5, 9, shape).astype(float)
    found = strongest(of_values(values.tolist(), (1, shape[0]), (shape[1], 1)), n)
    left = values.copy()
    for link in found:
        assert link.value == left.max() > 0
        left[link.a[1]], left[:, link.b[0]] = -np.inf, -np.inf
    assert len(found) == n or left.max() <= 0


# --- masking ----------------------------------------------------------------------------------------------------------


def masked(x_1CHW: Tensor, position: int, grid: tuple[int, int]) -> Tensor:
    """The image with one of grid positions replaced by the mean color."""
    (top, bottom), (left, right) = (
        (round(i * size / count), round((i + 1) * size / count))
        for i, size, count in zip(divmod(position, grid[1]), x_1CHW.shape[2:], grid, strict=True)
    )
    result = x_1CHW.clone()
    result[..., top:bottom, left:right] = x_1CHW.mean((2, 3), keepdim=True)
    return result


@pytest.mark.parametrize(("case", "overrides", "grid"), MASKED)
def test_masking_measures_changes_of_the_cosine(case: str, overrides: dict[str, Any], grid: tuple[int, int]) -> None:
    model = tiny(case, **overrides)
    a, b = pair(model)
    links = link_images(model, a, b)
    assert not links.exact
    assert links.grids == (grid, grid)
    u_a, u_b = embedding(model, a), embedding(model, b)
    assert links.cosine == pytest.approx(float(u_a @ u_b), abs=1e-9)
    last = grid[0] * grid[1] - 1
    for p, q in ((0, 0), (1, last), (last, 2)):
        v_a, v_b = embedding(model, masked(a, p, grid)), embedding(model, masked(b, q, grid))
        assert links.map_a.ravel()[p] == pytest.approx(float(u_a @ u_b - v_a @ u_b), abs=1e-6)
        assert links.map_b.ravel()[q] == pytest.approx(float(u_a @ u_b - u_a @ v_b), abs=1e-6)
        interaction = u_a @ u_b - v_a @ u_b - u_a @ v_b + v_a @ v_b
        assert links.values[p, q] == pytest.approx(float(interaction), abs=1e-6)


def test_agreement_is_the_correlation_with_measured_decreases() -> None:
    model = tiny("convit")
    links = link_images(model, *pair(model))
    sums = np.concatenate((links.values.sum(1), links.values.sum(0)))
    decreases = np.concatenate((links.map_a.ravel(), links.map_b.ravel()))
    assert links.agreement == pytest.approx(np.corrcoef(sums, decreases)[0, 1], abs=1e-9)


def test_agreement_of_images_that_masking_does_not_change() -> None:
    model = tiny("convit")
    gray = torch.zeros(1, 3, 32, 32)
    links = link_images(model, gray, gray)
    assert links.agreement == 0
    assert np.abs(links.values).max() < 1e-9


def test_large_grids_are_masked_in_squares() -> None:
    model = tiny("convmixer", global_pool="max", patch_size=2)
    links = link_images(model, torch.randn(1, 3, 48, 20), torch.randn(1, 3, 6, 50))
    assert links.grids == ((8, 8), (3, 8))


@pytest.mark.parametrize(("case", "overrides", "grid"), MASKED)
def test_the_reason_is_given(case: str, overrides: dict[str, Any], grid: tuple[int, int]) -> None:
    assert "masking" in (links_problem(tiny(case, **overrides)) or "")


def test_exact_models_have_no_problem() -> None:
    assert [case for case in EXACT if links_problem(pooled(case))] == []


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["convmixer", "convit", "crossvit"])
@pytest.mark.parametrize(
    ("change", "code"), [("batch", "bad_argument"), ("rank", "wrong_input_size"), ("training", "bad_argument")]
)
def test_wrong_arguments(case: str, change: str, code: str) -> None:
    model = tiny(case)
    a, b = pair(model)
    if change == "batch":
        b = torch.cat((a, b))
    elif change == "rank":
        b = b[0]
    else:
        model.train()
    with pytest.raises(TessellaError) as caught:
        link_images(model, a, b)
    assert caught.value.code == code


@pytest.mark.parametrize("case", ["convmixer", "mixer", "convit"])
def test_models_without_pooling_have_no_embedding(case: str) -> None:
    model = tiny(case, global_pool="")
    with pytest.raises(UsageError, match="does not pool"):
        link_images(model, *pair(model))


def test_an_embedding_of_zero_has_no_direction() -> None:
    model = tiny("mixer")
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.zero_()
    with pytest.raises(UsageError, match="zero") as caught:
        link_images(model, *pair(model))
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(("case", "weight"), [("mixer", "stem.proj.weight"), ("convit", "patch_embed.proj.weight")])
def test_numbers_that_are_not_finite(case: str, weight: str) -> None:
    model = tiny(case)
    with torch.no_grad():
        model.get_parameter(weight)[0] = torch.nan
    with pytest.raises(WeightsError) as caught:
        link_images(model, *pair(model))
    assert caught.value.code == "non_finite"


def test_too_many_positions() -> None:
    model = tiny("convmixer", patch_size=1)
    small, large = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 65, 64)
    with pytest.raises(UsageError, match="65 x 64 positions"):
        link_images(model, small, large)


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_counts(count: Any) -> None:
    links = of_values([[1]], (1, 1), (1, 1))
    for call in (lambda: strongest(links, count), lambda: links.regions(count, 1), lambda: links.regions(1, count)):
        with pytest.raises(UsageError):
            call()
