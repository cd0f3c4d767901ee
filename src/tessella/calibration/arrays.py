"""Types of arrays, and the quantile on which all promises of this package rest.

If calibration images and later images are exchangeable (drawn from the same source, in no particular order), the score
of a later one is equally likely to have any rank among those of n calibration images. So at least `share` of later
scores are at most the ceil((n + 1) * share)-th smallest one: Vovk et al., Algorithmic Learning in a Random World, 2005.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def conformal_quantile(scores_N: Floats, share: float) -> float:
    """Return the number that a later score exceeds with a probability of at most 1 - share; infinity for few scores.

    scores_N: of the calibration images, in ascending order. share: between 0 and 1.
    """
    rank = math.ceil((len(scores_N) + 1) * share - 1e-9)  # 1e-9: (9 + 1) * 0.9 is 9.000000000000002
    return float(scores_N[rank - 1]) if 1 <= rank <= len(scores_N) else math.inf if rank else -math.inf


def images_needed(share: float) -> int:
    """Return the smallest number of scores for which `conformal_quantile` is finite."""
    return max(1, math.ceil(share / (1 - share) - 1e-9)) if share < 1 else np.iinfo(np.int64).max
