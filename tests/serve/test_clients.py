"""Clients of other servers, unmodified, call a server with their own functions.

They run in an environment of their own, because their requirements conflict with those of the package. Each script in
`clients/` runs once and returns everything that its client got; the tests compare that with what `tessella.load` gives.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.predictor import Predictor
from tessella.results import Output

from ..structure import ROOT
from .servers import ServerProcess

MODEL = "convmixer_256_8_ks3_p4.cifar10"
OTHER_MODEL = "gmixer_ti_p4_32.cifar10"
TOKEN = "a-token-of-this-test"
MAX_IMAGES = 8
CLIENTS = ROOT / ".venv-clients" / "bin" / "python"
SCRIPTS = Path(__file__).with_name("clients")
FILES = [next((ROOT / "clothing" / name).glob("*.jpg")) for name in ("hat", "pants", "shoes")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with two models and a token."""
    options = ("-m", MODEL, "-m", OTHER_MODEL, "--max-images", str(MAX_IMAGES))
    with ServerProcess(*options, environment={"TESSELLA_TOKEN": TOKEN}) as process:
        yield process.url


@cache
def predictor() -> Predictor:
    return tessella.load(MODEL)


def logits_of(images: Sequence[Path | np.ndarray]) -> np.ndarray:
    """Return the logits of the Predictor, (N, classes)."""
    rows = []
    for output in predictor().outputs(images):
        assert isinstance(output, Output)
        rows.append(output.logits)
    return np.stack(rows)


def run_script(name: str, url: str) -> dict[str, Any]:
    """Run a script of `clients/` against a server, and return what its client got."""
    if not CLIENTS.exists():
        message = "the clients are not installed (.venv-clients), scripts/test does that"
        if "clients" in os.environ.get("TESSELLA_REQUIRED_TESTS", ""):
            pytest.fail(message)
        pytest.skip(message)
    files = [base64.b64encode(path.read_bytes()).decode() for path in FILES]
    job = json.dumps(dict(url=url, token=TOKEN, model=MODEL, files=files))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    command = [CLIENTS, SCRIPTS / f"{name}_script.py"]
    done = subprocess.run(command, input=job, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def assert_vectors(actual: object) -> None:
    """Compare embeddings with those of the Predictor."""
    np.testing.assert_allclose(np.array(actual, np.float32), predictor().embed(FILES), atol=1e-4)


def assert_logits(actual: object) -> None:
    """Compare logits with those of the Predictor."""
    np.testing.assert_allclose(np.array(actual, np.float32), logits_of(FILES), atol=1e-4)


class TestTriton:
    """tritonclient[http], also in the way of NVIDIA's image client."""

    @pytest.fixture(scope="class")
    @classmethod
    def results(cls, url: str) -> dict[str, Any]:
        return run_script("triton", url)

    def test_health(self, results: dict[str, Any]) -> None:
        assert results["live"] is True
        assert results["ready"] is True
        assert results["model ready"] == [True, True, False]
        assert results["server"]["name"] == "tessella"
        assert {"binary_tensor_data", "classification"} <= set(results["server"]["extensions"])

    def test_models(self, results: dict[str, Any]) -> None:
        rows = {row["name"]: row["state"] for row in results["index"]}
        assert rows[MODEL] == rows[f"{MODEL}.embedding"] == "READY"
        assert set(rows) >= {OTHER_MODEL, f"{OTHER_MODEL}.embedding"}

    def test_metadata_is_what_the_image_client_accepts(self, results: dict[str, Any]) -> None:
        """One input with three dimensions besides the batch and a layout, one output of type FP32 that is a vector."""
        metadata, config = results["metadata"], results["config"]
        assert metadata["inputs"] == [dict(name="image", datatype="FP32", shape=[-1, 3, 32, 32])]
        assert metadata["outputs"] == [dict(name="logits", datatype="FP32", shape=[-1, 10])]
        assert metadata["versions"] == ["1"]
        assert config["max_batch_size"] == MAX_IMAGES
        (source,) = config["input"]
        assert source == dict(name="image", data_type="TYPE_FP32", format="FORMAT_NCHW", dims=[3, 32, 32])
        assert [(item["name"], item["dims"]) for item in config["output"]] == [("logits", [10])]
        embedding = results["metadata of the embedding"]
        assert embedding["outputs"] == [dict(name="embedding", datatype="FP32", shape=[-1, predictor().width])]

    def test_image_files(self, results: dict[str, Any]) -> None:
        """The client asks for binary data unless it is told otherwise; JSON holds the same numbers."""
        response = results["response"]
        assert response["id"] == "a request"
        assert response["model_name"] == MODEL
        assert response["outputs"][0]["parameters"] == {"binary_data_size": 4 * 10 * len(FILES)}
        assert_logits(results["logits"])
        assert "data" in results["response in JSON"]["outputs"][0]
        assert results["logits in JSON"] == results["logits"]
        assert_vectors(results["embedding"])

    def test_requests_at_the_same_time(self, results: dict[str, Any]) -> None:
        assert results["ids"] == ["0", "1", "2", "3"]
        for logits in (*results["async"], results["asyncio"], results["compressed"]):
            assert_logits(logits)

    def test_classification(self, results: dict[str, Any]) -> None:
        """The client prints "value (index) = label"."""
        best = predictor().classify(FILES, top=3)
        logits = logits_of(FILES)
        for row, texts, predictions in zip(logits, results["classes"], best, strict=True):
            parts = [text.split(":") for text in texts]
            assert [(int(index), label) for _, index, label in parts] == [(p.index, p.label) for p in predictions]
            np.testing.assert_allclose([float(value) for value, _, _ in parts], np.sort(row)[::-1][:3], atol=1e-4)
        assert all(len(text.split(":")) == 2 for row in results["values of the embedding"] for text in row)

    @pytest.mark.parametrize("suffix", ["", ".inception", ".vgg", ".unit", "uint8", "uint8 in JSON", "FP32 in JSON"])
    def test_images_that_the_client_prepared(self, results: dict[str, Any], suffix: str) -> None:
        """Each way of the client to scale pixels gives the classes of these pixels."""
        pixels = np.array(results["scalings"]["pixels"], np.uint8)
        best = predictor().classify(list(pixels), top=3)
        found = [[int(text.split(":")[1]) for text in row] for row in results["scalings"][suffix]]
        assert found == [[prediction.index for prediction in row] for row in best]

    def test_embeddings_of_images_that_the_client_prepared(self, results: dict[str, Any]) -> None:
        expected = predictor().embed(list(np.array(results["scalings"]["pixels"], np.uint8)))
        np.testing.assert_allclose(results["scalings"]["embedding"], expected, atol=1e-4)

    @pytest.mark.parametrize(
        ("case", "status", "text"),
        [
            ("unknown model", 404, "no model of that name"),
            ("unknown version", 404, "no model of that name"),
            ("unknown metadata", 404, "no model of that name"),
            ("input name", 400, "with the name 'image'"),
            ("two inputs", 400, "exactly one input"),
            ("output name", 400, "metadata of the model"),
            ("shape", 400, "(images, 3, height, width) for FP32"),
            ("datatype", 400, "BYTES, FP32 and UINT8"),
            ("no images", 400, "has no images"),
            ("too many", 413, "more images than the server accepts"),
            ("broken image", 422, "corrupt_image of image 1"),
            ("not an image", 415, "unsupported_format of image 0"),
            ("compressed", 415, "encoding of the body is not supported"),
            ("load", 404, "no such path"),
            ("token", 401, "token is missing"),
            ("token of the metadata", 401, "token is missing"),
        ],
    )
    def test_errors(self, results: dict[str, Any], case: str, status: int, text: str) -> None:
        name, message = results["errors"][case]
        assert name == "InferenceServerException"
        assert message.startswith(f"[{status}]")
        assert text in message

    def test_wrong_scaling(self, results: dict[str, Any]) -> None:
        assert "append '.unit', '.inception', '.vgg'" in results["scalings"]["wrong scaling"][1]

    def test_timeout_in_microseconds(self, results: dict[str, Any]) -> None:
        assert results["errors"]["timeout"][1].startswith("[504]")


class TestKServe:
    @pytest.fixture(scope="class")
    @classmethod
    def results(cls, url: str) -> dict[str, Any]:
        return run_script("kserve", url)

    def test_health(self, results: dict[str, Any]) -> None:
        assert results["live"] is True
        assert results["ready"] is True
        assert results["model ready"] == [True, True, False]

    def test_image_files(self, results: dict[str, Any]) -> None:
        assert results["id"] == "a request"
        assert results["model"] == MODEL
        assert_logits(results["logits"])
        assert_logits(results["logits of JSON"])
        assert_vectors(results["embedding"])

    def test_floats(self, results: dict[str, Any]) -> None:
        """Floats of 0.25 between 0 and 1 are the gray level 64."""
        expected = logits_of([np.full((32, 32, 3), 64, np.uint8)] * 2)
        np.testing.assert_allclose(results["logits of floats"], expected, atol=1e-4)

    @pytest.mark.parametrize(
        ("case", "status", "text"),
        [
            ("unknown model", 404, "no model of that name"),
            ("broken image", 422, "corrupt_image of image 1"),
            ("scaling", 400, "append '.unit'"),
            ("token", 401, "token is missing"),
        ],
    )
    def test_errors(self, results: dict[str, Any], case: str, status: int, text: str) -> None:
        assert results["errors"][case][0] == status
        assert text in results["errors"][case][1]


class TestOpenAI:
    @pytest.fixture(scope="class")
    @classmethod
    def results(cls, url: str) -> dict[str, Any]:
        return run_script("openai", url)

    def test_the_client_asks_for_base64(self, results: dict[str, Any]) -> None:
        assert json.loads(results["asked for"])["encoding_format"] == "base64"

    @pytest.mark.parametrize("form", ["base64", "float", "jina", "without modality", "async"])
    def test_embeddings(self, results: dict[str, Any], form: str) -> None:
        assert_vectors(results[form])

    def test_one_image(self, results: dict[str, Any]) -> None:
        np.testing.assert_allclose(results["one"], predictor().embed(FILES[:1]), atol=1e-4)

    def test_answer(self, results: dict[str, Any]) -> None:
        assert results["model"] == MODEL
        assert results["usage"] == [0, 0]
        assert results["fingerprint"] == predictor().fingerprint

    def test_models(self, results: dict[str, Any]) -> None:
        assert results["models"] == [MODEL, OTHER_MODEL]
        retrieved = results["retrieved"]
        assert (retrieved["id"], retrieved["object"], retrieved["owned_by"]) == (MODEL, "model", "tessella")

    @pytest.mark.parametrize(
        ("case", "error", "text"),
        [
            ("text", "BadRequestError", "embed images, not texts"),
            ("tokens", "BadRequestError", "embed images, not texts"),
            ("text modality", "BadRequestError", "embed images, not texts"),
            ("unknown model", "NotFoundError", "no model of that name"),
            ("dimensions", "BadRequestError", "fixed number of dimensions"),
            ("broken image", "UnprocessableEntityError", "corrupt_image of image 1"),
            ("too many", "APIStatusError", "more images than the server accepts"),
            ("no image", "BadRequestError", "has no images"),
            ("unknown id", "NotFoundError", "no model of that name"),
            ("token", "AuthenticationError", "token is missing"),
            ("token of the list", "AuthenticationError", ""),
        ],
    )
    def test_errors(self, results: dict[str, Any], case: str, error: str, text: str) -> None:
        name, message = results["errors"][case]
        assert name == error
        assert text in message


class TestInfinity:
    @pytest.fixture(scope="class")
    @classmethod
    def results(cls, url: str) -> dict[str, Any]:
        return run_script("infinity", url)

    @pytest.mark.parametrize("form", ["image", "base64", "modality"])
    def test_embeddings(self, results: dict[str, Any], form: str) -> None:
        assert_vectors(results[form])

    def test_answer(self, results: dict[str, Any]) -> None:
        assert results["model"] == results["default model"] == MODEL
        assert results["usage"] == [0, 0]

    def test_models_and_health(self, results: dict[str, Any]) -> None:
        assert results["models"] == [MODEL, OTHER_MODEL]
        assert results["health"]["unix"] > 1e9

    @pytest.mark.parametrize(
        ("case", "status", "text"),
        [
            ("text", 400, "embed images, not texts"),
            ("unknown model", 404, "no model of that name"),
            ("broken image", 422, "corrupt_image of image 1"),
            ("token", 401, "token is missing"),
        ],
    )
    def test_errors(self, results: dict[str, Any], case: str, status: int, text: str) -> None:
        assert results["errors"][case][0] == status
        assert text in json.loads(results["errors"][case][1])["error"]["message"]


class TestCohere:
    @pytest.fixture(scope="class")
    @classmethod
    def results(cls, url: str) -> dict[str, Any]:
        return run_script("cohere", url)

    @pytest.mark.parametrize("form", ["float", "inputs", "async"])
    def test_embeddings(self, results: dict[str, Any], form: str) -> None:
        assert_vectors(results[form])

    def test_base64(self, results: dict[str, Any]) -> None:
        assert_vectors([np.frombuffer(base64.b64decode(text), "<f4") for text in results["base64"]])

    def test_binary(self, results: dict[str, Any]) -> None:
        """Bits are the signs of the numbers that the same answer has as floats."""
        signs = np.array(results["float"]) > 0
        assert results["ubinary"] == np.packbits(signs, axis=1).tolist()
        assert results["binary"] == (np.packbits(signs, axis=1).astype(int) - 128).tolist()
        assert results["int8"] is None

    def test_answer(self, results: dict[str, Any]) -> None:
        assert results["id"]
        assert results["response type"] == "embeddings_by_type"
        assert results["billed images"] == len(FILES)

    @pytest.mark.parametrize(
        ("case", "error", "text"),
        [
            ("text", "BadRequestError", "embed images, not texts"),
            ("unknown model", "NotFoundError", "no model of that name"),
            ("int8", "BadRequestError", "scale of int8"),
            ("dimensions", "BadRequestError", "fixed number of dimensions"),
            ("broken image", "UnprocessableEntityError", "corrupt_image of image 1"),
            ("no image", "BadRequestError", "has no images"),
            ("token", "UnauthorizedError", "token is missing"),
        ],
    )
    def test_errors(self, results: dict[str, Any], case: str, error: str, text: str) -> None:
        name, message = results["errors"][case]
        assert name == error
        assert text in message
