"""Find the calibration of a model: the user's own one in the cache, or the one beside the weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..storage import cache_folder
from ..weights.fetch import CALIBRATION
from .calibration import Calibration
from .storage import read_calibration

CACHE = "calibrations"
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A calibration, or None, the reason for the choice, and its file if it is in one."""

    calibration: Calibration | None
    reason: str
    path: Path | None = None


def cached_path(fingerprint: str) -> Path:
    """Return where the user's own calibration of the model with this fingerprint is kept."""
    return cache_folder() / CACHE / f"{fingerprint}.safetensors"


def beside(weights: Path) -> Path:
    """Return the path of the calibration beside a weight file, or in a model folder."""
    return weights / CALIBRATION if weights.is_dir() else weights.with_name(f"{weights.stem}.{CALIBRATION}")


def find_calibration(fingerprint: Callable[[], str], model: str, weights: Path | None) -> Found:
    """Return the calibration of a model.

    fingerprint: returns that of the model; it is called only if there is any calibration, because it takes a while for
    large weights. weights: the folder or weight file of the model; None if it has none of its own. A calibration for
    other settings is not used, and a warning says so. Raises WeightsError `bad_format` for a damaged file.
    """
    if (cache_folder() / CACHE).is_dir() and (own := cached_path(fingerprint())).is_file():
        calibration = read_calibration(own)
        if calibration.fingerprint == fingerprint():
            return Found(calibration, f"made with {_source(calibration)}, in {own}", own)
    path = None if weights is None else beside(weights)
    if path is None or not path.is_file():
        return Found(None, "there is none for these settings: see `tessella calibrate`")
    calibration = read_calibration(path)
    if calibration.fingerprint == fingerprint():
        return Found(calibration, f"beside the weights, made with {_source(calibration)}", path)
    settings = ", ".join((calibration.model, calibration.transform, calibration.policy, calibration.precision))
    what = f"the one beside the weights is for other settings ({settings})"
    reason = f"{what}: give the same ones, or see `tessella calibrate`"
    _log.warning("%s is not calibrated: %s", model, reason)
    return Found(None, reason)


def _source(calibration: Calibration) -> str:
    return f"{calibration.data.images:,} images of {calibration.data.origin}"
