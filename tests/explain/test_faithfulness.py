"""Faithfulness of maps: models whose right answer is known, and the rate at which random maps are called faithful."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import tessella
from tessella.errors import UsageError, WeightsError
from tessella.explain.faithfulness import (
    RANDOM_MAPS,
    Faithfulness,
    Scorer,
    ScoreSettings,
    blurred,
    cell_grid,
    compare,
    interval,
    score_map,
)
from tessella.explain.maps import AttributionMap, upsample
from tessella.explain.random_maps import (
    SMOOTHNESS,
    autocorrelation,
    average_ranks,
    matching_smoothness,
    random_fields,
    random_orders,
)
from tessella.explain.subject import PreparedImage, Subject
from tessella.models.convmixer import ConvMixer
from tessella.predictor import Predictor

Array = NDArray[np.float32]
PATCH, SIDE = 4, 8  # pixels of a patch, patches along a side
CHECKERS = np.indices((PATCH, PATCH)).sum(0) % 2 * 2 - 1  # sums to zero, so nothing of it is left in a blurred image


def additive_model() -> ConvMixer:
    """A model that adds up, over patches, the amplitude of a checkerboard, and nothing else.

    Class 0 counts it with its sign, class 1 with the opposite sign, class 2 only where it is positive.
    """
    model = tessella.create_model(
        "convmixer_256_8_ks3_p4", pretrained=False, dim=2, depth=0, patch_size=PATCH, num_classes=3
    )
    assert isinstance(model, ConvMixer)
    norm = model.stem[2]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        pattern = torch.from_numpy(CHECKERS).float() / CHECKERS.size / 3
        model.get_parameter("stem.0.weight").copy_(torch.stack([pattern, -pattern])[:, None].expand(-1, 3, -1, -1))
        model.get_parameter("stem.0.bias").zero_()
        norm.weight.fill_(float(np.sqrt(1 + norm.eps)))
        model.get_parameter("head.weight").copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 0.0]]) * 100)
        model.get_parameter("head.bias").copy_(torch.tensor([0.5, 0.0, -0.5]))
    model.pretrained_cfg = dict(input_size=(3, 32, 32), crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    return model


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(Predictor(additive_model()))


def image_of(subject: Subject, amplitudes: NDArray[np.int64]) -> PreparedImage:
    """Return a gray image with a checkerboard of this amplitude, from -127 to 127, in each patch."""
    pixels = 128 + np.kron(amplitudes, CHECKERS)
    ((_, image),) = subject.prepare([np.repeat(pixels[:, :, None], 3, 2).astype(np.uint8)])
    assert isinstance(image, PreparedImage)
    return image


def amplitudes_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return 64 different whole numbers from -126 to 126 in the order of the values (rows,columns)."""
    return (average_ranks(values.ravel()).reshape(values.shape) * 4 - 126).astype(np.int64)


@pytest.fixture(scope="module")
def amplitudes() -> NDArray[np.int64]:
    return amplitudes_of(random_fields(np.random.default_rng(5), 1, (SIDE, SIDE), 1.0)[0])


@pytest.fixture(scope="module")
def image(subject: Subject, amplitudes: NDArray[np.int64]) -> PreparedImage:
    return image_of(subject, amplitudes)


@pytest.fixture(scope="module")
def scorer(subject: Subject, image: PreparedImage) -> Scorer:
    return Scorer(subject, image, 0)


def as_map(values: NDArray[np.generic]) -> AttributionMap:
    return AttributionMap(np.asarray(values, np.float32), "test")


def same(a: Faithfulness, b: Faithfulness) -> bool:
    """Whether all figures and curves are equal, bit by bit."""

    def plain(found: Faithfulness) -> object:
        return [array.tolist() if isinstance(array, np.ndarray) else array for array in flat(asdict(found))]

    return plain(a) == plain(b)


def flat(values: object) -> Iterator[object]:
    for value in values.values() if isinstance(values, dict) else ():
        yield from flat(value) if isinstance(value, dict) else [value]


def rotated(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.roll(values, (SIDE // 2, SIDE // 2), (0, 1))


# --- the right answer is known ----------------------------------------------------------------------------------------


def test_drops_are_the_contributions(scorer: Scorer, amplitudes: NDArray[np.int64]) -> None:
    # a pixel of 128 + a becomes (128 + a) / 127.5 - 1; the mean over patches and the weight of 100 follow
    assert np.allclose(scorer.drops, amplitudes.ravel() / 127.5 * 100 / 64, atol=2e-3)


def test_the_true_map_is_faithful(scorer: Scorer, amplitudes: NDArray[np.int64]) -> None:
    found = scorer.score(as_map(amplitudes))
    assert found.correlation.value == pytest.approx(1)
    assert found.deletion.better
    assert found.insertion.better
    assert found.correlation.better
    assert found.faithful
    assert found.verdict == "faithful"
    assert found.reason == "better than 97.5 % of random maps in deletion, insertion and correlation"


def test_the_reversed_map_is_not_faithful(scorer: Scorer, amplitudes: NDArray[np.int64]) -> None:
    found = scorer.score(as_map(-amplitudes))
    assert found.correlation.value == pytest.approx(-1)
    assert not any(score.better for score in (found.deletion, found.insertion, found.correlation))
    assert found.verdict == "not faithful here"
    assert found.deletion.value > found.deletion.random_high
    assert found.insertion.value < found.insertion.random_low


def test_the_true_map_shifted_is_not_faithful(scorer: Scorer, amplitudes: NDArray[np.int64]) -> None:
    assert not scorer.score(as_map(rotated(amplitudes))).faithful


@pytest.mark.parametrize("width", [0.0, 0.5, 1.0, 1.5])
def test_true_maps_are_always_faithful(subject: Subject, width: float) -> None:
    for field in random_fields(np.random.default_rng(1), 10, (SIDE, SIDE), width):
        values = amplitudes_of(field)
        assert score_map(subject, image_of(subject, values), as_map(values), 0).faithful


def test_curves_of_an_additive_model(scorer: Scorer, amplitudes: NDArray[np.int64]) -> None:
    """Deleting and inserting cells changes the score by the sum of their contributions."""
    found = scorer.score(as_map(amplitudes))
    contributions = np.sort(amplitudes.ravel())[::-1] / 127.5 * 100 / 64
    counts = np.array([0, 16, 32, 48, 64])
    inserted = np.concatenate([[0], np.cumsum(contributions)])[counts] + 0.5
    assert np.allclose(found.insertion_curve.fractions, counts / 64)
    assert np.allclose(found.insertion_curve.values, inserted, atol=0.02)
    assert np.allclose(found.deletion_curve.fractions, counts / 64)
    assert np.allclose(found.deletion_curve.values, inserted[-1] - inserted + 0.5, atol=0.02)
    area = ((inserted[1:] + inserted[:-1]) / 2).mean()
    assert found.insertion.value == pytest.approx(area, abs=0.02)
    assert found.deletion.value == pytest.approx(inserted[-1] + 0.5 - area, abs=0.02)


def test_negative_evidence_comes_last(subject: Subject) -> None:
    """A map that hides the sign ranks what contradicts the class as high as what supports it."""
    values = amplitudes_of(random_fields(np.random.default_rng(2), 1, (SIDE, SIDE), 0.5)[0])
    scorer = Scorer(subject, image_of(subject, values), 0)
    signed, unsigned = scorer.score(as_map(values)), scorer.score(as_map(np.abs(values)))
    assert signed.deletion.value < unsigned.deletion.value
    assert not unsigned.faithful


def test_a_difference_of_classes(subject: Subject, image: PreparedImage, amplitudes: NDArray[np.int64]) -> None:
    """Class 2 differs from class 0 where the checkerboard is negative, so the map of class 0 is not that of 2 - 0."""
    scorer = Scorer(subject, image, 2, 0)
    contributions = np.maximum(amplitudes, 0) - amplitudes
    assert np.allclose(scorer.drops, contributions.ravel() / 127.5 * 100 / 64, atol=4e-3)
    assert scorer.score(as_map(contributions)).faithful
    assert not scorer.score(as_map(amplitudes)).faithful
    assert scorer.score(as_map(-amplitudes)).faithful


def test_what_replaces_a_cell_can_be_chosen(subject: Subject) -> None:
    """A model of color sees a blurred image as it is, so only the mean color removes anything from it."""
    values = amplitudes_of(np.add.outer(np.arange(8.0), np.arange(8.0) / 10))
    pixels = np.kron(128 + values, np.ones((PATCH, PATCH)))
    ((_, image),) = subject.prepare([np.repeat(pixels[:, :, None], 3, 2).astype(np.uint8)])
    assert isinstance(image, PreparedImage)
    sums = Subject(Predictor(brightness_model()))
    blur, mean = (Scorer(sums, image, 0, settings=ScoreSettings(removal=removal)) for removal in ("blur", "mean"))
    assert np.allclose(mean.drops, (values - values.mean()).ravel() / 127.5 / 64, atol=1e-3)
    assert np.abs(blur.drops).mean() < 0.4 * np.abs(mean.drops).mean()
    assert mean.score(as_map(values)).faithful


def brightness_model() -> ConvMixer:
    """The model of `additive_model`, but its first channel is the mean brightness of a patch."""
    model = additive_model()
    with torch.no_grad():
        model.get_parameter("stem.0.weight").fill_(1 / 48)
        model.get_parameter("stem.0.bias").fill_(1)  # black is -1: no patch is below the threshold of ReLU
        model.get_parameter("head.weight").copy_(torch.tensor([[0.5, 0.5], [0, 0], [0, 0]]))
    return model


# --- maps that rank nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [np.zeros((8, 8)), np.full((8, 8), 0.1), np.full((3, 5), 1e6), np.ones((1, 1))])
def test_constant_maps_are_not_faithful(scorer: Scorer, values: NDArray[np.float64]) -> None:
    found = scorer.score(as_map(values))
    assert not found.faithful
    assert found.reason == "the map is constant, so it ranks nothing"
    assert found.correlation.value == 0


def test_a_model_that_ignores_the_image(subject: Subject, amplitudes: NDArray[np.int64]) -> None:
    gray = image_of(subject, np.zeros((SIDE, SIDE), np.int64))
    found = score_map(subject, gray, as_map(amplitudes), 0)
    assert not found.faithful
    assert found.reason == "no region changes the score when it is removed"


@pytest.mark.parametrize("shown", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(
    subject: Subject, image: PreparedImage, amplitudes: NDArray[np.int64], shown: int, bad: float
) -> None:
    """The model overflows for images without some cells: there is no score, good or bad."""
    broken = Subject(subject.predictor)
    calls: list[int] = []

    def logits(x_BCHW: torch.Tensor) -> Array:
        calls.append(1)
        found = subject.logits(x_BCHW)
        found[-1, 0] = bad if len(calls) == shown else found[-1, 0]
        return found

    broken.logits = logits  # type: ignore[method-assign]
    with pytest.raises(WeightsError, match="NaN or infinity") as caught:
        score_map(broken, image, as_map(amplitudes), 0)
    assert caught.value.code == "non_finite"


def test_the_place_does_not_decide_between_equal_values(subject: Subject) -> None:
    """Deleting a map of two values in the order of its cells would favor images whose top rows matter."""
    values = amplitudes_of(-np.arange(64.0).reshape(SIDE, SIDE))
    found = score_map(subject, image_of(subject, values), as_map(np.arange(64).reshape(SIDE, SIDE) % 8 == 0), 0)
    assert not any(score.better for score in (found.deletion, found.insertion))


def test_a_map_with_few_values_can_be_faithful(scorer: Scorer, amplitudes: NDArray[np.int64]) -> None:
    found = scorer.score(as_map(amplitudes > 60))
    assert found.faithful
    assert found.correlation.random_high < found.correlation.value < 1


@pytest.mark.parametrize("values", [np.full((8, 8), np.nan), np.zeros(8), np.zeros((0, 4))])
def test_maps_that_are_none(scorer: Scorer, values: NDArray[np.float64]) -> None:
    with pytest.raises(UsageError, match="not finite"):
        scorer.score(as_map(values))


@pytest.mark.parametrize(
    ("target", "versus", "more"),
    [
        (3, None, {}),
        (-1, None, {}),
        (0, 3, {}),
        (1, 1, {}),
        (0, None, dict(steps=1)),
        (0, None, dict(random_maps=0)),
        (0, None, dict(removal="noise")),
    ],
)
def test_arguments_are_checked(
    subject: Subject, image: PreparedImage, target: int, versus: int | None, more: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) as caught:
        Scorer(subject, image, target, versus, settings=ScoreSettings(**more))
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize("patch_size", [32, 16])
def test_a_model_with_a_few_patches_cannot_be_better_than_random(patch_size: int) -> None:
    """Random maps put up to four cells into the same order too often for any map to be beyond the upper 2.5 %."""
    model = tessella.create_model(
        "convmixer_256_8_ks3_p4", pretrained=False, dim=2, depth=0, patch_size=patch_size, num_classes=3
    )
    model.pretrained_cfg = dict(input_size=(3, 32, 32), crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    few = Subject(Predictor(model))
    image = image_of(few, amplitudes_of(np.arange(64.0).reshape(SIDE, SIDE)))
    scorer = Scorer(few, image, 0)
    assert not scorer.score(as_map(scorer.drops.reshape(scorer.cells))).faithful


# --- maps of any resolution -------------------------------------------------------------------------------------------


def test_maps_of_pixels_and_of_patches_agree(scorer: Scorer, amplitudes: NDArray[np.int64]) -> None:
    patches, pixels = as_map(amplitudes), as_map(upsample(amplitudes.astype(np.float32), 32, 32, smooth=False))
    assert same(scorer.score(patches), scorer.score(pixels))


def test_coarse_maps_are_interpolated(subject: Subject) -> None:
    ramp = amplitudes_of(np.add.outer(np.arange(8.0), np.arange(8.0) / 10))
    found = score_map(subject, image_of(subject, ramp), as_map(np.array([[0, 0], [1, 1]])), 0)
    assert found.correlation.value > 0.9


# --- the rate of false alarms -----------------------------------------------------------------------------------------

IMAGES, MAPS = 50, 20  # random maps are independent of the images, so any that is called faithful is a false alarm


@cache
def false_alarms(subject: Subject, kind: str) -> dict[str, float]:
    """Return the part of random maps that each figure and the rule take for faithful.

    "permutations" is the correlation with cells in random order as the opponents, whatever the smoothness of the map.
    """
    counts = dict(deletion=0, insertion=0, correlation=0, faithful=0, permutations=0)
    for seed in range(IMAGES):
        rng = np.random.default_rng((1, seed))
        scorer = Scorer(subject, image_of(subject, amplitudes_of(random_fields(rng, 1, (SIDE, SIDE), 1.0)[0])), 0)
        drops = average_ranks(scorer.drops) - 31.5
        permuted = np.sort(rng.permuted(np.tile(np.arange(64.0) - 31.5, (999, 1)), axis=1) @ drops)
        for values in random_values(kind, rng):
            found = scorer.score(as_map(values))
            ranks = average_ranks(values.astype(np.float32).ravel()) - 31.5
            counts["permutations"] += bool(ranks @ drops > permuted[-25])
            for name in ("deletion", "insertion", "correlation"):
                counts[name] += getattr(found, name).better
            counts["faithful"] += found.faithful
    return {name: count / (IMAGES * MAPS) for name, count in counts.items()}


def random_values(kind: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return random maps (MAPS,rows,columns)."""
    if kind == "noise":
        return random_fields(rng, MAPS, (SIDE, SIDE), 0)
    if kind == "few values":
        return np.maximum(random_fields(rng, MAPS, (SIDE, SIDE), 1.0) - 0.5, 0)
    if kind == "smooth and noise":
        return random_fields(rng, MAPS, (SIDE, SIDE), 1.5) + 0.7 * random_fields(rng, MAPS, (SIDE, SIDE), 0)
    if kind == "one blob":
        places = np.indices((SIDE, SIDE))[:, None] - rng.uniform(-0.5, SIDE - 0.5, (2, MAPS, 1, 1))
        return np.exp(-0.5 * (places**2).sum(0) / 2)
    return random_fields(rng, MAPS, (SIDE, SIDE), float(kind))


COMMON, OTHER = ("noise", "1.25", "few values"), ("0.6", "2.5", "smooth and noise", "one blob")


@pytest.mark.parametrize("kind", [*COMMON, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHER)])
def test_random_maps_are_called_faithful_at_the_stated_rate(subject: Subject, kind: str) -> None:
    """The rule promises 3.75 % and each figure 2.5 %; 1,000 maps of 50 images estimate them within about 1.5 %."""
    rates = false_alarms(subject, kind)
    assert rates["faithful"] <= 0.0375
    assert max(rates[name] for name in ("deletion", "insertion", "correlation")) <= 0.04


def test_permutations_are_no_opponents_for_smooth_maps(subject: Subject) -> None:
    rates = false_alarms(subject, "1.25")
    assert rates["permutations"] > 0.15
    assert rates["correlation"] < 0.04


@pytest.mark.parametrize(("noise", "least"), [(0.5, 0.95), (1.0, 0.8)])
def test_noisy_maps_are_recognized(subject: Subject, noise: float, least: float) -> None:
    """The rule has power: a map that is half noise, in variance, is still told from random ones."""
    fields, noises = random_fields(np.random.default_rng(3), 80, (SIDE, SIDE), 1.0).reshape(2, 40, SIDE, SIDE)
    faithful = [
        score_map(subject, image_of(subject, amplitudes_of(field)), as_map(field + noise * disturbance), 0).faithful
        for field, disturbance in zip(fields, noises, strict=True)
    ]
    assert np.mean(faithful) >= least


# --- the same numbers, and no pass twice ------------------------------------------------------------------------------


def test_results_depend_on_the_seed_and_the_image_only(
    subject: Subject, image: PreparedImage, amplitudes: NDArray[np.int64]
) -> None:
    true, smooth = as_map(amplitudes), as_map(np.add.outer(np.arange(8.0), np.arange(8.0)))
    first, second = Scorer(subject, image, 0), Scorer(subject, image, 0)
    expected = [first.score(true), first.score(smooth)]
    assert all(map(same, expected, [second.score(smooth), second.score(true)][::-1]))
    renamed = PreparedImage("another name", image.pixels, image.x)
    assert same(score_map(subject, renamed, true, 0), expected[0])
    other = score_map(subject, image, true, 0, seed=1)
    assert other.deletion.value == expected[0].deletion.value
    assert other.deletion.random_mean != expected[0].deletion.random_mean


def test_maps_of_one_image_share_passes(subject: Subject, image: PreparedImage, amplitudes: NDArray[np.int64]) -> None:
    scorer = Scorer(subject, image, 0)
    turned = (amplitudes, amplitudes.T, amplitudes[::-1])  # equally smooth
    for values in turned:
        scorer.score(as_map(values))
    inner = 3  # points of a curve between its ends
    assert scorer.passes == 2 + 64 + RANDOM_MAPS * inner + len(turned) * 2 * inner


def test_batches_are_bounded(
    subject: Subject, image: PreparedImage, amplitudes: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score_map(subject, image, as_map(amplitudes), 0)
    sizes: list[int] = []
    original = Subject.logits

    def counted(self: Subject, x_BCHW: torch.Tensor) -> Array:
        sizes.append(len(x_BCHW))
        return original(self, x_BCHW)

    monkeypatch.setattr(Subject, "logits", counted)
    monkeypatch.setattr("tessella.explain.faithfulness.BATCH_PIXELS", 7 * 32 * 32)
    found = score_map(subject, image, as_map(amplitudes), 0)
    assert max(sizes) == 7
    assert found.correlation.value == expected.correlation.value
    assert found.deletion.value == pytest.approx(expected.deletion.value, rel=1e-5)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_the_interval_of_39_values_is_their_range() -> None:
    values = np.random.default_rng(0).normal(size=39)
    assert interval(values) == (values.min(), values.max())
    assert [float(limit) for limit in interval(np.arange(999.0))] == [24, 974]
    low, high = interval(np.arange(20.0).reshape(10, 2))
    assert low.tolist() == [0, 1]
    assert high.tolist() == [18, 19]


def test_a_new_value_is_beyond_the_interval_at_the_stated_rate() -> None:
    values = np.random.default_rng(0).exponential(size=(40, 20_000))
    _, high = interval(values[1:])
    assert np.mean(values[0] > high) == pytest.approx(0.025, abs=0.004)


def test_values_within_the_noise_are_not_better() -> None:
    random = np.linspace(0, 1, 39)
    assert compare(1.1, random, 0.05).better
    assert not compare(1.1, random, 0.2).better
    assert not compare(1.0, random, 0).better
    assert compare(-0.1, random, 0.05, lower_is_better=True).better
    assert not compare(1.1, random, 0.05, lower_is_better=True).better


def test_values_within_the_noise_are_as_random() -> None:
    """What is shown agrees with the comparison: 1.1 is no worse than 1 if differences of 0.2 are rounding."""
    random = np.linspace(0, 1, 39)
    for lower_is_better in (False, True):
        for value, noise, expected in ((1.1, 0.2, 1.0), (-0.1, 0.2, 0.0), (1.1, 0.05, 1.1), (0.5, 0.2, 0.5)):
            assert compare(value, random, noise, lower_is_better=lower_is_better).value == expected


def test_equal_values_share_a_rank() -> None:
    assert average_ranks(np.array([3.0, 1, 3, 2, 3])).tolist() == [3, 0, 3, 1, 3]


def test_orders_start_with_the_highest_value() -> None:
    fields = random_fields(np.random.default_rng(0), 5, (3, 4), 1.0).reshape(5, -1)
    orders = random_orders(np.random.default_rng(0), 5, (3, 4), 1.0)
    assert (np.diff(np.take_along_axis(fields, orders, 1), axis=1) <= 0).all()


@pytest.mark.parametrize("width", SMOOTHNESS)
def test_random_fields_have_the_same_variance_everywhere(width: float) -> None:
    fields = random_fields(np.random.default_rng(0), 4000, (4, 7), width)
    assert np.allclose(fields.std(0), 1, atol=0.06)
    assert np.allclose(fields.mean(0), 0, atol=0.08)
    if width >= 0.75:  # the correlation of neighbors under a Gaussian kernel
        expected = np.exp(-1 / (4 * width**2))
        assert np.mean(fields[:, 1:] * fields[:, :-1]) == pytest.approx(expected, abs=0.04)


def test_autocorrelation() -> None:
    checkers = np.indices((6, 6)).sum(0) % 2.0
    ramp = np.add.outer(np.arange(50.0), np.arange(50.0))
    found = autocorrelation(np.stack([checkers, np.zeros((6, 6))]))
    assert found[0] == pytest.approx(0)  # -1 at a distance of 1, 1 at a distance of 2
    assert found[1] == 0
    assert autocorrelation(ramp[None])[0] > 0.99
    assert autocorrelation(np.zeros((1, 1, 1)))[0] == 0


@pytest.mark.parametrize("shape", [(8, 8), (6, 6), (5, 8)])
def test_smoothness_is_recognized(shape: tuple[int, int]) -> None:
    """Maps of a level are matched with it or a neighboring one, upward rather than downward."""
    rng = np.random.default_rng(0)
    for place, level in enumerate(SMOOTHNESS):
        found = [SMOOTHNESS.index(matching_smoothness(field)) for field in random_fields(rng, 200, shape, level)]
        assert abs(np.median(found) - place) <= 1
        assert np.mean(np.array(found) >= place) > 0.4


@pytest.mark.parametrize(
    ("patch_size", "size", "cells"),
    [
        (4, (32, 32), (8, 8)),
        (8, (96, 96), (6, 6)),
        (7, (224, 224), (8, 8)),
        (16, (224, 448), (7, 7)),
        (16, (208, 48), (8, 3)),
    ],
)
def test_cells_are_whole_patches(patch_size: int, size: tuple[int, int], cells: tuple[int, int]) -> None:
    model = tessella.create_model("convmixer_256_8_ks3_p4", pretrained=False, dim=2, depth=0, patch_size=patch_size)
    assert cell_grid(model, *size) == cells


def test_cells_of_two_branches_are_those_of_the_first() -> None:
    model = tessella.create_model("crossvit_tiny_240", pretrained=False, img_size=120, num_classes=3)
    assert cell_grid(model, 240, 240) == (5, 5)


def test_a_blurred_image_keeps_its_colors_only() -> None:
    x = (
        torch.randn(1, 3, 40, 64, generator=torch.Generator().manual_seed(0))
        + torch.tensor([1.0, -2, 3])[:, None, None]
    )
    y = blurred(x)
    assert torch.allclose(y.mean((2, 3)), x.mean((2, 3)), atol=0.1)
    assert y.std((2, 3)).max() < 0.15
    assert torch.allclose(blurred(torch.full((1, 1, 9, 5), 2.0)), torch.tensor(2.0))
