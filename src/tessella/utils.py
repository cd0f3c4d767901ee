"""The helpers of `timm.utils` that evaluation loops use, under timm's names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class AverageMeter:
    """The last value (`val`), and the mean (`avg`) of all that were given, each counted `n` times."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val: float, n: int = 1) -> None:
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Top-k accuracy in per cent for each k: output (B,classes) scores, target (B,) labels.

    A k above the class count counts as the class count.
    """
    if output.ndim != 2 or target.shape != output.shape[:1] or not topk or min(topk) < 1:
        raise UsageError(
            "bad_argument",
            f"output {tuple(output.shape)}, target {tuple(target.shape)}, topk {tuple(topk)}: expected (B,classes), "
            "(B,) and counts from 1",
        )
    ranked = output.topk(min(max(topk), output.shape[1])).indices
    hits = ranked.eq(target[:, None]).float()
    return [hits[:, :k].sum() * 100.0 / len(target) for k in topk]


def random_seed(seed: int = 42, rank: int = 0) -> None:
    """Seed torch, NumPy and Python with seed + rank."""
    import numpy as np
    import torch

    torch.manual_seed(seed + rank)
    np.random.seed(seed + rank)
    random.seed(seed + rank)
