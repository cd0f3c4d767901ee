"""Calibrations of real models for tests of the server, fitted on outputs that are made up.

The threshold for unknown images lies between those of some real photographs, so that they are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tessella
from tessella.calibration.calibration import Calibration, CalibrationData
from tessella.calibration.detectors import DetectorKind
from tessella.calibration.fitting import CalibrationSettings, LabeledOutputs, fit
from tessella.calibration.storage import write_calibration
from tessella.data.decode import decode
from tessella.data.resize import prepare
from tessella.predictor import Predictor
from tessella.results import FloatArray
from tessella.weights.fetch import CALIBRATION
from tessella.weights.save import save_pretrained

MODEL = "mixer_ti_p4_32.cifar10"
IMAGES = 800


def logits_of(predictor: Predictor, images: Sequence[bytes]) -> FloatArray:
    """Return the logits (N,K) of encoded images."""
    pixels = np.stack([prepare(decode(image), predictor.spec) for image in images])
    return predictor.engine.run_stream(pixels)[0]


def calibration_of(
    predictor: Predictor,
    images: Sequence[bytes],
    *,
    coverage: float = 0.9,
    per_class: bool = False,
    detector: DetectorKind = "energy",
) -> Calibration:
    """Return a calibration of a model that calls half of these encoded images unknown if the detector is `energy`."""
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES) % predictor.num_classes
    logits = 4 * rng.normal(size=(IMAGES, predictor.num_classes))
    logits[np.arange(IMAGES), labels] += 12
    embeddings = rng.normal(size=(IMAGES, predictor.width)).astype(np.float32)
    settings = CalibrationSettings(coverage=coverage, per_class=per_class, detector=detector)
    fitted = fit(LabeledOutputs(logits.astype(np.float32), embeddings, labels), settings)
    if detector == "energy":  # a constant that is added to all logits shifts this detector and nothing else
        scores = fitted.unknown.detector.scores(logits_of(predictor, images), embeddings)
        shift = fitted.unknown.threshold - np.median(scores)
        fitted = fit(LabeledOutputs((logits + shift).astype(np.float32), embeddings, labels), settings)
    return Calibration(
        fingerprint=predictor.fingerprint,
        model=predictor.name,
        transform=predictor.transform,
        policy=predictor.policy,
        precision=predictor.plan.precision,
        labels=tuple(predictor.labels),
        temperature=fitted.temperature,
        curve=fitted.curve,
        sets=fitted.sets,
        unknown=fitted.unknown,
        data=CalibrationData("/home/user/secret", "0" * 16, IMAGES, fitted.fitted),
    )


def model_folder(folder: Path, images: Sequence[bytes], *, is_calibrated: bool = True) -> Path:
    """Write a built-in model to a folder, with a calibration for these encoded images; return the folder."""
    save_pretrained(tessella.create_model(MODEL, pretrained=True), folder)
    if is_calibrated:
        write_calibration(
            folder / CALIBRATION, calibration_of(tessella.load(f"local-dir:{folder}", calibration=None), images)
        )
    return folder
