"""The orders of the process that explains, carried out here: the results are those of `tessella.explain`."""

from __future__ import annotations

import base64
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tessella
from tessella.calibration.confidence import ConfidenceCurve
from tessella.data.decode import decode
from tessella.data.resize import prepare
from tessella.explain import Explanation, explain
from tessella.explain.methods import METHODS, methods_for
from tessella.explain.subject import Subject
from tessella.results import Output
from tessella.serve import explain_worker
from tessella.serve.explain_process import ExplainedImage, ExplainFailure, ExplainOrder
from tessella.serve.explain_worker import OrderRunner
from tessella.serve.explanations import picture_spec
from tessella.serve.metrics import EXPLAIN_METHODS

MODEL = "mixer_ti_p4_32.cifar10"
PHOTOGRAPHS = "convmixer_384_8_ks5_p8.photographs"
CAT = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"


def order_for(model: str, **changes: object) -> ExplainOrder:
    predictor = tessella.load(model, engine="eager", device="cpu", precision="float32")
    image = decode(CAT.read_bytes())
    order = ExplainOrder(
        source=model,
        fingerprint=predictor.fingerprint,
        device="cpu",
        policy="tessella",
        transform="exact",
        confidence=None,
        pixels=prepare(image, predictor.spec),
        picture=prepare(image, picture_spec(predictor.spec)),
        wanted=None,
        versus=None,
        method="auto",
    )
    return dataclasses.replace(order, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runner() -> OrderRunner:
    return OrderRunner()


def explained(runner: OrderRunner, order: ExplainOrder) -> ExplainedImage:
    answer = runner.answer(order)
    assert answer.explained is not None, answer.failure
    return answer.explained


def failure(runner: OrderRunner, order: ExplainOrder) -> ExplainFailure:
    answer = runner.answer(order)
    assert answer.failure is not None
    return answer.failure


@pytest.mark.parametrize("model", [MODEL, PHOTOGRAPHS])
def test_an_order_gives_the_explanation_of_the_package(runner: OrderRunner, model: str) -> None:
    found = explained(runner, order_for(model, versus=1))
    predictor = tessella.load(model, engine="eager", device="cpu", precision="float32", calibration=None)
    (expected,) = explain([CAT], predictor, versus=1)
    assert isinstance(expected, Explanation)
    np.testing.assert_allclose(found.values, expected.map.values, rtol=1e-5, atol=1e-6)
    assert found.target.label == expected.target.label
    assert found.target.probability == pytest.approx(expected.target.probability)
    assert found.versus is not None
    assert found.versus.index == 1
    assert (found.method, found.reason, found.layer) == (expected.map.method, expected.reason, expected.map.layer)
    assert [score.value for score in found.scores] == pytest.approx([score.value for score in expected.scores])
    assert (found.faithful, found.verdict) == (not expected.is_doubtful, expected.verdict)
    assert found.methods == list(methods_for(predictor.model))


def test_probabilities_are_those_of_the_calibration_of_the_server(runner: OrderRunner) -> None:
    predictor = tessella.load(MODEL, engine="eager", device="cpu", precision="float32", calibration=None)
    (output,) = predictor.outputs([CAT])
    assert isinstance(output, Output)
    plain = explained(runner, order_for(MODEL, wanted="dog", versus="cat"))
    curve = ConfidenceCurve(intercept=-0.25, slope=0.75)
    found = explained(runner, order_for(MODEL, wanted="dog", versus="cat", confidence=(2.5, curve)))
    expected = curve.apply(output.logits[None], 2.5)[0]
    assert found.versus is not None
    for score in (found.target, found.versus, *found.top):
        assert score.probability == pytest.approx(expected[score.index], abs=1e-5)
    assert found.top[0].probability < plain.top[0].probability
    assert found.values == plain.values  # a map explains the logit, which has no temperature


def test_the_overlay_has_the_pixels_of_the_picture(runner: OrderRunner) -> None:
    found = explained(runner, order_for(MODEL))
    overlay = decode(base64.b64decode(found.overlay))
    assert overlay.shape == (384, 384, 3)
    assert len(found.overlay) < 700_000
    # it has the details of the picture: more than the model's 32 x 32 pixels
    assert np.abs(np.diff(overlay.astype(int), axis=1)).mean() > 1


def test_a_model_is_loaded_once_and_the_last_one_is_kept(runner: OrderRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    explained(runner, order_for(MODEL))
    loaded: list[str] = []
    original = explain_worker.open_subject

    def open_and_note(order: ExplainOrder) -> Subject:
        loaded.append(order.source)
        return original(order)

    monkeypatch.setattr(explain_worker, "open_subject", open_and_note)
    explained(runner, order_for(MODEL))
    assert loaded == []
    assert explained(runner, order_for(PHOTOGRAPHS)).load_seconds > 0.01
    assert explained(runner, order_for(MODEL)).load_seconds > 0.01
    assert loaded == [PHOTOGRAPHS, MODEL]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(wanted="unicorn"), "class"),
        (dict(wanted=10), "class"),
        (dict(versus="unicorn"), "class"),
        (dict(wanted="cat", versus=3), "versus"),
        (dict(method="attention"), "method"),
        (dict(fingerprint="0" * 16), "changed"),
    ],
)
def test_orders_that_do_not_fit_the_model_are_refused(changes: dict[str, object], reason: str) -> None:
    refused = failure(OrderRunner(), order_for(MODEL, **changes))
    assert (refused.code, refused.reason, refused.is_image) == ("unprocessable", reason, False)


def test_a_class_that_is_compared_with_itself_is_an_error_of_the_image(runner: OrderRunner) -> None:
    predicted = explained(runner, order_for(MODEL)).target.index
    refused = failure(runner, order_for(MODEL, versus=predicted))
    assert (refused.code, refused.is_image) == ("bad_argument", True)


def test_a_defect_is_an_answer(runner: OrderRunner) -> None:
    broken = failure(runner, order_for(MODEL, pixels=None))
    assert (broken.code, broken.is_image) in (("internal_error", False), ("bad_argument", True))
    assert explained(runner, order_for(MODEL)).values


def test_a_model_that_does_not_exist_is_an_answer(runner: OrderRunner) -> None:
    assert failure(runner, order_for(MODEL, source="local-dir:/no/such/folder")).is_image is False
    assert explained(runner, order_for(MODEL)).values


def test_the_server_knows_the_methods_of_the_package() -> None:
    assert set(EXPLAIN_METHODS) == set(METHODS)


def test_the_server_does_not_import_what_the_process_does() -> None:
    code = (
        "import sys, tessella.serve.app, tessella.serve.runner, tessella.serve.explain_loop; "
        "print([name for name in sys.modules if name == 'torch' or name.startswith('tessella.explain.')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert printed.stdout.strip() == "[]"
