"""A calibration is read as it was written, or refused: damaged files, other models, and files that are none."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tessella.calibration import read_calibration, write_calibration
from tessella.calibration.calibration import Calibration
from tessella.calibration.detectors import KINDS, DetectorKind
from tessella.calibration.storage import calibration_bytes, calibration_hash, check_destination
from tessella.errors import OutputError, UsageError, WeightsError
from tessella.fingerprint import arrays_hash

from .made import made_calibration, made_outputs


def assert_equal(actual: Calibration, expected: Calibration) -> None:
    for name in (
        "fingerprint",
        "model",
        "transform",
        "policy",
        "precision",
        "labels",
        "temperature",
        "data",
        "figures",
    ):
        assert getattr(actual, name) == getattr(expected, name), name
    for name in ("coverage", "penalty", "free_ranks", "per_class", "num_classes"):
        assert getattr(actual.sets, name) == getattr(expected.sets, name), name
    assert (actual.sets.scores == expected.sets.scores).all()
    assert (actual.sets.labels == expected.sets.labels).all()
    assert (actual.unknown.scores == expected.unknown.scores).all()
    outputs = made_outputs(30, seed=8)
    for one, other in zip(
        actual.assess(outputs.logits, outputs.embeddings),
        expected.assess(outputs.logits, outputs.embeddings),
        strict=True,
    ):
        assert (one == other).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_class", [False, True])
def test_what_is_read_is_what_was_written(kind: DetectorKind, per_class: bool, tmp_path: Path) -> None:
    calibration = made_calibration(detector=kind, per_class=per_class)
    path = write_calibration(tmp_path / "new" / "made.safetensors", calibration)
    assert_equal(read_calibration(path), calibration)


def test_equal_calibrations_have_equal_bytes_and_hashes(tmp_path: Path) -> None:
    first, second = made_calibration(), made_calibration()
    assert calibration_bytes(first) == calibration_bytes(second)
    assert calibration_hash(first) == calibration_hash(second)
    path = write_calibration(tmp_path / "a.safetensors", first)
    assert calibration_bytes(read_calibration(path)) == path.read_bytes()
    assert calibration_hash(dataclasses.replace(first, temperature=1.0)) != calibration_hash(first)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_is_detected(kind: DetectorKind, tmp_path: Path) -> None:
    data = write_calibration(tmp_path / "made.safetensors", made_calibration(40, detector=kind)).read_bytes()
    path, rng, missed = tmp_path / "flipped.safetensors", random.Random(0), []
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with contextlib.suppress(WeightsError):
            read_calibration(path)
            missed.append(place)
    assert missed == []


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(length: int, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "made.safetensors", made_calibration(40))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match="is damaged or is not a calibration") as caught:
        read_calibration(path)
    assert caught.value.code == "bad_format"
    assert "tessella calibrate" in caught.value.hint


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "made.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError):
        read_calibration(path)


def test_weights_are_no_calibration(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="is not a calibration"):
        read_calibration(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": "1"},
        {"labels": []},
        {"labels": ["only one"]},
        {"unknown": {"kind": "guess", "false_alarms": 0.05}},
        {"surplus": 1},
        {"curve": {"intercept": 0.0, "slope": 1.0, "knots": [1.0], "bends": []}},
        {"curve": {"intercept": 0.0}, "labels": 5},
        {"format": 2},
        {"temperature": float("inf")},
        {"temperature": 10**400},
        {"sets": {"coverage": 0.9, "penalty": 0.0, "free_ranks": 10**400, "per_class": True}},
        {"temperature": float("nan")},
        {"temperature": 1e-300},
        {"curve": {"intercept": 0.0, "slope": 1e308, "knots": [0.0], "bends": [-1e308]}},
        {"labels": [1, 2, 3, 4, 5]},
        {"fingerprint": None},
        {"unknown": {"kind": "combined", "false_alarms": 0.0}},
        {"unknown": {"kind": "combined", "false_alarms": float("nan")}},
        {"unknown": {"kind": "combined", "false_alarms": "0.05"}},
        {"curve": {"intercept": 0.0, "slope": float("nan"), "knots": [], "bends": []}},
        {"curve": {"intercept": 0.0, "slope": 1.0, "knots": [float("inf")], "bends": [0.5]}},
        {"curve": {"intercept": 0.0, "slope": 1.0, "knots": ["1"], "bends": [0.5]}},
        {"sets": {"coverage": 1.0, "penalty": 0.0, "free_ranks": 0, "per_class": True}},
        {"sets": {"coverage": 0.9, "penalty": -1.0, "free_ranks": 0, "per_class": True}},
        {"sets": {"coverage": 0.9, "penalty": float("nan"), "free_ranks": 0, "per_class": True}},
        {"sets": {"coverage": 0.9, "penalty": 0.0, "free_ranks": 0.5, "per_class": True}},
        {"sets": {"coverage": 0.9, "penalty": 0.0, "free_ranks": 0, "per_class": "yes"}},
        {"data": {"origin": "x", "fingerprint": "y", "images": "many", "fitted": 1}},
        {"data": ["x", "y", 1, 1]},
        {"figures": []},
    ],
)
def test_sealed_facts_that_do_not_fit_are_refused(changed: dict[str, object], tmp_path: Path) -> None:
    """A file that is intact, but was not written by this package."""
    with pytest.raises(WeightsError) as caught:
        read_calibration(forge(tmp_path / "made.safetensors", made_calibration(40), facts=changed))
    assert caught.value.code == "bad_format"


Arrays: TypeAlias = dict[str, NDArray[Any]]
CHANGES: dict[str, tuple[DetectorKind, Callable[[Arrays], Arrays]]] = {
    "a mean for another width": ("combined", lambda arrays: {"detector.means": arrays["detector.means"][:, :-1]}),
    "no means": ("combined", lambda arrays: {"detector.means": arrays["detector.means"][:0]}),
    "means of no width": ("mahalanobis", lambda arrays: {"detector.means": arrays["detector.means"][:, :0]}),
    "means in one row": ("mahalanobis", lambda arrays: {"detector.means": arrays["detector.means"].ravel()}),
    "a whitening not square": (
        "combined",
        lambda arrays: {"detector.whitening": np.eye(6, 5, dtype=np.float32)},
    ),
    "a scale": ("combined", lambda arrays: {"detector.scales": np.ones(1, np.float32)}),
    "a scale of 0": ("combined", lambda arrays: {"detector.scales": np.array([1, 0], np.float32)}),
    "scales in two dimensions": ("combined", lambda arrays: {"detector.scales": np.ones((2, 1), np.float32)}),
    "no stored embeddings": ("neighbors", lambda arrays: {"detector.stored": np.zeros((0, 6), np.float16)}),
    "a stored embedding": ("neighbors", lambda arrays: {"detector.stored": np.zeros(6, np.float16)}),
    "an array too many": ("energy", lambda arrays: {"detector.stored": np.zeros((1, 6), np.float16)}),
    "scores that are not finite": ("energy", lambda arrays: {"unknown.scores": np.array([0, np.inf])}),
    "scores without order": ("energy", lambda arrays: {"unknown.scores": np.array([1.0, 0.0])}),
    "no scores": ("energy", lambda arrays: {"sets.scores": np.zeros(0), "sets.labels": np.zeros(0, np.int32)}),
    "a label too few": ("energy", lambda arrays: {"sets.labels": arrays["sets.labels"][1:]}),
    "labels of other classes": ("energy", lambda arrays: {"sets.labels": arrays["sets.labels"] + 1}),
}


@pytest.mark.parametrize(("kind", "change"), CHANGES.values(), ids=CHANGES)
def test_sealed_arrays_that_do_not_fit_are_refused(
    kind: DetectorKind, change: Callable[[Arrays], Arrays], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError) as caught:
        read_calibration(forge(tmp_path / "made.safetensors", made_calibration(40, detector=kind), change=change))
    assert caught.value.code == "bad_format"


def test_forging_alone_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """The tests above would otherwise pass for any file."""
    read_calibration(forge(tmp_path / "made.safetensors", made_calibration(40)))


def forge(
    path: Path,
    calibration: Calibration,
    facts: Mapping[str, object] = MappingProxyType({}),
    change: Callable[[Arrays], Arrays] = lambda arrays: {},
) -> Path:
    """Write a calibration with other facts and arrays, with hashes that are right."""
    data = calibration_bytes(calibration)
    arrays: Arrays = safetensors.numpy.load(data)
    arrays |= {name: np.ascontiguousarray(array) for name, array in change(arrays).items()}
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    written = json.loads(metadata["calibration"][64:]) | {"arrays": arrays_hash(dict(sorted(arrays.items())))} | facts
    text = json.dumps(written, sort_keys=True)
    sealed = {"calibration": hashlib.sha256(text.encode()).hexdigest() + text}
    path.write_bytes(safetensors.numpy.save(arrays, sealed))
    return path


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_calibration(tmp_path / "none.safetensors")
    assert caught.value.code == "not_found"


def test_special_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError):
        read_calibration(tmp_path / "pipe")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError) as caught:
        write_calibration(tmp_path / "file" / "made.safetensors", made_calibration(40))
    assert caught.value.code == "output_failed"


def test_a_failed_write_keeps_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_calibration(tmp_path / "made.safetensors", made_calibration(40))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_calibration(path, made_calibration(60))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_weights_are_not_replaced_by_a_calibration(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(dict(weight=np.zeros(3, np.float32)), weights, {"format": "pt"})
    with pytest.raises(UsageError, match="exists and is not a calibration") as caught:
        check_destination(weights)
    assert caught.value.code == "bad_argument"
    made = write_calibration(tmp_path / "made.safetensors", made_calibration(40))
    assert check_destination(made) == made
    for damaged in (b"", b"\xff" * 40, made.read_bytes()[:50]):  # a damaged one can be made again
        made.write_bytes(damaged)
        assert check_destination(made) == made
