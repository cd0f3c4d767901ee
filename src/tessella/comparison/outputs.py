"""What a model gives for the images of a comparison: an answer per image, and the embeddings of a sample.

    FOLDER/part-00000000.npz   the outputs for 256 images, with the fingerprints of model, calibration and images

Images are decoded in isolated processes, as in a bulk run. A part is written when its images are finished, atomically,
so an interrupted comparison resumes with the first part that is missing. A part of another model or of other images is
computed again, and so is one whose files were modified, or with an unreadable image that can be read now.

Letters for shapes: N images, S sampled images, T images of the sample whose probabilities are kept, D width of the
embedding, K classes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bulk.run_folder import finished_shards, read_run, read_shard
from ..bulk.shards import decoder_of
from ..calibration.storage import calibration_hash
from ..data.changes import MODEL_STATUS, is_any_readable, modification_marks
from ..data.isolated import IsolatedDecoder
from ..errors import ImageError, UsageError
from ..evaluation.settings import ProgressCallback
from ..pipeline import map_values
from ..predictor import Predictor
from ..records import npz_bytes
from ..results import FloatArray, Output, l2_normalize, softmax
from ..search.nearest import vectors_of
from ..storage import open_regular, write_bytes
from .images import ComparedImages, Ints, content_of
from .subjects import ComparedModel

PART_IMAGES = 256
MOST_PROBABILITIES = 1 << 25  # numbers, of all images together
MISSING = "not_in_run"  # status of an image that a run does not have


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs of a model for N images, in their order.

    status: (N,) "ok", or an error code. answers: (N,) index of the most probable class; -1 without one. confidence:
    (N,) its probability, calibrated if the model is, as in the rows of a run. vectors: (S,D) embeddings of unit length
    of the sampled images, zeros where the status is not ok. probabilities: (T,K) softmax for images of the sample; None
    if it is not known.
    """

    status: NDArray[np.str_]
    answers: Ints
    confidence: FloatArray
    vectors: FloatArray
    probabilities: FloatArray | None = None

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Whether there is a result for each image, (N,)."""
        return self.status == "ok"

    @property
    def errors(self) -> dict[str, int]:
        """Number of images without a result, by error code."""
        return dict(sorted(Counter(self.status[~self.ok].tolist()).items()))


@dataclass(frozen=True)
class ImageSample:
    """The images whose embeddings are compared.

    rows: (S,) positions, rising. step: every how many of them the probabilities are kept, too.
    """

    rows: Ints
    step: int = 1

    @classmethod
    def of(cls, images: int, most: int, classes: int, seed: int) -> ImageSample:
        """Draw at most `most` of the images. classes: the larger number of classes of the two models."""
        rows = np.arange(images)
        if images > most:
            rows = np.sort(np.random.default_rng(seed).choice(images, most, replace=False))
        return cls(rows, max(-(-len(rows) * classes // MOST_PROBABILITIES), 1))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that depend on all positions."""
        return hashlib.sha256(np.append(self.rows, self.step).astype("<i8").tobytes()).hexdigest()[:16]

    @property
    def judged(self) -> Ints:
        """The positions (T,) of the images whose probabilities are kept."""
        return self.rows[:: self.step]


# --- computing --------------------------------------------------------------------------------------------------------


@dataclass
class _StoredRows:
    """The outputs for consecutive images, as they arrive."""

    status: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    vectors: list[FloatArray] = field(default_factory=list)
    probabilities: list[FloatArray] = field(default_factory=list)


def compute_outputs(
    predictor: Predictor,
    images: ComparedImages,
    sample: ImageSample,
    folder: Path,
    *,
    label: str,
    progress: ProgressCallback | None = None,
) -> ModelOutputs:
    """Run a model on all images that the parts in `folder` do not have yet, and return all outputs.

    label, progress: called with (label, images done, number of images) after each image.
    Raises OutputError `output_failed`.
    """
    count = len(images)
    starts = range(0, count, PART_IMAGES)
    facts = _facts_of_parts(predictor, images, sample)
    in_sample, judged = _is_member(sample.rows, count), _is_member(sample.judged, count)
    rows = _StoredRows()
    with decoder_of(predictor) as decoder:
        stored = _read_parts(folder, facts, images, decoder)
        todo = [start for start in starts if start not in stored]
        done = count - sum(min(PART_IMAGES, count - start) for start in todo)
        positions = (i for start in todo for i in range(start, min(start + PART_IMAGES, count)))
        pairs = ((i, images.items.source(i)) for i in positions)
        decoded = ((i, image.outcome) for i, image in map_values(decoder.decoded, pairs))
        for i, outcome in predictor.decoded_outputs(decoded, split_batch=False):
            _add(rows, predictor, outcome, bool(in_sample[i]), bool(judged[i]))
            done += 1
            if progress:
                progress(label, done, count)
            start = i - i % PART_IMAGES
            if i + 1 == min(start + PART_IMAGES, count):
                arrays = _arrays(rows, predictor.width, predictor.num_classes)
                texts = {name: np.array(value) for name, value in facts[start].items()}
                write_bytes(_path(folder, start), npz_bytes(arrays | texts))
                stored[start], rows = arrays, _StoredRows()
    joined = {name: np.concatenate([stored[start][name] for start in starts]) for name in _NAMES}
    return ModelOutputs(**joined)


def _facts_of_parts(predictor: Predictor, images: ComparedImages, sample: ImageSample) -> dict[int, dict[str, str]]:
    """Return what each part records, by its first image: a part with other facts is computed again."""
    facts = dict(
        model=predictor.fingerprint,
        calibration="" if predictor.calibration is None else calibration_hash(predictor.calibration),
        data=images.fingerprint,
        sample=f"{len(images)} {sample.fingerprint}",
    )
    marks = modification_marks((images.items.source(i) for i in range(len(images))), PART_IMAGES)
    return {number * PART_IMAGES: facts | dict(modified=mark) for number, mark in enumerate(marks)}


def _add(rows: _StoredRows, predictor: Predictor, outcome: Output | ImageError, sampled: bool, judged: bool) -> None:
    probabilities_K = vector_D = np.zeros(0, np.float32)
    best, confidence = -1, 0.0
    if isinstance(outcome, ImageError):
        status = outcome.code
    elif not outcome.is_finite:
        status = MODEL_STATUS
    else:
        status = "ok"
        vector_D = l2_normalize(outcome.embedding[None])[0]
        if outcome.logits.size:
            probabilities_K = softmax(outcome.logits[None])[0]
            best = int(probabilities_K.argmax())
            confidence = float(predictor.probabilities(outcome.logits[None])[0, best])
    rows.status.append(status)
    rows.answers.append(best)
    rows.confidence.append(confidence)
    if sampled:
        rows.vectors.append(vector_D)
    if judged:
        rows.probabilities.append(probabilities_K)


_NAMES = ("status", "answers", "confidence", "vectors", "probabilities")


def _arrays(rows: _StoredRows, width: int, classes: int) -> dict[str, NDArray[np.generic]]:
    return dict(
        status=np.array(rows.status, "<U24"),
        answers=np.array(rows.answers, np.int64),
        confidence=np.array(rows.confidence, np.float32),
        vectors=_stacked(rows.vectors, width),
        probabilities=_stacked(rows.probabilities, classes),
    )


def _stacked(parts: Sequence[FloatArray], width: int) -> FloatArray:
    """Stack vectors; those of images without a result are empty, and become zeros."""
    stacked = np.zeros((len(parts), width), np.float32)
    for row, part in zip(stacked, parts, strict=True):
        if part.size:
            row[:] = part
    return stacked


def _is_member(rows: Ints, count: int) -> NDArray[np.bool_]:
    member = np.zeros(count, bool)
    member[rows] = True
    return member


def _path(folder: Path, start: int) -> Path:
    return folder / f"part-{start // PART_IMAGES:08d}.npz"


def _read_parts(
    folder: Path, facts: dict[int, dict[str, str]], images: ComparedImages, decoder: IsolatedDecoder
) -> dict[int, dict[str, NDArray[np.generic]]]:
    """Return the parts that can be used, by their first image."""
    found = {}
    for start in facts:
        part = _read_part(_path(folder, start), facts[start])
        if part is None:
            continue
        failed = (start + np.flatnonzero(~np.isin(part["status"], ("ok", MODEL_STATUS)))).tolist()
        if not (failed and is_any_readable(decoder, (images.items.source(i) for i in failed))):
            found[start] = part
    return found


def _read_part(path: Path, facts: dict[str, str]) -> dict[str, NDArray[np.generic]] | None:
    """Read a part; return None if it is missing or damaged, or for another model or other images."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            if any(str(arrays[name]) != value for name, value in facts.items()):
                return None
            return {name: arrays[name] for name in _NAMES}
    except Exception:  # damaged zip files raise exceptions of many types; the outputs are computed again
        return None


# --- reading a run ----------------------------------------------------------------------------------------------------


def read_outputs(run: Path, contents: Sequence[str], sample: ImageSample) -> ModelOutputs:
    """Return the rows of a run for images with these contents, whatever their names and order.

    contents: N texts, see `ComparedImages.contents`.

    Raises UsageError: `damaged_run`, and `bad_argument` if the run has none of the images.
    """
    facts, count = read_run(run), len(contents)
    places: dict[str, list[int]] = {}
    for i, content in enumerate(contents):
        places.setdefault(content, []).append(i)
    status = np.full(count, MISSING, "<U24")
    answers, confidence = np.full(count, -1, np.int64), np.zeros(count, np.float32)
    vectors = np.zeros((len(sample.rows), facts["width"]), np.float32)
    row_of = np.full(count, -1, np.int64)
    row_of[sample.rows] = np.arange(len(sample.rows))
    for shard_rows in _run_rows(run):
        for content, state, answer, probability, vector in shard_rows:
            for i in places.get(content, ()):
                status[i], answers[i], confidence[i] = state, answer, probability
                if row_of[i] >= 0 and state == "ok":
                    vectors[row_of[i]] = vector
    if not (status != MISSING).any():
        raise UsageError(
            "bad_argument",
            f"the run {run} has results for none of the {count:,} images",
            hint="give two runs of the same images, or the name of a model instead of a run",
        )
    return ModelOutputs(status, answers, confidence, l2_normalize(vectors))


def _run_rows(run: Path) -> Iterator[Iterator[tuple[str, str, int, float, FloatArray]]]:
    """Yield the rows of each shard of a run: content, status, answer, its probability, and embedding (D,)."""
    facts = read_run(run)
    for shard in finished_shards(run):
        table = read_shard(run, shard, ["key", "sha256", "status", "top_index", "top_probability", "embedding"])
        indices = [(top or [-1])[0] for top in table["top_index"].to_pylist()]
        confidences = [(top or [0.0])[0] for top in table["top_probability"].to_pylist()]
        vectors_ND = vectors_of(table["embedding"].drop_null(), facts["width"]).astype(np.float32)
        state = np.array(table["status"].to_pylist(), "<U24")
        placed_ND = np.zeros((len(state), facts["width"]), np.float32)
        placed_ND[table["embedding"].is_valid().to_numpy()] = vectors_ND
        state[(state == "ok") & ~np.isfinite(placed_ND).all(1)] = "non_finite"
        contents = map(content_of, table["sha256"].to_pylist(), table["key"].to_pylist())
        yield zip(contents, state.tolist(), indices, confidences, placed_ND, strict=True)


def _has_results(run: Path, subject: ComparedModel) -> bool:
    """Return whether a run has the embeddings of a model for all inputs, and the classes if the model has any."""
    facts = read_run(run)
    if facts["fingerprint"] != subject.fingerprint or (subject.num_classes and not facts["top"]):
        return False
    return sum(shard.rows for shard in finished_shards(run)) == facts["rows"]


def outputs_of(
    subject: ComparedModel,
    images: ComparedImages,
    sample: ImageSample,
    folder: Path,
    *,
    label: str,
    progress: ProgressCallback | None = None,
) -> ModelOutputs:
    """Return the outputs of one side: computed, or read from its run.

    The rows of a run are used for a model, too, if the images are its inputs and it has all results of the model.
    Raises as `compute_outputs` and `read_outputs`.
    """
    run = subject.run
    if run is None and images.run is not None and _has_results(images.run, subject):
        run = images.run
    if run is not None:
        return read_outputs(run, images.contents, sample)
    assert subject.predictor is not None
    return compute_outputs(subject.predictor, images, sample, folder, label=label, progress=progress)
