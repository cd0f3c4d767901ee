"""Protocols of other servers over HTTP, where their clients do not reach: forms, names, states, refusals."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tessella
from tessella.errors import UsageError
from tessella.serve import Service, images
from tessella.serve.routes.open_inference import Target, find_target

from ..structure import ROOT
from .conftest import App
from .leaks import find_leaks
from .servers import ANSWER_SECONDS, ServerProcess
from .test_tensors import JSON_VALUES, REQUESTS, with_binary

MODEL = "convmixer_256_8_ks3_p4.cifar10"
OTHER_MODEL = "gmixer_ti_p4_32.cifar10"
FILE = next((ROOT / "clothing" / "hat").glob("*.jpg"))
ENCODED = base64.b64encode(FILE.read_bytes()).decode()
URI = f"data:image/jpeg;base64,{ENCODED}"
INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of a server with two models, of which the first is loaded, and without a token."""
    with (
        ServerProcess("-m", MODEL, "-m", OTHER_MODEL, "--max-images", "4") as process,
        httpx.Client(base_url=process.url, timeout=ANSWER_SECONDS, event_hooks={"response": [check_error]}) as client,
    ):
        yield client


def check_error(answer: httpx.Response) -> None:
    """Errors are those of the protocol and reveal nothing."""
    if answer.is_error:
        assert answer.status_code != 500
        assert "x-tessella-error" in answer.headers
        assert find_leaks(answer.read()) == []


@pytest.fixture(scope="module")
def predictor() -> tessella.Predictor:
    return tessella.load(MODEL)


def tensor(**fields: object) -> dict[str, object]:
    return {"inputs": [dict(name="image", datatype="BYTES", shape=[1], data=[ENCODED]) | fields]}


class TestNames:
    KNOWN = ("a.b", "c", "c.embedding.vgg", "hub:owner/name")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("a.b", Target("a.b", "logits", "none")),
            ("a.b.embedding", Target("a.b", "embedding", "none")),
            ("a.b.inception", Target("a.b", "logits", "inception")),
            ("a.b.embedding.normalized", Target("a.b", "embedding", "normalized")),
            ("c.embedding.vgg", Target("c.embedding.vgg", "logits", "none")),
            ("c.embedding.vgg.embedding.unit", Target("c.embedding.vgg", "embedding", "unit")),
            ("hub:owner/name.embedding", Target("hub:owner/name", "embedding", "none")),
        ],
    )
    def test_suffixes(self, name: str, expected: Target) -> None:
        assert find_target(name, None, self.KNOWN) == find_target(name, "1", self.KNOWN) == expected

    @pytest.mark.parametrize(
        "name", ["", "a", ".embedding", "a.b.vgg.embedding", "a.b.vgg.unit", "a.b.embedding.embedding", "c.INCEPTION"]
    )
    def test_other_names(self, name: str) -> None:
        with pytest.raises(UsageError) as caught:
            find_target(name, None, self.KNOWN)
        assert caught.value.code == "unknown_model"

    @pytest.mark.parametrize("version", ["0", "2", "", "1.0", "latest"])
    def test_other_versions(self, version: str) -> None:
        with pytest.raises(UsageError):
            find_target("a.b", version, self.KNOWN)

    @pytest.mark.parametrize(
        "path", ["", "/ready", "/config", "/versions/1", "/versions/1/ready", "/versions/1/config"]
    )
    def test_names_with_slashes_reach_the_routes(self, client: httpx.Client, path: str) -> None:
        answer = client.get(f"/v2/models/hf-hub:owner/name{path}")
        assert answer.status_code == 404
        assert answer.headers["x-tessella-error"] == "unknown_model"
        assert list(answer.json()) == ["error"]


class TestOpenInference:
    def test_states_of_models(self, client: httpx.Client) -> None:
        """A model that the first request loads is ready for requests; metadata needs it, so that loads it."""

        def index(body: object) -> dict[str, str]:
            return {row["name"]: row["state"] for row in client.post("/v2/repository/index", json=body).json()}

        states = dict.fromkeys((MODEL, f"{MODEL}.embedding"), "READY")
        assert index({}) == states | dict.fromkeys((OTHER_MODEL, f"{OTHER_MODEL}.embedding"), "UNAVAILABLE")
        assert index({"ready": True}) == states
        ready = client.get(f"/v2/models/{OTHER_MODEL}/ready")
        assert (ready.status_code, ready.content) == (200, b"")
        assert client.get(f"/v2/models/{OTHER_MODEL}").json()["outputs"][0]["shape"] == [-1, 10]
        assert index({"ready": True})[OTHER_MODEL] == "READY"

    @pytest.mark.parametrize("data", [ENCODED, URI])
    @pytest.mark.parametrize("shape", [[1], [1, 1]])
    def test_image_files_in_json(
        self, client: httpx.Client, predictor: tessella.Predictor, data: str, shape: list[int]
    ) -> None:
        answer = client.post(INFER, json=tensor(data=[data], shape=shape))
        assert answer.headers["x-tessella-fingerprint"] == predictor.fingerprint
        assert "id" not in answer.json()
        (output,) = predictor.outputs([FILE])
        assert isinstance(output, tuple)
        (found,) = answer.json()["outputs"]
        assert (found["name"], found["datatype"], found["shape"]) == ("logits", "FP32", [1, 10])
        np.testing.assert_allclose(found["data"], output.logits, atol=1e-4)

    @pytest.mark.parametrize(
        ("body", "status", "text"),
        [
            (tensor(data=["no base64!"]), 422, "This is the error unreadable of image 0"),
            (tensor(data=["http://127.0.0.1/x.jpg"]), 422, "This is the error unreadable of image 0"),
            (tensor(data=[""]), 422, "This is the error empty of image 0"),
            (tensor(shape=[1, 2]), 400, "The shape of BYTES"),
            (tensor(shape=[], data=[]), 400, "no images"),
            (tensor(shape=[5]), 413, "more images than the server accepts"),
            (tensor(datatype="UINT8", shape=[1, 3, 32, 32], data=[]), 400, "(images, height, width, 3) for UINT8"),
            (tensor() | {"outputs": [{"name": "logits"}] * 2}, 400, "A requested output"),
            (tensor() | {"parameters": {"timeout": "soon"}}, 400, "number of microseconds"),
            (tensor() | {"parameters": {"timeout": -1}}, 400, "number of microseconds"),
            (tensor() | {"parameters": {"timeout": 10**400}}, 400, "number of microseconds"),
            ({"inputs": []}, 400, "exactly one input"),
        ],
    )
    def test_refusals(self, client: httpx.Client, body: dict[str, Any], status: int, text: str) -> None:
        answer = client.post(INFER, json=body)
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert text in answer.json()["error"]

    def test_damaged_binary_data(self, client: httpx.Client) -> None:
        """Every length of the JSON object and of the data is refused, except the right ones."""
        data = len(FILE.read_bytes()).to_bytes(4, "little") + FILE.read_bytes()
        text = json.dumps(tensor(parameters={"binary_data_size": len(data)}, data=None)).encode()
        statuses = {}
        for length in (0, 1, len(text) - 1, len(text), len(text) + 1, len(text) + len(data) + 1):
            answer = client.post(INFER, content=text + data, headers={"Inference-Header-Content-Length": str(length)})
            statuses[length - len(text)] = answer.status_code
        assert {difference for difference, status in statuses.items() if status == 200} == {0}
        assert set(statuses.values()) == {200, 400}
        header = {"Inference-Header-Content-Length": str(len(text))}
        for cut in (1, len(data) - 1, len(data)):
            assert client.post(INFER, content=(text + data)[:-cut], headers=header).status_code == 400

    def test_a_shorter_deadline(self, client: httpx.Client) -> None:
        body = tensor() | {"parameters": {"timeout": 1}}
        assert client.post(INFER, json=body).status_code == 504
        assert client.post(INFER, json=tensor() | {"parameters": {"timeout": 60_000_000}}).status_code == 200

    def test_methods(self, client: httpx.Client) -> None:
        for path in (INFER, f"/v2/models/{MODEL}/versions/1/infer", "/v2/models/hub:owner/name/infer"):
            answer = client.get(path)
            assert answer.status_code == 405
            assert answer.headers["allow"] == "POST"
        assert client.post(f"/v2/models/{MODEL}").headers["allow"] == "GET, HEAD"

    def test_ready_of_the_index(self, client: httpx.Client) -> None:
        assert client.post("/v2/repository/index", json={"ready": 1}).status_code == 400
        assert client.post("/v2/repository/index").status_code == 200

    def test_unknown_paths_have_errors_of_the_protocol(self, client: httpx.Client) -> None:
        for path in ("/v2/trace/setting", "/v2/systemsharedmemory/status"):
            assert client.get(path).json().keys() == {"error"}


class TestEmbeddings:
    """The forms of `input` of OpenAI's route."""

    @pytest.mark.parametrize(
        "body",
        [
            {"input": URI},
            {"input": [ENCODED], "modality": "image"},
            {"input": [{"image": ENCODED}], "model": None},
            {"input": [URI], "model": "default/not-specified", "dimensions": 0, "user": "x", "task": "y"},
            {"input": [URI], "model": MODEL, "dimensions": 256, "encoding_format": "float"},
        ],
    )
    def test_forms(self, client: httpx.Client, predictor: tessella.Predictor, body: object) -> None:
        answer = client.post("/v1/embeddings", json=body).json()
        assert answer["model"] == MODEL
        np.testing.assert_allclose(answer["data"][0]["embedding"], predictor.embed(FILE), atol=1e-4)

    @pytest.mark.parametrize(
        ("body", "status", "text"),
        [
            ([], 400, "not a JSON object"),
            ({}, 400, "'input' is not an image"),
            ({"input": [None]}, 400, "'input' is not an image"),
            ({"input": [{"image": URI, "title": "a hat"}]}, 400, "'input' is not an image"),
            ({"input": [{"text": "a hat"}]}, 400, "not texts"),
            ({"input": URI, "modality": "audio"}, 400, "not texts"),
            ({"input": URI, "modality": 1}, 400, "'modality'"),
            ({"input": URI, "encoding_format": "int8"}, 400, "'encoding_format'"),
            ({"input": URI, "encoding_format": []}, 400, "'encoding_format'"),
            ({"input": URI, "model": 1}, 400, "'model'"),
            ({"input": URI, "dimensions": True}, 400, "fixed number of dimensions"),
            ({"input": [URI] * 5}, 413, "more images than the server accepts"),
            (
                {"input": "https://example.org/x.jpg", "modality": "image"},
                403,
                "This is the error url_refused of image 0",
            ),
            ({"input": [URI, "!"], "modality": "image"}, 422, "This is the error unreadable of image 1"),
        ],
    )
    def test_refusals(self, client: httpx.Client, body: object, status: int, text: str) -> None:
        answer = client.post("/v1/embeddings", json=body)
        assert answer.status_code == status
        assert text in answer.json()["error"]["message"]
        assert answer.json()["error"]["code"] == answer.headers["x-tessella-error"]

    def test_deadline(self, client: httpx.Client) -> None:
        answer = client.post("/v1/embeddings", json={"input": URI}, headers={"X-Tessella-Deadline-Ms": "no"})
        assert answer.status_code == 400


class TestCohereForms:
    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"model": None}, "'model'"),
            ({"input_type": "text"}, "'input_type'"),
            ({"images": URI}, "'images' is not a list"),
            ({"images": [1]}, "'images' is not a list"),
            ({"inputs": []}, "either 'images' or 'inputs'"),
            ({"images": None, "inputs": [{"content": [{"type": "text", "text": "a hat"}]}]}, "not texts"),
            ({"texts": ["a hat"]}, "not texts"),
            ({"embedding_types": []}, "'embedding_types'"),
            ({"embedding_types": [["float"]]}, "int8 and uint8"),
            ({"embedding_types": ["float"] * 17}, "'embedding_types'"),
            ({"embedding_types": ["float", "uint8"]}, "int8 and uint8"),
            ({"output_dimension": 8}, "fixed number of dimensions"),
        ],
    )
    def test_refusals(self, client: httpx.Client, fields: dict[str, Any], text: str) -> None:
        body = {"model": MODEL, "input_type": "image", "images": [URI]} | fields
        answer = client.post("/v2/embed", json=body)
        assert answer.status_code == 400
        assert answer.json()["id"] == answer.headers["x-request-id"]
        assert text in answer.json()["message"]


IMAGES = st.sampled_from([URI, ENCODED, URI[:900], "https://example.org/x.jpg", "", "a hat"])
ENTRIES = st.lists(IMAGES | st.fixed_dictionaries({"image": IMAGES}) | JSON_VALUES, max_size=5)
OPTIONS = {
    "model": st.sampled_from([MODEL, "nothing"]) | JSON_VALUES,
    "encoding_format": st.sampled_from(["float", "base64"]) | JSON_VALUES,
    "modality": st.sampled_from(["image", "text"]) | JSON_VALUES,
    "dimensions": st.sampled_from([0, 256]) | JSON_VALUES,
}
COHERE_OPTIONS = {
    "images": ENTRIES | JSON_VALUES,
    "inputs": st.lists(st.fixed_dictionaries({"content": ENTRIES}) | JSON_VALUES, max_size=3),
    "embedding_types": st.lists(st.sampled_from(["float", "binary", "int8"]) | JSON_VALUES, max_size=3) | JSON_VALUES,
    "output_dimension": JSON_VALUES,
}


class TestAnyBody:
    """Any body gives an answer or an error of the protocol, never an error of the server."""

    @pytest.fixture(scope="class")
    @classmethod
    def app(cls, open_app: Callable[..., App]) -> App:
        return open_app(models=(MODEL,), max_images=4)

    @settings(max_examples=200, deadline=None)
    @given(REQUESTS, st.binary(max_size=40), st.booleans())
    def test_open_inference(self, app: App, content: object, data: bytes, has_header: bool) -> None:
        body, length = with_binary(content, data)
        headers = {"Inference-Header-Content-Length": length} if has_header else {}
        check_error(app.ask("POST", INFER, content=body, headers=headers))

    @settings(max_examples=200, deadline=None)
    @given(
        st.sampled_from(["/v1/embeddings", "/embeddings_image"]),
        ENTRIES | JSON_VALUES,
        st.fixed_dictionaries({}, optional=OPTIONS),
    )
    def test_openai(self, app: App, path: str, entries: object, options: dict[str, object]) -> None:
        check_error(app.ask("POST", path, json={"input": entries, **options}))

    @settings(max_examples=200, deadline=None)
    @given(st.sampled_from(["image", "text"]) | JSON_VALUES, st.fixed_dictionaries({}, optional=COHERE_OPTIONS))
    def test_cohere(self, app: App, input_type: object, options: dict[str, object]) -> None:
        check_error(app.ask("POST", "/v2/embed", json={"model": MODEL, "input_type": input_type, **options}))


class TestAddresses:
    def test_images_are_fetched_within_the_deadline(self, open_app: Callable[..., App], monkeypatch: Any) -> None:
        """If the settings allow it; the time that it takes is not left for the model."""
        app, left = open_app(models=(MODEL,), allow_urls=True), []
        real = Service.infer

        async def fetch(url: str, **_: object) -> bytes:
            await asyncio.sleep(0.2)
            assert url == "https://example.org/hat.jpg"
            return FILE.read_bytes()

        async def infer(self: Service, *arguments: Any, deadline: float, **options: Any) -> Any:
            left.append(deadline)
            return await real(self, *arguments, deadline=deadline, **options)

        monkeypatch.setattr(images, "fetch_image", fetch)
        monkeypatch.setattr(Service, "infer", infer)
        body = {"input": [URI, "https://example.org/hat.jpg"], "modality": "image"}
        answer = app.ask("POST", "/v1/embeddings", json=body, headers={"X-Tessella-Deadline-Ms": "9000"})
        first, second = answer.json()["data"]
        assert first["embedding"] == second["embedding"]
        assert 0 < left[0] <= 9 - 0.2
