"""Clients of other servers, unmodified, call a server with their own functions.

They run in an environment of their own, because their requirements conflict with those of the package. Each script in
`clients/` runs once and returns everything that its client got; the tests compare that with what `tessella.load` gives.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.predictor import Predictor
from tessella.results import Output

from ..structure import ROOT
from .live import live_server

MODEL = "convmixer_256_8_ks3_p4.cifar10"
OTHER_MODEL = "gmixer_ti_p4_32.cifar10"
TOKEN = "a-token-of-this-test"
MAX_IMAGES = 8
CLIENTS = ROOT / ".venv-clients" / "bin" / "python"
SCRIPTS = Path(__file__).with_name("clients")
FILES = [next((ROOT / "clothing" / name).glob("*.jpg")) for name in ("hat", "pants", "shoes")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with two models and a token."""
    with live_server(models=[MODEL, OTHER_MODEL], token=TOKEN, max_images=MAX_IMAGES) as url:
        yield url


@cache
def predictor() -> Predictor:
    return tessella.load(MODEL)


def logits_of(images: Sequence[Path | np.ndarray]) -> np.ndarray:
    """Return the logits of the Predictor, (N, classes)."""
    rows = []
    for output in predictor().outputs(images):
        assert isinstance(output, Output)
        rows.append(output.logits)
    return np.stack(rows)


def run_script(name: str, url: str) -> dict[str, Any]:
    """Run a script of `clients/` against a server, and return what its client got."""
    if not CLIENTS.exists():
        message = "the clients are not installed (.venv-clients), scripts/test does that"
        if "clients" in os.environ.get("TESSELLA_REQUIRED_TESTS", ""):
            pytest.fail(message)
        pytest.skip(message)
    files = [base64.b64encode(path.read_bytes()).decode() for path in FILES]
    job = json.dumps(dict(url=url, token=TOKEN, model=MODEL, files=files))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    command = [CLIENTS, SCRIPTS / f"{name}_script.py"]
    done = subprocess.run(command, input=job, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def assert_vectors(actual: object) -> None:
    """Compare embeddings with those of the Predictor."""
    np.testing.assert_allclose(np.array(actual, np.float32), predictor().embed(FILES), atol=1e-4)


def assert_logits(actual: object) -> None:
    """Compare logits with those of the Predictor."""
    np.testing.assert_allclose(np.array(actual, np.float32), logits_of(FILES), atol=1e-4)
