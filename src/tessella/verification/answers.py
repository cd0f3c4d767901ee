"""Check what a model computes: pixels, answers to photographs, and that no answer depends on other images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data.transforms import load_pixels
from ..engine.consistency import compare_engine
from ..engine.difference import TOLERANCE, relative_difference
from ..predictor import Predictor
from ..results import FloatArray, Output, is_finite
from .findings import Outcome, PhotographAnswer, judged
from .goldens import SIGNIFICANT_DIGITS, golden_answers, key_of, photograph_paths, pixel_hash, read_goldens

ArrayPair = tuple[FloatArray, FloatArray]


class Computed(NamedTuple):
    """The checks of what a model computes, and its answers."""

    findings: list[Outcome]
    answers: tuple[PhotographAnswer, ...]


def check_answers(predictor: Predictor) -> Computed:
    """Compare pixels and answers with the golden ones, and batches of several sizes with a reference.

    Raises the errors of the engine.
    """
    answers = give_answers(predictor)
    findings = [_check_pixels(predictor, answers), _check_golden(predictor, answers)]
    found = compare_engine(predictor.engine, predictor.spec)
    bound = TOLERANCE[found.precision]
    shown = f"largest difference {found.error:.1e}, {100 * found.agreement:.0f} % same top class"
    expected = f"those of {found.reference}, within {bound:g}"
    findings.append(judged("batches of 1, 2 and 7", expected, shown, found.passes, "conversion_failed"))
    return Computed(findings, answers)


def give_answers(predictor: Predictor) -> tuple[PhotographAnswer, ...]:
    """Return what a model gives for each of the photographs in this package."""
    answers = []
    for path, output in zip(photograph_paths(), predictor.outputs(photograph_paths()), strict=True):
        assert isinstance(output, Output), "the photographs of the package can be read"
        pixels = pixel_hash(load_pixels(path.read_bytes(), predictor.spec))
        answers.append(PhotographAnswer(path.name, pixels, _rounded(output.logits), _rounded(output.embedding)))
    return tuple(answers)


def _rounded(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values.tolist())


def _check_pixels(predictor: Predictor, answers: Sequence[PhotographAnswer]) -> Outcome:
    key, check = key_of(predictor.spec), "pixels"
    expected = read_goldens().pixels.get(key)
    found = [answer.pixels for answer in answers]
    if expected is None:
        return Outcome(check, f"none are stored for {key}", _short(found), "recorded")
    is_same = found == expected
    shown = "the same" if is_same else _short(found)
    return judged(check, f"Pillow's, {key}: {_short(expected)}", shown, is_same, "conversion_failed")


def _short(hashes: Sequence[str]) -> str:
    return " ".join(digest[:8] for digest in hashes)


def _check_golden(predictor: Predictor, answers: Sequence[PhotographAnswer]) -> Outcome:
    check, expected = "answers", golden_answers(predictor.fingerprint)
    if not expected:
        if not all(is_finite(part) for part in as_arrays(answers)):
            return Outcome(check, "finite numbers", "NaN or infinity", "failed", "non_finite")
        return Outcome(check, "none are stored for this model", describe(predictor, answers), "recorded")
    bound = TOLERANCE["float32"]
    error = relative_difference(as_arrays(answers), as_arrays(expected))
    shown = f"largest difference {error:.1e}"
    wanted = f"PyTorch's in float64, within {bound:g} of their standard deviation"
    return judged(check, wanted, shown, error <= bound, "conversion_failed")


def describe(predictor: Predictor, answers: Sequence[PhotographAnswer]) -> str:
    """Return the top class of each photograph, as text; the length of the embedding for a model without classes."""
    if not predictor.num_classes:
        return f"{len(answers[0].embedding)} dimensions"
    tops = ((answer.photograph, predictor.labels[int(np.argmax(answer.logits))]) for answer in answers)
    return ", ".join(f"{name}: {label}" for name, label in tops)


def as_arrays(answers: Sequence[PhotographAnswer]) -> ArrayPair:
    """Return the logits (N,classes) and embeddings (N,width) of answers."""
    logits = np.array([answer.logits for answer in answers], np.float32)
    return logits, np.array([answer.embedding for answer in answers], np.float32)
