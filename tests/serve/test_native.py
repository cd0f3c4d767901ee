"""The server's own API: results equal those of the library, each image has its own status, names are only names."""

from __future__ import annotations

import asyncio
import base64
import csv
import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import uvicorn
from numpy.testing import assert_allclose

import tessella
from tessella.errors import ImageError, public_text
from tessella.records import as_dict
from tessella.serve import ServeSettings, Service, images
from tessella.serve.app import create_app
from tessella.serve.connection import LimitedConnection
from tessella.serve.problems import public_message
from tessella.weights.catalogue import default_model

from .conftest import EXAMPLES, App
from .leaks import find_leaks
from .servers import FORM, ServerProcess, connect, exchange, multipart, request_bytes

NAMES = ("cat.jpg", "coffee.jpg")
TASKS = [("classify", "classify", True, False), ("embed", "embed", False, True), ("predict", "embed", True, True)]


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    return [(EXAMPLES / name).read_bytes() for name in NAMES]


def post(app: App, path: str, data: bytes, kind: str = FORM, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return app.ask("POST", path, content=data, headers={"Content-Type": kind, **names})


@pytest.mark.parametrize(("route", "task", "has_top", "has_embedding"), TASKS)
def test_results_are_those_of_the_library(
    app: App, photographs: list[bytes], route: str, task: Any, has_top: bool, has_embedding: bool
) -> None:
    answer = post(app, f"/v1/{route}", multipart(*zip(NAMES, photographs, strict=True)))
    assert answer.status_code == 200
    body = answer.json()
    predictor = tessella.load(default_model(task))
    top = 5 if has_top else 0
    expected = [as_dict(r) for r in predictor.records([str(EXAMPLES / n) for n in NAMES], top=top, embed=has_embedding)]
    assert body["model"] == predictor.name
    assert body["fingerprint"] == answer.headers["x-tessella-fingerprint"] == predictor.fingerprint
    assert body["request_id"] == answer.headers["x-request-id"]
    assert set(body["timing_ms"]) == {"decode", "queue", "model", "total"}
    for row, name, one in zip(body["results"], NAMES, expected, strict=True):
        assert (row["key"], row["status"]) == (name, "ok")
        assert ("top" in row) == has_top
        assert ("embedding" in row) == has_embedding
        assert row["width"] > 0 < row["height"]
        if has_top:
            assert isinstance(one["top"], list)
            assert [item["label"] for item in row["top"]] == [item["label"] for item in one["top"]]
        if has_embedding:
            assert_allclose(row["embedding"], np.array(one["embedding"]), atol=1e-5)
            assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-5)


def test_all_forms_of_a_request_give_the_same(app: App, cat: bytes) -> None:
    encoded = base64.b64encode(cat).decode()
    answers = [
        post(app, "/v1/classify?top=3", multipart(("0", cat))),
        post(app, "/v1/classify", multipart(("0", cat), fields={"top": "3"})),
        post(app, "/v1/classify?top=3", cat, "image/jpeg"),
        post(app, "/v1/classify?top=3", cat, "application/octet-stream"),
        post(app, "/v1/classify", json.dumps({"images": [encoded], "top": 3}).encode(), "application/json"),
        post(
            app,
            "/v1/classify",
            json.dumps({"images": [{"data": f"data:image/jpeg;base64,{encoded}"}], "top": 3}).encode(),
            "application/json",
        ),
    ]
    assert [answer.status_code for answer in answers] == [200] * 6
    results = [answer.json()["results"] for answer in answers]
    assert results == [results[0]] * 6
    assert len(results[0][0]["top"]) == 3


def test_a_model_is_chosen_by_its_name(app: App, cat: bytes) -> None:
    other = default_model("embed")
    assert post(app, f"/v1/classify?model={other}", cat, "image/jpeg").json()["model"] == other
    for name in ("nothing", "", "../..", "local-dir:/etc", "hf-hub:a/b", "mixer_b16_224", other.upper()):
        answer = app.ask("POST", "/v1/classify", params={"model": name}, files={"file": cat})
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model"), name


def test_more_classes_than_the_model_has_are_all(app: App, cat: bytes) -> None:
    assert len(post(app, "/v1/classify?top=1000000", cat, "image/jpeg").json()["results"][0]["top"]) == 10


def test_embeddings_have_no_classes_to_choose(app: App, cat: bytes) -> None:
    answer = post(app, "/v1/embed?top=1", cat, "image/jpeg")
    assert (answer.status_code, answer.json()["detail"]) == (400, 'Embeddings have no "top".')


def test_every_image_has_its_own_status(app: App, cat: bytes) -> None:
    alone = post(app, "/v1/classify", multipart(("cat", cat))).json()["results"][0]
    bad = {"empty": b"", "text": b"<html>", "half": cat[: len(cat) // 2]}
    files = [("cat", cat), *bad.items(), ("cat", cat)]
    answer = post(app, "/v1/classify", multipart(*files))
    assert answer.status_code == 200
    rows = answer.json()["results"]
    assert [row["key"] for row in rows] == [name for name, _ in files]
    assert [row["status"] for row in rows] == ["ok", "empty", "unsupported_format", "corrupt_image", "ok"]
    assert rows[0] == rows[4] == alone
    for row in rows[1:4]:
        assert set(row) == {"key", "status", "message"}
        assert row["message"] == public_text(row["status"])


def test_limits_are_stated_with_what_exceeds_them(app: App) -> None:
    texts = {
        (8000, 7000): "the image has 8,000 x 7,000 pixels (width x height), the limit is 50,000,000 pixels",
        (70_000, 1): "the image has 70,000 x 1 pixels (width x height), the longest side allowed is 65,535",
    }
    for size, text in texts.items():
        PIL.Image.new("1", size).save(buffer := io.BytesIO(), "PNG")
        (row,) = post(app, "/v1/classify", multipart(("a.png", buffer.getvalue()))).json()["results"]
        assert row["message"] == text
        answer = post(app, "/v1/classify", buffer.getvalue(), "image/png")
        assert (answer.status_code, answer.json()["detail"]) == (422, f"T{text[1:]}.")
        encoded = base64.b64encode(buffer.getvalue()).decode()
        body = {"input": [encoded], "modality": "image", "model": default_model("embed")}
        answer = app.ask("POST", "/v1/embeddings", json=body)
        assert text in answer.json()["error"]["message"]
    answer = post(app, "/v1/classify", bytes(20_000_001), "image/png")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_bytes")
    assert answer.json()["detail"] == "The image has 20,000,001 bytes, the limit is 20,000,000."


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [(b"", 422, "empty"), (b"<html>", 415, "unsupported_format"), (b"\xff\xd8\xff", 422, "corrupt_image")],
)
def test_the_error_of_a_raw_image_is_that_of_the_request(app: App, data: bytes, status: int, code: str) -> None:
    answer = post(app, "/v1/classify", data, "image/jpeg")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert find_leaks(answer.content) == []


HOSTILE_NAMES = [
    *("../../etc/passwd", "/etc/passwd", "..\\..\\windows", "C:\\x.jpg", "<script>alert(1)</script>", "a'b", "a;b"),
    *("%00", "\u202egpj.exe", "\u0000", "a\tb", "\x1b[31m", "\U0001f431", "x" * 500, "nul", "con.jpg", "-rf", "$(id)"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_are_only_names(app: App, cat: bytes, name: str) -> None:
    body = json.dumps({"images": [{"data": base64.b64encode(cat).decode(), "name": name}], "top": 1}).encode()
    answer = post(app, "/v1/classify", body, "application/json")
    assert answer.status_code == 200
    assert answer.json()["results"][0]["key"] == name.replace("\\", "\\\\")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "", "9" * 10, "1e3", "\u0661", "86400001"])
def test_a_deadline_is_a_number_of_milliseconds(app: App, cat: bytes, value: str) -> None:
    headers = {"Content-Type": "image/jpeg", "X-Tessella-Deadline-Ms": value.encode()}
    answer = app.ask("POST", "/v1/classify", content=cat, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_deadline_that_cannot_be_met(app: App, photographs: list[bytes]) -> None:
    body = multipart(*[("a", photographs[0])] * 32)
    answer = post(app, "/v1/classify", body, X_Tessella_Deadline_Ms="1")
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert post(app, "/v1/classify", body, X_Tessella_Deadline_Ms="60000").status_code == 200


def test_models_are_listed(app: App) -> None:
    answer = app.ask("GET", "/v1/models").json()
    assert answer["object"] == "list"
    rows = {row["id"]: row for row in answer["data"]}
    assert list(rows) == [default_model("classify"), default_model("embed")]
    for task in ("classify", "embed"):
        row, predictor = rows[default_model(task)], tessella.load(default_model(task))
        assert row["default_for"] == [task]
        assert (row["state"], row["object"], row["owned_by"]) == ("ready", "model", "tessella")
        assert row["fingerprint"] == predictor.fingerprint
        assert (row["num_classes"], row["width"]) == (predictor.num_classes, predictor.width)
        assert row["input"] == [3, predictor.spec.height, predictor.spec.width]


def test_health(app: App, open_app: Callable[..., App]) -> None:
    assert app.ask("GET", "/healthz").json() == {"status": "ok"}
    assert app.ask("GET", "/readyz").json() == {"ready": True, "reason": ""}
    assert app.ask("HEAD", "/readyz").status_code == 200
    draining = open_app(drain_delay=0.0)
    draining.run(draining.service.drain())
    answer = draining.ask("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert answer.json()["reason"]
    assert int(answer.headers["retry-after"]) >= 1
    assert draining.ask("GET", "/healthz").status_code == 200


def test_a_server_that_stops_refuses_before_the_body_is_read(open_app: Callable[..., App], cat: bytes) -> None:
    app = open_app(drain_delay=0.0)
    app.run(app.service.drain())
    answer = post(app, "/v1/classify", cat, "image/jpeg")
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["connection"] == "close"


def test_a_server_that_is_loading_is_not_ready() -> None:
    async def ask() -> list[httpx.Response]:
        settings = ServeSettings()
        transport = httpx.ASGITransport(app=create_app(Service(settings), settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.get("/healthz"), await client.get("/readyz"), await client.post("/v1/embed")]

    health, ready, refused = asyncio.run(ask())
    assert (health.status_code, ready.status_code, refused.status_code) == (200, 503, 503)
    assert refused.json()["code"] == "not_ready"


def test_metrics(app: App, cat: bytes) -> None:
    post(app, "/v1/classify", cat, "image/jpeg")
    post(app, "/v1/classify", b"x", "text/plain")
    text = app.ask("GET", "/metrics").text
    assert 'tessella_requests_total{method="POST",route="/v1/classify",status="200"}' in text
    assert 'tessella_errors_total{code="unsupported_media_type"}' in text


PIXEL = "data:image/png;base64,AA=="
PNG, TEXT = (dict(content=b"x", headers={"Content-Type": kind}) for kind in ("image/png", "text/plain"))


def error_counts(app: App) -> dict[str, float]:
    """Return the number of errors by code."""
    lines = re.findall(r'^tessella_errors_total\{code="(\w+)"\} (\S+)$', app.ask("GET", "/metrics").text, re.MULTILINE)
    return {code: float(count) for code, count in lines}


@pytest.mark.parametrize(
    ("method", "path", "arguments", "code"),
    [
        ("GET", "/nothing", {}, "not_found_route"),
        ("GET", "/v1/models/none", {}, "unknown_model"),
        ("GET", "/v2/models/none/ready", {}, "unknown_model"),
        ("GET", "/v1/index", {}, "not_found"),
        ("POST", "/v1/classify", TEXT, "unsupported_media_type"),
        ("POST", "/v1/classify", PNG, "unsupported_format"),
        ("POST", "/v1/classify?model=none", PNG, "unknown_model"),
        ("POST", "/v1/explain?model=none", PNG, "unknown_model"),
        (
            "POST",
            "/v1/embeddings",
            dict(json={"model": "none", "input": [PIXEL]}),
            "unknown_model",
        ),
        ("POST", "/v1/embeddings", dict(json={"input": [PIXEL] * 9999}), "too_many_images"),
    ],
)
def test_every_refusal_is_counted_once(app: App, method: str, path: str, arguments: dict[str, Any], code: str) -> None:
    before = error_counts(app)
    answer = app.ask(method, path, **arguments)
    assert answer.headers["x-tessella-error"] == code
    after = error_counts(app)
    assert {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)} == {
        code: 1
    }


def test_an_overloaded_server_says_when_to_come_back(app: App, cat: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.service._admission, "max_images", 0)
    for seconds, expected in ((0.01, "1"), (3.2, "4")):
        monkeypatch.setattr(app.service, "_answer_seconds", seconds)
        answer = post(app, "/v1/classify", cat, "image/jpeg")
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert answer.headers["retry-after"] == expected


# --- clients that leave -----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_frees_its_places(server: ServerProcess, cat: bytes) -> None:
    """Requests of clients that left at once do not fill the queue, whose places they would need."""
    request = request_bytes("POST", "/v1/embed", multipart(*[("a", cat)] * 60), Content_Type=FORM)
    for _ in range(20):
        connection = connect(server.port)
        connection.sendall(request)
        connection.close()
    for _ in range(100):
        reply = exchange(server.port, request)
        if reply.status == 200:
            break
        assert reply.status == 429
    assert reply.status == 200
    metrics = exchange(server.port, request_bytes("GET", "/metrics")).body.decode()
    assert "tessella_queue_images 0.0" in metrics


def test_the_work_of_a_client_that_left_is_canceled(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real socket: the coroutine of the service is canceled while it waits."""
    started, canceled = asyncio.Event(), asyncio.Event()

    async def infer(self: Service, *_: object, **__: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            canceled.set()
            raise

    monkeypatch.setattr(Service, "refusal", lambda self: None)
    monkeypatch.setattr(Service, "infer", infer)

    async def run() -> str:
        settings = ServeSettings()
        service = Service(settings)
        config = uvicorn.Config(
            create_app(service, settings), port=0, lifespan="off", log_config=None, http=LimitedConnection
        )
        running = uvicorn.Server(config)
        task = asyncio.create_task(running.serve())
        while not running.started:
            await asyncio.sleep(0.01)
        port = running.servers[0].sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes("POST", "/v1/embed", b"x", Content_Type="image/png"))
        await asyncio.wait_for(started.wait(), 60)
        writer.transport.abort()
        await asyncio.wait_for(canceled.wait(), 60)
        running.should_exit = True
        await task
        return service.metrics.render().decode()

    metrics = asyncio.run(run())
    assert 'tessella_requests_total{method="POST",route="/v1/embed",status="499"} 1.0' in metrics


# --- traversal --------------------------------------------------------------------------------------------------------

STEPS = [
    *("../", "..\\", "%2e%2e/", "%2e%2e%2f", "..%2f", "%2e%2e%5c", "..%5c", "%252e%252e%252f", "..%c0%af", "..//"),
    *("%c0%ae%c0%ae/", "....//", "....\\\\", "..;/", ".%2e/", "%2e./", "..%00/", "..%0d/", "..%ef%bc%8f"),
    "%uff0e%uff0e/",
]
FILES = [
    *("etc/passwd", "proc/self/environ", "windows/win.ini", "etc%2fpasswd", "pyproject.toml"),
    "src/tessella/errors.py",
]
ABSOLUTE = [
    *("/etc/passwd", "//etc/passwd", "/%2fetc%2fpasswd", "/C:/windows/win.ini", "/C:%5cwindows%5cwin.ini"),
    *("/file:///etc/passwd", "/\\\\server\\share", "/%5c%5cserver%5cshare", "/.git/config", "/.env", "/%2e%2e", "/.."),
    *("/.", "/%00", "/etc/passwd%00.js"),
]
PREFIXES = ["", "v1/", "v1/models/", "static/", "v2/models/"]
TRAVERSALS = [f"/{prefix}{step * 6}{file}" for prefix in PREFIXES[:2] for step in STEPS for file in FILES]
TRAVERSALS += [f"/{prefix}{step * 3}etc/passwd" for prefix in PREFIXES[2:] for step in STEPS] + ABSOLUTE


def test_no_path_leads_to_a_file(server: ServerProcess) -> None:
    assert len(set(TRAVERSALS)) >= 300
    for path in TRAVERSALS:
        for method in ("GET", "POST"):
            reply = exchange(server.port, request_bytes(method, path))
            assert reply.status in (400, 404, 405), (path, reply)
            assert find_leaks(reply.body) == []
            assert b"root:" not in reply.body


def test_no_model_name_leads_to_a_file(server: ServerProcess, cat: bytes) -> None:
    for name in [path.lstrip("/") for path in TRAVERSALS[::7]]:
        request = request_bytes("POST", f"/v1/classify?model={name}", cat, Content_Type="image/jpeg")
        reply = exchange(server.port, request)
        assert reply.status in (400, 404), (name, reply)
        assert find_leaks(reply.body) == []


# --- odd images -------------------------------------------------------------------------------------------------------


def test_odd_images_are_results_or_coded_errors(server: ServerProcess, shared_data: Path, cat: bytes) -> None:
    """Each alone as a raw body, and all of them in forms with a good image, whose result stays the same."""
    with (shared_data / "odd-images.tsv").open(newline="") as table:
        listed = {row["file"]: row["outcome"] for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)}
    files = {}
    with tarfile.open(shared_data / "odd-images.tar.gz") as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                files[Path(member.name).name] = file.read()
    assert len(files) == len(listed) >= 640
    statuses: dict[str, str] = {}
    for name, data in files.items():
        reply = exchange(server.port, request_bytes("POST", "/v1/classify", data, Content_Type="image/png"), seconds=60)
        assert reply.status in (200, 413, 415, 422), (name, reply)
        assert find_leaks(reply.body) == [] or reply.status == 200, name
        statuses[name] = "ok" if reply.status == 200 else str(reply.header("x-tessella-error"))
    agreeing = sum((statuses[name] == "ok") == (outcome == "decoded") for name, outcome in listed.items())
    assert agreeing / len(listed) > 0.9  # the others are listed with the tests of decoding
    alone = exchange(server.port, request_bytes("POST", "/v1/classify", multipart(("cat", cat)), Content_Type=FORM))
    expected = alone.json["results"][0]  # type: ignore[index]
    names = list(files)
    for start in range(0, len(names), 40):
        some = names[start : start + 40]
        body = multipart(("cat", cat), *((name, files[name]) for name in some), ("cat", cat))
        reply = exchange(server.port, request_bytes("POST", "/v1/classify", body, Content_Type=FORM), seconds=60)
        assert reply.status == 200, reply
        rows = reply.json["results"]  # type: ignore[index]
        assert rows[0] == rows[-1] == expected
        assert {row["key"]: row["status"] for row in rows[1:-1]} == {name: statuses[name] for name in some}
        for row in rows[1:-1]:
            if row["status"] != "ok":
                assert row["message"] == public_message(ImageError(row["status"], row["message"]))  # a text or a limit


def test_the_message_of_a_library_never_leaves_the_server(
    app: App, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the service says about an image."""
    real = Service.infer

    async def infer(self: Service, *arguments: Any, **options: Any) -> Any:
        answer = await real(self, *arguments, **options)
        answer.outcomes[0] = ImageError("corrupt_image", "<_io.BytesIO object at 0x7f1122334455> in /usr/lib/x.py")
        return answer

    monkeypatch.setattr(Service, "infer", infer)
    for body, kind in ((multipart(("cat", cat)), FORM), (cat, "image/jpeg")):
        answer = post(app, "/v1/classify", body, kind)
        assert find_leaks(answer.content) == []
        assert "corrupt_image" in answer.text


def test_fetching_images_counts_against_the_deadline(app: App, cat: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """And images that were fetched are answered as others are."""
    given: list[float] = []
    real = Service.infer

    async def fetch(url: str, **_: object) -> bytes:
        await asyncio.sleep(0.2)
        if "bad" in url:
            raise ImageError("url_failed", "no image at 192.0.2.1")
        return cat

    async def infer(self: Service, *arguments: Any, deadline: float, **options: Any) -> Any:
        given.append(deadline)
        return await real(self, *arguments, deadline=deadline, **options)

    monkeypatch.setattr(images, "fetch_image", fetch)
    monkeypatch.setattr(Service, "infer", infer)
    allowing = dataclasses.replace(app.settings, allow_urls=True)
    inner = app.app.app.app.state  # type: ignore[attr-defined]
    monkeypatch.setattr(inner, "settings", allowing)
    body = json.dumps({"images": [{"url": "https://example.com/cat.jpg"}, {"url": "https://example.com/bad"}]}).encode()
    answer = post(app, "/v1/classify", body, "application/json", X_Tessella_Deadline_Ms="9000")
    rows = answer.json()["results"]
    assert [row["status"] for row in rows] == ["ok", "url_failed"]
    assert rows[1]["message"] == public_text("url_failed")
    assert rows[0]["top"][0]["label"] == "cat"
    assert 0 < given[0] <= 9 - 0.2
