"""Random erasing, mixup and CutMix of normalized images, with the targets and losses that belong to them.

Random erasing works on one image, mixup and CutMix on a batch; the settings have timm's meaning. Shapes: B images of
C channels and H x W pixels, K classes. All random numbers, noise included, come from the generator passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..checks import check_fields
from ..errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

MAX_TRIES = 10  # to find a box that fits into the image


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """Settings of random erasing, which replaces boxes of an image by 0 or by noise.

    Raises UsageError `bad_argument` for values out of range; so does `Mixing`.
    """

    prob: float = 0.0
    mode: Literal["const", "rand", "pixel"] = "const"  # zero, noise per channel, noise per channel and pixel
    count: int = 1  # maximum number of boxes; drawn from 1 to count
    area: tuple[float, float] = (0.02, 1 / 3)  # of all boxes together, as a fraction of the image
    aspect: tuple[float, float] = (0.3, 1 / 0.3)  # height / width, log-uniform

    def __post_init__(self) -> None:
        check_fields(self)
        check_setting(0 <= self.prob <= 1, "prob", self.prob, "0 to 1")
        check_setting(self.mode in ("const", "rand", "pixel"), "mode", self.mode, "'const', 'rand' or 'pixel'")
        check_setting(self.count >= 1, "count", self.count, "1 or more")
        check_setting(_is_range(self.area, 0, 1), "area", self.area, "two fractions from 0 to 1, the smaller first")
        check_setting(
            _is_range(self.aspect, 1e-6, 1e6), "aspect", self.aspect, "two positive ratios, the smaller first"
        )


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Settings of mixup and CutMix. If both are enabled, CutMix is chosen with probability `switch_prob`."""

    mixup: float = 0.0  # alpha of Beta(alpha, alpha), which gives the weight of the first image; 0: no mixup
    cutmix: float = 0.0  # alpha of CutMix; 0: no CutMix
    cutmix_minmax: tuple[float, float] | None = None  # replaces cutmix: bounds of the box's sides, as fractions
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"  # one draw per batch, pair of mixed images, or image

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("mixup", "cutmix"):
            check_setting(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or a positive number")
        for name in ("prob", "switch_prob"):
            check_setting(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        check_setting(self.mode in ("batch", "pair", "elem"), "mode", self.mode, "'batch', 'pair' or 'elem'")
        sides = self.cutmix_minmax
        check_setting(
            sides is None or _is_range(sides, 0, 1),
            "cutmix_minmax",
            sides,
            "two fractions from 0 to 1, the smaller first",
        )

    @property
    def enabled(self) -> bool:
        """Return whether any image can be mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cuts)

    @property
    def cuts(self) -> bool:
        """Return whether CutMix is enabled."""
        return self.cutmix > 0 or self.cutmix_minmax is not None


def check_setting(ok: bool, name: str, value: object, expected: str) -> None:
    """Raise UsageError `bad_argument`, which names the setting and the expected values, unless `ok`."""
    if not ok:
        raise UsageError("bad_argument", f"{name} is {value!r}, expected {expected}")


def _is_range(values: tuple[float, ...], low: float, high: float) -> bool:
    return len(values) == 2 and low <= values[0] <= values[1] <= high


# --- random erasing ---------------------------------------------------------------------------------------------------


def erase(x_CHW: Tensor, rng: Generator, config: Erasing) -> Tensor:
    """Erase boxes of one normalized (C,H,W) image in place, with probability config.prob, and return it."""
    if rng.random() >= config.prob:
        return x_CHW
    channels, height, width = x_CHW.shape
    boxes = int(rng.integers(1, config.count + 1))
    low, high = map(math.log, config.aspect)
    for _ in range(boxes):
        for _ in range(MAX_TRIES):
            area = height * width * rng.uniform(*config.area) / boxes
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                x_CHW[:, top : top + h, left : left + w] = _filler(x_CHW, (channels, h, w), rng, config.mode)
                break
    return x_CHW


def _filler(x: Tensor, shape_CHW: tuple[int, int, int], rng: Generator, mode: str) -> Tensor | float:
    if mode == "const":
        return 0.0
    shape = shape_CHW if mode == "pixel" else (shape_CHW[0], 1, 1)
    return x.new_tensor(rng.standard_normal(shape, dtype=np.float32))


# --- mixup and CutMix -------------------------------------------------------------------------------------------------


def mix(x_BCHW: Tensor, labels_B: Tensor, rng: Generator, config: Mixing) -> tuple[Tensor, Tensor, Tensor]:
    """Mix every image with its partner, the image at the same position of the reversed batch.

    Returns new images (B,C,H,W), the partners' labels (B,), and the weight of the first label (B,) float32, which is 1
    for unmixed images. In an odd batch, the image in the middle is its own partner.
    """
    count, _, height, width = x_BCHW.shape
    groups = _groups(count, config.mode)
    mixed, cut = _choose(len(groups), rng, config)
    lam = np.ones(count, np.float32)
    blended, partner = x_BCHW, x_BCHW.flip(0)
    if (mixed & ~cut).any():
        for group in np.flatnonzero(mixed & ~cut):
            lam[groups[group]] = rng.beta(config.mixup, config.mixup)
        blended = partner.lerp(x_BCHW, x_BCHW.new_tensor(lam)[:, None, None, None])
    elif mixed.any():
        blended = x_BCHW.clone()
    for group in np.flatnonzero(mixed & cut):
        top, bottom, left, right = _box(height, width, rng, config)
        members = groups[group]
        blended[members, :, top:bottom, left:right] = partner[members, :, top:bottom, left:right]
        lam[members] = 1 - (bottom - top) * (right - left) / (height * width)
    like = x_BCHW if x_BCHW.is_floating_point() else x_BCHW[:0].float()  # as integers, the weights would be 0 or 1
    return blended, labels_B.flip(0), like.new_tensor(lam).float()


def _groups(count: int, mode: str) -> list[slice] | list[list[int]]:
    """Return the indices of the images that share a draw, for each draw."""
    if mode == "batch":
        return [slice(None)]
    if mode == "pair":
        return [[i, count - 1 - i] for i in range((count + 1) // 2)]
    return [[i] for i in range(count)]


def _choose(groups: int, rng: Generator, config: Mixing) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for each group whether it is mixed, and whether by CutMix."""
    mixed = (rng.random(groups) < config.prob) & config.enabled
    if config.mixup > 0 and config.cuts:
        return mixed, rng.random(groups) < config.switch_prob
    return mixed, np.full(groups, config.cuts)


def _box(height: int, width: int, rng: Generator, config: Mixing) -> tuple[int, int, int, int]:
    """Draw (top, bottom, left, right) of the box that CutMix takes from the partner."""
    if config.cutmix_minmax is not None:  # sides are drawn separately, and the box lies inside the image
        low, high = config.cutmix_minmax
        h, w = (int(rng.integers(int(size * low), int(size * high) + 1)) for size in (height, width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        return top, top + h, left, left + w
    side = math.sqrt(1 - rng.beta(config.cutmix, config.cutmix))
    (top, bottom), (left, right) = (_span(size, int(size * side), rng) for size in (height, width))
    return top, bottom, left, right


def _span(size: int, length: int, rng: Generator) -> tuple[int, int]:
    """Return start and end of `length` pixels around a random one of `size`, clipped to the image."""
    center = int(rng.integers(size))
    return max(center - length // 2, 0), min(center + (length + 1) // 2, size)


# --- targets and losses -----------------------------------------------------------------------------------------------


def targets(
    labels_B: Tensor, partner_B: Tensor, lam_B: Tensor, num_classes: int, label_smoothing: float, binary: bool = False
) -> Tensor:
    """Return soft targets (B,K) float32: weight lam for the first label and 1 - lam for the partner's, smoothed.

    Label smoothing spreads that fraction of a label over all classes, so that a row sums to 1. With `binary`, for one
    binary target per class, positives become 1 - label_smoothing / 2 and negatives label_smoothing / 2.
    """
    negative = label_smoothing / 2 if binary else label_smoothing / num_classes
    weight = 1 - label_smoothing  # added to the negatives
    lam_B = lam_B.float()
    targets_BK = lam_B.new_full((len(labels_B), num_classes), negative)
    targets_BK.scatter_add_(1, labels_B[:, None], weight * lam_B[:, None])
    return targets_BK.scatter_add_(1, partner_B[:, None], weight * (1 - lam_B)[:, None])


def labelled_targets(
    labels_B: Tensor, partner_B: Tensor, lam_B: Tensor, num_classes: int, label_smoothing: float
) -> Tensor:
    """Return soft targets (B,K) float32 of images of which some have no label, which is -1.

    As `targets`, but a row sums to the share of the image that has a label: 1 if both images that are mixed in it have
    one, 0 if none has.
    """
    own, other = labels_B >= 0, partner_B >= 0
    if bool(own.all()):
        return targets(labels_B, partner_B, lam_B, num_classes, label_smoothing)
    lam_B = lam_B.float()
    own_share_B, other_share_B = lam_B * own, (1 - lam_B) * other
    share_B = own_share_B + other_share_B
    lam_B = own_share_B / share_B.clamp(min=1e-12)
    rows_BK = targets(labels_B.clamp(min=0), partner_B.clamp(min=0), lam_B, num_classes, label_smoothing)
    return rows_BK * share_B[:, None]


def soft_target_loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Return the cross-entropy with soft targets, a float32 scalar averaged over the batch."""
    return -(targets_BK * logits_BK.float().log_softmax(1)).sum(1).mean()


def labelled_binary_loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Return `binary_loss` for the targets of `labelled_targets`: images count by the share of them that has a label.

    A float32 scalar averaged over the batch and over classes.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    share_B1 = targets_BK.sum(1, keepdim=True)
    if bool((share_B1 > 0.999).all()):  # up to rounding, every image has a label
        return binary_loss(logits_BK, targets_BK)
    positive_BK = targets_BK / share_B1.clamp(min=1e-12)
    return binary_cross_entropy_with_logits(logits_BK.float(), positive_BK, weight=share_B1)


def binary_loss(
    logits_BK: Tensor, targets_BK: Tensor, threshold: float | None = None, sum_classes: bool = False
) -> Tensor:
    """Return the binary cross-entropy, a float32 scalar averaged over the batch and over classes (or summed over them).

    threshold: targets above it become 1 and all others 0, so that both labels of a mixed image are positive.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    if threshold is not None:
        targets_BK = targets_BK > threshold
    loss_BK = binary_cross_entropy_with_logits(logits_BK.float(), targets_BK.float(), reduction="none")
    return loss_BK.sum(1).mean() if sum_classes else loss_BK.mean()
