"""Shared fixtures: where the golden values and the optional shared data are; no test reaches the network."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported; tests of the Hub undo it in a subprocess
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
_cache = tempfile.TemporaryDirectory(prefix="tessella-tests-")  # gone with the process
os.environ["TESSELLA_CACHE"] = _cache.name  # nothing that a person tuned decides a test

TESTS = Path(__file__).resolve().parent


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
