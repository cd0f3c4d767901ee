"""The exact ledger: the contributions of all positions sum to the logit that the model itself computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tessella
from tessella.errors import TessellaError, UsageError, WeightsError
from tessella.explain.ledger import class_ledger, exact_map, ledger_problem, pooling_problem, position_features
from tessella.explain.methods import METHODS, RANKING, map_image, method_problem
from tessella.explain.subject import Subject, family_of

from ..models.tiny import NUM_CLASSES, images, tiny

MIXERS = ("mixer", "gmixer", "resmlp", "gmlp")
CASES = ("convmixer", "convmixer_relu", *MIXERS, "convit")
CIFAR10 = ("convmixer_256_8_ks3_p4.cifar10", "mixer_ti_p4_32.cifar10", "gmixer_ti_p4_32.cifar10")
WITHIN = 1e-5  # of the model's own float32 logit
SUBSET = 256  # images that are always tested; `--all` takes all 10,000


def pooled(case: str, **overrides: Any) -> Any:
    """A tiny model whose head is linear over a mean of positions."""
    return tiny(case, **({"global_pool": "avg"} if case == "convit" else {}), **overrides)


def error_of(model: Any, x_BCHW: Tensor) -> float:
    """The largest difference between the sum of a ledger and the logit of the model's own forward pass, in float32."""
    with torch.no_grad():
        logits_BK = model(x_BCHW).double().numpy()
    return float(np.abs(class_ledger(model, x_BCHW).values.sum((2, 3)) - logits_BK).max())


# --- the sum is the logit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_contributions_sum_to_the_logit(case: str) -> None:
    model = pooled(case)
    x_BCHW = images(model, 3)
    ledger = class_ledger(model, x_BCHW)
    assert ledger.values.shape[:2] == ledger.logits.shape == (3, NUM_CLASSES)
    assert ledger.values.dtype == np.float64
    assert ledger.classes == tuple(range(NUM_CLASSES))
    assert np.array_equal(ledger.logits, model(x_BCHW).detach().double().numpy())
    assert np.ptp(ledger.logits) > 0.1  # the sums are not trivially equal
    assert error_of(model, x_BCHW) < WITHIN


@pytest.mark.parametrize("name", CIFAR10)
def test_contributions_sum_to_the_logit_of_trained_models(name: str, shared_data: Path) -> None:
    assert largest_error(name, shared_data / "cifar10-test.parquet", SUBSET) < WITHIN


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CIFAR10)
def test_contributions_sum_to_the_logit_of_10000_images(name: str, shared_data: Path) -> None:
    assert largest_error(name, shared_data / "cifar10-test.parquet", 10_000) < WITHIN


def largest_error(name: str, table: Path, count: int) -> float:
    """The largest difference of a sum and the logit, over all classes of the first `count` CIFAR-10 test images.

    The logits are those of the ledger, which are bit for bit the model's own: tested above, and here for one batch.
    """
    subject = Subject(tessella.load(name))
    column = pq.read_table(table)["image"]
    assert len(column) == 10_000
    seen, worst = 0, 0.0
    for start in range(0, count, 250):
        batch = [column[i].as_py()["bytes"] for i in range(start, min(start + 250, count))]
        prepared = [image for _, image in subject.prepare(batch)]
        x_BCHW = torch.cat([image.x for image in prepared])  # type: ignore[union-attr]
        ledger = class_ledger(subject.model, x_BCHW)
        worst = max(worst, float(np.abs(ledger.values.sum((2, 3)) - ledger.logits).max()))
        if start == 0:
            assert np.array_equal(ledger.logits.astype(np.float32), subject.logits(x_BCHW))
        seen += len(x_BCHW)
    assert seen == count
    print(f"{name}: {worst:.2g} is the largest difference of {count:,} images")  # pytest -s
    return worst


def test_photographs_of_1000_classes() -> None:
    subject = Subject(tessella.load("convmixer_384_8_ks5_p8.photographs"))
    x_BCHW = torch.cat([image.x for _, image in subject.prepare(sorted(Path("examples").glob("*.jpg")))])  # type: ignore[union-attr]
    with torch.no_grad():
        logits_BK = subject.model(x_BCHW).double().numpy()
    values = class_ledger(subject.model, x_BCHW).values
    assert values.shape == (len(x_BCHW), 1000, 12, 12)
    # logits are up to 25, where float32 has steps of 2e-6, and sums of 384 products have errors of a few steps
    assert np.abs(values.sum((2, 3)) - logits_BK).max() < 4e-7 * np.abs(logits_BK).max() + WITHIN


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_drawn_models(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(CASES))
    channels = data.draw(st.sampled_from([1, 3]))
    small: dict[str, Any] = {"num_classes": data.draw(st.integers(1, 7)), "in_chans": channels}
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    is_conv = case.startswith("convmixer")
    size = (4 * rows, 4 * columns) if is_conv else (8 * rows, 8 * columns)
    model = pooled(case, **small, **({} if is_conv else {"img_size": size}))
    seed = data.draw(st.integers(0, 99))
    x_BCHW = torch.randn(data.draw(st.integers(1, 3)), channels, *size, generator=torch.manual_seed(seed))
    assert class_ledger(model, x_BCHW).values.shape[2:] == (rows, columns)
    assert error_of(model, x_BCHW) < WITHIN


@pytest.mark.parametrize("pool", ["fast", "fastavg"])
def test_other_names_of_the_mean(pool: str) -> None:
    model = tiny("convmixer", global_pool=pool)
    assert error_of(model, images(model)) < WITHIN


@pytest.mark.parametrize("case", ["convmixer", "mixer"])
def test_heads_without_a_bias(case: str) -> None:
    model = tiny(case)
    model.head = nn.Linear(16, 3, bias=False)
    assert error_of(model, images(model)) < WITHIN


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(case: str, dtype: torch.dtype) -> None:
    model = pooled(case).to(dtype)
    x_BCHW = images(model)
    ledger = class_ledger(model, x_BCHW)  # float32 images are converted
    sums_BK = ledger.values.sum((2, 3))
    with torch.no_grad():
        features = model.forward_features(x_BCHW.to(dtype))
        model.double()
        exact_BK = model.forward_head(features.double()).numpy()
    assert np.abs(sums_BK - exact_BK).max() < 1e-12  # the same features with the arithmetic of float64
    assert np.abs(ledger.logits - exact_BK).max() < max(4 * torch.finfo(dtype).eps * np.abs(exact_BK).max(), 1e-12)


# --- known answers ----------------------------------------------------------------------------------------------------


def identity_mixer() -> Any:
    """A model without blocks or norm, whose features are the mean red and green of each patch, of a 2 x 3 grid."""
    model = tiny("mixer", img_size=(16, 24), embed_dim=8)
    model.blocks, model.norm = nn.Sequential(), nn.Identity()
    with torch.no_grad():
        model.stem.proj.weight.zero_()
        model.stem.proj.bias.zero_()
        for channel in (0, 1):
            model.stem.proj.weight[channel, channel] = 1 / 64
        model.head.weight.zero_()
        model.head.weight[0, 0], model.head.weight[1, 1] = 6, 12
        model.head.bias.copy_(torch.tensor([0.6, -1.2, 0, 0, 0]))
    return model


def patches(values_hw: list[list[float]]) -> Tensor:
    return torch.tensor(values_hw).repeat_interleave(8, 0).repeat_interleave(8, 1)


def test_values_of_a_model_that_averages_colors() -> None:
    red, green = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[0.0, 1.0, 0.0], [-1.0, 0.0, 2.0]]
    x_1CHW = torch.stack([patches(red), patches(green), torch.zeros(16, 24)])[None]
    values = class_ledger(identity_mixer(), x_1CHW, [1, 0]).values[0]
    np.testing.assert_allclose(values[1], np.array(red) + 0.1, atol=1e-6)
    np.testing.assert_allclose(values[0], 2 * np.array(green) - 0.2, atol=1e-6)


def test_positions_are_where_the_pixels_are() -> None:
    model = tiny("convmixer")
    x_1CHW = torch.zeros(1, 3, 24, 40)
    changed = x_1CHW.clone()
    changed[:, :, 8:12, 28:32] = 3.0  # position (2, 7) of a grid of 6 x 10
    before, after = (class_ledger(model, x).values[0] for x in (x_1CHW, changed))
    touched = np.abs(after - before).max(0) > 1e-9
    expected = np.zeros((6, 10), bool)
    expected[0:5, 5:10] = True  # two blocks with kernels of 3 reach two positions further
    assert touched[2, 7]
    assert not (touched & ~expected).any()


# --- one image: a class, and the difference of two --------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_map_of_a_class(case: str) -> None:
    model = pooled(case)
    x_1CHW = images(model, 1)
    result = exact_map(model, x_1CHW, 2)
    assert result.method == "exact"
    assert result.values.dtype == np.float32
    np.testing.assert_allclose(result.values, class_ledger(model, x_1CHW).values[0, 2], rtol=1e-6)
    assert result.total == pytest.approx(float(model(x_1CHW)[0, 2].detach()), abs=1e-7)
    assert result.values.sum(dtype=np.float64) == pytest.approx(result.total, abs=WITHIN)
    assert model.get_submodule(result.layer) is not None


@pytest.mark.parametrize("case", CASES)
def test_the_difference_of_two_classes(case: str) -> None:
    model = pooled(case)
    x_1CHW = images(model, 1)
    result = exact_map(model, x_1CHW, 3, versus=1)
    logits = model(x_1CHW)[0].detach().double()
    assert result.total == pytest.approx(float(logits[3] - logits[1]), abs=1e-7)
    assert result.values.sum(dtype=np.float64) == pytest.approx(result.total, abs=WITHIN)
    np.testing.assert_allclose(result.values, -exact_map(model, x_1CHW, 1, versus=3).values, atol=1e-7)


def test_selected_classes_keep_their_order() -> None:
    model = tiny("mixer")
    x_BCHW = images(model)
    every, some = class_ledger(model, x_BCHW), class_ledger(model, x_BCHW, [4, 0, 4])
    assert some.classes == (4, 0, 4)
    np.testing.assert_allclose(some.values, every.values[:, [4, 0, 4]], atol=1e-12)
    assert np.array_equal(some.logits, every.logits[:, [4, 0, 4]])
    assert class_ledger(model, x_BCHW, np.array([2])).classes == (2,)  # type: ignore[arg-type]


def test_an_empty_batch() -> None:
    model = tiny("convmixer")
    assert class_ledger(model, torch.zeros(0, 3, 32, 32)).values.shape == (0, NUM_CLASSES, 8, 8)


def test_features_average_to_the_embedding() -> None:
    for case in CASES:
        model = pooled(case, num_classes=0)  # an embedding needs no classifier
        x_BCHW = images(model)
        _, z_BND, grid = position_features(model, x_BCHW)
        assert z_BND.shape[1] == grid[0] * grid[1]
        np.testing.assert_allclose(z_BND.mean(1), model(x_BCHW).detach(), atol=1e-6)


# --- where the algebra does not hold ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "overrides", "reason", "instead"),
    [
        ("convit", {}, "class token", "'auto'"),
        ("crossvit", {}, "class tokens", "'auto'"),
        ("crossvit_dagger", {"global_pool": "avg"}, "different grids", "'auto'"),
        ("crossvit", {"num_classes": 0}, "no classifier", "links"),
        ("convmixer", {"global_pool": "max"}, "'max'", "'auto'"),
        ("convmixer", {"global_pool": "fastavgmax"}, "'fastavgmax'", "'auto'"),
        ("convmixer", {"global_pool": "catavgmax"}, "'catavgmax'", "'auto'"),
        ("convmixer", {"global_pool": ""}, "does not pool", "global_pool"),
        ("gmlp", {"global_pool": ""}, "does not pool", "global_pool"),
        ("convit", {"global_pool": ""}, "does not pool", "global_pool"),
        ("resmlp", {"num_classes": 0}, "no classifier", "links"),
    ],
)
def test_models_without_a_ledger(case: str, overrides: dict[str, Any], reason: str, instead: str) -> None:
    model = tiny(case, **overrides)
    problem = ledger_problem(model)
    assert problem is not None
    assert reason in problem
    assert not [method for method in METHODS if method in problem]  # which one is the best, `methods` knows
    with pytest.raises(UsageError, match=reason) as caught:
        class_ledger(model, images(model))
    assert caught.value.code == "bad_argument"
    assert instead in caught.value.hint
    if instead == "'auto'":
        ranking = [method for method in RANKING[family_of(model)] if method_problem(model, method) is None]
        assert map_image(model, images(model, 1), 0).method == ranking[0] != "exact"


def test_models_with_a_ledger_have_no_problem() -> None:
    assert [case for case in CASES if ledger_problem(pooled(case))] == []


def test_an_embedding_can_be_a_mean_without_a_classifier() -> None:
    model = tiny("mixer", num_classes=0)
    assert ledger_problem(model)
    assert pooling_problem(model) is None


def test_classifiers_that_are_not_linear() -> None:
    model = tiny("mixer")
    model.head = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(UsageError, match="Sequential") as caught:
        class_ledger(model, images(model))
    assert "'auto'" in caught.value.hint


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_classifiers_that_only_look_linear(dtype: torch.dtype) -> None:
    model = tiny("mixer")
    model.head = Scaled(16, 3)
    nn.init.ones_(model.head.weight)
    nn.init.constant_(model.head.bias, 5.0)
    with pytest.raises(UsageError, match="was changed") as caught:
        class_ledger(model.to(dtype), images(model))
    assert "'auto'" in caught.value.hint


def test_replaced_pooling() -> None:
    model = tiny("convmixer")
    model.forward_head = lambda x, pre_logits=False: model.head(x.amax((2, 3)))
    with pytest.raises(UsageError, match="was changed"):
        class_ledger(model, images(model))


def test_replaced_forward() -> None:
    model = tiny("mixer")
    model.forward = lambda x: model.forward_head(model.forward_features(x)) + 1
    with pytest.raises(UsageError, match="forward"):
        class_ledger(model, images(model))


def test_training_mode_is_refused() -> None:
    model = tiny("convmixer").train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match="training mode"):
        class_ledger(model, images(model))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("classes", [[], [5], [-1], [0, 99], [True], ["1"], [1.5], 3, "cat"])
def test_wrong_classes(classes: Any) -> None:
    model = tiny("mixer")
    with pytest.raises(UsageError) as caught:
        class_ledger(model, images(model), classes)
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(("target", "versus"), [(5, None), (-1, None), (1, 1), (1, 7), (0, -2)])
def test_wrong_targets(target: int, versus: int | None) -> None:
    model = tiny("resmlp")
    with pytest.raises(UsageError) as caught:
        exact_map(model, images(model, 1), target, versus)
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(
    ("shape", "code"),
    [((2, 3, 32, 32), "bad_argument"), ((3, 32, 32), "wrong_input_size"), ((1, 3, 32, 40), "wrong_input_size")],
)
def test_wrong_images(shape: tuple[int, ...], code: str) -> None:
    with pytest.raises(TessellaError) as caught:
        exact_map(tiny("gmixer"), torch.zeros(shape), 0)
    assert caught.value.code == code


@pytest.mark.parametrize("where", ["head.weight", "stem.proj.weight"])
def test_numbers_that_are_not_finite(where: str) -> None:
    model = tiny("mixer")
    with torch.no_grad():
        model.get_parameter(where)[0] = torch.nan
    with pytest.raises(WeightsError) as caught:
        class_ledger(model, images(model))
    assert caught.value.code == "non_finite"
