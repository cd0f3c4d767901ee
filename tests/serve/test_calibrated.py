"""Calibrated models on the server: the assessments of the library, which neither neighbors nor other models change."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

import tessella
from tessella.client import ServedCalibration
from tessella.predictor import Predictor
from tessella.records import as_dict
from tessella.results import Output
from tessella.serve import ServeSettings
from tessella.serve import models as served_models
from tessella.serve.models import MAX_LISTED, ModelStatus, ServedModel
from tessella.serve.routes.native import calibration_row, model_row
from tessella.serve.routes.native_schemas import InferenceBody, ModelListBody

from .calibrations import MODEL, calibration_of, model_folder
from .conftest import App
from .leaks import find_leaks

OTHER = "gmixer_ti_p4_32.cifar10"
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.jpg"))
PHOTOGRAPHS = [path.read_bytes() for path in EXAMPLES]
FILES = [(path.name, data) for path, data in zip(EXAMPLES, PHOTOGRAPHS, strict=True)]
KEYS = {"prediction_set", "set_size", "unknown", "familiarity"}


@pytest.fixture(scope="module")
def calibrated() -> Predictor:
    """A built-in model with a calibration that was made for these tests."""
    predictor = tessella.load(MODEL, calibration=None)
    return predictor.with_calibration(calibration_of(predictor, PHOTOGRAPHS, coverage=0.95))


@pytest.fixture(scope="module")
def app(calibrated: Predictor) -> Iterator[App]:
    """A server of this model, and of another one that is not calibrated."""

    def open_predictor(source: str, settings: ServeSettings) -> Predictor:
        return calibrated if source == MODEL else tessella.load(source, calibration=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_models, "open_predictor", open_predictor)
        opened = App(ServeSettings(models=(MODEL, OTHER)))
        opened.ask("POST", "/v1/classify", params={"model": OTHER}, files={"file": PHOTOGRAPHS[0]})
    yield opened
    opened.close()


def ask(app: App, path: str = "/v1/classify", files: list[tuple[str, bytes]] = FILES) -> dict[str, Any]:
    answer = app.ask("POST", path, files=[("file", file) for file in files])
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def assessments(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each result says about itself."""
    return [{name: row[name] for name in (*KEYS, "top") if name in row} for row in body["results"]]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/predict"])
def test_assessments_are_those_of_the_library(app: App, calibrated: Predictor, path: str) -> None:
    body = ask(app, path)
    expected = [as_dict(record) for record in calibrated.records([str(path) for path in EXAMPLES], top=5, embed=False)]
    assert assessments(body) == [{name: row[name] for name in (*KEYS, "top")} for row in expected]
    assert {row["unknown"] for row in body["results"]} == {True, False}
    assert {row["set_size"] > 1 for row in body["results"]} == {True, False}
    for row in body["results"]:
        assert row["prediction_set"][0] == row["top"][0]
        assert len(row["prediction_set"]) == row["set_size"]
        assert 0 < row["familiarity"] <= 1
    calibration = calibrated.calibration
    assert calibration is not None
    assert body["calibration"] == {
        "coverage": 0.95,
        "per_class": False,
        "false_alarms": 0.05,
        "temperature": calibration.temperature,
    }
    for row, (best, *_) in zip(body["results"], calibrated.with_calibration(None).classify(PHOTOGRAPHS), strict=True):
        assert abs(row["top"][0]["probability"] - best.probability) > 0.01


def test_the_answer_is_as_described_and_names_no_data(app: App) -> None:
    body = ask(app)
    fields = InferenceBody.model_validate(body).model_dump(exclude_unset=True)
    assert fields == body  # nothing that the description lacks
    assert find_leaks(json.dumps(body).encode()) == []
    models = app.ask("GET", "/v1/models")
    assert find_leaks(models.content) == []
    assert ModelListBody.model_validate(models.json()).model_dump(exclude_unset=True) == models.json()


def test_embeddings_have_no_assessment(app: App) -> None:
    body = ask(app, "/v1/embed")
    assert "calibration" not in body
    assert not KEYS & body["results"][0].keys()


def test_a_model_says_whether_it_is_calibrated(app: App) -> None:
    listed = {row["id"]: row["calibration"] for row in app.ask("GET", "/v1/models").json()["data"]}
    assert listed == {MODEL: ask(app)["calibration"], OTHER: None}
    service: Any = SimpleNamespace(explanations=SimpleNamespace(can_explain=lambda model: False))
    assert "calibration" not in model_row(service, ModelStatus("other", "unloaded", None, ()))  # not known yet


def test_a_calibrated_and_a_plain_model_do_not_mix(app: App, calibrated: Predictor) -> None:
    """Requests for both at once, whose images share threads and batches."""
    plain = tessella.load(OTHER, calibration=None)
    expected = {
        name: [as_dict(record) for record in model.records(PHOTOGRAPHS, top=5, embed=False)]
        for name, model in ((MODEL, calibrated), (OTHER, plain))
    }

    async def send(client: httpx.AsyncClient, name: str) -> None:
        answer = await client.post("/v1/classify", params={"model": name}, files=[("file", file) for file in FILES])
        body = answer.json()
        assert body["model"] == name
        assert (body["calibration"] is not None) == (name == MODEL)
        for row, one in zip(body["results"], expected[name], strict=True):
            assert (row.keys() >= KEYS) == (name == MODEL)
            assert not KEYS & row.keys() or name == MODEL
            assert {key: row.get(key) for key in (*KEYS, "top")} == {key: one.get(key) for key in (*KEYS, "top")}

    async def both() -> None:
        transport = httpx.ASGITransport(app=app.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", timeout=60) as client:
            await asyncio.gather(*(send(client, name) for _ in range(8) for name in (MODEL, OTHER)))

    app.run(both())


def test_no_neighbor_changes_an_assessment(app: App) -> None:
    """Broken images, and images that the model does not know, in every order."""
    alone = {name: assessments(ask(app, files=[(name, data)]))[0] for name, data in FILES}
    broken = {"empty": b"", "text": b"<html>", "half": PHOTOGRAPHS[0][:900]}
    for order in itertools.permutations([*FILES, *broken.items()], 4):
        rows = ask(app, files=list(order))["results"]
        for row in rows:
            if row["key"] in broken:
                assert row["status"] != "ok"
                assert not KEYS & row.keys()
            else:
                assert {name: row[name] for name in (*KEYS, "top")} == alone[row["key"]]


def test_an_output_that_is_not_finite_has_no_assessment(calibrated: Predictor) -> None:
    served = ServedModel.of(MODEL, MODEL, calibrated)
    logits = np.zeros(10, np.float32)
    good, bad = (Output(logits, np.full(calibrated.width, value, np.float32)) for value in (0.5, np.nan))
    assert served.record("good", good, top=5, embed=False).assessment is not None
    record = served.record("bad", bad, top=5, embed=False)
    assert (record.status, record.assessment) == ("non_finite", None)


def test_a_long_set_is_listed_in_part_and_says_so() -> None:
    """The set of a model with 1,000 classes that cannot decide: the most probable ones are listed."""
    predictor = tessella.load("convmixer_384_8_ks5_p8.photographs", calibration=None)
    calibration = calibration_of(predictor, PHOTOGRAPHS, coverage=0.99, detector="max-logit")
    served = ServedModel.of("photographs", "photographs", predictor.with_calibration(calibration))
    output = Output(np.linspace(1, 0, 1000, dtype=np.float32), np.ones(predictor.width, np.float32))
    row: dict[str, Any] = as_dict(served.record("image", output, top=5, embed=False))
    size = int(calibration.assess(output.logits[None], output.embedding[None]).sets.sum())
    assert row["set_size"] == size > 2 * MAX_LISTED
    assert [best["index"] for best in row["prediction_set"]] == list(range(MAX_LISTED))


@pytest.mark.parametrize("per_class", [False, True])
def test_a_listed_set_has_the_classes_of_the_rule(calibrated: Predictor, per_class: bool) -> None:
    predictor = calibrated.with_calibration(calibration_of(calibrated, PHOTOGRAPHS, per_class=per_class))
    served = ServedModel.of(MODEL, MODEL, predictor)
    calibration = predictor.calibration
    assert calibration is not None
    for seed in range(50):
        logits = 2 * np.random.default_rng(seed).normal(size=10).astype(np.float32)
        output = Output(logits, np.ones(predictor.width, np.float32))
        record = served.record("image", output, top=10, embed=False)
        assert record.assessment is not None
        (members,) = calibration.assess(logits[None], output.embedding[None]).sets
        expected = [best for best in record.top if members[best.index]]
        assert list(record.assessment.prediction_set) == expected
        assert record.assessment.set_size == members.sum()


def test_plain_softmax_on_demand(tmp_path: Path, open_app: Callable[..., App]) -> None:
    """`--no-calibration` ignores the calibration beside the weights, which is used otherwise."""
    folder = model_folder(tmp_path / "animals", PHOTOGRAPHS)
    for is_calibrated in (True, False):
        app = open_app(models=(f"local-dir:{folder}",), calibrated=is_calibrated)
        body = ask(app)
        assert (body["calibration"] is not None) == is_calibrated
        assert all((row.keys() >= KEYS) == is_calibrated for row in body["results"])
        predictor = tessella.load(f"local-dir:{folder}", calibration="auto" if is_calibrated else None)
        expected = [best.probability for best in predictor.classify(PHOTOGRAPHS[0])]
        assert [best["probability"] for best in body["results"][0]["top"]] == expected
        assert app.ask("GET", "/v1/models").json()["data"][0]["calibration"] == body["calibration"]


def test_the_facts_of_an_answer_are_those_of_the_client(calibrated: Predictor) -> None:
    facts = calibration_row(ServedModel.of(MODEL, MODEL, calibrated))
    assert facts is not None
    assert list(facts) == list(ServedCalibration.__struct_fields__)
    assert calibration_row(ServedModel.of(MODEL, MODEL, calibrated.with_calibration(None))) is None
