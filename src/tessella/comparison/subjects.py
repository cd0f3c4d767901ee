"""The two sides of a comparison: a model that is run on the images, or a run whose rows are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bulk.run_folder import RunFacts, read_run
from ..data.labels import labels_for_classes
from ..errors import TessellaError, UsageError
from ..info import info
from ..models.layout import STATISTICS
from ..predictor import Predictor, load
from .images import is_run

MAKING = ("model", "fingerprint", "transform", "policy", "precision", "engine")  # how embeddings are made


@dataclass(frozen=True)
class ComparedModel:
    """One side of a comparison. It has either a predictor or a run.

    name: of the model. labels, synsets: names and WordNet ids of its classes; labels is () without a classifier.
    making: model, fingerprint, transform, policy, precision and engine. width: of the embedding. run: the folder.
    """

    name: str
    labels: tuple[str, ...]
    synsets: tuple[str, ...]
    making: dict[str, str]
    width: int
    predictor: Predictor | None = None
    run: Path | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 without a classifier."""
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """16 hex digits for everything that determines the results."""
        return self.making["fingerprint"]

    @classmethod
    def of_predictor(cls, predictor: Predictor) -> ComparedModel:
        """Return the side of a loaded model."""
        plan = predictor.plan
        values = (predictor.name, predictor.fingerprint, predictor.transform, predictor.policy, plan.precision)
        making = dict(zip(MAKING, (*values, plan.engine), strict=True))
        labels = predictor.labels if predictor.num_classes else ()
        return cls(predictor.name, labels, predictor.synsets, making, predictor.width, predictor)

    @classmethod
    def of_run(cls, out: Path) -> ComparedModel:
        """Return the side of the run in the folder `out`. Raises UsageError `not_found`, `damaged_run`."""
        facts = read_run(out)
        labels = tuple(facts["labels"]) if facts["top"] else ()
        known = labels_for_classes(len(labels))
        synsets = known.synsets if known is not None and known.names == labels else ()
        return cls(facts["model"], labels, synsets, making_of(facts), facts["width"], run=out)


def making_of(facts: RunFacts) -> dict[str, str]:
    """Return how the embeddings of a run are made."""
    return {name: str(facts[name]) for name in MAKING}  # type: ignore[literal-required]  # keys of RunFacts


def name_of(given: str | Path | Predictor) -> str:
    """Return the name of a model, or the path of a run."""
    return given.name if isinstance(given, Predictor) else os.fspath(given)


def open_subject(given: str | Path | Predictor, options: dict[str, Any]) -> ComparedModel:
    """Open one side: the folder of a run, a name for `tessella.load`, or a loaded model.

    options: for `tessella.load`. Raises the errors of `tessella.load`, and UsageError `damaged_run`, or `not_found` for
    a folder without a run.
    """
    if isinstance(given, Predictor):
        return ComparedModel.of_predictor(given)
    name = os.fspath(given)
    if is_run(name):
        return ComparedModel.of_run(Path(name))
    if os.path.isdir(name):  # noqa: PTH112 - False for names that are too long
        raise UsageError(
            "not_found", f"{name} is a folder, but contains no run", hint=f"for a model, write local-dir:{name}"
        )
    return ComparedModel.of_predictor(load(name, **options))


def parameters_of(subject: ComparedModel) -> int | None:
    """Return the number of parameters; None if it is not known, as for an exported model."""
    network = None if subject.predictor is None else subject.predictor.engine.network
    if network is not None:
        return sum(int(tensor.size) for name, tensor in network.tensors.items() if not name.endswith(STATISTICS))
    try:
        return info(subject.name).cost.params
    except TessellaError:
        return None


def input_size_of(subject: ComparedModel) -> tuple[int, int] | None:
    """Return the (height, width) in pixels that the model reads; None if it is not known."""
    if subject.predictor is not None:
        return subject.predictor.spec.height, subject.predictor.spec.width
    try:
        _, height, width = info(subject.name).input_size
    except TessellaError:
        return None
    return height, width
