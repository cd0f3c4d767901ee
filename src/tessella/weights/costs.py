"""Read the cost of a forward pass of each model from the table that `tessella.weights.counting` writes."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

COSTS = Path(__file__).parent / "tables" / "costs.json"  # written by counting.py


class ModelFacts(TypedDict):
    """A row of the table: facts about a built model, and the fields of `Cost`."""

    input_size: list[int]  # channels, height, width
    num_classes: int
    embedding_width: int
    params: int
    macs: int
    activations: int
    card_macs: int
    card_activations: int


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass with one image.

    macs: multiply-adds of all convolutions, linear layers and matrix products, including those of attention.
    activations: number of output elements of these operations. card_macs, card_activations: the figures of timm's
    model cards and benchmark files. Their counter does not support the operator for `padding="same"`, so these
    convolutions are missing, and it counts 2 operations per output element of a batch norm and 5 of a layer norm.
    """

    params: int
    macs: int
    activations: int
    card_macs: int
    card_activations: int


@functools.cache
def read_costs() -> dict[str, ModelFacts]:
    """Return the rows of the table by `arch.tag`, or by `arch` for architectures without checkpoints."""
    rows: dict[str, ModelFacts] = json.loads(COSTS.read_text(encoding="utf-8"))
    return rows


def in_units(count: int, unit: float) -> str:
    """Return the count with one decimal, as in model cards, or with two digits if it is below 1."""
    return f"{count / unit:.1f}" if count >= unit else f"{count / unit:.2g}"
