"""Fixtures for the tests of training: images, and a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.training import results

from .small_runs import make_images, run, small


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data"))


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the report, whose figures take most of the time of a small run."""
    monkeypatch.setattr(results, "write_report", lambda *args, **more: None)


@pytest.fixture(scope="session")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run(data, out, small(ema_decay=0.9))
    return out
