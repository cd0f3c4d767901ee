"""The helpers of `timm.utils` for evaluation loops, with timm's names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class AverageMeter:
    """Keep the last value (`val`), and the mean (`avg`), sum and count of all values."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val: float, n: int = 1) -> None:
        """Add a value that counts `n` times."""
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Return the top-k accuracy in per cent, a scalar tensor, for each k.

    output: (B,classes) scores. target: (B,) labels. A k above the number of classes is replaced by that number.
    Raises UsageError `bad_argument` for other shapes.
    """
    if output.ndim != 2 or target.shape != output.shape[:1] or not topk or min(topk) < 1:
        raise UsageError(
            "bad_argument",
            f"output {tuple(output.shape)}, target {tuple(target.shape)}, topk {tuple(topk)}: expected (B,classes), "
            "(B,) and numbers from 1",
        )
    ranked = output.topk(min(max(topk), output.shape[1])).indices
    hits = ranked.eq(target[:, None]).float()
    return [hits[:, :k].sum() * 100.0 / len(target) for k in topk]


def random_seed(seed: int = 42, rank: int = 0) -> None:
    """Seed the generators of torch, NumPy and Python with seed + rank."""
    import numpy as np
    import torch

    torch.manual_seed(seed + rank)
    np.random.seed(seed + rank)
    random.seed(seed + rank)
