"""The kinds of findings of an inspection. This module imports nothing slow: the command line checks names with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UsageError
from ..text import any_of

PROTECTED = "test"  # a test split is what results are compared on: only unreadable images are left out of it


class KindOfFinding(NamedTuple):
    """What a kind of finding means. score: what its score is; is_removed: left out of a clean list by default."""

    title: str
    text: str
    score: str
    is_removed: bool = False


KINDS: dict[str, KindOfFinding] = {
    "unreadable": KindOfFinding("Unreadable images", "They could not be decoded or embedded.", "1", True),
    "small_class": KindOfFinding(
        "Classes with few images", "A split has few or no readable images of the class.", "number of images"
    ),
    "exact_leak": KindOfFinding(
        "Exact copies in two splits", "The same file is in two splits, so a test score is too high.", "1", True
    ),
    "near_leak": KindOfFinding(
        "Nearly the same picture in two splits",
        "A crop, mirror image, resized or recompressed copy of a picture in another split.",
        "structural similarity after alignment, up to 1",
        True,
    ),
    "exact_duplicate": KindOfFinding("Exact duplicates", "The same file, twice in one split.", "1", True),
    "near_duplicate": KindOfFinding(
        "Near duplicates",
        "A crop, mirror image, resized or recompressed copy of a picture in the same split.",
        "structural similarity after alignment, up to 1",
        True,
    ),
    "conflicting_labels": KindOfFinding(
        "Copies with different labels", "One picture, two labels: at least one is wrong.", "structural similarity"
    ),
    "label_error": KindOfFinding(
        "Probable label errors",
        "A classifier that was trained without the image prefers another class.",
        "probability of the suggested class minus that of the label, up to 1",
    ),  # not removed: with a weak model, almost half of them are good images (docs/results.md)
    "outlier": KindOfFinding(
        "Outliers",
        "Far from all images, or from all images of its class, by embedding.",
        "robust standard deviations beyond the median distance to the 10 nearest neighbors",
    ),
    "similar": KindOfFinding(
        "Similar pictures",
        "Their embeddings are as near as those of duplicates, but their pixels differ: series, or look-alikes.",
        "cosine similarity of the embeddings",
    ),
    "uniform": KindOfFinding("One color", "Images without any content.", "2 minus the contrast"),
    "dark": KindOfFinding("Dark images", "Much darker than the others.", "robust standard deviations"),
    "bright": KindOfFinding("Bright images", "Much brighter than the others.", "robust standard deviations"),
    "blurred": KindOfFinding("Blurred images", "Much less sharp than the others.", "robust standard deviations"),
    "small": KindOfFinding("Small images", "Much smaller than the others.", "robust standard deviations"),
    "elongated": KindOfFinding("Elongated images", "Longer than most, either way.", "robust standard deviations"),
    "gray": KindOfFinding("Gray images", "Without color, among images with colors.", "4 minus the colorfulness"),
}
REMOVED = tuple(name for name, kind in KINDS.items() if kind.is_removed)
PAIRED = ("exact_leak", "near_leak", "exact_duplicate", "near_duplicate", "conflicting_labels", "similar")


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UsageError `bad_argument` for a kind of finding that does not exist or cannot be removed."""
    for kind in kinds:
        if kind not in KINDS or kind == "small_class":
            allowed = [name for name in KINDS if name != "small_class"]
            message = f"{kind!r} is not a kind of finding that can be removed"
            raise UsageError("bad_argument", message, hint=f"choose from {any_of(allowed)}")
