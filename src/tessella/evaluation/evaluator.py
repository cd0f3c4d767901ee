"""Evaluate models on labeled images, with one or several engines and precisions.

Every image is counted: N images give N outcomes, which are predictions or error codes. Unreadable images are excluded
from the accuracy; the accuracy that counts them as wrong is reported as well.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..calibration.calibration import Calibration
from ..calibration.storage import calibration_hash
from ..checks import checked
from ..data.datasets import LabelledImages
from ..data.labels import labels_for
from ..engine.plan import FAST
from ..errors import ImageError, TessellaError, UsageError
from ..machine import hardware, other_versions, versions
from ..predictor import Predictor, load
from ..results import FloatArray, Output
from ..weights.catalogue import Accuracy, resolve
from .calibration_figures import calibrated_logits, expected_share
from .classes import ClassMapping, match_classes
from .imagenet import REAL, REAL_IMAGES, find_published, read_real_labels, real_positions, recognize
from .leakage import Split, choose_images
from .markdown import counts_text
from .metrics import Answers, Ints, Metrics, join, judge, metrics_of
from .report import FailedImage
from .settings import EvaluationSettings, ProgressCallback

log = logging.getLogger(__name__)

CHUNK = 256  # images whose logits are in memory at a time
LabelOf: TypeAlias = Callable[[int, FloatArray], int]  # (position of an image, its logits) -> index of the true class


@dataclass(frozen=True)
class Trust:
    """How a calibration judged the images, as shares from 0 to 1.

    coverage: images whose prediction set has the true class, None if the data restrict the classes; promised: the
    coverage that was promised; least_coverage: the coverage that 97.5 % of measurements with this many images reach if
    the promise holds. set_size: mean number of classes in a set. unknown: images that were called unknown;
    false_alarms: the largest share that was promised for images of the classes; most_unknown: the share that 97.5 % of
    measurements do not exceed if the promise holds.
    same_images: whether the calibration was made from exactly these images, which makes its figures too good.
    """

    coverage: float | None
    promised: float
    set_size: float
    unknown: float
    least_coverage: float = 0.0
    false_alarms: float = 1.0
    most_unknown: float = 1.0
    same_images: bool = False

    @property
    def broken(self) -> tuple[str, ...]:
        """The figures that are worse than chance explains: "coverage", "unknown"."""
        low = self.coverage is not None and self.coverage < self.least_coverage
        high = self.unknown > self.most_unknown
        return tuple(name for name, is_worse in (("coverage", low), ("unknown", high)) if is_worse)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of one model on the data; without `metrics` it failed, and `status` and `note` give the reason."""

    model: str
    status: str = "ok"  # or an error code
    note: str = ""  # the error message, or why the requested precision was not used
    engine: str = ""  # used, or requested if the model failed
    precision: str = ""
    metrics: Metrics | None = None
    answers: Answers | None = None
    failed: tuple[FailedImage, ...] = ()  # images that could not be read
    unlabelled: int = 0  # images without a ReaL label, which are excluded
    classes: str = ""  # how the classes of the data were matched
    dataset: str = ""  # a name of imagenet.SETS, "" for other data
    published: Accuracy | None = None  # %
    seconds: float | None = None  # from encoded images to predictions; loading the model is not included
    batch_size: int = 0
    trust: Trust | None = None
    conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of images in the data, including unreadable and unlabeled ones."""
        return (self.metrics.total if self.metrics else 0) + self.unlabelled

    @property
    def images_per_second(self) -> float | None:
        """Speed from encoded images to predictions; None if the model failed."""
        return self.metrics.total / self.seconds if self.metrics and self.seconds else None


# --- one model --------------------------------------------------------------------------------------------------------


def measure(
    predictor: Predictor,
    images: LabelledImages,
    *,
    real: Sequence[Sequence[int]] | None = None,
    dataset: str | None = None,
    restrict: bool | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Run a model over all images once.

    real: labels from `read_real_labels`. dataset, restrict: see `EvaluationSettings`. progress: see `evaluate`.
    Raises UsageError `bad_argument` if the classes do not match, ImageError `unreadable` if no image can be read,
    `not_found` if there are none, or none with a ReaL label, and WeightsError `non_finite`.
    """
    classes = images.classes if real is None else labels_for("imagenet-1k").synsets
    mapping = match_classes(classes, predictor, restrict)
    choices = None if real is None else real_positions(images, mapping, real)
    positions = [i for i in range(len(images)) if choices is None or choices[i]]
    set_name = _set_name(images, mapping, dataset, real is not None)

    def label_of(position: int, logits: FloatArray) -> int:
        if choices is None:
            return int(mapping.positions[images.labels[position]])
        return choices[position][int(np.argmax(logits[choices[position]]))]  # the label with the highest logit

    _warm_up(predictor, len(positions))
    started = time.perf_counter()
    answers, failed, trust = _run(predictor, images, positions, mapping.columns, label_of, progress)
    seconds = time.perf_counter() - started
    errors = dict(Counter(image.code for image in failed))
    if not len(answers.label):
        raise _no_answers(images, failed, errors)
    return Evaluation(
        model=predictor.name,
        engine=predictor.plan.engine,
        precision=predictor.plan.precision,
        metrics=metrics_of(answers, [predictor.labels[i] for i in mapping.columns], errors=errors),
        answers=answers,
        failed=tuple(failed),
        unlabelled=len(images) - len(positions),
        classes=mapping.description,
        dataset=set_name,
        published=find_published(predictor, set_name) if len(mapping.columns) == len(classes) else None,
        seconds=seconds,
        batch_size=predictor.plan.batch_size,
        trust=trust,
        conditions=_conditions(predictor, images),
    )


def _no_answers(images: LabelledImages, failed: Sequence[FailedImage], errors: Mapping[str, int]) -> ImageError:
    """Return the error for data without an image to measure: unreadable ones, ones without a ReaL label, or none."""
    if failed:
        return ImageError(
            "unreadable",
            f"none of the {len(failed):,} images could be read ({counts_text(errors)})",
            hint=f"the first is {failed[0].key!r}: {failed[0].message}",
        )
    return ImageError("not_found", "no image has a ReaL label" if len(images) else "there are no images")


def _warm_up(predictor: Predictor, images: int) -> None:
    """Run one batch, so that the time does not include what an engine does on first use."""
    blank = np.zeros((predictor.spec.height, predictor.spec.width, 3), np.uint8)
    deque(predictor.outputs([blank] * min(predictor.plan.batch_size, images)), maxlen=0)


def _run(
    predictor: Predictor,
    images: LabelledImages,
    positions: Sequence[int],
    columns: Ints,
    label_of: LabelOf,
    progress: ProgressCallback | None,
) -> tuple[Answers, list[FailedImage], Trust | None]:
    """Return the answers on the images at `positions`, in order, the images that could not be read, and what a
    calibration said.
    """
    parts = [judge(np.empty((0, len(columns))), np.empty(0, np.int64))]
    trusted = _Trusted(predictor.calibration, len(columns) == predictor.num_classes, images.fingerprint)
    pending: list[tuple[int, int, Output]] = []  # position, label, output
    failed: list[FailedImage] = []

    def judge_pending() -> None:
        if pending:
            indices, labels, outputs = zip(*pending, strict=True)
            logits = np.stack([output.logits for output in outputs])
            parts.append(judge(trusted.scale(logits)[:, columns], np.array(labels), np.array(indices)))
            trusted.add(logits, np.stack([output.embedding for output in outputs]), np.array(labels))
            pending.clear()

    outcomes = predictor.outputs(images.source(i) for i in positions)
    for done, (i, outcome) in enumerate(zip(positions, outcomes, strict=True), 1):  # strict: exactly one per image
        if isinstance(outcome, ImageError):
            failed.append(FailedImage(images.key(i), outcome.code, outcome.message))
        else:
            pending.append((i, label_of(i, outcome.logits[columns]), outcome))
        if len(pending) == CHUNK:
            judge_pending()
        if progress:
            progress(predictor.name, done, len(positions))
    judge_pending()
    return join(parts), failed, trusted.figures()


class _Trusted:
    """Applies a calibration to batches of outputs, and counts what it says.

    has_all_classes: whether all classes of the model can be predicted, so that labels are indices of the model.
    fingerprint: of the images.
    """

    def __init__(self, calibration: Calibration | None, has_all_classes: bool, fingerprint: str):
        self._calibration, self._has_all_classes = calibration, has_all_classes
        self._fingerprint = fingerprint
        self._images = self._covered = self._members = self._unknown = 0

    def scale(self, logits_NK: FloatArray) -> FloatArray:
        """Return logits whose softmax is calibrated; those that are not finite remain, so that they are reported."""
        if self._calibration is None:
            return logits_NK
        return np.where(np.isfinite(logits_NK), calibrated_logits(self._calibration, logits_NK), logits_NK)

    def add(self, logits_NK: FloatArray, embeddings_ND: FloatArray, labels_N: Ints) -> None:
        """Count a batch."""
        if self._calibration is None:
            return
        assessed = self._calibration.assess(logits_NK, embeddings_ND)
        self._images += len(labels_N)
        self._members += int(assessed.sets.sum())
        self._unknown += int(assessed.unknown.sum())
        if self._has_all_classes:
            self._covered += int(assessed.sets[np.arange(len(labels_N)), labels_N].sum())

    def figures(self) -> Trust | None:
        """Return the shares; None without a calibration or images."""
        if self._calibration is None or not self._images:
            return None
        calibration, images = self._calibration, self._images
        quiet = expected_share(1 - calibration.unknown.false_alarms, images, len(calibration.unknown.scores))
        return Trust(
            coverage=self._covered / images if self._has_all_classes else None,
            promised=calibration.coverage,
            set_size=self._members / images,
            unknown=self._unknown / images,
            least_coverage=expected_share(calibration.coverage, images, len(calibration.sets.scores)).low,
            false_alarms=calibration.unknown.false_alarms,
            most_unknown=1 - quiet.low,
            same_images=calibration.data.fingerprint == self._fingerprint,
        )


def _set_name(images: LabelledImages, mapping: ClassMapping, dataset: str | None, real: bool) -> str:
    if dataset is None and real:
        return REAL if len(images) == REAL_IMAGES else ""
    if dataset is None:
        return recognize(images, mapping)
    return "" if dataset == "none" else dataset


def _conditions(predictor: Predictor, images: LabelledImages) -> dict[str, str]:
    plan, spec = predictor.plan, predictor.spec
    return {
        "model": predictor.name,
        "fingerprint": predictor.fingerprint,
        "data": images.origin,
        "data fingerprint": images.fingerprint,
        "engine": plan.engine,
        "precision": plan.precision,
        "device": plan.device,
        "batch": str(plan.batch_size),
        "input": f"{spec.width} x {spec.height} px, {spec.interpolation}, crop {spec.crop_pct:g}",
        "transform": predictor.transform,
        "decode policy": predictor.policy,
        "calibration": _calibration_text(predictor),
        "hardware": hardware(plan.device),
        "threads": str(plan.threads),
        "versions": _versions(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _calibration_text(predictor: Predictor) -> str:
    """Return which calibration the probabilities of a model are from, with its images, for a report."""
    calibration = predictor.calibration
    if calibration is None:
        return "none"
    images = f"{calibration.data.images:,} images of {calibration.data.origin}"
    return f"{calibration_hash(calibration)}, temperature {calibration.temperature:.4g}, from {images}"


def _versions() -> str:
    found = versions()
    named = [f"{name} {found[name]}" for name in ("tessella", "torch") if name in found]
    return ", ".join([*named, *filter(None, [other_versions()])])


# --- several models ---------------------------------------------------------------------------------------------------


@checked
def evaluate(
    data: str | Path | LabelledImages,
    models: Sequence[str | Predictor],
    settings: EvaluationSettings | None = None,
    *,
    split: Split | None = None,
    progress: ProgressCallback | None = None,
) -> Iterator[Evaluation]:
    """Yield one Evaluation per model, engine and precision as each is finished; a failed one has the reason.

    data: as for `choose_images`, or images that are already open. models: names for `tessella.load`, or loaded
    Predictors, which keep their own engine and precision. split: see `choose_images`. progress: called with (model,
    images done, number of images) after each image.

    Raises UsageError for invalid arguments and for unusable data, before a model is loaded; if all models fail, the
    error of the first.
    """
    settings = settings or EvaluationSettings()
    if not models:
        raise UsageError("bad_argument", "no model was given", hint="give at least one: see `tessella list`")
    if settings.checkpoint_path and len(models) > 1:
        raise UsageError("bad_argument", f"one checkpoint cannot provide the weights of {len(models)} models")
    for model in models:
        if isinstance(model, str) and ":" not in model:
            resolve(model)
    real = None if settings.real_labels is None else read_real_labels(settings.real_labels)
    if isinstance(data, LabelledImages):
        images = data
    else:
        images, remarks = choose_images(data, [_name_of(model) for model in models], split)
        for remark in remarks:
            log.warning("%s", remark.removeprefix("warning: "))
    return _evaluate_all(_combinations(models, settings), images, settings, real, progress)


@dataclass(frozen=True)
class _Combination:
    """A model with the engine and precision that are requested for it."""

    model: str | Predictor
    engine: str
    precision: str

    def load(self, settings: EvaluationSettings) -> Predictor:
        if isinstance(self.model, Predictor):
            return self.model
        return load(
            self.model,
            engine=self.engine,
            precision=self.precision,
            device=settings.device,
            batch_size=settings.batch_size,
            transform=settings.transform,
            policy=settings.policy,
            checkpoint_path=settings.checkpoint_path,
            calibration=settings.calibration,
        )


def _combinations(models: Sequence[str | Predictor], settings: EvaluationSettings) -> list[_Combination]:
    pairs = list(itertools.product(_as_list(settings.engine), _as_list(settings.precision)))
    combinations = []
    for model in models:
        if isinstance(model, Predictor):
            combinations.append(_Combination(model, model.plan.engine, model.plan.precision))
        else:
            combinations += [_Combination(model, engine, precision) for engine, precision in pairs]
    return combinations


def _evaluate_all(
    combinations: Sequence[_Combination],
    images: LabelledImages,
    settings: EvaluationSettings,
    real: Sequence[Sequence[int]] | None,
    progress: ProgressCallback | None,
) -> Iterator[Evaluation]:
    failures: list[TessellaError] = []
    for combination in combinations:
        try:
            evaluation = _evaluate_one(combination, images, settings, real, progress)
        except TessellaError as error:
            failures.append(error)
            if len(failures) == len(combinations):
                raise failures[0] from None
            evaluation = Evaluation(
                model=_name_of(combination.model),
                status=error.code,
                note=str(error),
                engine=combination.engine,
                precision=combination.precision,
            )
        yield evaluation


def _evaluate_one(
    combination: _Combination,
    images: LabelledImages,
    settings: EvaluationSettings,
    real: Sequence[Sequence[int]] | None,
    progress: ProgressCallback | None,
) -> Evaluation:
    """Load a model and measure it; when this returns, the model is released, before the next one is loaded."""
    predictor = combination.load(settings)
    evaluation = measure(
        predictor, images, real=real, dataset=settings.dataset, restrict=settings.restrict, progress=progress
    )
    if settings.checkpoint_path:
        evaluation = dataclasses.replace(evaluation, published=None)
    if combination.precision not in ("auto", FAST, evaluation.precision):
        _, value, reason = predictor.plan.choice("precision")
        evaluation = dataclasses.replace(evaluation, note=f"not {combination.precision}: {value}: {reason}")
    return evaluation


def _name_of(model: str | Predictor) -> str:
    return model if isinstance(model, str) else model.name


def _as_list(values: str | Sequence[str]) -> list[str]:
    """Return one or several values as a list without repetitions."""
    return list(dict.fromkeys([values] if isinstance(values, str) else values))
