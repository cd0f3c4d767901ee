"""Image URLs through the application: refused without opening a socket, or fetched by the rules of `serve.fetch`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tessella.serve import images
from tessella.serve.fetch import fetch_image

from .conftest import App
from .internet import PUBLIC, SmallInternet, always, response, socket_events

URLS = [
    *(
        "https://example.com/a.jpg",
        "http://127.0.0.1:80/",
        "https://[::1]/",
        "https://localhost/",
        "file:///etc/passwd",
    ),
    *(
        "ftp://example.com/a.jpg",
        "https://169.254.169.254/latest/meta-data/",
        "//example.com/a.jpg",
        "s3://bucket/a.jpg",
    ),
]
REQUESTS: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
    ("/v1/classify", lambda url: {"images": [{"url": url}]}),
    ("/v1/classify", lambda url: {"images": [url]}),
    ("/v1/embed", lambda url: {"images": [{"url": url, "name": url}]}),
    ("/v1/embed", lambda url: {"images": [{"data": url}]}),
    ("/v1/predict", lambda url: {"images": [{"url": url}]}),
    ("/v1/embeddings", lambda url: {"input": [url], "modality": "image"}),
    ("/v1/embeddings", lambda url: {"input": [{"image": url}]}),
    ("/embeddings", lambda url: {"input": [url], "modality": "image"}),
    ("/v2/embed", lambda url: {"images": [url], "input_type": "image", "embedding_types": ["float"]}),
    ("/v1/search", lambda url: {"queries": [{"data": url}]}),
]
OUTGOING = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto"}


@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=[f"{n}{path}" for n, (path, _) in enumerate(REQUESTS)])
def test_urls_are_refused_by_default_and_open_no_socket(
    app: App, path: str, body: Callable[[str], dict[str, Any]]
) -> None:
    for url in URLS:
        with socket_events() as events:
            answer = app.ask("POST", path, json=body(url))
        assert events.count("socket.__new__") == 0, url
        assert OUTGOING & set(events) == set(), url
        if answer.status_code == 200:
            (result,) = answer.json()["results"]
            assert result["status"] in ("url_refused", "unreadable")
        else:
            assert 400 <= answer.status_code < 500


def test_a_url_that_is_allowed_gives_the_result_of_its_image(
    open_app: Callable[..., App], cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(allow_urls=True)

    async def start() -> SmallInternet:
        internet = await SmallInternet().__aenter__()
        await internet.add_host(always(response(cat)), tls=True)
        internet.names = {"images.example.com": [[PUBLIC]], "private.example.com": [["10.0.0.1"]]}
        return internet

    internet = app.run(start())
    monkeypatch.setattr(images, "fetch_image", functools.partial(fetch_image, network=internet.network))
    try:
        urls = [
            "https://images.example.com/cat.jpg",
            "https://private.example.com/",
            "https://gone.example.com/",
            *URLS[1:],
        ]
        answer = app.ask("POST", "/v1/classify", json={"images": [{"url": url} for url in urls]})
        expected = app.ask("POST", "/v1/classify", files={"0": ("0", cat)})
        fetched, *others = answer.json()["results"]
        assert fetched == expected.json()["results"][0]
        assert fetched["status"] == "ok"
        assert [result["status"] for result in others] == [
            "url_refused",
            "url_failed",
            *["url_refused"] * len(URLS[1:]),
        ]
        assert (internet.connected, internet.canary_connections) == ([PUBLIC], 0)
        for text in ("10.0.0.1", PUBLIC, "example.com"):
            assert text not in answer.text
    finally:
        app.run(internet.__aexit__())
