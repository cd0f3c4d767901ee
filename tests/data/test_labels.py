"""Label tables: they are complete and in order, and are found by the number of classes."""

from __future__ import annotations

import pytest

from tessella.data.labels import labels_for, labels_for_classes
from tessella.errors import UsageError


@pytest.mark.parametrize(
    ("dataset", "count", "index", "synset", "name"),
    [
        ("imagenet-1k", 1000, 281, "n02123045", "tabby"),
        ("imagenet-1k", 1000, 0, "n01440764", "tench"),
        ("imagenet-21k-goog", 21_843, 0, "n00004475", "organism, being"),
        ("imagenet-21k-miil", 11_221, 0, "n00005787", "benthos"),
    ],
)
def test_label_tables(dataset: str, count: int, index: int, synset: str, name: str) -> None:
    labels = labels_for(dataset)
    assert len(labels) == len(labels.names) == len(labels.synsets) == count
    assert len(set(labels.synsets)) == count
    assert labels.synsets[index] == synset
    assert labels.names[index].startswith(name)
    assert all(labels.names)
    assert all(len(s) == 9 and s[0] == "n" and s[1:].isdecimal() for s in labels.synsets)
    assert labels_for_classes(count) is labels is labels_for(dataset)


def test_the_tables_agree_on_the_names_of_synsets() -> None:
    small, large = labels_for("imagenet-1k"), labels_for("imagenet-21k-goog")
    names = dict(zip(large.synsets, large.names, strict=True))
    shared = [(names[s], n) for s, n in zip(small.synsets, small.names, strict=True) if s in names]
    assert len(shared) >= 990
    assert sum(a.split(",")[0] == b.split(",")[0] for a, b in shared) > 0.9 * len(shared)


def test_unknown_data_sets() -> None:
    assert labels_for_classes(10) is None
    with pytest.raises(UsageError, match="imagenet-21k-goog"):
        labels_for("imagenet")
