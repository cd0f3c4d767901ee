"""The outputs of rewritten full-size models match timm's within the tolerance of the reference."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from tessella.engine.rewrites import rewrite
from tessella.models import build

from ..golden_rule import fill_golden, golden_input
from ..models.test_golden import GOLDEN, LARGE, golden, tolerance, uninitialised

__all__ = ["uninitialised"]  # a fixture


@pytest.mark.parametrize("name", sorted(set(golden("models.json")) - LARGE | {"convmixer_768_32"}))
@pytest.mark.usefixtures("uninitialised")
def test_rewritten_outputs_are_the_reference(name: str) -> None:
    model = build(name)
    fill_golden(model)
    fast = rewrite(model)
    del model
    with torch.inference_mode(), safe_open(GOLDEN / "models.safetensors", "pt") as file:
        logits, embedding = fast(golden_input(*golden("models.json")[name]["input_size"][1:]))
        for what, actual in (("logits", logits), ("pre_logits", embedding)):
            reference = file.get_tensor(f"{name}/{what}")
            difference = (actual - reference).abs().max() / reference.std()
            assert difference < tolerance(name), f"{what} is off by {difference:.1e} of its standard deviation"
