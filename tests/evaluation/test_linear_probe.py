"""A probe embeds every image once, selects parameters on held-out images and measures on others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tessella.data.datasets import open_labelled
from tessella.errors import TessellaError, UsageError
from tessella.evaluation.classifiers import (
    NEIGHBORS,
    STRENGTHS,
)
from tessella.evaluation.linear_probe import find_threshold, probe
from tessella.evaluation.metrics import Coverage
from tessella.evaluation.settings import ProbeSettings
from tessella.predictor import Predictor

from ..test_builtin import CIFAR10_MODEL
from .coloured_images import NO_SHOTS, predictor_of, write_images


def test_a_probe(data: Path, tmp_path: Path, predictor: Predictor) -> None:
    seen: list[tuple[str, int, int]] = []
    settings = ProbeSettings(accuracy=0.9, shots=(1, 20, 24))
    result = probe(data, predictor, settings, out=tmp_path / "out" / "deep", progress=lambda *what: seen.append(what))
    assert seen == [
        *(("training images", i, 72) for i in range(1, 73)),
        *(("validation images", i, 30) for i in range(1, 31)),
    ]
    assert result.classes == ("blue", "green", "red")
    assert (result.train_count, result.train_errors) == (71, {"unsupported_format": 1})
    for figures in (result.knn, result.linear):
        assert (figures.count, figures.errors, figures.total) == (29, {"empty": 1}, 30)
        assert figures.top1 > 0.9
        assert figures.top5 is None
    assert result.neighbours in NEIGHBORS
    assert result.strength in STRENGTHS
    assert [item.shots for item in result.few_shot] == [1, 20]
    assert 0.5 < result.few_shot[0].top1 <= 1
    assert result.few_shot[1].top1 > 0.9
    assert result.notes == ("no few-shot result for 24 examples per class: 'green' has 23",)
    assert result.threshold is not None
    assert result.threshold.accuracy >= 0.9
    # indices are those of the data: image 3, which could not be read, is missing
    val = open_labelled(data, "val")
    assert result.answers.index.tolist() == [i for i in range(30) if val.key(i) != "val/blue/3.png"]
    assert result.answers.label.tolist() == val.labels[result.answers.index].tolist()
    saved = json.loads((tmp_path / "out" / "deep" / "probe.json").read_text())
    assert saved == json.loads(json.dumps(result.as_dict()))
    assert saved["linear"]["top1"] == result.linear.top1
    assert (saved["fingerprint"], saved["data_fingerprints"][1]) == (predictor.fingerprint, val.fingerprint)
    again = probe(data, predictor, settings)
    assert again.as_dict() == result.as_dict()
    assert np.array_equal(again.head.weight, result.head.weight)


def test_embeddings_of_another_model_in_the_folder_are_not_used(
    data: Path, tmp_path: Path, predictor: Predictor
) -> None:
    other = predictor_of("mixer", num_blocks=1)  # embeddings of the same width
    expected = {model: probe(data, model, NO_SHOTS) for model in (predictor, other)}
    assert expected[predictor].linear.loss != expected[other].linear.loss
    for model in (predictor, other, other, predictor):
        result = probe(data, model, NO_SHOTS, out=tmp_path / "out")
        assert result.as_dict() == expected[model].as_dict()


def test_a_fraction_is_split_off_without_validation_images(data: Path, predictor: Predictor) -> None:
    result = probe(
        data / "train", predictor, ProbeSettings(val_fraction=0.3, shots=())
    )  # val is the folder next to train
    assert result.linear.total == 30
    (data / "val").rename(data / "other")
    result = probe(data / "train", predictor, ProbeSettings(val_fraction=0.3, shots=()))
    assert 10 < result.linear.total < 35
    assert result.linear.total + result.train_count + sum(result.train_errors.values()) == 72
    assert (result.few_shot, result.threshold, result.asked_accuracy) == ((), None, None)
    assert probe(data / "train", predictor, NO_SHOTS, val=data / "other").linear.total == 30


def test_arguments_that_are_refused(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    for wrong in (dict(shots=(0,)), dict(shots=(1, 2.5)), dict(accuracy=0), dict(accuracy=95)):
        with pytest.raises(UsageError) as error:
            probe(data, predictor, ProbeSettings(**wrong))
        assert error.value.code == "bad_argument"
    images = open_labelled(data)
    others = open_labelled(data, classes=images.classes[::-1])
    with pytest.raises(UsageError, match="different lists of classes"):
        probe((images, others), predictor)
    (tmp_path / "file").touch()
    for place in ("out", "attach_to"):
        with pytest.raises(TessellaError) as failed:
            probe(data, predictor, **{place: tmp_path / "file"})  # type: ignore[arg-type]
        assert failed.value.code == "output_failed"


def test_classes_and_splits_that_cannot_be_read(data: Path, predictor: Predictor) -> None:
    for path in (data / "train" / "red").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="no training image of the class 'red' could be read"):
        probe(data, predictor)
    write_images(data / "new", 5)
    for path in (data / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="no validation image could be read"):
        probe(data / "new", predictor, val=data / "val")


def test_thresholds() -> None:
    curve = Coverage(np.array([0.9, 0.8, 0.6, 0.5]), np.array([0.1, 0.4, 0.7, 1.0]), np.array([0.5, 0.9, 0.8, 0.7]))
    result = find_threshold(curve, 0.75)
    assert result is not None
    assert dataclasses.astuple(result) == (0.6, 0.7, 0.8)
    assert dataclasses.astuple(find_threshold(curve, 0.5) or result) == (0.5, 1.0, 0.7)
    assert dataclasses.astuple(find_threshold(curve, 0.9) or result) == (0.8, 0.4, 0.9)
    assert find_threshold(curve, 0.95) is None


def test_an_exported_model_is_refused_before_any_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of("mixer")
    assert predictor.fingerprint
    monkeypatch.setattr(predictor.engine, "network", None)  # as for an exported model
    with pytest.raises(UsageError, match="exported model") as error:
        probe(data, predictor, attach_to=tmp_path / "model", progress=lambda *_: pytest.fail("work was done"))
    assert error.value.code == "bad_argument"
    assert not (tmp_path / "model").exists()


def test_cifar10(shared_data: Path, tmp_path: Path) -> None:
    """Probe the built-in model on images that it was not trained on."""
    images = open_labelled(shared_data / "cifar10-test.parquet")
    for label, name in enumerate(images.classes):
        for i in np.flatnonzero(images.labels == label)[:60].tolist():
            path = tmp_path / "data" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images.read(i))
    result = probe(tmp_path / "data", CIFAR10_MODEL, ProbeSettings(val_fraction=0.4, shots=(1, 5), accuracy=0.95))
    assert result.linear.top1 > 0.78
    assert result.knn.top1 > 0.78
    assert result.linear.top5 is not None
    assert result.linear.top5 > 0.97
    assert result.few_shot[0].top1 < result.few_shot[1].top1
    assert result.threshold is not None
    assert result.threshold.coverage > 0.5
