"""Class names by index: ImageNet-1k and the two ImageNet-21k sets of the published checkpoints."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

from ..checks import checked
from ..errors import UsageError

_TABLES = {  # data set -> (file, number of classes)
    "imagenet-1k": ("imagenet1k_labels.tsv", 1000),
    "imagenet-21k-goog": ("imagenet21k_goog_labels.tsv", 21_843),
    "imagenet-21k-miil": ("imagenet21k_miil_labels.tsv", 11_221),
}


@dataclass(frozen=True)
class Labels:
    """The names of the classes of a data set, by class index.

    names: (K,) one name per class; synsets: (K,) their WordNet ids such as n01440764, or empty if the set has none.
    """

    dataset: str
    names: tuple[str, ...]
    synsets: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@checked
@functools.cache
def labels_for(dataset: str) -> Labels:
    """Return the labels of "imagenet-1k", "imagenet-21k-goog" or "imagenet-21k-miil".

    Raises UsageError `bad_argument` for another name.
    """
    if dataset not in _TABLES:
        raise UsageError("bad_argument", f"no labels for {dataset!r}, expected one of {', '.join(_TABLES)}")
    file, count = _TABLES[dataset]
    lines = (resources.files(__package__) / "tables" / file).read_text(encoding="utf-8").splitlines()[1:]
    indices, synsets, names = zip(*(line.split("\t") for line in lines), strict=True)
    assert [int(index) for index in indices] == list(range(count))
    return Labels(dataset, names, synsets)


@checked
def labels_for_classes(num_classes: int) -> Labels | None:
    """Return the labels of the known data set with that many classes; None if there is none."""
    for dataset, (_, count) in _TABLES.items():
        if count == num_classes:
            return labels_for(dataset)
    return None
