"""POST /v1/explain: every form of a request, what is refused and why, limits, the description, the metrics."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tessella.serve import explain_queue, explanations
from tessella.serve.explain_process import REASONS
from tessella.serve.explanations import MAX_EXPLAINED
from tessella.serve.problems import RetryLaterError
from tessella.serve.routes.explanation import read_options

from . import fake_explainer
from .conftest import App
from .leaks import find_leaks

PHOTOGRAPHS = "convmixer_384_8_ks5_p8.photographs"


@pytest.fixture(scope="module")
def explainer(open_app: Callable[..., App]) -> Iterator[App]:
    """The application, with a process that explains without PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explanations, "ExplainProcess", fake_explainer.start_fake)
        patch.setattr(explanations, "is_installed", lambda name: True)
        yield open_app()


def ask(app: App, data: bytes, **fields: str) -> httpx.Response:
    return app.ask("POST", "/v1/explain", files={"file": ("cat.jpg", data)}, data=fields)


def problem(response: httpx.Response) -> tuple[int, str, str]:
    body = response.json()
    assert find_leaks(response.content) == []
    return response.status_code, body["code"], body["detail"]


def test_an_answer_has_everything(explainer: App, cat: bytes) -> None:
    response = ask(explainer, cat, model=PHOTOGRAPHS, versus="dog")
    body = response.json()
    assert response.status_code == 200
    assert body["model"] == PHOTOGRAPHS
    assert body["fingerprint"] == response.headers["x-tessella-fingerprint"]
    assert set(body["timing_ms"]) == {"decode", "queue", "start", "load", "explain", "total"}
    (result,) = body["results"]
    assert (result["key"], result["status"]) == ("cat.jpg", "ok")
    assert result["target"] == {"index": 3, "label": "cat", "probability": 0.75}
    assert result["versus"]["label"] == "dog"
    assert [len(row) for row in result["map"]] == [3, 3]
    assert result["scores"]["deletion"] == {"value": 0.5, "random": [1.0, 2.0], "goal": "lower", "is_better": True}
    assert (result["faithful"], result["verdict"], result["total"]) == (True, "faithful", 6.0)
    assert (result["width"], result["height"]) == (451, 300)
    left, top, right, bottom = result["box"]
    assert 0 <= left < right <= 451
    assert 0 <= top < bottom <= 300
    kind, data = result["overlay"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


@pytest.mark.parametrize("form", ["multipart", "query of multipart", "raw", "json", "json with a number"])
def test_options_have_the_same_meaning_in_every_form(explainer: App, cat: bytes, form: str) -> None:
    options = {"class": "index:3", "method": "occlusion", "model": PHOTOGRAPHS}
    kinds: dict[str, dict[str, Any]] = {
        "multipart": dict(files={"file": ("a", cat)}, data=options),
        "query of multipart": dict(files={"file": ("a", cat)}, params=options),
        "raw": dict(content=cat, params=options, headers={"content-type": "image/jpeg"}),
        "json": dict(json={"images": [base64.b64encode(cat).decode()], **options}),
        "json with a number": dict(json={"images": [base64.b64encode(cat).decode()], **options, "class": 3.0}),
    }
    response = explainer.ask("POST", "/v1/explain", **kinds[form])
    (result,) = response.json()["results"]
    source, _, method, wanted = result["reason"].split()
    assert (source, method, wanted) == (PHOTOGRAPHS, "occlusion", "3")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"method": "magic"}, '"method" is not the name of a method; the API description lists them.'),
        ({"class": " "}, '"class" and "versus" are names or indices of classes.'),
        ({"versus": "x" * 1001}, '"class" and "versus" are names or indices of classes.'),
        ({"top": "3"}, "The form has a field that is not known, or has a field twice."),
    ],
)
def test_options_that_cannot_work_are_refused(
    explainer: App, cat: bytes, fields: dict[str, str], sentence: str
) -> None:
    assert problem(ask(explainer, cat, **fields)) == (400, "bad_request", sentence)


@pytest.mark.parametrize(
    ("value", "wanted"), [("index:3", 3), (3, 3), (3.0, 3), ("3", "3"), ("cat", "cat"), (None, None)]
)
def test_digits_may_be_the_name_of_a_class(value: object, wanted: object) -> None:
    """A model may have classes "1", "2" and "3"; `find_class` takes text for an index only if no class has the name."""
    found = read_options({"class": value}).wanted
    assert (found, type(found)) == (wanted, type(wanted))


@pytest.mark.parametrize("value", [True, -1, 1.5, [], {}, 10**12])
def test_values_of_json_that_are_no_class_are_refused(explainer: App, cat: bytes, value: object) -> None:
    body = {"images": [base64.b64encode(cat).decode()], "class": value}
    assert problem(explainer.ask("POST", "/v1/explain", json=body))[:2] == (400, "bad_request")


def test_what_the_process_refuses_is_a_fixed_sentence(explainer: App, cat: bytes) -> None:
    assert problem(ask(explainer, cat, **{"class": "refuse"})) == (422, "unprocessable", REASONS["class"])
    assert problem(ask(explainer, cat, **{"class": "break"}))[:2] == (500, "internal_error")


def test_a_bad_image_is_the_error_of_a_raw_request_only(explainer: App, cat: bytes) -> None:
    headers = {"content-type": "image/png"}
    assert problem(explainer.ask("POST", "/v1/explain", content=b"no image", headers=headers))[0] == 415
    body = {"images": [base64.b64encode(data).decode() for data in (b"no image", cat)]}
    results = explainer.ask("POST", "/v1/explain", json=body).json()["results"]
    assert [result["status"] for result in results] == ["unsupported_format", "ok"]
    assert results[0]["message"] == "the image format is not supported"


def test_more_images_than_the_queue_holds_are_refused(explainer: App, cat: bytes) -> None:
    body = {"images": [base64.b64encode(cat).decode()] * (MAX_EXPLAINED + 1)}
    sentence = "The request has 17 images, the limit for explanations is 16: divide them among several requests."
    assert problem(explainer.ask("POST", "/v1/explain", json=body)) == (413, "too_many_images", sentence)


def test_a_late_request_is_a_problem_and_the_next_works(explainer: App, cat: bytes) -> None:
    headers = {"x-tessella-deadline-ms": "700"}
    late = explainer.ask("POST", "/v1/explain", files={"file": cat}, data={"class": "hang"}, headers=headers)
    assert problem(late)[:2] == (504, "deadline_exceeded")
    assert ask(explainer, cat).status_code == 200


def test_a_full_queue_is_refused_with_its_own_delay(explainer: App, cat: bytes) -> None:
    admission = explainer.service.explanations._admission
    with admission.admit(MAX_EXPLAINED, 0):
        response = ask(explainer, cat)
        assert problem(response)[:2] == (429, "overloaded")
        assert int(response.headers["retry-after"]) >= 4  # 16 images
        assert explainer.ask("POST", "/v1/classify", files={"file": cat}).status_code == 200


def test_explanations_that_are_switched_off_say_for_how_long(
    explainer: App, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(queue: explain_queue.ExplainQueue) -> None:
        raise RetryLaterError("explain_off", "secret", 123.4)

    monkeypatch.setattr(explain_queue.ExplainQueue, "check", refuse)
    response = ask(explainer, cat)
    assert problem(response)[:2] == (503, "explain_off")
    assert response.headers["retry-after"] == "124"
    assert explainer.ask("GET", "/readyz").status_code == 200


def test_without_pytorch_the_answer_says_what_is_missing(
    open_app: Callable[..., App], cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "is_installed", lambda name: False)
    without = open_app()
    assert problem(ask(without, cat)) == (501, "missing_dependency", REASONS["torch"])
    assert not any(row["can_explain"] for row in without.ask("GET", "/v1/models").json()["data"])


def test_a_server_can_be_started_without(open_app: Callable[..., App], cat: bytes) -> None:
    without = open_app(explain=False)
    assert problem(ask(without, cat))[:2] == (404, "not_found")
    assert not any(row["can_explain"] for row in without.ask("GET", "/v1/models").json()["data"])


def test_the_token_is_needed(open_app: Callable[..., App], cat: bytes) -> None:
    protected = open_app(token="secret-token")
    assert problem(ask(protected, cat))[:2] == (401, "unauthorized")
    foreign = {"origin": "https://example.com", "authorization": "Bearer secret-token"}
    refused = protected.ask("POST", "/v1/explain", files={"file": cat}, headers=foreign)
    assert problem(refused)[:2] == (403, "forbidden_origin")


def test_the_models_say_that_they_can_be_explained(explainer: App) -> None:
    rows = explainer.ask("GET", "/v1/models").json()["data"]
    assert all(row["can_explain"] is True for row in rows)
    assert [explainer.ask("GET", f"/v1/models/{row['id']}").json() for row in rows] == rows


def test_the_route_is_described_with_examples(explainer: App) -> None:
    schema = explainer.ask("GET", "/openapi.json").json()
    operation = schema["paths"]["/v1/explain"]["post"]
    content = operation["requestBody"]["content"]
    assert {"multipart/form-data", "application/json", "image/jpeg", "application/octet-stream"} <= content.keys()
    assert {parameter["name"] for parameter in operation["parameters"]} >= {"model", "class", "versus", "method"}
    for kind in ("multipart/form-data", "application/json"):
        properties = content[kind]["schema"]["properties"]
        assert {"model", "class", "versus", "method"} <= properties.keys()
    assert content["multipart/form-data"]["schema"]["properties"]["file"]["maxItems"] == MAX_EXPLAINED
    assert {"404", "422", "429", "501", "503", "504"} <= operation["responses"].keys()
    example = schema["components"]["schemas"]["ExplanationsBody"]["example"]
    assert example["results"][0]["scores"].keys() == {"deletion", "insertion", "correlation"}


def test_an_answer_has_the_fields_of_the_description(explainer: App, cat: bytes) -> None:
    import jsonschema

    schema = explainer.ask("GET", "/openapi.json").json()
    kind = {"$ref": "#/components/schemas/ExplanationsBody", "components": schema["components"]}
    body = ask(explainer, cat, versus="dog").json()
    jsonschema.validate(body, kind)
    jsonschema.validate(schema["components"]["schemas"]["ExplanationsBody"]["example"], kind)
    described = schema["components"]["schemas"]["ExplanationBody"]["properties"]
    assert {*body["results"][0], "message"} == described.keys()


def test_explanations_are_counted(explainer: App, cat: bytes) -> None:
    ask(explainer, cat)
    text = explainer.ask("GET", "/metrics").text
    assert 'tessella_explanations_total{faithful="yes",method="exact"}' in text
    assert 'tessella_explain_seconds_count{stage="start"}' in text
    assert "tessella_explain_process 1.0" in text
    assert "tessella_explain_queue_images 0.0" in text
    assert 'tessella_requests_total{method="POST",route="/v1/explain",status="200"}' in text


def test_the_fixed_sentences_reveal_nothing() -> None:
    for sentence in REASONS.values():
        assert find_leaks(json.dumps({"error": sentence}).encode()) == []
