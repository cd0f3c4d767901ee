"""Class lists: the classes that labels imply, and labels mapped to another class list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...text import count_of
from ..names import natural_key, normalize_class_name
from .store import EncodedLabels, ImageStore, Ints, bad_data, join_names


def class_indices(origin: str, labels: EncodedLabels, store: ImageStore) -> tuple[list[str], Ints]:
    """Return the class list of the data, and the (N,) class index of each image.

    Classes are in the natural order of their names unless the data include a class list. If all labels are numbers,
    they are indices into that list. Raises UsageError `bad_argument` for a label that is not in the list.
    """
    if labels.classes is None:
        classes = sorted(labels.values, key=lambda name: (natural_key(name), name))  # 01 and 1 have a fixed order, too
        index = {name: i for i, name in enumerate(classes)}
    else:
        classes = labels.classes
        are_numbers = all(value.isdecimal() for value in labels.values)
        index = {str(i) if are_numbers else name: i for i, name in enumerate(classes)}
    indices = np.array([index.get(value, -1) for value in labels.values])[labels.codes]
    outside = np.flatnonzero(indices < 0)
    if len(outside):
        row = int(outside[0])
        raise bad_data(
            f"{origin} has {count_of(len(outside), 'image')} with a label that is not in the class list, the first is "
            f"{store.key(row)!r} with {labels.values[labels.codes[row]]!r}",
            f"the list has {len(classes)} names, {join_names(classes)}; a label is one of them, or a number from 0",
        )
    return classes, indices


def map_classes(origin: str, classes: list[str], indices: Ints, target: Sequence[str]) -> tuple[list[str], Ints]:
    """Return the `target` class list, and the (N,) class index of each image in it.

    indices: (N,) indices into `classes`. Classes are matched by name; names that are numbers are indices, unless the
    target's names are numbers, too. Raises UsageError `bad_argument` for an image whose class the target does not have,
    and for ambiguous names.
    """
    target = list(target)
    if classes == target:
        return target, indices
    for names in (classes, [normalize_class_name(name) for name in target]):
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise bad_data(
                f"two classes are called {repeated!r}, so {origin} cannot be matched with the class list by name"
            )
    used = np.unique(indices)
    index = {normalize_class_name(name): i for i, name in enumerate(target)}
    if all(classes[i].isdecimal() for i in used) and not all(name.isdecimal() for name in target):
        index = {classes[i]: int(classes[i]) for i in used if int(classes[i]) < len(target)}
    unknown = [classes[i] for i in used if classes[i] not in index]
    if unknown:
        raise bad_data(
            f"{origin} has images of {join_names(unknown)}, which the class list does not have",
            f"the list has {len(target)} names: {join_names(target)}",
        )
    return target, np.array([index.get(name, -1) for name in classes])[indices]
