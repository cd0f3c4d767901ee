"""Both clients against `tessella serve` in a process of its own: the results are those of `tessella.load`."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

import tessella
from tessella import AsyncClient, Client
from tessella.bulk import run as run_images
from tessella.errors import ImageError, ServeError, TessellaError, UsageError
from tessella.inputs import AnyImage
from tessella.predictor import Predictor
from tessella.search import Index, build_index
from tessella.weights.catalogue import default_model
from tests.serve.servers import ANSWER_SECONDS, ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PHOTOS = sorted(EXAMPLES.glob("*.jpg"))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server with a queue for 32 images, which four requests of a client more than fill."""
    with ServerProcess("--queue-images", "32", "--max-images", "16") as process:
        yield process


@pytest.fixture(scope="module")
def classifier() -> Predictor:
    """The default model of `classify`."""
    return tessella.load(default_model("classify"))


@pytest.fixture(scope="module")
def embedder() -> Predictor:
    """The default model of `embed`."""
    return tessella.load()


def test_results_are_those_of_a_predictor(server: ServerProcess, classifier: Predictor, embedder: Predictor) -> None:
    with Client(server.url) as client:
        assert client.ready()
        assert client.classify(PHOTOS) == classifier.classify(PHOTOS)
        assert client.fingerprint == classifier.fingerprint
        assert client.classify(PHOTOS[0], top=3) == classifier.classify(PHOTOS[0], top=3)
        assert_array_equal(client.embed(PHOTOS), embedder.embed(PHOTOS))
        assert_array_equal(client.embed(PHOTOS[0]), embedder.embed(PHOTOS[0]))
        assert client.fingerprint == embedder.fingerprint
        scores, expected = client.predict(PHOTOS), embedder.predict(PHOTOS)
        assert_array_equal(scores.probabilities, expected.probabilities)
        assert_array_equal(scores.embeddings, expected.embeddings)


def test_the_async_client_gives_the_same(server: ServerProcess, classifier: Predictor, embedder: Predictor) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as client:
            assert await client.ready()
            assert await client.classify(PHOTOS) == classifier.classify(PHOTOS)
            assert_array_equal(await client.embed(PHOTOS), embedder.embed(PHOTOS))
            assert_array_equal((await client.predict(PHOTOS)).probabilities, embedder.predict(PHOTOS).probabilities)
            keys = [record.key async for record in client.records(EXAMPLES)]
            assert keys == [record.key for record in classifier.records(EXAMPLES)]

    asyncio.run(run())


def test_a_model_by_name(server: ServerProcess, classifier: Predictor) -> None:
    with Client(server.url, model=classifier.name) as client:
        assert_array_equal(client.embed(PHOTOS), classifier.embed(PHOTOS))
        assert client.served_model == classifier.name
    with Client(server.url, model="mixer_b16_224.goog_in21k") as client:
        with pytest.raises(UsageError) as caught:
            client.embed(PHOTOS)
        assert caught.value.code == "unknown_model"


def test_models(server: ServerProcess, classifier: Predictor, embedder: Predictor) -> None:
    with Client(server.url) as client:
        by_task = {task: model for model in client.models() for task in model.default_for}
    for task, predictor in (("classify", classifier), ("embed", embedder)):
        model = by_task[task]
        assert (model.name, model.fingerprint) == (predictor.name, predictor.fingerprint)
        assert (model.num_classes, model.width) == (predictor.num_classes, predictor.width)
        assert model.input_size == (3, predictor.spec.height, predictor.spec.width)


def test_images_in_memory(server: ServerProcess, classifier: Predictor) -> None:
    picture = Image.open(PHOTOS[0])
    pixels = np.asarray(picture)
    images: list[AnyImage] = [
        picture,
        pixels,
        pixels[..., 0],
        PHOTOS[0].read_bytes(),
        io.BytesIO(PHOTOS[0].read_bytes()),
    ]
    images += [np.dstack([pixels, pixels[..., :1]]), pixels / np.float32(255), picture.convert("P")]
    copies = [io.BytesIO(image.getvalue()) if isinstance(image, io.BytesIO) else image for image in images]
    with Client(server.url) as client:
        assert client.classify(images) == classifier.classify(copies)


def test_bad_images(server: ServerProcess) -> None:
    cut = PHOTOS[0].read_bytes()[:1000]
    images: list[AnyImage] = [PHOTOS[0], cut, b"", b"text", PHOTOS[1], "nowhere.jpg"]
    with Client(server.url) as client:
        statuses = [record.status for record in client.records(images)]
        with pytest.raises(ImageError) as caught:
            client.classify(images)
        with pytest.raises(ImageError):
            client.embed(cut)
    assert statuses == ["ok", "corrupt_image", "empty", "unsupported_format", "ok", "not_found"]
    assert caught.value.code == "corrupt_image"
    assert caught.value.message.startswith("image 1: ")


def test_no_rows_are_swapped_under_overload(server: ServerProcess, classifier: Predictor) -> None:
    """600 different images, in more requests at once than the queue takes."""
    rng = np.random.default_rng(5)
    images: list[AnyImage] = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(600)]
    for position in random.Random(5).sample(range(600), 30):
        images[position] = b"not an image"
    expected = list(classifier.records(images, top=1, embed=True))
    refused = metric(server, "overloaded")
    with Client(server.url, model=classifier.name, concurrency=8) as client:
        records = list(client.records(images, top=1, embed=True))
    assert metric(server, "overloaded") > refused  # or the test shows nothing
    assert [record.key for record in records] == [record.key for record in expected]
    for record, known in zip(records, expected, strict=True):
        assert record.status == known.status
        if record.status == "ok":
            assert record.top[0].index == known.top[0].index
            assert record.embedding is not None
            assert known.embedding is not None
            np.testing.assert_allclose(record.embedding, known.embedding, atol=1e-5)  # batches differ


def metric(server: ServerProcess, code: str) -> float:
    """Return how many requests were answered with an error code."""
    text = httpx.get(f"{server.url}/metrics", timeout=ANSWER_SECONDS).text
    lines = [line for line in text.splitlines() if line.startswith("tessella_") and f'code="{code}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines if "_total{" in line)


def test_a_request_that_is_too_large(server: ServerProcess) -> None:
    with Client(server.url, max_images=17) as client, pytest.raises(TessellaError) as caught:
        client.classify([PHOTOS[0]] * 17)
    assert caught.value.code == "too_many_images"


def test_searching_without_an_index(server: ServerProcess) -> None:
    with Client(server.url) as client, pytest.raises(TessellaError) as caught:
        client.search(PHOTOS[0])
    assert caught.value.code in ("not_found", "not_found_route")


def test_a_search_finds_what_the_index_finds(tmp_path: Path, embedder: Predictor) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        picture = Image.open(PHOTOS[i % len(PHOTOS)]).convert("RGB")
        left, top = (int(rng.integers(0, side // 2)) for side in picture.size)
        picture.crop((left, top, left + picture.width // 2, top + picture.height // 2)).save(photos / f"{i}.png")
    run_images(str(photos), tmp_path / "run", embedder)
    build_index(tmp_path / "run")
    index = Index(tmp_path / "run")
    expected = [(row.row, row.key) for row in index.search(index.row_query(3), top=5)]
    with ServerProcess("--index", str(tmp_path / "run")) as process, Client(process.url) as client:
        found = client.search(3, top=5)
        assert [(match.row, match.key) for match in found.neighbors] == expected
        assert (found.matching, found.rows) == (12, 12)
        assert all(match.score <= 1.0001 and (match.width or 0) > 0 for match in found.neighbors)
        (best, *_) = client.search(photos / "7.png", top=2).neighbors
        assert Path(best.key).name == "7.png"
        assert best.score == pytest.approx(1, abs=1e-3)
        assert len(client.search([1, photos / "2.png"], negative=[5], top=3).neighbors) == 3
        assert client.search(0, min_score=1).neighbors == ()
        assert client.search(0, filter={"min_width": 100_000}).matching == 0
        with pytest.raises(UsageError) as caught:
            client.search(99)
        assert caught.value.code == "not_found"

        async def search() -> list[int]:
            async with AsyncClient(process.url) as asynchronous:
                return [match.row for match in (await asynchronous.search(3, top=5)).neighbors]

        assert asyncio.run(search()) == [row for row, _ in expected]


def test_a_deadline_that_cannot_be_met(server: ServerProcess) -> None:
    with Client(server.url, timeout=0.001, retries=0) as client, pytest.raises(ServeError) as caught:
        client.classify(PHOTOS)
    assert caught.value.code in ("server_unavailable", "deadline_exceeded")


def test_a_server_that_is_restarted_during_a_call(classifier: Predictor) -> None:
    """SIGTERM and a new server at the same port: the call ends with all results."""
    with ServerProcess("--drain-delay", "0") as first:
        port = first.port
        with Client(first.url, max_images=1, concurrency=1, retries=1000, timeout=200) as client:
            records = client.records(PHOTOS * 10, top=1, embed=False)
            collected = [next(records)]
            first.process.terminate()
            assert first.process.wait(60) == 0
            with ServerProcess("--port", str(port)):
                collected += records
    expected = [best.label for (best,) in classifier.classify(PHOTOS, top=1)] * 10
    assert [record.top[0].label for record in collected] == expected
