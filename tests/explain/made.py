"""Explanations that are put together by hand, for tests of what is made from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tessella.explain.explanation import Explanation
from tessella.explain.faithfulness import Curve, Faithfulness, Score
from tessella.explain.maps import AttributionMap
from tessella.results import Prediction

CAT, DOG = Prediction(3, "cat", 0.75), Prediction(5, "dog", 0.125, "n02084071")


def make_scores(*, faithful: bool = True) -> Faithfulness:
    ramp = np.linspace(0, 1, 5, dtype=np.float32)
    curve = Curve(ramp, 2 - ramp, 1 - ramp, 3 - ramp, 2.5 - ramp)
    good, bad = Score(0.5, 1.0, 2.0, 1.5, True), Score(1.5, 1.0, 2.0, 1.25, False)
    return Faithfulness(
        deletion=good if faithful else bad,
        insertion=dataclasses.replace(good, value=2.5) if faithful else bad,
        correlation=Score(-0.25, -0.5, 0.5, 0.0, False),
        deletion_curve=curve,
        insertion_curve=dataclasses.replace(curve, values=1 + ramp),
        faithful=faithful,
        reason="better than 97.5 % of random maps in deletion and insertion, not in correlation" if faithful else "no",
        cells=(4, 5),
        smoothness=1.5,
    )


def make_branches() -> AttributionMap:
    """A map of two branches on different grids, of which the second one contradicts the class."""
    fine, coarse = np.zeros((4, 6), np.float32), np.zeros((2, 3), np.float32)
    fine[1, 2], coarse[1, 0] = 0.75, -0.25
    spread = np.kron(coarse, np.full((2, 2), 0.25, np.float32))
    parts = {"branch 0": fine, "branch 1": coarse}
    return AttributionMap(fine + spread, "attention", parts=parts, shares={"branch 0": 0.75, "branch 1": -0.25})


def make_explanation(**changes: Any) -> Explanation:
    rng = np.random.default_rng(0)
    facts: dict[str, Any] = dict(
        key="photos/cat.jpg",
        model="a_model",
        fingerprint="0123456789abcdef",
        pixels=rng.integers(0, 256, (32, 40, 3)).astype(np.uint8),
        predictions=(CAT, DOG, Prediction(4, "deer", 0.0625)),
        target=CAT,
        versus=None,
        map=AttributionMap(rng.normal(size=(4, 5)).astype(np.float32), "exact", "norm", 1.25),
        reason="requested",
        faithfulness=make_scores(),
    )
    return Explanation(**{**facts, **changes})
