"""The result of a comparison: as sentences, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..checks import as_path
from ..errors import UsageError
from ..evaluation.markdown import counts_text
from ..results import FloatArray
from ..search.alignments import SUFFIX, Alignment, Making
from ..storage import check_output
from ..text import count_of
from .answers import AccuracyChange, AnswerAgreement, ChangedAnswer
from .images import ImageList
from .neighborhoods import NEIGHBORS, AlignmentFigures, NeighborOverlap, images_needed
from .paired import CONFIDENCE
from .speed import Speed

SAME_ANSWERS = 0.99  # as the gate of int8 requires of decided answers
SAME_NEIGHBORS = 0.8  # as the gate of int8 requires
# Share of the neighbors that an alignment has to keep. With embeddings of CIFAR-10's test images, the five built-in
# models, which were trained independently of each other, keep 15 to 34 %: most of what is found is then another image
# of the same class. A model keeps 92 % of its neighbors with itself in int8, and 99 % in bfloat16. Nothing measured
# lies between; half means that more of the results stay than change. `scripts/bench compare` measures it.
LEAST_KEPT = 0.5
LEAST_P = 1e-300  # smaller p-values may be computed as 0, such as that of 3,000 gained and 300 lost images


class SubjectFacts(NamedTuple):
    """Facts about one side: the model, how it was run, and its size. None for what is not known.

    errors: number of images without a result, by error code. run: the folder of the run that was read, or "".
    """

    model: str
    fingerprint: str
    engine: str
    precision: str
    transform: str
    policy: str
    classes: int
    width: int
    parameters: int | None
    input_size: tuple[int, int] | None
    errors: dict[str, int]
    run: str = ""

    @property
    def making(self) -> Making:
        """How the embeddings are made."""
        return Making(self.model, self.fingerprint, self.transform, self.policy, self.precision, self.engine)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same images.

    images: their number. compared: those with a result of both. data: what the images are. accuracy: None without
    labels. agreement: None if the models have different classes. neighbors, alignment: None for too few images.
    matrix: (D,F) of the alignment of new embeddings of width F with old ones of width D. changed: the images whose
    answers differ, by kind. sources: the images. speed: None if it was not measured. notes: sentences.
    """

    old: SubjectFacts
    new: SubjectFacts
    images: int
    compared: int
    data: str
    data_fingerprint: str
    accuracy: AccuracyChange | None = None
    agreement: AnswerAgreement | None = None
    neighbors: NeighborOverlap | None = None
    alignment: AlignmentFigures | None = None
    matrix: FloatArray | None = field(default=None, repr=False, compare=False)
    changed: tuple[ChangedAnswer, ...] = field(default=(), repr=False)
    sources: ImageList = field(default=(), repr=False, compare=False)  # type: ignore[assignment]  # no images
    speed: Speed | None = None
    notes: tuple[str, ...] = ()

    def write_alignment(self, path: str | Path) -> Alignment:
        """Write the alignment of new embeddings with old ones to a .safetensors file, and return it.

        Raises UsageError `alignment_refused` if it would lose too many neighbors, `bad_argument` for a wrong suffix;
        OutputError `output_failed`.
        """
        path = check_output(as_path("the alignment", path), (SUFFIX,))
        figures, matrix = self.alignment, self.matrix
        if figures is None or matrix is None:
            needed = images_needed(self.old.width, self.new.width)
            enough = self.compared >= needed  # but their embeddings were compared for a sample only
            raise UsageError(
                "alignment_refused",
                f"{'the sampled ones of ' if enough else ''}{self.compared:,} images are too few to fit and to judge "
                f"an alignment of embeddings with {self.old.width} and {self.new.width} dimensions",
                hint=f"use ComparisonSettings(sampled={needed})" if enough else f"give at least {needed:,} images",
            )
        if figures.kept < LEAST_KEPT:
            raise UsageError(
                "alignment_refused",
                f"aligned embeddings of {self.new.model} would find only {percent(figures.kept)} of the {NEIGHBORS} "
                f"nearest images that those of {self.old.model} find, {percent(LEAST_KEPT)} are required",
                hint=f"run the collection again with it: tessella run INPUT -m {self.new.model} --out FOLDER",
            )
        images = figures.fitted + figures.judged
        alignment = Alignment(matrix, self.old.making, self.new.making, images, figures.kept)
        alignment.save(path)
        return alignment

    def count(self, change: str) -> int:
        """Return the number of images with this kind of change."""
        return sum(answer.change == change for answer in self.changed)

    def as_dict(self) -> dict[str, object]:
        """Return the result for JSON, without the changed images, which have a file of their own."""
        return dict(
            old=self.old._asdict(),
            new=self.new._asdict(),
            images=self.images,
            compared=self.compared,
            data=self.data,
            data_fingerprint=self.data_fingerprint,
            verdict=verdict(self),
            accuracy=_accuracy_dict(self.accuracy),
            agreement=None if self.agreement is None else dataclasses.asdict(self.agreement),
            changed=len(self.changed),
            neighbors=None if self.neighbors is None else dataclasses.asdict(self.neighbors),
            alignment=None if self.alignment is None else dataclasses.asdict(self.alignment),
            speed=None if self.speed is None else self.speed._asdict(),
            notes=list(self.notes),
        )


def _accuracy_dict(accuracy: AccuracyChange | None) -> dict[str, object] | None:
    if accuracy is None:
        return None
    values = {name: getattr(accuracy, name) for name in ("images", "old", "new", "gained", "lost")}
    by_class = [row._asdict() for row in accuracy.by_class]
    return values | accuracy.change._asdict() | dict(confidence=CONFIDENCE, by_class=by_class)


# --- in words ---------------------------------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> str:
    """Return the result in a sentence: which model is better, or how alike they are without labels."""
    accuracy, agreement, neighbors = comparison.accuracy, comparison.agreement, comparison.neighbors
    if accuracy is not None:
        return _accuracy_verdict(comparison, accuracy)
    if agreement is None and neighbors is None:
        return "there are too few images to compare embeddings"
    same_answers = agreement is None or agreement.share >= SAME_ANSWERS
    same_neighbors = neighbors is None or neighbors.share >= SAME_NEIGHBORS
    measures = " and ".join(_agreement_texts(comparison))
    compared = "embeddings" if agreement is None else "models"  # without common classes, answers are not compared
    if same_answers and same_neighbors:
        return f"the {compared} are almost the same: {measures}"
    return f"the {compared} differ: {measures}"


def _agreement_texts(comparison: Comparison) -> Iterator[str]:
    if comparison.agreement is not None:
        yield f"{percent(comparison.agreement.share)} of the answers are the same"
    if comparison.neighbors is not None:
        yield f"{percent(comparison.neighbors.share)} of the {NEIGHBORS} nearest images are the same"


def _accuracy_verdict(comparison: Comparison, accuracy: AccuracyChange) -> str:
    change = accuracy.change
    interval = f"{100 * CONFIDENCE:.0f} % interval {points(change.low)} to {points(change.high)}"
    measured = f"{points(change.difference)} points ({interval}), p {p_text(change.p_value)}"
    if not comparison.changed:
        return f"all answers are the same; on other images, the difference may be up to {points(change.high)} points"
    if change.p_value >= 1 - CONFIDENCE:
        return f"no significant difference: {measured}"
    better = comparison.new.model if change.difference > 0 else comparison.old.model
    side = "new" if change.difference > 0 else "old"
    return f"the {side} model, {better}, is better: {measured}"


def percent(value: float) -> str:
    """Return a share as a percentage; one that is not complete is never rounded to 100 %."""
    text = f"{100 * value:.1f}"
    return f"{text if value == 1 or text != '100.0' else 'over 99.9'} %"


def points(value: float) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    text = f"{100 * value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def p_text(value: float) -> str:
    """Return a p-value with two significant digits, after "=", or "<" for one too small for a floating-point number."""
    return f"= {value:.2g}" if value >= LEAST_P else f"< {LEAST_P:g}"


def side_rows(comparison: Comparison) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of the table of both models: what, old, new, and the change."""
    old, new, accuracy, speed = comparison.old, comparison.new, comparison.accuracy, comparison.speed
    yield "model", old.model, new.model, ""
    if accuracy is not None:
        yield (
            "accuracy",
            f"{100 * accuracy.old:.2f} %",
            f"{100 * accuracy.new:.2f} %",
            points(accuracy.change.difference),
        )
    if old.errors or new.errors:
        yield "images without a result", counts_text(old.errors) or "0", counts_text(new.errors) or "0", ""
    if speed is not None:
        ratio = f"{speed.ratio:.2f}x"
        yield "images/s", f"{speed.old:.4g}", f"{speed.new:.4g}", f"{ratio} ({speed.lowest:.2f} to {speed.highest:.2f})"
    yield "parameters", _millions(old.parameters), _millions(new.parameters), _ratio(old.parameters, new.parameters)
    yield "input (height x width)", _size(old.input_size), _size(new.input_size), ""
    yield "embedding", str(old.width), str(new.width), ""
    yield "classes", str(old.classes or "none"), str(new.classes or "none"), ""
    yield "precision, engine", f"{old.precision}, {old.engine}", f"{new.precision}, {new.engine}", ""
    if (old.transform, old.policy) != (new.transform, new.policy):
        yield "transform, policy", f"{old.transform}, {old.policy}", f"{new.transform}, {new.policy}", ""
    yield "run" if old.run or new.run else "", old.run, new.run, ""
    yield "fingerprint", old.fingerprint, new.fingerprint, ""


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.3g} M"


def _ratio(old: int | None, new: int | None) -> str:
    return f"{new / old:.2f}x" if old and new and old != new else ""


def _size(size: tuple[int, int] | None) -> str:
    return "" if size is None else f"{size[0]}x{size[1]}"


def sentences(comparison: Comparison) -> Iterator[str]:
    """Yield what was measured, in sentences; the verdict is the first."""
    yield verdict(comparison)
    accuracy, agreement = comparison.accuracy, comparison.agreement
    if accuracy is not None:
        both = comparison.count("changed")
        yield (
            f"gained: {count_of(accuracy.gained, 'image')} that only the new model classifies correctly; lost: "
            f"{accuracy.lost:,}; {both:,} with another wrong answer"
        )
    if agreement is not None:
        kappa = "" if agreement.kappa is None else f", Cohen's kappa {agreement.kappa:.3f}"
        distance = agreement.total_variation
        moved = "" if distance is None else f"; mean total variation distance of the probabilities: {distance:.3f}"
        yield f"same answer for {percent(agreement.share)} of {count_of(agreement.images, 'image')}{kappa}{moved}"
    if comparison.neighbors is not None:
        shared = comparison.neighbors
        yield (
            f"same neighbors: {percent(shared.share)} of the {NEIGHBORS} nearest of {shared.images:,} images "
            f"({percent(shared.chance)} by chance)"
        )
    if comparison.alignment is not None:
        yield alignment_text(comparison.alignment)


def alignment_text(figures: AlignmentFigures) -> str:
    """Return the figures of an alignment in a sentence, with what to do."""
    advice = "it can be written with --write-alignment" if figures.kept >= LEAST_KEPT else "run the collection again"
    return (
        f"alignment of new embeddings with old ones: it keeps {percent(figures.kept)} of the {NEIGHBORS} nearest of "
        f"{figures.judged:,} images, {percent(LEAST_KEPT)} are required: {advice}"
    )
