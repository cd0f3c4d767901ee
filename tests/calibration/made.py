"""LabeledOutputs of a made-up model, whose probabilities are too confident by a known factor."""

from __future__ import annotations

import dataclasses

import numpy as np

from tessella.calibration.calibration import Calibration, CalibrationData
from tessella.calibration.fitting import CalibrationSettings, Fitted, LabeledOutputs, fit
from tessella.predictor import Predictor
from tessella.results import ClassNames, softmax

WIDTH = 6
CONFIDENCE = 2.0  # the logits are this many times those of the true probabilities


def made_outputs(count: int, classes: int = 5, seed: int = 0, spread: float = 2.0) -> LabeledOutputs:
    """Return outputs whose labels are drawn from the softmax of the logits divided by CONFIDENCE.

    The embedding of an image is near the mean of its class. spread: of the true logits; more gives a better model.
    """
    rng = np.random.default_rng(seed)
    true_NK = rng.normal(0, spread, (count, classes))
    labels = (softmax(true_NK.astype(np.float32)).cumsum(axis=1) < rng.random((count, 1))).sum(1).clip(0, classes - 1)
    means = np.random.default_rng(99).normal(0, 3, (classes, WIDTH))
    embeddings = means[labels] + rng.normal(0, 1, (count, WIDTH))
    logits = (CONFIDENCE * true_NK).astype(np.float32)
    return LabeledOutputs(logits, embeddings.astype(np.float32), labels.astype(np.int64))


def made_unknown(count: int, classes: int = 5, seed: int = 1) -> LabeledOutputs:
    """Return outputs with low logits, and embeddings far from all classes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-4, 0.3, (count, classes)).astype(np.float32)
    embeddings = rng.normal(20, 1, (count, WIDTH)).astype(np.float32)
    return LabeledOutputs(logits, embeddings, np.zeros(count, np.int64))


def names_of(classes: int) -> ClassNames:
    return ClassNames(tuple(f"class {i}" for i in range(classes)))


def calibration_of(fitted: Fitted, fingerprint: str = "0123456789abcdef", classes: int = 5) -> Calibration:
    return Calibration(
        fingerprint=fingerprint,
        model="made",
        transform="exact",
        policy="tessella",
        precision="float32",
        labels=names_of(classes).labels,
        temperature=fitted.temperature,
        curve=fitted.curve,
        sets=fitted.sets,
        unknown=fitted.unknown,
        data=CalibrationData("images made up", "fedcba9876543210", 2 * fitted.fitted, fitted.fitted),
        figures={"top1": 0.5, "name": "déjà vu"},
    )


def made_calibration(
    count: int = 400, classes: int = 5, fingerprint: str = "0123456789abcdef", **options: object
) -> Calibration:
    settings = CalibrationSettings(**options)  # type: ignore[arg-type]
    return calibration_of(fit(made_outputs(count, classes), settings), fingerprint, classes)


def calibration_for(predictor: Predictor, **options: object) -> Calibration:
    """Return a calibration that fits a model, whatever it says."""
    fitted = made_calibration(100, predictor.num_classes, predictor.fingerprint, **{"detector": "energy", **options})
    return dataclasses.replace(fitted, labels=predictor.labels)


def never_known(calibration: Calibration) -> Calibration:
    """Return a calibration that calls every image unknown."""
    unknown = dataclasses.replace(calibration.unknown, scores=np.full(100, -1e9))
    return dataclasses.replace(calibration, unknown=unknown)
