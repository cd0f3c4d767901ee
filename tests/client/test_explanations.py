"""`Client.explain` and `AsyncClient.explain` against a real HTTP server: what is sent, read, repeated and refused."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest

from tessella import AsyncClient, Client
from tessella.client import ServedExplanation, ServedScore
from tessella.client.settings import ClientBase
from tessella.errors import ImageError, ServeError, TessellaError
from tessella.results import Prediction

from .fake_server import MODEL, FakeServer, Reply, Request, json_reply, problem

PNG = b"\x89PNG and more"
CAT, DOG = dict(index=3, label="cat", probability=0.75), dict(index=5, label="dog", probability=0.125)
KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])


def ask(kind: type[ClientBase], server: FakeServer, images: Any, settings: Any = None, **options: Any) -> Any:
    """Make one call with a client of this kind."""
    if kind is Client:
        with Client(server.url, **(settings or {})) as client:
            return client.explain(images, **options)

    async def run() -> Any:
        async with AsyncClient(server.url, **(settings or {})) as client:
            return await client.explain(images, **options)

    return asyncio.run(run())


def code_of(kind: type[ClientBase], server: FakeServer, images: Any = b"image", **options: Any) -> str:
    with pytest.raises(TessellaError) as caught:
        ask(kind, server, images, **options)
    return caught.value.code


def result(name: str, data: bytes) -> dict[str, Any]:
    """What the server answers for an image; the first value of the map is the number of its bytes."""
    if data.startswith(b"bad"):
        return dict(key=name, status="corrupt_image", message="the image is damaged or truncated")
    return dict(
        key=name,
        status="ok",
        top=[CAT, DOG],
        target=CAT,
        versus=DOG,
        method="exact",
        methods=["exact", "occlusion"],
        reason="requested",
        layer="",
        map=[[len(data), -1.5, 2], [3, 4, 5]],
        total=7.25,
        faithful=True,
        verdict="faithful",
        verdict_reason="better than random maps",
        scores={"deletion": dict(value=0.5, random=[1, 2], goal="lower", is_better=True)},
        overlay=f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
        box=[10.5, 0, 110.5, 100],
        width=121,
        height=100,
        later="a field of a later version",
    )


def ordinary(request: Request) -> Reply:
    assert request.path == "/v1/explain"
    return json_reply({**MODEL, "results": [result(name, data) for name, data in request.files], "timing_ms": {}})


def changed(**changes: Any) -> Any:
    """A server whose results differ from the ordinary ones."""

    def behave(request: Request) -> Reply:
        rows = [{**result(name, data), **changes} for name, data in request.files]
        return json_reply({**MODEL, "results": rows})

    return behave


@KINDS
def test_an_explanation_has_what_the_server_says(kind: type[ClientBase]) -> None:
    with FakeServer(ordinary) as server:
        found = ask(kind, server, b"twelve bytes", target="cat", versus=5, method="exact", settings=dict(model="m"))
    assert isinstance(found, ServedExplanation)
    assert (found.model, found.fingerprint) == ("fake", MODEL["fingerprint"])
    assert (found.target, found.versus) == (Prediction(3, "cat", 0.75), Prediction(5, "dog", 0.125))
    assert found.top == (found.target, found.versus)
    assert found.map.dtype == np.float32
    assert found.map.tolist() == [[12, -1.5, 2], [3, 4, 5]]
    assert (found.method, found.methods, found.total) == ("exact", ("exact", "occlusion"), 7.25)
    assert (found.faithful, found.verdict) == (True, "faithful")
    assert found.scores == {"deletion": ServedScore(0.5, 1.0, 2.0, "lower", True)}
    assert found.overlay == PNG
    assert (found.box, found.width, found.height) == ((10.5, 0.0, 110.5, 100.0), 121, 100)
    (request,) = server.requests
    assert request.fields == {"model": "m", "class": "cat", "versus": "index:5", "method": "exact"}
    assert [data for _, data in request.files] == [b"twelve bytes"]


@KINDS
def test_options_that_are_not_given_are_not_sent(kind: type[ClientBase]) -> None:
    with FakeServer(ordinary) as server:
        ask(kind, server, b"image")
    assert server.requests[0].fields == {"method": "auto"}


@KINDS
def test_images_are_sent_one_by_one_and_answered_in_order(kind: type[ClientBase]) -> None:
    images = [bytes(n) for n in range(1, 8)]
    with FakeServer(ordinary) as server:
        found = ask(kind, server, iter(images), target=np.int64(3))
    assert [explanation.map[0, 0] for explanation in found] == list(range(1, 8))
    assert [len(request.files) for request in server.requests] == [1] * 7
    assert server.busiest == 1
    assert server.requests[0].fields["class"] == "index:3"


@KINDS
def test_a_bad_image_raises_with_its_position(kind: type[ClientBase]) -> None:
    with FakeServer(ordinary) as server:
        with pytest.raises(ImageError, match=r"^image 1: the image is damaged"):
            ask(kind, server, [b"good", b"bad", b"good"])
        with pytest.raises(ImageError, match=r"^the image is damaged"):
            ask(kind, server, b"bad")
        with pytest.raises(ImageError, match="image 1: ") as missing:
            ask(kind, server, [b"good", "no such file.jpg"])
    assert missing.value.code == "not_found"
    assert len(server.requests) == 4


@KINDS
def test_a_busy_server_is_asked_again(kind: type[ClientBase]) -> None:
    replies = [problem("overloaded", 429, Retry_After="0"), problem("not_ready", 503, Retry_After="0")]
    with FakeServer(lambda request: replies.pop(0) if replies else ordinary(request)) as server:
        assert ask(kind, server, b"image").target.label == "cat"
    assert len(server.requests) == 3


@KINDS
def test_explanations_that_are_switched_off_for_long_are_not_waited_for(kind: type[ClientBase]) -> None:
    with FakeServer(lambda request: problem("explain_off", 503, Retry_After="600")) as server:
        assert code_of(kind, server) == "explain_off"
    assert len(server.requests) == 1


@KINDS
@pytest.mark.parametrize(
    ("code", "status"), [("unprocessable", 422), ("missing_dependency", 501), ("deadline_exceeded", 504)]
)
def test_refusals_have_the_code_and_the_sentence_of_the_server(kind: type[ClientBase], code: str, status: int) -> None:
    with FakeServer(lambda request: problem(code, status)) as server, pytest.raises(TessellaError) as caught:
        ask(kind, server, b"image")
    assert (caught.value.code, caught.value.hint) == (code, f"more about {code}")


@KINDS
@pytest.mark.parametrize(
    "changes",
    [
        dict(key="other"),
        dict(overlay="https://example.com/x.png"),
        dict(overlay="data:image/png;base64,???"),
        dict(target=None),
        dict(map=[]),
        dict(map=[[1], [1, 2]]),
        dict(map="text"),
        dict(box=[1, 2]),
        dict(scores={"deletion": {}}),
    ],
    ids=str,
)
def test_an_answer_that_makes_no_sense_is_no_explanation(kind: type[ClientBase], changes: dict[str, Any]) -> None:
    with FakeServer(changed(**changes)) as server, pytest.raises(ServeError) as caught:
        ask(kind, server, b"image")
    assert caught.value.code == "server_failed"


@KINDS
def test_a_status_that_is_not_known_is_an_error_of_the_server(kind: type[ClientBase]) -> None:
    with FakeServer(changed(status="later")) as server:
        assert code_of(kind, server) == "server_failed"


@KINDS
@pytest.mark.parametrize("options", [dict(target=1.5), dict(target=True), dict(versus=[1]), dict(method=None)], ids=str)
def test_wrong_arguments_are_refused_before_anything_is_sent(kind: type[ClientBase], options: dict[str, Any]) -> None:
    with FakeServer(ordinary) as server:
        assert code_of(kind, server, **options) == "bad_argument"
    assert server.requests == []
