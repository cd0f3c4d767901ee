"""Artifacts and their receipts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.verification import verify, write_receipt

from .made import copy_artifacts, make_artifacts

KINDS = ("weights", "saved", "exported", "run", "index", "trained")


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small artifact of each kind; tests leave them as they are."""
    return copy_artifacts(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="session")
def receipts(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The receipt of each of these artifacts."""
    folder = tmp_path_factory.mktemp("receipts")
    for kind, path in artifacts.items():
        write_receipt(verify(path), folder / f"{kind}.json")
    return {kind: folder / f"{kind}.json" for kind in artifacts}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export, a run and its index, of the built-in model for CIFAR-10; tests leave them as they are."""
    return make_artifacts(tmp_path_factory.mktemp("made"))
