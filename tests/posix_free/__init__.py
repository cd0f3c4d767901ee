"""Run Python in a process that lacks what only POSIX systems have, so that tests find what needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_without_posix(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder`, on this machine but without the modules and functions in removed.py."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path[1:]]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def command_without_posix(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of `tessella` in the same way."""
    code = f"import sys; sys.argv = {['tessella', *map(str, arguments)]!r}; from tessella.cli import main; main()"
    return run_without_posix(code, folder)
