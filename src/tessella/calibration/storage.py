"""Calibrations as files: one safetensors file beside the weights, sealed with a hash of everything in it.

calibration.safetensors            in a model folder
NAME.calibration.safetensors       beside the weights of a built-in model
CACHE/calibrations/FINGERPRINT.safetensors   for models whose weights are in the cache of the Hub
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..checks import as_path
from ..errors import OutputError, UsageError, WeightsError
from ..fingerprint import arrays_hash
from ..results import FloatArray, is_finite
from ..storage import check_writable, make_folders, open_regular, read_regular, write_atomic
from .arrays import Floats
from .calibration import Calibration, CalibrationData, UnknownDetection
from .confidence import ConfidenceCurve
from .detectors import DetectorKind, read_detector
from .prediction_sets import PredictionSets

FORMAT = 1
MAX_BYTES = 1 << 30  # of a file
MAX_HEADER = 100_000_000  # bytes, the limit of the format
KEY = "calibration"  # in the metadata, of the facts: the SHA-256 of their text, and the text, which is JSON
SEAL_LENGTH = 64
MAX_NUMBER = 1e9  # of the temperature, its inverse and the curve; sums and products of such numbers are finite
_Share: TypeAlias = Annotated[float, msgspec.Meta(gt=0, lt=1)]
_HALF = ("detector.stored",)  # arrays that are stored in half precision


def write_calibration(path: str | Path, calibration: Calibration) -> Path:
    """Write a calibration to a file and return its path; equal calibrations give equal bytes.

    Raises OutputError `output_failed`.
    """
    path = as_path("the calibration", path)
    try:
        make_folders(path.parent)
        write_atomic(path, calibration_bytes(calibration))
    except OSError as error:
        raise _not_written(path, error) from None
    return path


def check_destination(path: str | Path) -> Path:
    """Check that `write_calibration` can write to a path, before the work, and return it; its folder is created.

    Raises OutputError `output_failed`, UsageError `bad_argument` for a file of weights, which would be lost.
    """
    path = as_path("the calibration", path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.is_file() or not path.exists():  # a device has no folder to write to
            check_writable(Path(os.path.realpath(path)).parent)
        if path.is_file() and _holds_other_tensors(path):
            message = f"{str(path)!r} exists and is not a calibration"
            raise UsageError("bad_argument", message, hint="give another file")
    except OSError as error:
        raise _not_written(path, error) from None
    return path


def _holds_other_tensors(path: Path) -> bool:
    """Return whether a file is in the format of calibrations and is none, such as the weights of a model."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER else b""
    try:
        return KEY not in json.loads(header).get("__metadata__", {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError("output_failed", f"{str(path)!r} could not be written: {error.strerror or error}")


def calibration_bytes(calibration: Calibration) -> bytes:
    """Return the contents of the file of a calibration."""
    from safetensors.numpy import save

    arrays = _arrays_of(calibration)
    facts = _facts_of(calibration) | {"format": FORMAT, "arrays": _arrays_hash(arrays)}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return save(arrays, {KEY: f"{_hash(text)}{text}"})  # one key: the order of several is random


def calibration_hash(calibration: Calibration) -> str:
    """Return 16 hex digits that depend on everything in a calibration."""
    return hashlib.sha256(calibration_bytes(calibration)).hexdigest()[:16]


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration from a file.

    Raises UsageError `not_found`, WeightsError `bad_format` for a file that is damaged or no calibration.
    """
    path = as_path("the calibration", path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("too large")
        return _parse(read_regular(path))
    except OSError as error:
        raise UsageError("not_found", f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        hint = "restore the file, or run `tessella calibrate` again"
        raise WeightsError("bad_format", f"{str(path)!r} is damaged or is not a calibration", hint=hint) from error


def _facts_of(calibration: Calibration) -> dict[str, object]:
    names = ("fingerprint", "model", "transform", "policy", "precision", "temperature")
    sets, unknown = calibration.sets, calibration.unknown
    facts: dict[str, object] = {name: getattr(calibration, name) for name in names}
    return facts | dict(
        labels=list(calibration.labels),
        curve=dataclasses.asdict(calibration.curve),
        sets={name: getattr(sets, name) for name in ("coverage", "penalty", "free_ranks", "per_class")},
        unknown=dict(kind=unknown.detector.kind, false_alarms=unknown.false_alarms),
        data=calibration.data._asdict(),
        figures=dict(calibration.figures),
    )


def _arrays_of(calibration: Calibration) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "sets.scores": calibration.sets.scores,
        "sets.labels": calibration.sets.labels.astype(np.int32),
        "unknown.scores": calibration.unknown.scores,
    }
    arrays |= {f"detector.{name}": array for name, array in calibration.unknown.detector.arrays.items()}
    return {
        name: np.ascontiguousarray(array.astype(np.float16) if name in _HALF else array)
        for name, array in arrays.items()
    }


def _arrays_hash(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    return arrays_hash(dict(sorted(arrays.items())))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(data: bytes) -> Calibration:
    """Return the calibration in the bytes of a file; ValueError, KeyError or TypeError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    sealed = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][KEY]
    text = sealed[SEAL_LENGTH:]
    if sealed[:SEAL_LENGTH] != _hash(text):
        raise ValueError("the facts do not match their hash")
    facts = json.loads(text)
    if facts.pop("format") != FORMAT:
        raise ValueError("unknown format")
    if facts.pop("arrays") != _arrays_hash(arrays) or not all(map(is_finite, arrays.values())):
        raise ValueError("the arrays do not match their hash, or are not finite")
    return _calibration_of(facts, arrays)


class _Sets(msgspec.Struct, forbid_unknown_fields=True):
    coverage: _Share
    penalty: Annotated[float, msgspec.Meta(ge=0)]
    free_ranks: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    per_class: bool


class _Curve(msgspec.Struct, forbid_unknown_fields=True):
    intercept: float
    slope: float
    knots: tuple[float, ...]
    bends: tuple[float, ...]


class _Unknown(msgspec.Struct, forbid_unknown_fields=True):
    kind: DetectorKind
    false_alarms: _Share


class _Data(msgspec.Struct, forbid_unknown_fields=True):
    origin: str
    fingerprint: str
    images: int
    fitted: int


class _CalibrationFacts(msgspec.Struct, forbid_unknown_fields=True):
    """The contents of a file besides its arrays; see `Calibration`."""

    fingerprint: str
    model: str
    transform: str
    policy: str
    precision: str
    temperature: Annotated[float, msgspec.Meta(gt=0)]
    labels: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    curve: _Curve
    sets: _Sets
    unknown: _Unknown
    data: _Data
    figures: dict[str, Any]


def _calibration_of(values: object, arrays: Mapping[str, NDArray[Any]]) -> Calibration:
    """Put a calibration together; ValueError or KeyError for facts and arrays that do not fit."""
    facts = msgspec.convert(values, _CalibrationFacts)  # its ValidationError is a ValueError
    curve = ConfidenceCurve(*msgspec.structs.astuple(facts.curve))
    numbers = (
        facts.temperature,
        1 / facts.temperature,
        facts.sets.penalty,
        curve.intercept,
        curve.slope,
        *curve.knots,
        *curve.bends,
    )
    if len(curve.knots) != len(curve.bends) or not all(abs(number) <= MAX_NUMBER for number in numbers):  # nor NaN
        raise ValueError("the curve is incomplete, or a number is out of range")
    sets = PredictionSets(
        **msgspec.structs.asdict(facts.sets),
        scores=_ascending(arrays["sets.scores"]),
        labels=arrays["sets.labels"].astype(np.int64),
        num_classes=len(facts.labels),
    )
    fits = sets.labels.shape == sets.scores.shape and 0 <= sets.labels.min() <= sets.labels.max() < len(facts.labels)
    if not fits:
        raise ValueError("the scores and the labels do not fit")
    stored: dict[str, FloatArray] = {
        name.removeprefix("detector."): array.astype(np.float32)
        for name, array in arrays.items()
        if name.startswith("detector.")
    }
    detector = read_detector(facts.unknown.kind, stored)
    unknown = UnknownDetection(detector, _ascending(arrays["unknown.scores"]), facts.unknown.false_alarms)
    data = CalibrationData(*msgspec.structs.astuple(facts.data))
    return Calibration(**msgspec.structs.asdict(facts) | dict(curve=curve, sets=sets, unknown=unknown, data=data))


def _ascending(scores_N: NDArray[Any]) -> Floats:
    if scores_N.ndim != 1 or not len(scores_N) or (scores_N[1:] < scores_N[:-1]).any():
        raise ValueError("the scores are not in order")
    return scores_N.astype(np.float64)
