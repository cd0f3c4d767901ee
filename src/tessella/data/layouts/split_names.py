"""The names of splits, as folders, words in file names and values of a column have them."""

from __future__ import annotations

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test",),  # used for val if there is none
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
