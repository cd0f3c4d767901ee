"""The models of a server: which names it serves, and what is known of those that are open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.spec import InputSpec
from ..engine import Plan
from ..errors import ImageError
from ..predictor import Predictor
from ..results import Output, Record
from ..weights.catalogue import Task, resolve

State = Literal["unloaded", "loading", "ready", "failed"]


@dataclass(frozen=True)
class ServedModel:
    """Facts of a model that was opened; they stay valid when it is unloaded."""

    name: str
    fingerprint: str
    num_classes: int
    width: int  # of the embedding
    labels: Sequence[str]
    spec: InputSpec
    plan: Plan
    predictor: Predictor = field(repr=False, compare=False)

    def record(self, key: str, outcome: Output | ImageError, *, top: int, embed: bool) -> Record:
        """Return the record of one image: its `top` classes and, with `embed`, its embedding of unit length."""
        return self.predictor.record(key, outcome, top=top, embed=embed)

    @classmethod
    def of(cls, name: str, predictor: Predictor) -> ServedModel:
        """Return the facts of an opened model. Its fingerprint takes a moment, as the weights are hashed."""
        return cls(
            name,
            predictor.fingerprint,
            predictor.num_classes,
            predictor.width,
            predictor.labels,
            predictor.spec,
            predictor.plan,
            predictor,
        )


@dataclass(frozen=True)
class ModelStatus:
    """A model that the server offers. model: None unless it was opened. default_for: requests that name no model."""

    name: str
    state: State
    model: ServedModel | None
    default_for: tuple[Task, ...]


def full_name(name: str) -> str:
    """Return `architecture.tag` for the name of a published model, other names unchanged. Raises UsageError."""
    if ":" in name:
        return name
    arch, row = resolve(name)
    return row.name if row else arch


def public_name(name: str) -> str:
    """Return the name by which clients know a model: a folder is known by its own name, without its path."""
    scheme, _, path = name.partition(":")
    return Path(path).resolve().name if scheme == "local-dir" else name
