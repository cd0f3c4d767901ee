"""The description of the routes of a collection is true by thousands of generated requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tessella
from tessella.bulk import run as run_images
from tessella.search import build_index
from tessella.weights.catalogue import default_model

from .conftest import EXAMPLES
from .servers import ServerProcess
from .test_openapi import CONFIG
from .test_openapi import EXAMPLES as GENERATED

pytest.importorskip("lancedb")


@pytest.mark.timeout(3600)
def test_requests_to_a_collection_are_answered_as_described(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_images(str(EXAMPLES), run, tessella.load(default_model("embed"), precision="float32"))
    build_index(run, map="pca")
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with ServerProcess("--index", str(run), "--body-timeout", "5") as process:
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
        command += ["--config-file", str(config), "run", f"{process.url}/openapi.json", "--checks", "all"]
        command += ["--include-path-regex", "/v1/(index|search|teach|heads)", "--seed", "1", "--no-color"]
        command += ["--max-examples", str(max(GENERATED // 2, 1))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=3000)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "Traceback" not in "".join(process.errors)
    for path in (run / "heads").glob("*"):  # heads that were saved have names that are allowed
        assert path.name == ".lock" or json.loads(path.read_text())["kind"] == "head"
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "schemathesis.toml", ".schemathesis", ".hypothesis"}
