"""Every code block of the documentation runs and prints what the page shows, or says why it is not run."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tessella.cli.program import cli

from .blocks import LANGUAGES, REASONS, ROOT, pages, read_page, reason_not_to_run, shown_commands, unknown_options
from .folders import ON_DATA, prepare
from .reader import follow

DATA = ROOT.parent / "shared" / "data"
LONG = {f"docs/guide/{name}.md" for name in ("calibration", "compare", "explain", "training")}
RUN_HERE = [
    pytest.param(page, marks=pytest.mark.slow if page in LONG or page.startswith("docs/families/") else ())
    for page in pages()
    if page != "README.md"  # tests/test_readme.py runs it
]


@pytest.mark.parametrize("page", pages())
def test_blocks_are_run_or_say_why_not(page: str) -> None:
    document = read_page(ROOT / page, lambda example: None)
    previous = ""
    for example in document:
        language, reason = example.region.lexemes["language"], reason_not_to_run(document, example.region)
        place = f"{page}:{example.line}"
        if reason is not None:
            assert reason in REASONS, f"{place}: the reasons are {', '.join(REASONS)}"
        else:
            assert language in LANGUAGES, f"{place}: mark this block with <!-- not run: REASON -->"
            if language == "text":
                assert previous == "python", f"{place}: only what a Python block prints is compared; mark this block"
        previous = "" if reason else language


@pytest.mark.parametrize("page", pages())
def test_blocks_that_are_not_run_are_correct_as_far_as_can_be_seen(page: str) -> None:
    """Programs can be compiled, and the commands of this project have the options that are given."""
    assert isinstance(cli, click.Group)
    document = read_page(ROOT / page, lambda example: None)
    for example in document:
        if reason_not_to_run(document, example.region) is None:
            continue
        language, source = example.region.lexemes["language"], str(example.parsed)
        if language == "python":
            compile(source, page, "exec")
        elif language in ("console", "sh"):
            commands = [text for text, _ in shown_commands(source)] if language == "console" else source.splitlines()
            unknown = [name for command in commands for name in unknown_options(command, cli)]
            assert unknown == [], f"{page}:{example.line}"


@pytest.mark.timeout(1800)  # seconds per page on an idle machine
@pytest.mark.parametrize("page", RUN_HERE)
def test_blocks_do_what_the_page_shows(page: str, tmp_path: Path) -> None:
    if page in ON_DATA and not DATA.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    prepare(page, tmp_path, DATA if DATA.is_dir() else None)
    problems = list(follow(page, tmp_path))
    assert not problems, "\n\n".join(problems)
