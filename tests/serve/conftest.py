"""A server that the tests of one module share, an application without a process, and a service with a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tessella.serve import ServeSettings, Service
from tessella.serve import models as served_models
from tessella.serve.app import create_app

from .engines import FakeEngine, fake_predictor
from .servers import ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOKEN = "a-token-for-tests"


@pytest.fixture(scope="session")
def cat() -> bytes:
    """A photograph."""
    return (EXAMPLES / "cat.jpg").read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server with the built-in models, whose time for bodies is short."""
    with ServerProcess("--body-timeout", "2") as process:
        yield process


class App:
    """The application on an event loop, with the built-in models; the requests of a test are made by `ask`."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.runner = asyncio.Runner()
        self.service = self.run(self._start())
        self.app = create_app(self.service, settings)

    async def _start(self) -> Service:
        service = Service(self.settings)
        await service.start()
        return service

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Make one request with httpx, in this process."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
                return await client.request(method, path, **arguments)

        return self.run(send())

    def close(self) -> None:
        self.run(self.service.close())
        self.runner.close()


@pytest.fixture(scope="package")
def app() -> Iterator[App]:
    """The application with its default settings."""
    opened = App(ServeSettings())
    yield opened
    opened.close()


@pytest.fixture(scope="package")
def open_app() -> Iterator[Callable[..., App]]:
    """A function that opens the application with other settings."""
    opened: list[App] = []

    def open_with(**settings: Any) -> App:
        opened.append(App(ServeSettings(**settings)))
        return opened[-1]

    yield open_with
    for item in opened:
        item.close()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine of all models that services open in this test."""
    engine = FakeEngine()
    monkeypatch.setattr(served_models, "open_predictor", lambda source, settings: fake_predictor(source, engine))
    return engine
