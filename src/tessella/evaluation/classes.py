"""Match the classes of a data set with those of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from ..errors import UsageError
from .metrics import Ints

Naming = Literal["synsets", "indices", "names"]
_NAMING_TEXT: dict[Naming, str] = {"synsets": "WordNet id", "indices": "index", "names": "name"}


class Classifier(Protocol):
    """What has classes: a Predictor, or the model of a run."""

    @property
    def name(self) -> str:
        """The name of the model."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    @property
    def synsets(self) -> tuple[str, ...]:
        """The WordNet ids of the classes; () if they have none."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        ...


class ClassMapping(NamedTuple):
    """The K classes of the model that can be predicted, and the positions of the C classes of the data among them."""

    columns: Ints  # (K,) indices into the logits, ascending
    positions: Ints  # (C,) position of each class of the data in `columns`
    naming: Naming  # how the data names its classes
    description: str  # a sentence for the report


def match_classes(classes: Sequence[str], predictor: Classifier, restrict: bool | None = None) -> ClassMapping:
    """Find the classes of the data among the model's: by name, by WordNet id (n01440764) or by index (0, 1, ...).

    restrict: whether only the classes of the data can be predicted. None restricts WordNet ids only, as in the
    published results on ImageNet variants with fewer classes.
    Raises UsageError `bad_argument` if the model has no classifier or lacks one of the classes.
    """
    labels, model = predictor.labels, predictor.name
    if not predictor.num_classes:
        raise UsageError("bad_argument", f"{model} has no classifier", hint="`tessella probe` can train one for it")
    naming: Naming = "names"
    if tuple(classes) == labels:
        index_of = {name: i for i, name in enumerate(classes)}
        matches: list[int | None] = list(range(len(classes)))
    else:
        index_of, naming = _names_of_model(classes, predictor)
        matches = [index_of.get(name) for name in classes]
    missing = [name for name, index in zip(classes, matches, strict=True) if index is None]
    if missing:
        raise UsageError(
            "bad_argument",
            f"{model} does not have {len(missing):,} of the {len(classes):,} classes in the data, such as "
            f"{_list_names(missing)}; its {len(labels):,} classes include {_list_names([*index_of])}",
            hint="choose a model with these classes, or train one with `tessella train`",
        )
    data_columns = np.array(matches, np.int64)
    if restrict is None:
        restrict = naming == "synsets"
    columns = np.sort(data_columns) if restrict else np.arange(predictor.num_classes)
    description = f"{len(classes):,} of the model's {predictor.num_classes:,}, matched by {_NAMING_TEXT[naming]}"
    if len(classes) < predictor.num_classes:
        description += "; only these can be predicted" if restrict else "; predictions of other classes count as wrong"
    return ClassMapping(columns, np.searchsorted(columns, data_columns), naming, description)


def _names_of_model(classes: Sequence[str], predictor: Classifier) -> tuple[dict[str, int], Naming]:
    """Return the model's class indices by the kind of names that the data uses, and that kind."""
    counts = Counter(predictor.labels)  # ambiguous names, like "crane" in ImageNet, are excluded
    names = {name: i for i, name in enumerate(predictor.labels) if counts[name] == 1}
    if all(name in names for name in classes):
        return names, "synsets" if _are_synsets(classes) else "names"
    if predictor.synsets and _are_synsets(classes):
        return {synset: i for i, synset in enumerate(predictor.synsets)}, "synsets"
    indices = {str(i): i for i in range(predictor.num_classes)}
    if set(classes) == set(indices):  # like the folders of ImageNetV2; a subset would be ambiguous
        return indices, "indices"
    return names, "names"


def _are_synsets(classes: Iterable[str]) -> bool:
    return all(re.fullmatch(r"n\d{8}", name) for name in classes)


def _list_names(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(map(repr, names[:limit])) + (", ..." if len(names) > limit else "")
