"""The README is true: its programs run, its commands print what it shows, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def blocks(language: str) -> list[str]:
    found = [body for name, body in BLOCKS if name == language]
    assert found
    return found


def without_numbers(text: str) -> str:
    """Digits and spacing aside: the last digit of a probability may differ between processors."""
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


TRAINING = [block for block in blocks("console") if block.startswith("$ tessella train")]
COLLECTION = [block for block in blocks("console") if block.startswith("$ tessella run")]


def typed(block: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], str]:
    """The command of a block, done in a folder, and what the block shows of it."""
    command, _, shown = block.removeprefix("$ ").partition("\n")
    name, *arguments = shlex.split(command)
    assert name == "tessella"
    done = subprocess.run(
        [sys.executable, "-m", "tessella", *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done, shown


@pytest.mark.parametrize("block", [block for block in blocks("console") if block not in TRAINING + COLLECTION])
def test_commands_print_what_is_shown(block: str) -> None:
    done, shown = typed(block, ROOT)
    assert without_numbers(done.stdout) == without_numbers(shown)


def test_training_tells_what_is_shown(animals: Path, tmp_path: Path) -> None:
    (tmp_path / "animals").symlink_to(animals)
    done, shown = typed(TRAINING[0], tmp_path)
    assert without_numbers(done.stderr) == without_numbers(shown)


def test_a_collection_is_run_and_searched_as_shown(shared_data: Path, tmp_path: Path) -> None:
    """The first 200 photographs by name, one of them twice, and half a one."""
    photos = tmp_path / "photos"
    photos.mkdir()
    with tarfile.open(shared_data / "photos.tar") as archive:
        members = sorted((one for one in archive if one.name.endswith(".jpg")), key=lambda one: one.name)[:200]
        for member in members:
            archive.extract(member, photos, filter="data")
    first, eighth = (photos / members[i].name for i in (0, 7))
    (photos / "broken.jpg").write_bytes(first.read_bytes()[:3000])
    shutil.copy(eighth, photos / f"copy of {eighth.name}")
    for block in COLLECTION[0].split("$ ")[1:]:
        done, shown = typed(f"$ {block}", tmp_path)
        printed = {without_numbers(line) for line in (done.stdout + done.stderr).splitlines()}
        for line in shown.splitlines():
            assert without_numbers(line) in printed
    assert "data:image/png" in (tmp_path / "flamingo.html").read_text()


def test_shell_blocks_name_scripts_that_exist() -> None:
    for block in blocks("sh"):
        for line in block.splitlines():
            script = ROOT / line.split()[0]
            assert os.access(script, os.X_OK), line


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
