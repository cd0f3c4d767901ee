"""The README is true: its programs run, its commands print what it shows, its links lead somewhere."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from tessella.errors import CODES

from .docs.folders import prepare
from .docs.reader import follow

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)


def blocks(language: str) -> list[str]:
    bodies = [body for name, body in BLOCKS if name == language]
    assert bodies
    return bodies


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


IN_SENTENCES = re.findall(r"`(tessella (?:dedup|probe|evaluate) [^`]*)`", TEXT)


@pytest.mark.timeout(1800)
def test_commands_and_programs_do_what_is_shown(tmp_path: Path) -> None:
    """They read only files of the repository, and write nothing into it."""
    prepare("README.md", tmp_path, None)
    assert list(follow("README.md", tmp_path)) == []
    assert "data:image/png" in (tmp_path / "hats.html").read_text()
    assert (tmp_path / "run" / "report").is_dir()
    assert len(IN_SENTENCES) == 2
    page = tmp_path / "sentences.md"
    page.write_text("\n".join(["```sh", *IN_SENTENCES, "```\n"]))
    assert list(follow(str(page), tmp_path)) == []


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
