"""Shared fixtures: where the golden values and the optional shared data are; no test reaches the network."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported; tests of the Hub undo it in a subprocess
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
_cache = tempfile.TemporaryDirectory(prefix="tessella-tests-")  # gone with the process
os.environ["TESSELLA_CACHE"] = _cache.name  # nothing that a person tuned decides a test

settings.register_profile("tessella", deadline=None)  # how long an example takes depends on the load of the machine
settings.load_profile("tessella")

TESTS = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def pytest_collection_finish() -> None:
    """Exclude the thousands of collected tests from garbage collections, each of which took two seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Restore the levels of the package's loggers, which a command run in this process sets."""
    loggers = [logging.getLogger(name) for name in ("tessella", "tessella.engine")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; without one the tests are skipped, unless the environment insists on it, as CI does.

    It is closed after each module, because Playwright's event loop runs until then: other tests need one of their own.
    """
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        message = "there is no chromium on this machine; install it with: apt-get install -y chromium"
        if "browser" in os.environ.get("TESSELLA_REQUIRED_TESTS", ""):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference numbers of timm 1.0.31, committed with the tests."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder that may lie beside the checkout (CIFAR-10, photographs, odd images)."""
    path = TESTS.parent.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def animals(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class with 100 of CIFAR-10's test images each."""
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("animals")
    table = pq.read_table(shared_data / "cifar10-test.parquet")
    for label, name in ((3, "cat"), (5, "dog"), (7, "horse")):
        (folder / name).mkdir()
        rows = np.flatnonzero(table["label"].to_numpy() == label)[:100]
        for row in rows:
            (folder / name / f"{row}.jpg").write_bytes(table["image"][int(row)].as_py()["bytes"])
    return folder
