"""Every image is counted once, by every model, engine and precision; a model that fails does not stop the others."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella
from tessella.data.datasets import open_labelled
from tessella.engine import make_plan
from tessella.errors import ImageError, UsageError, WeightsError
from tessella.evaluation import evaluator, results
from tessella.evaluation.evaluator import evaluate, measure
from tessella.evaluation.leakage import open_data
from tessella.evaluation.settings import EvaluationSettings
from tessella.predictor import Predictor
from tessella.weights.save import save_pretrained

from ..calibration.made import calibration_for
from ..test_builtin import CIFAR10_MODEL, SUBSET, recorded
from .small_data import NAMES, folder_of, logits_of, model_of, predictor_of, run

# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_figures_match_the_predictions_of_the_model(folder: Path, batch_size: int) -> None:
    images = open_labelled(folder)
    predictor = predictor_of(batch_size=batch_size)
    expected = logits_of(predictor, images)
    seen: list[tuple[str, int, int]] = []
    row = measure(predictor, images, progress=lambda *what: seen.append(what))
    assert row.metrics
    assert row.answers is not None
    assert row.metrics.top1 == (expected.argmax(1) == images.labels).mean()
    assert 0 < row.metrics.top1 < 1
    assert len(set(row.answers.predicted.tolist())) > 2
    assert row.metrics.count == row.images == 30
    assert row.answers.index.tolist() == list(range(30))
    assert row.answers.predicted.tolist() == expected.argmax(1).tolist()
    loss = torch.nn.functional.cross_entropy(torch.tensor(expected), torch.tensor(images.labels))
    assert row.metrics.loss == pytest.approx(loss.item(), abs=1e-5)
    assert seen == [(predictor.name, i, 30) for i in range(1, 31)]
    assert row.images_per_second
    assert row.dataset == ""
    assert row.published is None


def test_images_that_cannot_be_read_are_listed_and_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "CHUNK", 5)
    predictor = predictor_of()
    whole = open_labelled(folder)
    expected = (logits_of(predictor, whole).argmax(1) == whole.labels)[3:]
    for number, content in ((1, b""), (2, b"no image"), (3, b"no image")):
        (folder / "ant" / f"{number}.png").write_bytes(content)
    row = measure(predictor, open_labelled(folder))
    assert row.metrics
    assert [(image.key, image.code) for image in row.failed] == [
        ("ant/1.png", "empty"), ("ant/2.png", "unsupported_format"), ("ant/3.png", "unsupported_format"),
    ]  # fmt: skip
    assert row.metrics.errors == {"empty": 1, "unsupported_format": 2}
    assert row.metrics.count + len(row.failed) == row.images == len(whole) == 30
    assert row.metrics.top1 == expected.mean()  # excluded
    assert row.metrics.top1_of_all == pytest.approx(expected.sum() / 30)  # counted as wrong
    remarks = "\n".join(results.remarks([row]))
    assert "3 of 30 images could not be read (1 empty, 2 unsupported_format)" in remarks
    assert f"top-1 is {100 * expected.sum() / 30:.2f} %" in remarks
    assert "ant/1.png: empty" in remarks


def test_an_error_is_raised_if_no_image_can_be_read(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"none of the 30 images could be read \(30 unsupported_format\)") as caught:
        measure(predictor_of(), open_labelled(folder))
    assert caught.value.code == "unreadable"
    assert "ant/1.png" in caught.value.hint


def test_answers_that_are_not_finite_are_a_coded_error(folder: Path) -> None:
    model = model_of()
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    with pytest.raises(WeightsError, match="NaN or infinity") as caught:
        measure(Predictor(model, plan=make_plan("cpu", engine="eager")), open_labelled(folder))
    assert caught.value.code == "non_finite"


@pytest.mark.parametrize("value", ["-inf", "nan"])
def test_a_calibration_does_not_hide_answers_that_are_not_finite(folder: Path, value: str) -> None:
    model = model_of()
    predictor = Predictor(model, plan=make_plan("cpu", engine="eager"))
    calibrated = predictor.with_calibration(calibration_for(predictor))
    assert measure(calibrated, open_labelled(folder)).trust is not None
    with torch.no_grad():
        model.head.bias[0] = float(value)
    with pytest.raises(WeightsError, match="NaN or infinity") as caught:
        measure(calibrated, open_labelled(folder))
    assert caught.value.code == "non_finite"


# --- several models ---------------------------------------------------------------------------------------------------


def test_each_model_engine_and_precision_gives_a_row(folder: Path, saved: str) -> None:
    loaded = tessella.load(saved, device="cpu", engine="eager", precision="float32")
    rows = run(folder, [saved, loaded], engine=["eager", "rewritten"])
    assert [(row.engine, row.precision) for row in rows] == [
        ("eager", "float32"), ("rewritten", "float32"), ("eager", "float32"),
    ]  # fmt: skip
    measured = [row.metrics for row in rows if row.metrics]
    assert len(measured) == 3
    assert len({metrics.top1 for metrics in measured}) == 1
    assert (measured[0].confusion.sum(0) > 0).sum() > 2
    assert measured[0].loss == pytest.approx(measured[1].loss, abs=1e-4)
    assert all(len(results.cells(row)) == len(results.HEADER) for row in rows)


def test_one_model_is_in_memory_at_a_time(folder: Path, saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Predictor]] = []

    def load(*arguments: Any, **options: Any) -> Predictor:
        gc.collect()
        assert not any(reference() for reference in loaded)
        predictor = tessella.load(*arguments, **options)
        loaded.append(weakref.ref(predictor))
        return predictor

    monkeypatch.setattr(evaluator, "load", load)
    rows = run(folder, [saved], engine=["eager", "rewritten"])
    assert len(rows) == len(loaded) == 2


def test_the_precision_that_was_used_is_shown(folder: Path, saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessella.engine.agreement import BOUNDS, Bounds

    monkeypatch.setitem(BOUNDS, "bfloat16", Bounds(0.0, 0.0))
    (row,) = run(folder, [saved], engine="rewritten", precision="bfloat16")
    assert (row.precision, row.note) == ("bfloat16", "")
    monkeypatch.setitem(BOUNDS, "bfloat16", Bounds(1.0, 1.1))
    exact, row = run(folder, [saved], engine="rewritten", precision=["float32", "bfloat16"])
    assert exact.note == ""
    assert row.precision == "float32"
    assert row.note.startswith("not bfloat16: ")


def test_a_model_that_fails_does_not_stop_the_others(folder: Path, saved: str, tmp_path: Path) -> None:
    other = f"local-dir:{save_pretrained(model_of(('yak', 'zebra')), tmp_path / 'other')}"
    rows = run(folder, [other, f"local-dir:{tmp_path / 'absent'}", saved])
    assert [row.status for row in rows] == ["bad_argument", rows[1].status, "ok"]
    assert rows[1].status != "ok"
    assert "'ant'" in rows[0].note
    assert rows[2].metrics
    assert all(len(results.cells(row)) == len(results.HEADER) for row in rows)
    with pytest.raises(UsageError, match="does not have 5"):
        run(folder, [other])


def test_invalid_arguments_are_refused_before_a_model_is_loaded(
    folder: Path, saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    wrong: list[tuple[Any, Any, dict[str, Any], str]] = [
        (folder, ["convmixer_768_33"], {}, "unknown_model"),
        (folder, [], {}, "bad_argument"),
        (folder, [saved], dict(dataset="imagenet-q"), "bad_argument"),
        (folder, [saved, saved], dict(checkpoint_path="x"), "bad_argument"),
        (folder, [saved], dict(real_labels=tmp_path / "none.json"), "bad_argument"),
        (tmp_path / "absent", [saved], {}, "not_found"),
    ]
    for data, names, options, code in wrong:
        with pytest.raises(UsageError) as caught:
            evaluate(data, names, EvaluationSettings(**options))
        assert caught.value.code == code


def test_the_validation_split_is_used_if_there_is_one(tmp_path: Path, folder: Path) -> None:
    folder_of(tmp_path / "both" / "train", NAMES, each=2)
    folder_of(tmp_path / "both" / "val", NAMES, each=1)
    assert len(open_data(tmp_path / "both")) == 5
    assert len(open_data(tmp_path / "both", "train")) == 10
    assert len(open_data(tmp_path / "both", "all")) == 15
    assert len(open_data(folder)) == 30


# --- the built-in model -----------------------------------------------------------------------------------------------


def test_the_built_in_model_on_a_thousand_images(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    images = open_labelled(shared_data / "cifar10-test.parquet")
    expected = recorded()["models"][CIFAR10_MODEL]
    subset = images.subset(range(SUBSET))
    settings = EvaluationSettings(device="cpu", precision="float32", batch_size=100, calibration=None)
    (row,) = evaluate(subset, [CIFAR10_MODEL], settings)
    assert row.metrics
    assert row.answers is not None
    assert row.images == row.metrics.count == SUBSET
    assert row.metrics.top1 == pytest.approx(expected["subset_top1"], abs=1e-3)
    assert row.metrics.classes == tessella.load(CIFAR10_MODEL).labels
    np.testing.assert_allclose(row.answers.confidence, expected["probability"], atol=1e-3)
    assert row.metrics.ece < 0.1
    assert row.metrics.top5
    assert row.metrics.top5 > 0.98
    assert row.published is None
    (calibrated,) = evaluate(subset, [CIFAR10_MODEL], dataclasses.replace(settings, calibration="auto"))
    assert calibrated.metrics
    assert calibrated.trust
    assert calibrated.metrics.top1 == row.metrics.top1
    assert calibrated.metrics.loss < row.metrics.loss
    assert calibrated.metrics.ece < row.metrics.ece
    assert calibrated.trust.coverage == pytest.approx(0.92, abs=0.04)
    assert calibrated.trust.unknown == pytest.approx(0.05, abs=0.03)
