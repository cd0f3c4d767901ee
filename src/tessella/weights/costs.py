"""What a forward pass of each model costs, from a table that `tessella.weights.counting` writes."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COSTS = Path(__file__).parent / "tables" / "costs.json"  # written by counting.py


@dataclass(frozen=True)
class Cost:
    """One forward pass of one image.

    macs: multiply-adds of all convolutions, linear layers and matrix products, those of attention included;
    activations: numbers that these put out. card_macs, card_activations: what timm's model cards and benchmark files
    say. Their counter does not know the operator behind `padding="same"`, so all of such a convolution is missing, and
    it adds work for norms: 2 for each number that leaves a batch norm, 5 for a layer norm.
    """

    params: int
    macs: int
    activations: int
    card_macs: int
    card_activations: int


@functools.cache
def read_costs() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = json.loads(COSTS.read_text(encoding="utf-8"))
    return rows
