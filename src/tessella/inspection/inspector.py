"""`inspect`: all problems of a data set that can be found before training."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..checks import checked
from ..data.all_splits import SplitImages, open_all_splits
from ..errors import OutputError, UsageError
from ..machine import require_fork
from ..predictor import Predictor, load
from ..records import csv_line
from ..storage import create_output_folder, folder_lock, write_bytes
from ..text import count_of, escape
from ..weights.catalogue import default_model
from .copies import LIKELY, equal_files, find_copies
from .findings import COLUMNS, Evidence, Finding, collect, count_kinds
from .label_errors import LabelErrors, find_label_errors
from .measuring import Measurements, measure, picture_reader
from .neighbors import Neighbors, find_neighbors
from .outcome import Inspection
from .outliers import NEIGHBORS, Remoteness, find_odd, find_remote
from .page import write_page
from .settings import NEAR, InspectionSettings, ProgressCallback

Number = TypeVar("Number", bound=np.generic)
FINDINGS, SUMMARY, REPORT = "findings.csv", "inspection.json", "report"
LOCK = ".inspect.lock"  # held until the report is written; `measure` has a lock of its own


@checked
def inspect(
    data: str | Path | Sequence[str | Path] | SplitImages,
    model: str | Predictor | None = None,
    settings: InspectionSettings | None = None,
    *,
    out: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Inspection:
    """Find unreadable, duplicate, leaked, mislabeled and odd images of one or several data sets.

    data: as for `open_all_splits`. model: a Predictor, or a name for `load` (None: the built-in model for photographs).
    out: folder for findings.csv, inspection.json and the report; an interrupted call with the same model and data
    continues there. progress: called with (task, items done, number of items). Nothing is deleted or changed.

    Raises UsageError `unsupported_system`, `not_found` if no image can be read, and `busy` if another process uses
    `out`, OutputError `output_failed`, and the errors of `open_all_splits` and `load`.
    """
    require_fork("`tessella inspect`")
    settings = settings or InspectionSettings()
    images = data if isinstance(data, SplitImages) else _open(data, settings.unlabeled)
    choices = []
    if model is None:
        model = default_model("embed")
        choices.append(f"model: {model}, the built-in model for embeddings of photographs")
    if settings.near == NEAR:
        choices.append(
            f"near: {NEAR}, because 82 of 86 judged pairs with at least this similarity show the same picture"
        )
    predictor = model if isinstance(model, Predictor) else load(model)
    folder = None if out is None else create_output_folder(out)
    with nullcontext() if folder is None else folder_lock(folder, LOCK):
        result = _inspect(images, predictor, settings, choices, folder, progress)
        if folder is not None:
            _write_results(folder, result, progress)
    return result


def _inspect(
    images: SplitImages,
    predictor: Predictor,
    settings: InspectionSettings,
    choices: Sequence[str],
    folder: Path | None,
    progress: ProgressCallback | None,
) -> Inspection:
    """Return the result of an inspection. folder: for the measurements; None keeps them in memory."""
    start = time.perf_counter()
    measured = measure(images, predictor, folder, progress=progress)
    _require_readable(images, measured)
    seconds = {"images": time.perf_counter() - start}
    evidence = _analyze(images, measured, predictor, settings, seconds, progress)
    findings = collect(
        evidence,
        min_images=settings.min_images,
        label_margin=settings.label_margin,
        outlier=settings.outlier,
    )
    return Inspection(
        images=images,
        measured=measured,
        findings=tuple(findings),
        counts=count_kinds(findings),
        model=predictor.name,
        fingerprint=predictor.fingerprint,
        choices=tuple(choices),
        notes=tuple(_notes(evidence)),
        label_errors=evidence.labels,
        settings=settings,
        seconds=seconds,
    )


def _write_results(folder: Path, result: Inspection, progress: ProgressCallback | None) -> None:
    """Write the findings, the report, and then the summary, which marks a complete inspection."""
    try:
        (folder / SUMMARY).unlink(missing_ok=True)  # of an earlier inspection, whose other files are replaced now
    except OSError as error:
        raise OutputError("output_failed", f"{folder / SUMMARY} could not be replaced: {error.strerror}") from error
    write_findings(folder / FINDINGS, result.findings)
    write_page(folder / REPORT, result, progress=progress)
    write_bytes(folder / SUMMARY, (json.dumps(result.as_dict(), indent=1) + "\n").encode())


def _require_readable(images: SplitImages, measured: Measurements) -> None:
    """Raise UsageError `not_found` if no image could be read."""
    if not measured.ok.any():
        raise UsageError(
            "not_found",
            f"none of {count_of(len(images), 'image')} could be read; the first is {images.images.key(0)!r}: "
            f"{measured.status[0]}",
            hint="`tessella classify` on one of them gives the reason",
        )


def _open(data: str | Path | Sequence[str | Path], unlabeled: bool) -> SplitImages:
    paths = [data] if isinstance(data, str | Path) else list(data)
    return open_all_splits(paths, unlabeled=unlabeled)


def _analyze(
    images: SplitImages,
    measured: Measurements,
    predictor: Predictor,
    settings: InspectionSettings,
    seconds: dict[str, float],
    progress: ProgressCallback | None,
) -> Evidence:
    """Compute what the findings follow from; `seconds` gets the duration of each stage."""
    clock = _Clock(seconds)
    rows = np.flatnonzero(measured.ok)
    equal = equal_files(measured)[rows]
    neighbors = find_neighbors(measured.vectors[rows], NEIGHBORS, group_N=equal, progress=progress)
    clock.stop("neighbors")
    with picture_reader(images, predictor) as read:
        copies = find_copies(
            measured,
            _in_all(neighbors, rows, len(images)),
            settings.near,
            predictor.name,
            read,
            likely=min(LIKELY, settings.near),
            progress=progress,
        )
    clock.stop("pairs")
    labels = images.images.labels
    errors = None
    if images.is_labeled:
        found = find_label_errors(
            measured.vectors[rows],
            labels[rows],
            copies.group[rows],
            len(images.images.classes),
            folds=settings.folds,
            seed=settings.seed,
            progress=progress,
        )
        errors = None if found is None else _errors_in_all(found, rows, len(images))
    clock.stop("labels")
    remote = find_remote(measured.vectors[rows], labels[rows], copies.group[rows], neighbors)
    remote = Remoteness(*(_spread(values, rows, len(images), 0) for values in remote))
    odd = find_odd(measured, settings.odd)
    clock.stop("outliers")
    return Evidence(images, measured, copies, errors, remote, odd)


class _Clock:
    """Records how long each stage took."""

    def __init__(self, seconds: dict[str, float]):
        self._seconds, self._start = seconds, time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage], self._start = now - self._start, now


def _spread(values_M: NDArray[Number], rows: NDArray[np.int64], count: int, fill: float) -> NDArray[Number]:
    """Return values (count,) with those of the `rows` in place, and `fill` elsewhere."""
    full = np.full((count, *values_M.shape[1:]), fill, values_M.dtype)
    full[rows] = values_M
    return full


def _in_all(neighbors: Neighbors, rows: NDArray[np.int64], count: int) -> Neighbors:
    """Return the neighbors of readable images under the numbers of all images."""
    places = np.where(neighbors.row >= 0, rows[neighbors.row], -1)
    return Neighbors(_spread(neighbors.cosine, rows, count, -1), _spread(places, rows, count, -1))


def _errors_in_all(found: LabelErrors, rows: NDArray[np.int64], count: int) -> LabelErrors:
    return dataclasses.replace(
        found,
        probability=_spread(found.probability, rows, count, 1),
        suggested=_spread(found.suggested, rows, count, -1),
        margin=_spread(found.margin, rows, count, -1),
        confident=_spread(found.confident, rows, count, 0),
        judged=_spread(found.judged, rows, count, 0),
    )


def _notes(evidence: Evidence) -> list[str]:
    """Return sentences about what was left out."""
    images, labels = evidence.images, evidence.labels
    notes = [*images.images.skipped.lines()]
    if not images.is_labeled:
        notes.append("the images have no labels: label errors and classes were not examined")
    elif labels is None:
        notes.append("label errors were not examined: fewer than two classes have at least 5 different images")
    else:
        small = evidence.measured.ok & ~labels.judged
        if small.any():
            notes.append(
                f"the labels of {count_of(int(small.sum()), 'image')} were not examined: their classes have fewer than "
                "5 different images"
            )
    if len([split for split in images.splits if split]) < 2:
        notes.append("the data have one split: copies in two splits were not looked for")
    return notes


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write findings as CSV in UTF-8, with keys as `text.escape` makes them. Raises OutputError `output_failed`."""
    lines = [csv_line(COLUMNS)]
    for row in findings:
        values = vars(row) | dict(key=escape(row.key), related=escape(row.related))
        lines.append(csv_line(values[name] for name in COLUMNS))
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
