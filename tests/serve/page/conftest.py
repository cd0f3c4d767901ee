"""A small server over real images, and a page that may not break any rule unnoticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tessella.bulk import run
from tessella.predictor import Predictor, load
from tessella.search import build_index

from .browser import Visit
from .stand_in import Collection, StandIn

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def indexed_run(tmp_path_factory: pytest.TempPathFactory, predictor: Predictor) -> Path:
    """The index of the example photographs and some of clothing, with a copy of the cat and a file that is no image."""
    folder = tmp_path_factory.mktemp("collection")
    images = folder / "images"
    shutil.copytree(ROOT / "clothing", images)
    for name in ("astronaut", "cat", "coffee", "rocket"):
        shutil.copy(ROOT / "examples" / f"{name}.jpg", images)
    shutil.copy(ROOT / "examples" / "cat.jpg", images / "the same cat.jpg")
    (images / "a note.jpg").write_text("not an image")  # so that numbers of rows and positions in the index differ
    (images / "README.md").unlink()
    run(images, folder / "run", predictor)
    build_index(folder / "run", map="pca")
    return folder / "run"


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """The built-in model for photographs, whose answers tests give a meaning of their own."""
    return load("convmixer_384_8_ks5_p8.photographs", calibration=None)


@pytest.fixture(scope="session")
def collection(indexed_run: Path) -> Collection:
    """What the index holds."""
    return Collection.read(indexed_run)


@pytest.fixture(scope="module")
def server(collection: Collection, predictor: Predictor) -> Iterator[StandIn]:
    """The server of a module; `site` resets it for each test."""
    opened = StandIn(collection, predictor).start()
    yield opened
    opened.stop()


@pytest.fixture
def site(server: StandIn, collection: Collection) -> StandIn:
    """The server, in its first state."""
    server.collection, server.has_map, server.token = collection, True, None
    server.can_explain, server.calibration = True, None
    server.assessments.clear()
    server.explanation.clear()
    server.failures.clear()
    server.requests.clear()
    server.heads.clear()
    return server


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    """A function that opens an address in a new browser context: visit(address, **options of the context).

    At the end of the test, no page may have violated the Content Security Policy, sent a request to another host,
    raised an error, written to the console, or run a script that a test planted; a test lists what it expects.
    """
    visits: list[Visit] = []

    def open_page(address: str, **options: Any) -> Visit:
        visits.append(Visit(browser, address, tmp_path, options))
        return visits[-1]

    yield open_page
    for opened in visits:
        opened.close()
