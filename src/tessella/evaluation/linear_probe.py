"""Linear probe: measure how well the embeddings of a frozen model separate the classes of labeled images.

Every image is embedded once; the other computations take minutes on a CPU for 50,000 images. Figures are measured on
the validation images, on which no parameter is selected except the confidence threshold. All others are selected on
held-out training images.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checks import checked
from ..data.datasets import LabelledImages, open_split
from ..errors import UsageError
from ..extras import require
from ..machine import require_fork
from ..predictor import Predictor, load
from ..results import FloatArray
from ..storage import create_output_folder, write_bytes
from .classifiers import FewShot, choose_neighbors, choose_strength, few_shot, fit, hold_out, neighbors, vote
from .embeddings import Embedded, embed
from .head import LinearHead, attach
from .leakage import write_image_record
from .metrics import Answers, Coverage, Ints, Metrics, as_dict, coverage, judge, metrics_of
from .settings import ProbeSettings, ProgressCallback

COVERAGE_POINTS = 101  # points of the coverage curve in JSON


@dataclass(frozen=True)
class Threshold:
    """A confidence threshold, and the results if only images above it are answered (on the validation images)."""

    probability: float
    coverage: float  # fraction of the images that is answered
    accuracy: float  # accuracy on the answered images


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The result of a probe; figures are measured on the validation images."""

    model: str
    fingerprint: str  # of the model and its settings
    train_data: str
    val_data: str
    data_fingerprints: tuple[str, str]  # of the training and of the validation images
    classes: tuple[str, ...]
    train_count: int
    train_errors: dict[str, int]  # training images that could not be read, by error code
    neighbours: int  # selected k; spelled as in probe.json
    knn: Metrics
    strength: float  # selected strength of the L2 penalty
    linear: Metrics
    few_shot: tuple[FewShot, ...]
    coverage: Coverage  # of the linear classifier
    asked_accuracy: float | None
    threshold: Threshold | None  # for `asked_accuracy`; None if it was not given or cannot be reached
    head: LinearHead
    answers: Answers  # of the linear classifier
    notes: tuple[str, ...]  # what was omitted, and why
    attached: Path | None  # the model folder that was written

    def as_dict(self) -> dict[str, object]:
        """Return the result for JSON, without the head and the answers."""
        omitted = ("head", "answers")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in omitted}
        points = np.unique(np.linspace(0, len(self.coverage.threshold) - 1, COVERAGE_POINTS).round().astype(int))
        return values | dict(
            knn=as_dict(self.knn),
            linear=as_dict(self.linear),
            few_shot=[dataclasses.asdict(row) for row in self.few_shot],
            coverage={name: column[points].tolist() for name, column in self.coverage._asdict().items()},
            threshold=self.threshold and dataclasses.asdict(self.threshold),
            attached=self.attached and str(self.attached),
        )


@checked
def probe(
    data: str | Path | tuple[LabelledImages, LabelledImages],
    model: str | Predictor | None = None,
    settings: ProbeSettings | None = None,
    *,
    val: str | Path | None = None,
    out: str | Path | None = None,
    attach_to: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> ProbeResult:
    """Measure a k-nearest-neighbor and a linear classifier on a frozen model's embeddings of labeled images.

    data, val: as for `open_split`, or a pair of training and validation images. model: a Predictor, or a name for
    `load` (None: the built-in model for photographs). out: folder for probe.json and the embeddings, which a later
    run with the same model and data reuses. attach_to: folder for a model with the linear classifier as its head,
    which `tessella.load("local-dir:...")` reads. progress: called with ("training images" or "validation images",
    images done, number of images) after each image.

    The result is deterministic for a seed. Images that cannot be read are counted by error code and excluded. Raises
    UsageError `unsupported_system`, `missing_dependency` for `attach_to` without PyTorch, OutputError `output_failed`,
    and the errors of `open_split`, `load` and `attach`.
    """
    require_fork("`tessella probe`")
    settings = settings or ProbeSettings()
    if attach_to is not None:
        require("torch", "a model with a new classifier")
    if isinstance(data, tuple):
        train_images, val_images = data
        if train_images.classes != val_images.classes:
            raise UsageError(
                "bad_argument",
                "the training and validation images have different lists of classes",
                hint="open both with the same list: open_labelled(..., classes=training_images.classes)",
            )
    else:
        train_images, val_images = open_split(data, val=val, val_fraction=settings.val_fraction)
    predictor = model if isinstance(model, Predictor) else load(model)
    if attach_to is not None:
        _ = predictor.model  # raises for an exported model, before any work is done
        create_output_folder(attach_to)
    folder = None if out is None else create_output_folder(out)
    embedded = []
    for images, name in ((train_images, "train"), (val_images, "val")):
        label = "training images" if name == "train" else "validation images"
        cache = folder and folder / f"embeddings-{name}.npz"
        embedded.append(embed(images, predictor, cache, label=label, progress=progress))
    split = _Split.of(train_images, embedded[0], val_images, embedded[1])
    result = _measure(split, predictor, settings)
    if attach_to is not None:
        attached = attach(predictor, result.head, result.classes, attach_to)
        warning = write_image_record(attached, train_images, val_images, predictor.name)
        result = dataclasses.replace(result, attached=attached, notes=(*result.notes, *filter(None, [warning])))
    if folder is not None:
        write_bytes(folder / "probe.json", (json.dumps(result.as_dict(), indent=1) + "\n").encode())
    return result


@dataclass(frozen=True)
class _Split:
    """The readable training and validation images as embeddings (N,D) and labels (N,)."""

    train: LabelledImages
    val: LabelledImages
    train_errors: dict[str, int]
    val_errors: dict[str, int]
    train_vectors: FloatArray  # (N,D)
    train_labels: Ints  # (N,)
    val_vectors: FloatArray  # (N,D)
    val_labels: Ints  # (N,)
    val_index: Ints  # (N,) positions in `val`

    @classmethod
    def of(cls, train: LabelledImages, train_rows: Embedded, val: LabelledImages, val_rows: Embedded) -> _Split:
        """Select the images with an embedding; raises UsageError if a class has no training image, or none is left."""
        train_labels_N = train.labels[train_rows.ok]
        missing = np.flatnonzero(np.bincount(train_labels_N, minlength=len(train.classes)) == 0)
        if len(missing):
            raise UsageError(
                "bad_argument",
                f"no training image of the class {train.classes[missing[0]]!r} could be read",
                hint="`tessella classify --json` on one of them gives the reason",
            )
        if not val_rows.ok.any():
            raise UsageError("bad_argument", "no validation image could be read", hint="choose others with --val")
        return cls(
            train=train,
            val=val,
            train_errors=train_rows.errors,
            val_errors=val_rows.errors,
            train_vectors=train_rows.vectors[train_rows.ok],
            train_labels=train_labels_N,
            val_vectors=val_rows.vectors[val_rows.ok],
            val_labels=val.labels[val_rows.ok],
            val_index=np.flatnonzero(val_rows.ok),
        )


def _measure(split: _Split, predictor: Predictor, settings: ProbeSettings) -> ProbeResult:
    x_ND, labels_N, classes = split.train_vectors, split.train_labels, split.train.classes
    rng = np.random.default_rng(settings.seed)
    held_N = hold_out(labels_N, rng)
    count = choose_neighbors(x_ND, labels_N, held_N, len(classes))
    strength = choose_strength(x_ND, labels_N, held_N, len(classes))
    knn_answers = judge(vote(*neighbors(split.val_vectors, x_ND, labels_N, count), len(classes)), split.val_labels)
    head = fit(x_ND, labels_N, len(classes), strength)
    answers = judge(head(split.val_vectors), split.val_labels, split.val_index)
    few, notes = few_shot(x_ND, labels_N, split.val_vectors, split.val_labels, settings.shots, classes, rng)
    curve = coverage(answers)
    return ProbeResult(
        model=predictor.name,
        fingerprint=predictor.fingerprint,
        train_data=split.train.origin,
        val_data=split.val.origin,
        data_fingerprints=(split.train.fingerprint, split.val.fingerprint),
        classes=classes,
        train_count=len(labels_N),
        train_errors=split.train_errors,
        neighbours=count,
        knn=metrics_of(knn_answers, classes, errors=split.val_errors),
        strength=strength,
        linear=metrics_of(answers, classes, errors=split.val_errors),
        few_shot=tuple(few),
        coverage=curve,
        asked_accuracy=settings.accuracy,
        threshold=None if settings.accuracy is None else find_threshold(curve, settings.accuracy),
        head=head,
        answers=answers,
        notes=(*split.train.skipped.lines(), *notes),
        attached=None,
    )


def find_threshold(curve: Coverage, accuracy: float) -> Threshold | None:
    """Return the threshold with the highest coverage among those with at least this accuracy, or None."""
    sufficient = np.flatnonzero(curve.accuracy >= accuracy)
    if not len(sufficient):
        return None
    last = sufficient[-1]
    return Threshold(float(curve.threshold[last]), float(curve.coverage[last]), float(curve.accuracy[last]))
