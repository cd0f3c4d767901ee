"""Which calibration `load` uses: the user's own, the one beside the weights, a given one, or none."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import tessella
from tessella.calibration import write_calibration
from tessella.calibration.finding import beside, cached_path
from tessella.errors import UsageError, WeightsError
from tessella.results import softmax
from tessella.weights.catalogue import BUILTIN_FOLDER

from .made import calibration_for, made_calibration

STORED = Path(__file__).resolve().parent.parent / "stored"
IMAGE = STORED.parent.parent / "examples" / "cat.jpg"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    return Path(shutil.copytree(STORED / "saved" / "convmixer", tmp_path / "model"))


def load(folder: Path, **options: Any) -> tessella.Predictor:
    return tessella.load(f"local-dir:{folder}", **options)


def reason_of(predictor: tessella.Predictor) -> str:
    return predictor.plan.choice("calibration").reason


def test_a_model_without_a_calibration_gives_the_plain_softmax(folder: Path) -> None:
    predictor = load(folder)
    assert predictor.calibration is None
    assert "tessella calibrate" in reason_of(predictor)
    (output,) = predictor.outputs([IMAGE])
    assert (predictor.predict(IMAGE).probabilities[0] == softmax(output.logits[None])[0]).all()  # type: ignore[union-attr]


def test_the_calibration_in_a_model_folder_is_used(folder: Path) -> None:
    plain = load(folder)
    write_calibration(beside(folder), calibration_for(plain))
    predictor = load(folder)
    assert predictor.calibration is not None
    assert "beside the weights" in reason_of(predictor)
    assert predictor.fingerprint == plain.fingerprint
    before, after = plain.classify(IMAGE), predictor.classify(IMAGE)
    assert before[0].probability != after[0].probability
    (record,) = predictor.records([IMAGE])
    assert [one.index for one in record.top] == [one.index for one in after]
    assert [one.probability for one in record.top] == pytest.approx([one.probability for one in after], rel=1e-6)
    assert record.assessment is not None
    (uncalibrated,) = load(folder, calibration=None).records([IMAGE])
    assert uncalibrated.assessment is None
    assert list(uncalibrated.top) == before


def test_the_own_calibration_comes_first(folder: Path) -> None:
    plain = load(folder)
    write_calibration(beside(folder), calibration_for(plain))
    own = calibration_for(plain, coverage=0.5)
    write_calibration(cached_path(plain.fingerprint), own)
    predictor = load(folder)
    assert predictor.calibration is not None
    assert predictor.calibration.sets.coverage == 0.5
    assert str(cached_path(plain.fingerprint)) in reason_of(predictor)


def test_one_for_other_settings_is_not_used_and_a_warning_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_calibration(beside(folder), calibration_for(load(folder)))
    with caplog.at_level(logging.WARNING):
        predictor = load(folder, transform="fast")
    assert predictor.calibration is None
    assert "is for other settings (made, exact, tessella, float32): give the same ones, or see" in caplog.text
    assert "tessella calibrate" in caplog.text


def test_a_given_one_for_another_model_is_an_error(folder: Path, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "other.safetensors", made_calibration(100))
    for given in (path, str(path), made_calibration(100)):
        with pytest.raises(UsageError) as caught:
            load(folder, calibration=given)
        assert caught.value.code == "other_calibration"


def test_the_error_for_one_with_another_width_names_its_file(folder: Path, tmp_path: Path) -> None:
    fitting = calibration_for(load(folder))
    edited = dataclasses.replace(fitting, unknown=made_calibration(100, len(fitting.labels)).unknown)
    for path, given in ((beside(folder), "auto"), (other := tmp_path / "other.safetensors", other)):
        write_calibration(path, edited)
        with pytest.raises(UsageError, match="embeddings of 6 numbers") as caught:
            load(folder, calibration=given)
        assert caught.value.code == "other_calibration"
        assert caught.value.message.startswith(f"{str(path)!r}: ")


def test_a_given_one_is_used(folder: Path, tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "given.safetensors", calibration_for(load(folder)))
    predictor = load(folder, calibration=path)
    assert predictor.calibration is not None
    assert reason_of(predictor) == f"requested: {path}"


def test_a_damaged_one_is_an_error_and_not_ignored(folder: Path) -> None:
    path = write_calibration(beside(folder), calibration_for(load(folder)))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="is damaged"):
        load(folder)
    assert load(folder, calibration=None).calibration is None


def test_other_weights_are_not_calibrated_by_what_is_beside_the_published_ones(folder: Path) -> None:
    write_calibration(beside(folder), calibration_for(load(folder)))
    network = tessella.load(f"local-dir:{folder}", checkpoint_path=folder / "model.safetensors")
    assert network.calibration is None


def test_a_calibration_is_not_taken_for_the_weights(folder: Path) -> None:
    before = load(folder)
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    write_calibration(beside(folder), calibration_for(before))
    assert load(folder).calibration is not None


def test_the_file_of_a_built_in_model_has_its_whole_name() -> None:
    weights = BUILTIN_FOLDER / "convmixer_256_8_ks3_p4.cifar10.safetensors"
    assert beside(weights) == BUILTIN_FOLDER / "convmixer_256_8_ks3_p4.cifar10.calibration.safetensors"


def test_removing_and_adding_a_calibration_shares_the_model(folder: Path) -> None:
    plain = load(folder)
    calibrated = plain.with_calibration(calibration_for(plain))
    assert calibrated.engine is plain.engine
    assert plain.calibration is None
    again = calibrated.with_calibration(None, "asked for")
    assert [choice.what for choice in again.plan.choices].count("calibration") == 1
    assert np.array_equal(again.predict(IMAGE).probabilities, plain.predict(IMAGE).probabilities)
