"""The README is true: its programs run, its commands print what it shows, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tessella.errors import CODES

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def blocks(language: str) -> list[str]:
    bodies = [body for name, body in BLOCKS if name == language]
    assert bodies
    return bodies


def without_numbers(text: str) -> str:
    """Return text without digits and spacing: the last digit of a probability may differ between processors."""
    return re.sub(r"\s+", " ", re.sub(r"[-+]?\d+(\.\d+)?", "#", text)).strip()


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {name for name, _ in BLOCKS} == {"sh", "console", "python"}


@pytest.mark.parametrize("program", blocks("python"))
def test_programs_run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


CONSOLE = [f"$ {command}" for block in blocks("console") for command in block.split("$ ")[1:]]
IN_SENTENCES = re.findall(r"`(tessella (?:dedup|probe|evaluate) [^`]*)`", TEXT)


def run_server(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a server, on any free port, and stop it as soon as it has printed that it serves."""
    command = [sys.executable, "-m", "tessella", *arguments, "--port", "0", "--drain-delay", "0"]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
    assert process.returncode == 0
    return subprocess.CompletedProcess(command, 0, line, "")


def run_command(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    name, *arguments = shlex.split(command)
    assert name == "tessella"
    if arguments[0] == "serve":
        return run_server(arguments, folder)
    done = subprocess.run(
        [sys.executable, "-m", "tessella", *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_commands_work_in_order_and_print_what_is_shown(tmp_path: Path) -> None:
    """The commands read only files of the repository, and write nothing into it."""
    for name in ("examples", "clothing"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for block in CONSOLE:
        command, _, shown = block.removeprefix("$ ").partition("\n")
        done = run_command(command, tmp_path)
        printed = {without_numbers(line) for line in (done.stdout + done.stderr).splitlines()}
        for line in shown.splitlines():
            if line.startswith("fine-tuning "):  # which weights are kept may differ between processors
                assert any(other.startswith("fine-tuning ") for other in printed)
            elif line != "...":
                assert without_numbers(line) in printed, command
    assert "data:image/png" in (tmp_path / "hats.html").read_text()
    assert (tmp_path / "run" / "report").is_dir()
    assert len(IN_SENTENCES) == 2
    for command in IN_SENTENCES:
        run_command(command, tmp_path)


def test_every_exit_status_is_listed() -> None:
    statuses = {kind.exit_code for kind in CODES.values()} | {0}
    sentence = TEXT.partition("Exit status: ")[2].partition("\n\n")[0]
    assert {int(number) for number in re.findall(r"\b(\d+) [a-z]", sentence)} == statuses
    assert CODES["cache_failed"].exit_code == CODES["hub_unavailable"].exit_code == 5
    assert ", 5 model hub or local cache failed, 6" in re.sub(r"\s+", " ", sentence)


def test_every_extra_is_listed_with_its_packages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = TEXT.partition("| extra |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.M))
    assert set(rows) == set(extras) - {"all", "dev"}
    for name, packages in rows.items():
        installed = [one.replace("tessella[torch]", "torch") for one in extras[name]]
        assert packages.strip().split(", ") == [re.split(r"[\[>]", one)[0] for one in installed]


def test_shell_blocks_name_scripts_that_exist() -> None:
    for block in blocks("sh"):
        for line in block.splitlines():
            first, *rest = line.split()
            if first == "source":  # an environment that one of the scripts creates
                assert rest[0].partition("/bin/activate")[0] in (ROOT / "scripts" / "environment").read_text(), line
            else:
                assert os.access(ROOT / first, os.X_OK), line


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
