"""Test random erasing, mixup and CutMix by their distributions, targets and losses against explicit sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.data.mix import (
    Erasing,
    Mixing,
    _span,
    binary_loss,
    erase,
    labelled_binary_loss,
    labelled_targets,
    mix,
    soft_target_loss,
    targets,
)
from tessella.errors import UsageError

from .distributions import assert_fraction


def numbered(count: int, height: int = 16, width: int = 12) -> Tensor:
    """Return (count,3,H,W) images; every value of image i is i."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 3, height, width).clone()


# --- random erasing ---------------------------------------------------------------------------------------------------


def test_erasing_happens_with_its_probability() -> None:
    rng = np.random.default_rng(0)
    config = Erasing(prob=0.25)
    erased = sum(bool((erase(torch.ones(3, 16, 16), rng, config) == 0).any()) for _ in range(2000))
    assert_fraction(erased, 2000, 0.25)


def test_erased_boxes_have_the_configured_areas_and_aspects() -> None:
    rng = np.random.default_rng(1)
    areas, log_aspects, tops = [], [], []
    for _ in range(1000):
        x = torch.ones(2, 200, 300)
        assert erase(x, rng, Erasing(prob=1, area=(0.02, 0.2))) is x
        erased = x.numpy() == 0
        rows, columns = np.flatnonzero(erased[0].any(1)), np.flatnonzero(erased[0].any(0))
        h, w = len(rows), len(columns)
        assert erased.sum() == 2 * h * w  # one full box, the same in both channels
        areas.append(h * w / 60_000)
        log_aspects.append(math.log(h / w))
        tops.append(int(rows[0]) / (200 - h))
    assert 0.02 * 0.96 < min(areas) < 0.03
    assert 0.19 < max(areas) < 0.2 * 1.02
    assert_fraction(sum(area < 0.11 for area in areas), 1000, 0.5)
    assert math.log(0.3) - 0.03 < min(log_aspects) < -1.1
    assert 1.1 < max(log_aspects) < -math.log(0.3) + 0.03
    assert_fraction(sum(aspect < 0 for aspect in log_aspects), 1000, 0.5)
    assert_fraction(sum(aspect < math.log(0.3) / 2 for aspect in log_aspects), 1000, 0.25)
    assert (min(tops), max(tops)) == (0, 1)
    assert_fraction(sum(top < 0.5 for top in tops), 1000, 0.5)


def test_the_default_erases_up_to_a_third() -> None:
    rng = np.random.default_rng(2)
    shares = [float((erase(torch.ones(1, 100, 100), rng, Erasing(prob=1)) == 0).float().mean()) for _ in range(800)]
    assert 0.018 < min(shares) < 0.03
    assert 0.32 < max(shares) < 0.345


def test_boxes_are_filled_with_zeros_or_noise() -> None:
    rng = np.random.default_rng(3)
    values = []
    for _ in range(200):
        x = erase(torch.full((3, 40, 40), 9.0), rng, Erasing(prob=1, mode="rand"))
        inside = [channel[channel != 9] for channel in x]
        assert all(len(channel.unique()) == 1 for channel in inside)
        values += [float(channel[0]) for channel in inside]
    assert len(set(values)) == 600
    assert abs(np.mean(values)) < 4 / math.sqrt(600)
    assert 0.85 < np.std(values) < 1.15
    x = erase(torch.full((3, 200, 200), 99.0), rng, Erasing(prob=1, mode="pixel", area=(0.3, 0.3)))
    noise = x[x != 99]
    assert len(noise) == pytest.approx(0.3 * 120_000, rel=0.02)
    assert len(noise.unique()) > 0.99 * len(noise)
    assert abs(float(noise.mean())) < 4 / math.sqrt(len(noise))
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


def test_the_area_is_divided_among_a_random_number_of_boxes() -> None:
    rng = np.random.default_rng(4)
    counts = []
    for _ in range(900):
        x = erase(torch.full((1, 100, 100), 9.0), rng, Erasing(prob=1, mode="rand", count=3, area=(0.03, 0.03)))
        noise = x.numpy()[x.numpy() != 9]
        counts.append(len(np.unique(noise)))
        assert len(noise) < 0.034 * 10_000
    for count in (1, 2, 3):
        assert_fraction(counts.count(count), 900, 1 / 3)


def test_erasing_depends_only_on_the_generator() -> None:
    def once(seed: int, mode: Any) -> Tensor:
        return erase(torch.ones(3, 20, 30), np.random.default_rng(seed), Erasing(prob=1, mode=mode, count=4))

    for mode in ("const", "rand", "pixel"):
        assert torch.equal(once(5, mode), once(5, mode))
        assert not torch.equal(once(5, mode), once(6, mode))


def test_a_box_never_covers_a_whole_side() -> None:
    rng = np.random.default_rng(7)
    for shape in ((3, 1, 1), (3, 1, 9), (3, 9, 1)):
        for _ in range(50):
            assert bool((erase(torch.ones(shape), rng, Erasing(prob=1)) == 1).all())
    for _ in range(50):
        x = erase(torch.ones(1, 2, 2, dtype=torch.bfloat16), rng, Erasing(prob=1, mode="pixel", area=(0.9, 1.0)))
        assert int((x != 1).sum()) <= 1


# --- mixup and CutMix -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_mixup_images_match_their_label_weights(mode: Any, count: int) -> None:
    x, labels = torch.randn(count, 3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.arange(count)
    original = x.clone()
    mixed, partners, lam = mix(x, labels, np.random.default_rng(1), Mixing(mixup=0.8, mode=mode))
    assert torch.equal(x, original)
    assert torch.equal(partners, labels.flip(0))
    assert (lam.shape, lam.dtype) == ((count,), torch.float32)
    share = lam[:, None, None, None]
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.flip(0))
    draws = dict(batch=1, pair=(count + 1) // 2, elem=count)[mode]
    assert len(lam.unique()) == draws
    assert mode == "elem" or torch.equal(lam, lam.flip(0))
    if count % 2:
        torch.testing.assert_close(mixed[count // 2], x[count // 2])


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_cutmix_images_match_their_label_weights(mode: Any, count: int) -> None:
    x = numbered(count)
    original = x.clone()
    rng = np.random.default_rng(2)
    for _ in range(20):
        mixed, _, lam = mix(x, torch.arange(count), rng, Mixing(cutmix=1.0, mode=mode))
        unchanged = mixed == x
        assert torch.equal(x, original)
        assert bool((unchanged | (mixed == x.flip(0))).all())
        cut = ~unchanged[:, 0]  # (count,H,W)
        assert torch.equal(unchanged, unchanged[:, :1].expand_as(unchanged))  # the same in all channels
        for i in range(count):
            if i != count - 1 - i:  # mixing an image with itself changes nothing
                assert float(lam[i]) == pytest.approx(float(unchanged[i, 0].float().mean()))
            box = cut[i].any(1)[:, None] & cut[i].any(0)[None]
            assert torch.equal(box, cut[i])  # a rectangle
            if mode != "elem":
                assert torch.equal(cut[i], cut[count - 1 - i])
        if mode == "batch":
            assert len(lam.unique()) == 1


def test_mode_elem_draws_per_image() -> None:
    _, _, lam = mix(
        numbered(64), torch.arange(64), np.random.default_rng(3), Mixing(cutmix=1.0, mixup=1.0, mode="elem")
    )
    assert len(lam.unique()) > 50
    assert not torch.equal(lam, lam.flip(0))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_come_from_the_beta_distribution(alpha: float) -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)); also for CutMix, as a box inside the image has the drawn area."""
    _, _, lam = mix(
        torch.zeros(4000, 1, 1, 1), torch.zeros(4000), np.random.default_rng(4), Mixing(mixup=alpha, mode="elem")
    )
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(lam.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(variance / 4000))
    assert float(lam.var()) == pytest.approx(variance, rel=0.1)


def test_cutmix_boxes_are_centred_on_every_pixel() -> None:
    rng = np.random.default_rng(5)
    for length in (0, 1, 4, 5, 10):
        expected = {(max(c - length // 2, 0), min(c + (length + 1) // 2, 10)) for c in range(10)}
        drawn = [_span(10, length, rng) for _ in range(500)]
        assert set(drawn) == expected
        assert max(stop - start for start, stop in drawn) == length
    for c in range(10):
        assert_fraction(sum(_span(10, 1, rng) == (c, c + 1) for _ in range(1000)), 1000, 0.1)


def test_cutmix_keeps_about_the_drawn_fraction() -> None:
    """With a large alpha the weight is 1/2: the sides are 0.7 of the image's, partly clipped by the border."""
    _, _, lam = mix(numbered(600, 40, 40), torch.zeros(600), np.random.default_rng(6), Mixing(cutmix=1e7, mode="elem"))
    side = int(40 * math.sqrt(0.5))
    assert float(lam.min()) == pytest.approx(1 - side**2 / 1600)
    assert float(lam.max()) > 1 - (side / 2 + 1) ** 2 / 1600 - 0.1


def test_cutmix_minmax_draws_sides_and_stays_inside() -> None:
    x, rng = numbered(2, 40, 60), np.random.default_rng(7)
    heights, widths = [], []
    for _ in range(1500):
        mixed, _, lam = mix(x, torch.arange(2), rng, Mixing(cutmix_minmax=(0.25, 0.5)))
        cut = mixed[0, 0] == 1
        heights.append(int(cut.any(1).sum()))
        widths.append(int(cut.any(0).sum()))
        assert float(lam[0]) == pytest.approx(1 - heights[-1] * widths[-1] / 2400)
    assert (min(heights), max(heights), min(widths), max(widths)) == (10, 20, 15, 30)
    for side in (10, 15, 20):
        assert_fraction(heights.count(side), 1500, 1 / 11)
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.1


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_and_cutmix_are_chosen_with_their_probabilities(mode: Any) -> None:
    """Mixup gives fractions, CutMix keeps whole numbers."""
    rng, config = np.random.default_rng(8), Mixing(mixup=1.0, cutmix=1.0, prob=0.6, switch_prob=0.3, mode=mode)
    mixed = cut = 0
    for _ in range(3000):
        x, _, lam = mix(numbered(2, 8, 8), torch.arange(2), rng, config)
        mixed += bool(lam[0] != 1)
        cut += bool(lam[0] != 1 and ((x[0] == 0) | (x[0] == 1)).all())
    seen = (
        1 - 1 / 64
    )  # CutMix boxes can be empty: the side 8 sqrt(1 - lam) is under 1 if 1 - lam, uniform in 0..1, is under 1/64
    assert_fraction(mixed, 3000, 0.6 * (0.7 + 0.3 * seen))
    assert_fraction(cut, 3000, 0.6 * 0.3 * seen)


def test_nothing_enabled_changes_nothing() -> None:
    x, labels = numbered(4), torch.arange(4)
    for config in (Mixing(), Mixing(prob=0.0, mixup=1.0, cutmix=1.0), Mixing(switch_prob=1.0)):
        assert not config.enabled
        same, partners, lam = mix(x, labels, np.random.default_rng(9), config)
        assert torch.equal(same, x)
        assert torch.equal(lam, torch.ones(4))
        assert torch.equal(partners, labels.flip(0))
    assert Mixing(cutmix_minmax=(0.2, 0.8)).enabled


def test_mixing_depends_only_on_the_generator() -> None:
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for mode in ("batch", "pair", "elem"):
        config = Mixing(mixup=0.4, cutmix=1.0, mode=mode)
        runs = [mix(x, torch.arange(6), np.random.default_rng(seed), config)[0] for seed in (1, 1, 2)]
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])


def test_unmixed_images_are_bit_identical() -> None:
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    mixed, _, lam = mix(x, torch.arange(64), np.random.default_rng(10), Mixing(mixup=1.0, prob=0.5, mode="elem"))
    untouched = lam == 1
    assert 10 < int(untouched.sum()) < 54
    assert torch.equal(mixed[untouched], x[untouched])


# --- targets and losses -----------------------------------------------------------------------------------------------


def test_targets_worked_out_by_hand() -> None:
    actual = targets(torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0]), torch.tensor([0.75, 0.3, 1.0]), 4, 0.2)
    expected = [[0.65, 0.05, 0.25, 0.05], [0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]]
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, torch.tensor(expected))
    binary = targets(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([0.75, 0.5]), 3, 0.2, binary=True)
    torch.testing.assert_close(binary, torch.tensor([[0.7, 0.3, 0.1], [0.1, 0.9, 0.1]]))


def test_rows_of_targets_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(3)
    for classes in (2, 10, 1000):
        first, second = torch.randint(classes, (2, 256), generator=generator)
        made = targets(first, second, torch.rand(256, generator=generator), classes, 0.1)
        torch.testing.assert_close(made.double().sum(1), torch.ones(256, dtype=torch.float64), atol=2e-6, rtol=0)
        assert float(made.min()) >= 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_target_loss_equals_torchs_cross_entropy(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(4)
    logits, labels = 5 * torch.randn(32, 7, generator=generator), torch.randint(7, (32,), generator=generator)
    plain = targets(labels, labels, torch.ones(32), 7, smoothing)
    torch.testing.assert_close(
        soft_target_loss(logits, plain), F.cross_entropy(logits, labels, label_smoothing=smoothing)
    )
    lam = torch.rand(32, generator=generator)
    soft = targets(labels, labels.flip(0), lam, 7, smoothing)
    torch.testing.assert_close(soft_target_loss(logits, soft), F.cross_entropy(logits, soft))


def test_binary_loss_worked_out_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
    soft = torch.tensor([[0.1, 0.9], [0.3, 0.7]])
    p = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))

    def binary_cross_entropy(t: np.ndarray) -> np.ndarray:
        loss: np.ndarray = -(t * np.log(p) + (1 - t) * np.log(1 - p))
        return loss

    assert float(binary_loss(logits, soft)) == pytest.approx(binary_cross_entropy(soft.numpy()).mean())
    assert float(binary_loss(logits, soft, sum_classes=True)) == pytest.approx(
        binary_cross_entropy(soft.numpy()).sum(1).mean()
    )
    hard = np.array([[0.0, 1.0], [1.0, 1.0]])
    assert float(binary_loss(logits, soft, threshold=0.2)) == pytest.approx(binary_cross_entropy(hard).mean())


def test_images_without_labels_have_no_label_loss() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4, 3, generator=generator)
    labels, lam = torch.tensor([2, -1, 0, -1]), torch.tensor([0.7, 0.7, 1.0, 1.0])
    partner = torch.tensor([-1, 1, -1, -1])
    rows = labelled_targets(labels, partner, lam, 3, 0.0)
    expected = torch.tensor([[0, 0, 0.7], [0, 0.3, 0], [1, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(rows, expected)
    smoothed = labelled_targets(labels, partner, lam, 3, 0.3)
    torch.testing.assert_close(smoothed.sum(1), torch.tensor([0.7, 0.3, 1.0, 0.0]))
    own = F.binary_cross_entropy_with_logits(logits, F.one_hot(torch.tensor([2, 1, 0, 0]), 3).float(), reduction="none")
    shares = torch.tensor([0.7, 0.3, 1.0, 0.0])
    torch.testing.assert_close(labelled_binary_loss(logits, rows), (own.mean(1) * shares).mean())
    labels = labels.clamp(min=0)
    full = labelled_targets(labels, labels.flip(0), lam, 3, 0.1)
    assert torch.equal(full, targets(labels, labels.flip(0), lam, 3, 0.1))
    assert torch.equal(labelled_binary_loss(logits, full), binary_loss(logits, full))


def test_losses_are_in_float32_and_have_gradients() -> None:
    for loss_of in (soft_target_loss, binary_loss):
        logits = torch.tensor([[30.0, -30.0, 100.0]], dtype=torch.bfloat16, requires_grad=True)
        loss = loss_of(logits, torch.tensor([[0.5, 0.25, 0.25]]))
        assert loss.dtype == torch.float32
        loss.backward()
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())
        assert bool((logits.grad != 0).any())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Erasing, dict(prob=-0.1)),
        (Erasing, dict(prob=math.nan)),
        (Erasing, dict(mode="noise")),
        (Erasing, dict(count=0)),
        (Erasing, dict(area=(0.5, 0.2))),
        (Erasing, dict(area=(0.1, 1.2))),
        (Erasing, dict(area=(0.1,))),
        (Erasing, dict(aspect=(0.0, 1.0))),
        (Mixing, dict(mixup=-1.0)),
        (Mixing, dict(cutmix=math.inf)),
        (Mixing, dict(prob=1.5)),
        (Mixing, dict(switch_prob=-0.5)),
        (Mixing, dict(mode="half")),
        (Mixing, dict(cutmix_minmax=(0.8, 0.2))),
        (Mixing, dict(cutmix_minmax=(0.2, 0.5, 0.8))),
    ],
)
def test_invalid_settings_are_refused(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        kind(**fields)
    assert caught.value.code == "bad_argument"
    assert next(iter(fields)) in caught.value.message
