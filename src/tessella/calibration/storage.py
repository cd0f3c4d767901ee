"""Calibrations as files: one safetensors file beside the weights, sealed with a hash of everything in it.

calibration.safetensors            in a model folder
NAME.calibration.safetensors       beside the weights of a built-in model
CACHE/calibrations/FINGERPRINT.safetensors   for models whose weights are in the cache of the Hub
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import as_path
from ..errors import OutputError, UsageError, WeightsError
from ..fingerprint import arrays_hash
from ..results import FloatArray, is_finite
from ..storage import make_folders, read_regular, write_atomic
from .arrays import Floats
from .calibration import Calibration, CalibrationData, UnknownDetection
from .confidence import ConfidenceCurve
from .detectors import KINDS, read_detector
from .prediction_sets import PredictionSets

FORMAT = 1
MAX_BYTES = 1 << 30  # of a file
KEY = "calibration"  # in the metadata, of the facts: the SHA-256 of their text, and the text, which is JSON
SEAL_LENGTH = 64
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
        message = f"{str(path)!r} could not be written: {error.strerror or error}"
        raise OutputError("output_failed", message) from None
    return path


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
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        hint = "restore the file, or run `tessella calibrate` again"
        raise WeightsError("bad_format", f"{str(path)!r} is damaged, or no calibration", hint=hint) from error


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
        raise ValueError("another format")
    if facts.pop("arrays") != _arrays_hash(arrays) or not all(map(is_finite, arrays.values())):
        raise ValueError("the arrays do not match their hash, or are not finite")
    return _calibration_of(facts, arrays)


def _calibration_of(facts: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Calibration:
    """Put a calibration together; ValueError, KeyError or TypeError for facts that do not fit."""
    kind, false_alarms = facts["unknown"]["kind"], facts["unknown"]["false_alarms"]
    if kind not in KINDS:
        raise ValueError(f"unknown detector {kind!r}")
    stored: dict[str, FloatArray] = {
        name.removeprefix("detector."): array.astype(np.float32)
        for name, array in arrays.items()
        if name.startswith("detector.")
    }
    labels = tuple(facts["labels"])
    sets = PredictionSets(
        **facts["sets"],
        scores=_ascending(arrays["sets.scores"]),
        labels=arrays["sets.labels"].astype(np.int64),
        num_classes=len(labels),
    )
    if sets.labels.shape != sets.scores.shape or not 0 <= sets.labels.min() <= sets.labels.max() < len(labels):
        raise ValueError("the scores and the labels do not fit")
    if not 0 < facts["temperature"] < math.inf:
        raise ValueError("the temperature is not a positive number")
    parts = facts["curve"]
    curve = ConfidenceCurve(parts["intercept"], parts["slope"], tuple(parts["knots"]), tuple(parts["bends"]))
    if len(curve.knots) != len(curve.bends) or not np.isfinite([curve.intercept, curve.slope, *curve.bends]).all():
        raise ValueError("the curve is incomplete, or not finite")
    unknown = UnknownDetection(read_detector(kind, stored), _ascending(arrays["unknown.scores"]), false_alarms)
    made = dict(labels=labels, curve=curve, sets=sets, unknown=unknown, data=CalibrationData(**facts["data"]))
    return Calibration(**facts | made)


def _ascending(scores_N: NDArray[Any]) -> Floats:
    if scores_N.ndim != 1 or not len(scores_N) or (scores_N[1:] < scores_N[:-1]).any():
        raise ValueError("the scores are not in order")
    return scores_N.astype(np.float64)
