"""Calibrate a model on labeled images that it was not trained on: `tessella calibrate`."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.arrays import images_needed
from ..calibration.calibration import Calibration, CalibrationData
from ..calibration.finding import beside, cached_path
from ..calibration.fitting import CalibrationSettings, LabeledOutputs, fit
from ..calibration.storage import calibration_hash, check_destination, write_calibration
from ..checks import as_path, checked
from ..data.datasets import LabelledImages
from ..data.source import Source
from ..data.sources import iter_sources
from ..errors import ImageError, UsageError
from ..predictor import Predictor, load
from ..results import FloatArray, Output
from ..storage import remove_file
from ..weights.catalogue import default_model
from .calibration_figures import CalibrationFigures, measure_figures
from .classes import match_classes
from .leakage import Split, find_recorded, folder_of_model, open_data, read_image_record
from .markdown import counts_text
from .metrics import Ints
from .settings import ProgressCallback

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration with the figures about it.

    calibration: what was made. path: the file that it was written to, None if it was not stored. figures: measured by
    cross-validation. errors: number of images that could not be read, by error code. unknown_images: number of those
    that show none of the classes. remarks: sentences for people.
    """

    calibration: Calibration
    figures: CalibrationFigures
    errors: Mapping[str, int]
    unknown_images: int = 0
    remarks: tuple[str, ...] = ()
    path: Path | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON."""
        calibration = self.calibration
        sets, unknown = calibration.sets, calibration.unknown
        return dict(
            path=None if self.path is None else str(self.path),
            hash=calibration_hash(calibration),
            model=calibration.model,
            fingerprint=calibration.fingerprint,
            data=calibration.data._asdict(),
            errors=dict(self.errors),
            unknown_images=self.unknown_images,
            temperature=calibration.temperature,
            sets=dict(method=sets.method, coverage=sets.coverage, per_class=sets.per_class, penalty=sets.penalty,
                      free_ranks=sets.free_ranks),
            unknown=dict(detector=unknown.detector.kind, false_alarms=unknown.false_alarms,
                         threshold=unknown.threshold),
            figures=self.figures.as_dict(),
            remarks=list(self.remarks),
        )  # fmt: skip


@checked
def calibrate(
    data: str | Path | LabelledImages,
    model: str | Predictor | None = None,
    settings: CalibrationSettings | None = None,
    *,
    load_options: Mapping[str, Any] | None = None,
    split: Split | None = None,
    unknown: str | Path | None = None,
    out: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> CalibrationReport:
    """Fit a calibration to a model, measure it, and store it where `tessella.load` finds it.

    data: labeled images as for `evaluate`, or ones that are open. Images that the model was trained on are excluded if
    the model has a record of them. model: a name for `load`, or a Predictor; None for the built-in one for CIFAR-10.
    load_options: arguments of `load`, such as transform. split: "train", "val" or "all"; None for the validation split
    if there is one. unknown: images that show none of the classes, any input of the command line. out: the file to
    write; None for the folder of a `local-dir:` model with default settings, else the cache. progress: called with
    (task, images done, number of images).

    Raises UsageError `bad_argument` for too few images, unknown classes, or images that were all used for training;
    ImageError `unreadable`, OutputError `output_failed`, and the errors of `load` and `open_labelled`.
    """
    settings = settings or CalibrationSettings()
    path = None if out is None else check_destination(as_path("out", out))
    options = {**(load_options or {}), "calibration": None}
    name = model.name if isinstance(model, Predictor) else model or default_model("classify")
    folder = None if options.get("checkpoint_path") else folder_of_model(name)
    images, remarks = (data, ()) if isinstance(data, LabelledImages) else choose_unseen(data, folder, split)
    sources = None if unknown is None else list(iter_sources([str(unknown)]))
    predictor = model.with_calibration(None) if isinstance(model, Predictor) else load(name, **options)
    own = cached_path(predictor.fingerprint)
    if path is None:
        path = check_destination(own if isinstance(model, Predictor) else _destination(predictor, folder))
    report = measure_calibration(predictor, images, settings, unknown=sources, progress=progress)
    write_calibration(path, report.calibration)
    if path != own and out is None:
        remove_file(own, "remove it: it would be used instead of the new calibration")
    return dataclasses.replace(report, path=path, remarks=(*remarks, *report.remarks))


def choose_unseen(data: str | Path, folder: Path | None, split: Split | None) -> tuple[LabelledImages, tuple[str, ...]]:
    """Open labeled images without those that a model was trained on, and return sentences about the selection.

    folder: of the model, None if it has none. Raises UsageError `bad_argument` if no image is left, and the errors of
    `open_labelled`.
    """
    images = open_data(data, split)
    record = None if folder is None else read_image_record(folder)
    if record is None:
        remark = f"{folder} has no record of the images that it was trained on: make sure that they are not among these"
        return images, (remark,) if folder is not None and (folder / "train.json").exists() else ()
    trained_N, _ = find_recorded(images, [record])
    if not trained_N.any():
        return images, ()
    kept = np.flatnonzero(~trained_N)
    if not len(kept):
        raise UsageError(
            "bad_argument",
            f"{folder} was trained on all {len(images):,} images of {images.origin}",
            hint="give images that it was not trained on; on images that it has seen, it is better than on new ones",
        )
    origin = f"the {len(kept):,} images of {data} that {folder} was not trained on"
    return images.subset(kept, origin), (f"{origin} are used, of {len(images):,}",)


def _destination(predictor: Predictor, folder: Path | None) -> Path:
    """Return the file for the calibration of a model. folder: of the model, None if it has none.

    A folder holds the calibration for the default settings, with which the model is usually loaded.
    """
    is_exported = predictor.engine.network is None
    default = ("exact", "tessella", predictor.card.precision if is_exported else "float32")
    if folder is not None and (predictor.transform, predictor.policy, predictor.card.precision) == default:
        return beside(folder)
    return cached_path(predictor.fingerprint)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure_calibration(
    predictor: Predictor,
    images: LabelledImages,
    settings: CalibrationSettings,
    *,
    unknown: Iterable[Source] | None = None,
    progress: ProgressCallback | None = None,
) -> CalibrationReport:
    """Run a model over labeled images, and return its calibration with figures; nothing is written.

    unknown: images that show none of the classes. Raises as `calibrate`.
    """
    mapping = match_classes(images.classes, predictor, restrict=False)
    labels_N = mapping.positions[images.labels]
    predictor = predictor.with_calibration(None)
    sources = (images.source(i) for i in range(len(images)))
    outputs, errors = outputs_of(predictor, sources, labels_N, progress)
    others = None
    if unknown is not None:
        unknown = list(unknown)
        others, more = outputs_of(predictor, unknown, np.zeros(len(unknown), np.int64), progress, "unknown images")
        errors = Counter(errors) + Counter(more)
    data = CalibrationData(images.origin, images.fingerprint, len(outputs.labels), 0)
    report = make_calibration(predictor, outputs, settings, data, others)
    return dataclasses.replace(report, errors=dict(errors), remarks=(*report.remarks, mapping.description))


def make_calibration(
    predictor: Predictor,
    outputs: LabeledOutputs,
    settings: CalibrationSettings,
    data: CalibrationData,
    unknown: LabeledOutputs | None = None,
) -> CalibrationReport:
    """Return the calibration of a model from its outputs, with figures.

    data: where the outputs are from; its number `fitted` is filled in. unknown: outputs for images that show none of
    the classes. Raises UsageError `bad_argument` for too few images.
    """
    fitted = fit(outputs, settings, unknown)
    figures = measure_figures(outputs, fitted, settings, predictor.labels)
    calibration = Calibration(
        fingerprint=predictor.fingerprint,
        model=predictor.name,
        transform=predictor.transform,
        policy=predictor.policy,
        precision=predictor.card.precision,
        labels=predictor.labels,
        temperature=fitted.temperature,
        curve=fitted.curve,
        sets=fitted.sets,
        unknown=fitted.unknown,
        data=data._replace(fitted=fitted.fitted),
        figures=figures.as_dict(),
    )
    count = 0 if unknown is None else len(unknown.labels)
    return CalibrationReport(calibration, figures, {}, count, tuple(_remarks(calibration)))


def outputs_of(
    predictor: Predictor,
    sources: Iterable[Source],
    labels_N: Ints,
    progress: ProgressCallback | None = None,
    task: str = "",
) -> tuple[LabeledOutputs, dict[str, int]]:
    """Return the outputs for the images that can be read, and the number of others by error code.

    labels_N: index of the true class of each image (N,). task: what the images are, for progress and errors.
    Raises ImageError `unreadable` if no image can be read.
    """
    logits: list[FloatArray] = []
    embeddings: list[FloatArray] = []
    kept: list[int] = []
    errors: Counter[str] = Counter()
    first = ""  # message of the first error
    for place, outcome in enumerate(predictor.outputs(sources)):
        if isinstance(outcome, Output) and outcome.is_finite:
            logits.append(outcome.logits)
            embeddings.append(outcome.embedding)
            kept.append(place)
        else:
            errors[outcome.code if isinstance(outcome, ImageError) else "non_finite"] += 1
            first = first or (outcome.message if isinstance(outcome, ImageError) else "the outputs are not finite")
        if progress:
            progress(task or predictor.name, place + 1, len(labels_N))
    if not kept:
        raise ImageError(
            "unreadable",
            f"none of the {task or 'images'} could be read ({counts_text(errors)})",
            hint=f"the first error: {first}" if first else "",
        )
    return LabeledOutputs(np.stack(logits), np.stack(embeddings), labels_N[kept]), dict(errors)


def _remarks(calibration: Calibration) -> Iterable[str]:
    """Yield what users should know about a calibration."""
    sets, unknown = calibration.sets, calibration.unknown
    if not calibration.figures["detectors"]:
        yield "the detection of unknown images was not measured: --unknown takes images of none of the classes"
    if np.isinf(unknown.threshold):
        yield (
            f"no image will be called unknown: a threshold for a false-alarm rate of {unknown.false_alarms:.3g} needs "
            f"{images_needed(1 - unknown.false_alarms):,} images, and only {len(unknown.scores):,} were left for it"
        )
    if missing := int(np.isinf(sets.thresholds).sum()):
        yield (
            f"{missing:,} of the {sets.num_classes:,} classes are in every prediction set: a threshold for a coverage "
            f"of {sets.coverage:.3g} needs {images_needed(sets.coverage):,} images of the class"
        )
