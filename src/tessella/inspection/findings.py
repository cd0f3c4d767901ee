"""What an inspection reports: one finding per image and kind, with a score and a reason.

Letters for shapes: N images.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.all_splits import SplitImages
from ..search.duplicates import join
from ..text import count_of
from .copies import Copies
from .kinds import KINDS
from .label_errors import LabelErrors
from .measuring import Measurements
from .outliers import Oddity, Remoteness

_ORDER = {"test": 0, "val": 1}  # of two copies, the one in the split that comes first stays


@dataclass(frozen=True)
class Finding:
    """One problem of an image, or of a class.

    key: of the image, "" for a class. split, label: of the image; "" for none. kind: one of KINDS. score: how strong it
    is, in the units of its kind. related: key of the other image of a pair. suggestion: what to do. index, other: place
    of the image and of the related one in the data, -1 for none.
    """

    key: str
    split: str
    label: str
    kind: str
    score: float
    reason: str
    related: str = ""
    suggestion: str = ""
    index: int = -1
    other: int = -1


COLUMNS = ("key", "split", "label", "kind", "score", "reason", "related", "suggestion")


@dataclass(frozen=True)
class Evidence:
    """Everything that the findings follow from. labels: what confident learning says; None without labels."""

    images: SplitImages
    measured: Measurements
    copies: Copies
    labels: LabelErrors | None
    remote: Remoteness
    odd: Sequence[Oddity]


def collect(evidence: Evidence, *, min_images: int, label_margin: float, outlier: float) -> list[Finding]:
    """Return all findings: by kind in the order of KINDS, the highest score first.

    min_images, label_margin, outlier: as in `InspectionSettings`.
    """
    is_error_N = np.zeros(len(evidence.images), bool)
    if evidence.labels is not None:
        is_error_N = evidence.labels.confident & (evidence.labels.margin >= label_margin)
    found = [
        *_unreadable(evidence),
        *_small_classes(evidence, min_images),
        *_pairs(evidence, is_error_N),
        *_label_errors(evidence, is_error_N),
        *_outliers(evidence, outlier),
        *(_finding(evidence.images, odd.image, odd.kind, odd.score, odd.reason) for odd in evidence.odd),
    ]
    order = {kind: i for i, kind in enumerate(KINDS)}
    lowest_first = ("small_class",)
    return sorted(found, key=lambda row: (order[row.kind], row.score if row.kind in lowest_first else -row.score))


def _finding(
    images: SplitImages, index: int, kind: str, score: float, reason: str, suggestion: str = "look at it"
) -> Finding:
    return Finding(
        key=images.images.key(index),
        split=images.split_of(index),
        label=label_of(images, index),
        kind=kind,
        score=round(float(score), 4),
        reason=reason,
        suggestion=suggestion,
        index=index,
    )


def label_of(images: SplitImages, index: int) -> str:
    """Return the class name of an image; "" if it has none."""
    label = int(images.images.labels[index])
    return images.images.classes[label] if label >= 0 else ""


def _unreadable(evidence: Evidence) -> Iterator[Finding]:
    measured = evidence.measured
    for i in np.flatnonzero(~measured.ok).tolist():
        code, message = str(measured.status[i]), measured.messages.get(i, "")
        yield _finding(evidence.images, i, "unreadable", 1, f"{code}: {message}", "replace or remove the file")


def _small_classes(evidence: Evidence, least: int) -> Iterator[Finding]:
    images, ok = evidence.images, evidence.measured.ok
    for split_index, split in enumerate(images.splits):
        inside = (images.split == split_index) & ok & (images.images.labels >= 0)
        counts = np.bincount(images.images.labels[inside], minlength=len(images.images.classes))
        for label in np.flatnonzero(counts < least).tolist() if images.is_labeled else ():
            where = f" in the split {split}" if split else ""
            reason = f"{count_of(int(counts[label]), 'readable image')}{where}, fewer than {least:,}"
            name = images.images.classes[label]
            yield Finding("", split, name, "small_class", int(counts[label]), reason, suggestion="add images")
    for folder in images.empty:
        reason = f"the class folder {folder!r} has no images"
        yield Finding("", "", folder, "small_class", 0, reason, suggestion="add images, or remove the folder")


# --- pairs ------------------------------------------------------------------------------------------------------------


class _Copy(NamedTuple):
    """An image of which a better copy stays. pair: place of the pair in `Copies` that this follows from."""

    image: int
    kept: int
    kind: str
    score: float
    pair: int


def _pairs(evidence: Evidence, is_error_N: NDArray[np.bool_]) -> Iterator[Finding]:
    """Yield one finding per image and kind: that of its strongest pair."""
    images = evidence.images
    best: dict[tuple[int, str], _Copy] = {}
    for copy in _copies(evidence, is_error_N):
        crosses = images.split[copy.image] != images.split[copy.kept]
        kinds = ["similar" if copy.kind == "similar" else f"{copy.kind}_{'leak' if crosses else 'duplicate'}"]
        if copy.kind != "similar" and images.images.labels[copy.image] != images.images.labels[copy.kept]:
            kinds.append("conflicting_labels")
        for name in kinds:
            if (copy.image, name) not in best or copy.score > best[copy.image, name].score:
                best[copy.image, name] = copy
    for (index, kind), copy in best.items():
        finding = _finding(images, index, kind, copy.score, _pair_reason(evidence, index, copy.kept, copy.pair))
        suggestion = "look at both" if kind in ("similar", "conflicting_labels") else f"remove it{_from(images, index)}"
        yield Finding(
            **vars(finding) | dict(related=images.images.key(copy.kept), other=copy.kept, suggestion=suggestion),
        )


def _copies(evidence: Evidence, is_error_N: NDArray[np.bool_]) -> Iterator[_Copy]:
    """Yield every image that has a better copy, with that copy.

    One image of those with equal bytes stays: every other one is a copy of it, wherever it is in the data. What holds
    for a near copy holds for all images with its bytes, too.
    """
    images, copies = evidence.images, evidence.copies
    exact = np.flatnonzero(copies.kind == "exact")
    group = join(np.arange(len(images)), copies.i[exact], copies.j[exact])
    members: dict[int, list[int]] = {}
    for index in np.union1d(copies.i, copies.j).tolist():
        members.setdefault(int(group[index]), []).append(index)
    rank = functools.partial(_rank, evidence, is_error_N)
    stays = {first: min(rows, key=rank) for first, rows in members.items()}
    pair_of = {int(group[copies.i[pair]]): pair for pair in exact.tolist()}
    for first, pair in pair_of.items():
        yield from (_Copy(row, stays[first], "exact", 1.0, pair) for row in members[first] if row != stays[first])
    strongest: dict[tuple[int, int, int, str], _Copy] = {}
    for pair in np.flatnonzero(copies.kind != "exact").tolist():
        kept, other = sorted((stays[int(group[side[pair]])] for side in (copies.i, copies.j)), key=rank)
        kind = str(copies.kind[pair])
        score = float(copies.cosine[pair] if kind == "similar" else copies.score[pair])
        # the kinds of findings depend on the split and the label of the image that stays
        place = other, int(images.split[kept]), int(images.images.labels[kept]), kind
        if place not in strongest or score > strongest[place].score:
            strongest[place] = _Copy(other, kept, kind, score, pair)
    for copy in strongest.values():
        rows = [copy.image] if copy.kind == "similar" else members[int(group[copy.image])]
        yield from (copy._replace(image=row) for row in rows)


def _from(images: SplitImages, index: int) -> str:
    split = images.split_of(index)
    return f" from {split}" if split else ""


def _rank(evidence: Evidence, is_error_N: NDArray[np.bool_], i: int) -> tuple[object, ...]:
    """Return the key by which copies are sorted: the first one is kept. Readable images come before all others."""
    measured, key = evidence.measured, evidence.images.images.key(i)
    split = _ORDER.get(evidence.images.split_of(i), len(_ORDER))
    pixels = int(measured.width[i] * measured.height[i])
    return measured.status[i] != "ok", split, bool(is_error_N[i]), -pixels, -int(measured.bytes[i]), len(key), key, i


def _pair_reason(evidence: Evidence, index: int, kept: int, pair: int) -> str:
    images, measured, copies = evidence.images, evidence.measured, evidence.copies
    kind = str(copies.kind[pair])
    other = "another image" if images.split[index] == images.split[kept] else f"an image of {images.split_of(kept)}"
    if kind == "exact":
        text = f"the same bytes as {other}"
    elif kind == "near":
        mirror = ", mirrored" if copies.mirrored[pair] else ""
        text = f"nearly the same picture as {other}{mirror}: similarity of the pixels {copies.score[pair]:.2f}"
    else:
        text = (
            f"similar to {other}: cosine {copies.cosine[pair]:.3f}, similarity of the pixels {copies.score[pair]:.2f}"
        )
    sizes = [(int(measured.width[i]), int(measured.height[i])) for i in (index, kept)]
    if sizes[0] != sizes[1]:
        text += f"; {sizes[0][0]}x{sizes[0][1]} and {sizes[1][0]}x{sizes[1][1]} pixels"
    if images.images.labels[index] != images.images.labels[kept]:
        text += f"; the labels differ: {label_of(images, index)} and {label_of(images, kept)}"
    return text


# --- labels and outliers ----------------------------------------------------------------------------------------------


def _label_errors(evidence: Evidence, is_error_N: NDArray[np.bool_]) -> Iterator[Finding]:
    labels, images = evidence.labels, evidence.images
    for i in np.flatnonzero(is_error_N).tolist() if labels is not None else ():
        assert labels is not None
        name, own = images.images.classes[int(labels.suggested[i])], float(labels.probability[i])
        reason = (
            f"predicted as {name} with probability {own + float(labels.margin[i]):.2f} by a classifier trained without "
            f"it; the label {label_of(images, i)} has {own:.2f}"
        )
        yield _finding(images, i, "label_error", float(labels.margin[i]), reason, f"label it as {name}, or remove it")


def _outliers(evidence: Evidence, cut: float) -> Iterator[Finding]:
    remote, images = evidence.remote, evidence.images
    score_N = np.maximum(remote.overall, remote.in_class)
    for i in np.flatnonzero(evidence.measured.ok & (score_N >= cut)).tolist():
        among, distance = "images", float(remote.distance[i])
        if remote.in_class[i] > remote.overall[i]:
            among, distance = f"images of {label_of(images, i)}", float(remote.class_distance[i])
        reason = (
            f"mean cosine distance {distance:.2f} to its 10 nearest {among}, {score_N[i]:.1f} robust standard "
            "deviations beyond the median"
        )
        yield _finding(images, i, "outlier", float(score_N[i]), reason)


def count_kinds(findings: Iterable[Finding]) -> dict[str, int]:
    """Return the number of findings of each kind that occurs, in the order of KINDS."""
    counts = dict.fromkeys(KINDS, 0)
    for finding in findings:
        counts[finding.kind] += 1
    return {kind: count for kind, count in counts.items() if count}
