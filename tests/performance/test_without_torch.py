"""`tessella bench` and `tessella tune` where PyTorch is not installed: what needs it is listed with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ..test_builtin import CIFAR10_MODEL

PROGRAM = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from tessella.performance import measuring
measuring.TURN_SECONDS, measuring.SIDE = 0.0, {"cpu": 64}
from tessella.cli.program import main
sys.argv[0] = "tessella"
main()
"""


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TESSELLA_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True)


def run(folder: Path, *arguments: str) -> str:
    done = start(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bench(tmp_path: Path) -> None:
    out = run(tmp_path, "bench", "--json", "--rounds", "1", "--batch", "2", "--engines", "eager,openvino,auto")
    rows = {row["candidate"]: row for row in map(json.loads, out.splitlines())}
    assert rows["eager"]["status"] == "missing_dependency"
    assert "torch" in rows["eager"]["note"]
    for name in ("openvino", "auto (float32)"):
        assert rows[name]["status"] == "ok"
        assert rows[name]["images_per_second"] > 0
        assert rows[name]["share_of_gemm"] > 0


def test_tune(tmp_path: Path) -> None:
    told = json.loads(run(tmp_path, "tune", CIFAR10_MODEL, "--json", "--seconds", "3", "--precision", "float32"))
    assert {winner["engine"] for winner in told["winners"].values()} == {"openvino"}
    notes = {row["engine"]: row["note"] for row in told["rows"] if not row.get("rounds")}
    assert set(notes) == {"rewritten", "onnxruntime"}
    assert all("torch" in note for note in notes.values())
    assert list(tmp_path.glob("tuned/*.json"))


def test_engines_that_need_pytorch_are_listed_below_the_table(tmp_path: Path) -> None:
    lines = run(tmp_path, "tune", "--seconds", "3", "--precision", "float32").splitlines()
    (line,) = (line for line in lines if "torch" in line)
    assert line == (
        "not measured, because packages are not installed: rewritten (needs torch), onnxruntime (needs torch)"
    )
    assert not any(line.startswith(("latency ", "throughput ")) and "rewritten" in line for line in lines)
    assert lines.index(line) > max(number for number, line in enumerate(lines) if line.startswith("throughput "))
