"""Calibrations as files: one safetensors file beside the weights, sealed with a hash of everything in it.

calibration.safetensors            in a model folder
NAME.calibration.safetensors       beside the weights of a built-in model
CACHE/calibrations/FINGERPRINT.safetensors   for models whose weights are in the cache of the Hub
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import as_path
from ..errors import OutputError, UsageError, WeightsError
from ..fingerprint import arrays_hash
from ..results import FloatArray, is_finite
from ..storage import json_hash, make_folders, read_regular, write_atomic
from .calibration import Calibration, CalibrationData, UnknownDetection
from .detectors import KINDS, read_detector
from .prediction_sets import PredictionSets

FILE = "calibration.safetensors"
FORMAT = 1
MAX_BYTES = 1 << 30  # of a file
KEY = "calibration"  # of the facts, in the metadata
SEAL = "sha256"
_HALF = ("detector.stored",)  # arrays that are stored in half precision


def write_calibration(path: str | Path, calibration: Calibration) -> Path:
    """Write a calibration to a file and return its path; equal calibrations give equal bytes.

    Raises OutputError `output_failed`.
    """
    path = as_path("the calibration", path)
    arrays = _arrays_of(calibration)
    facts = _facts_of(calibration) | {"format": FORMAT, "arrays": arrays_hash(dict(sorted(arrays.items())))}
    from safetensors.numpy import save

    metadata = {KEY: json.dumps({**facts, SEAL: json_hash(facts)}, sort_keys=True, allow_nan=False)}
    try:
        make_folders(path.parent)
        write_atomic(path, save(arrays, metadata))
    except OSError as error:
        message = f"{str(path)!r} could not be written: {error.strerror or error}"
        raise OutputError("output_failed", message) from None
    return path


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
        sets={name: getattr(sets, name) for name in ("coverage", "penalty", "free_ranks", "per_class")},
        unknown=dict(kind=unknown.detector.kind, false_alarms=unknown.false_alarms),
        data=calibration.data._asdict(),
        figures=dict(calibration.figures),
    )


def _arrays_of(calibration: Calibration) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "sets.scores": calibration.sets.scores,
        "sets.labels": calibration.sets.labels.astype(np.int32),
        "unknown.scores": calibration.unknown.scores,
    }
    arrays |= {f"detector.{name}": array for name, array in calibration.unknown.detector.arrays.items()}
    return {
        name: np.ascontiguousarray(array.astype(np.float16) if name in _HALF else array)
        for name, array in arrays.items()
    }


def _parse(data: bytes) -> Calibration:
    """Return the calibration in the bytes of a file; ValueError, KeyError or TypeError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    length = int.from_bytes(data[:8], "little")
    facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
    if facts.pop(SEAL) != json_hash(facts) or facts.pop("format") != FORMAT:
        raise ValueError("damaged, or of another version")
    if facts.pop("arrays") != arrays_hash(dict(sorted(arrays.items()))) or not all(map(is_finite, arrays.values())):
        raise ValueError("damaged arrays")
    kind = facts["unknown"].pop("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown detector {kind!r}")
    stored: dict[str, FloatArray] = {
        name.removeprefix("detector."): array.astype(np.float32)
        for name, array in arrays.items()
        if name.startswith("detector.")
    }
    labels = tuple(facts.pop("labels"))
    sets = PredictionSets(
        **facts.pop("sets"),
        scores=arrays["sets.scores"],
        labels=arrays["sets.labels"].astype(np.int64),
        num_classes=len(labels),
    )
    unknown = UnknownDetection(read_detector(kind, stored), arrays["unknown.scores"], **facts.pop("unknown"))
    data_facts = CalibrationData(**facts.pop("data"))
    calibration = Calibration(**facts, labels=labels, sets=sets, unknown=unknown, data=data_facts)
    assert {*facts} | {"labels", "sets", "unknown", "data"} == {field.name for field in dataclasses.fields(Calibration)}
    return calibration
