"""Fixtures of the tests of the server."""

from __future__ import annotations

import pytest

from tessella.serve import models

from .engines import FakeEngine, fake_predictor


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine of all models that services open in this test."""
    engine = FakeEngine()
    monkeypatch.setattr(models, "open_predictor", lambda source, settings: fake_predictor(source, engine))
    return engine
