"""Settings of `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..checks import check_count, check_fields, check_number

ProgressCallback = Callable[[str, int, int], None]  # current task, items done, number of items
MAX_SEED = 2**63 - 1
NEAR = 0.84  # 82 of the 86 pairs from there on that were judged show the same picture (docs/results.md)
MAX_IMAGES = 1_000_000_000  # of a class; larger numbers are mistakes


@dataclass(frozen=True, kw_only=True)
class InspectionSettings:
    """Settings of `inspect`: from which score on something is a finding.

    min_images: a class with fewer images in a split is a finding. near: pixel similarity (0 to 1) from which two images
    are near duplicates, see `detail`. label_margin: a label is a probable error if the probability of another class
    exceeds that of the label by at least this much. outlier: number of robust standard deviations by which an image is
    farther from its nearest neighbors than most. odd: the same for brightness, sharpness, size and aspect ratio.
    folds: number of parts for out-of-fold predictions. seed: random seed of the folds. unlabeled: ignore classes.

    Raises UsageError `bad_argument`.
    """

    min_images: int = 10
    near: float = NEAR
    label_margin: float = 0.75
    outlier: float = 5.0
    odd: float = 5.0
    folds: int = 5
    seed: int = 0
    unlabeled: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("min_images", self.min_images, MAX_IMAGES, least=0)
        check_number("near", self.near, above=0, most=1)
        check_number("label_margin", self.label_margin, least=0, most=1)
        for name in ("outlier", "odd"):
            check_number(name, getattr(self, name), above=0)
        check_count("folds", self.folds, 100, least=2)
        check_count("seed", self.seed, MAX_SEED, least=0)
