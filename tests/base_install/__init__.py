"""Run Python as in the base install: without PyTorch and the packages of the other extras."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """Return environment variables that hide the extras from a Python process and from its children."""
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run_code(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code without the extras, in `folder`; its output is text."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


def tessella(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `tessella ARGUMENTS` without the extras, in `folder`; its output is text."""
    command = [sys.executable, "-m", "tessella", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
