"""Compare two models, or two runs, on the same images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..bulk.run_folder import read_run
from ..checks import check_path, checked
from ..errors import ImageError, UsageError
from ..evaluation.markdown import counts_text
from ..evaluation.settings import ProgressCallback
from ..machine import require_fork
from ..predictor import Predictor
from ..storage import create_output_folder, folder_lock
from .answers import (
    ChangedAnswer,
    accuracy_change,
    agreement_of,
    answers_of,
    changed_answers,
    known_probabilities,
    match_answers,
    total_variation,
)
from .images import ComparedImages, is_run, open_images, open_run_images
from .neighborhoods import judge_alignment, neighbor_overlap
from .outputs import ImageSample, ModelOutputs, outputs_of
from .results import Comparison, SubjectFacts
from .settings import ComparisonSettings
from .speed import Speed, measure_speed
from .subjects import ComparedModel, input_size_of, name_of, open_subject, parameters_of

DEFAULTS = ComparisonSettings()


@checked
def compare(
    old: str | Path | Predictor,
    new: str | Path | Predictor,
    data: str | Path | None = None,
    settings: ComparisonSettings = DEFAULTS,
    *,
    out: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Comparison:
    """Compare two models on the same images; each model sees every image once.

    old, new: a name for `tessella.load`, a loaded Predictor, or the folder of a run, whose rows are used. data: labeled
    images as for `evaluate`, a run, whose inputs are used, or any images that `tessella run` reads. None: the inputs
    of the run that is old or, if that is a model, new. Rows of a run belong to images with the same bytes.
    out: keep the outputs of models in this folder, so that a comparison that was interrupted is resumed. progress:
    called with (side and model, images done, number of images) after each image.

    Raises UsageError: `bad_argument`, `not_found`, `damaged_run`, `unsupported_system`, and `busy` if another process
    uses `out`; ImageError `unreadable` if no image has a result of both; OutputError `output_failed`; and the errors of
    `tessella.load`.
    """
    require_fork("`tessella compare`")
    images = _find_images(old, new, data, settings)
    if not len(images):
        raise UsageError("not_found", f"there are no images in {images.origin}")
    sides = [open_subject(given, settings.options(side)) for side, given in enumerate((old, new))]
    classes = max(subject.num_classes for subject in sides)
    sample = ImageSample.of(len(images), settings.sampled, classes, settings.seed)
    outputs = []
    with _working_folder(out) as folder:
        for subject, side in zip(sides, ("old", "new"), strict=True):
            place = create_output_folder(folder / side)
            label = f"{side}: {subject.name}"
            outputs.append(outputs_of(subject, images, sample, place, label=label, progress=progress))
    result = compare_outputs((sides[0], outputs[0]), (sides[1], outputs[1]), images, sample, settings.seed)
    return replace(result, speed=_speed(sides) if settings.speed else None)


def _find_images(
    old: str | Path | Predictor, new: str | Path | Predictor, data: str | Path | None, settings: ComparisonSettings
) -> ComparedImages:
    names = [name_of(given) for given in (old, new)]
    for name in names:
        check_path("a model or run", name)
    runs = [
        name for given, name in zip((old, new), names, strict=True) if not isinstance(given, Predictor) and is_run(name)
    ]
    if data is None:
        if not runs:
            raise UsageError(
                "bad_argument",
                f"neither {names[0]} nor {names[1]} is a run, so there are no images to compare them on",
                hint="give images: tessella compare OLD NEW DATA",
            )
        if settings.split is not None:
            raise UsageError("bad_argument", "a split needs labeled images", hint="give them as DATA")
        return open_run_images(Path(runs[0]))
    models = [read_run(Path(name))["model"] if name in runs else name for name in names]
    return open_images(os.fspath(data), models, settings.split)


@contextmanager
def _working_folder(out: str | Path | None) -> Iterator[Path]:
    """Yield the folder for the outputs of models, which is locked, or removed at the end if none was given."""
    if out is not None:
        folder = create_output_folder(out)
        with folder_lock(folder):
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tessella-compare-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def compare_outputs(
    old: tuple[ComparedModel, ModelOutputs],
    new: tuple[ComparedModel, ModelOutputs],
    images: ComparedImages,
    sample: ImageSample,
    seed: int,
) -> Comparison:
    """Return the comparison without speed. Raises ImageError `unreadable` if no image has a result of both."""
    (old_subject, old_outputs), (new_subject, new_outputs) = old, new
    both_N = old_outputs.ok & new_outputs.ok
    if not both_N.any():
        old_errors, new_errors = (counts_text(side.errors) or "no errors" for side in (old_outputs, new_outputs))
        raise ImageError(
            "unreadable",
            f"none of the {len(images):,} images has a result of both models (old: {old_errors}; new: {new_errors})",
        )
    classes = match_answers(old_subject, new_subject, images)
    old_N, new_N = answers_of(old_outputs, classes.old), answers_of(new_outputs, classes.new)
    accuracy = agreement = None
    changed: tuple[ChangedAnswer, ...] = ()
    if classes.true is not None:
        accuracy = accuracy_change(old_N, new_N, images, classes.true, both_N)
    if classes.comparable:
        agreement = agreement_of(old_N, new_N, both_N)
        changed = tuple(changed_answers((*old, old_N), (*new, new_N), images, classes, both_N))
        known = known_probabilities(old_outputs, new_outputs, sample, both_N) if classes.same else None
        if known is not None:
            distance = total_variation(*known, classes.old, classes.new)
            agreement = replace(agreement, total_variation=distance, judged=len(known[0]))
    kept = both_N[sample.rows]
    old_vectors, new_vectors = old_outputs.vectors[kept], new_outputs.vectors[kept]
    fitted = judge_alignment(old_vectors, new_vectors, seed)
    return Comparison(
        old=_facts(old_subject, old_outputs),
        new=_facts(new_subject, new_outputs),
        images=len(images),
        compared=int(both_N.sum()),
        data=images.origin,
        data_fingerprint=images.fingerprint,
        accuracy=accuracy,
        agreement=agreement,
        neighbors=neighbor_overlap(old_vectors, new_vectors),
        alignment=None if fitted is None else fitted[1],
        matrix=None if fitted is None else fitted[0],
        changed=changed,
        sources=images.items,
        notes=tuple(_notes(old_subject, new_subject, images, classes.why)),
    )


def _notes(old: ComparedModel, new: ComparedModel, images: ComparedImages, why: str) -> Iterator[str]:
    yield from images.notes
    if images.skipped is not None:
        yield from images.skipped.lines()
    if why:
        yield why
    if old.fingerprint == new.fingerprint:
        yield f"both have the fingerprint {old.fingerprint}: they are the same model with the same settings"


def _facts(subject: ComparedModel, outputs: ModelOutputs) -> SubjectFacts:
    making = subject.making
    return SubjectFacts(
        **making,
        classes=subject.num_classes,
        width=subject.width,
        parameters=parameters_of(subject),
        input_size=input_size_of(subject),
        errors=outputs.errors,
        run="" if subject.run is None else str(subject.run),
    )


def _speed(sides: list[ComparedModel]) -> Speed | None:
    """Measure the speed of both models; None if one of them is a run."""
    old, new = (subject.predictor for subject in sides)
    return None if old is None or new is None else measure_speed(old, new)
