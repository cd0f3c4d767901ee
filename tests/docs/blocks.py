"""Find the code blocks of the documentation and what says that one of them is not run.

A block that cannot be run has a comment on the line before it, which is not shown on the page:

    <!-- not run: needs the network -->
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
from sybil import Document, Region, Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from sybil.typing import Evaluator

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("python", "console", "sh", "json", "text")  # of blocks that are run or compared
REASONS = (
    "needs the network",
    "needs a GPU",
    "needs a cluster",
    "needs a system service",
    "takes hours",
    "measures this machine",
    "another project's code",
    "output only",
)
_MARK = re.compile(r"<!-- not run: (.*) -->")
_LEXER = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)\n"))


def pages() -> list[str]:
    """Return the pages whose blocks are run, relative to the root of the repository."""
    folders = ("docs/tutorials", "docs/guide", "docs/reference", "docs/explanation", "docs/families")
    found = [path for folder in folders for path in sorted((ROOT / folder).glob("*.md"))]
    single = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
    return [path.relative_to(ROOT).as_posix() for path in [*single, *found]]


def read_page(path: Path, evaluate: Evaluator) -> Document:
    """Return a page with its code blocks as examples; `evaluate` runs one of them."""

    def find(document: Document) -> Iterator[Region]:
        for region in _LEXER(document):
            if region.lexemes["language"].startswith("{"):
                continue  # a directive of MyST, such as a table of contents
            region.parsed, region.evaluator = region.lexemes["source"], evaluate
            yield region

    return Sybil(parsers=[find]).parse(path)


def reason_not_to_run(document: Document, region: Region) -> str | None:
    """Return what the comment on the line before a block says, or None without such a comment."""
    lines = document.text[: region.start].splitlines()
    match = _MARK.fullmatch(lines[-1].strip()) if lines else None
    return match and match[1]


def shown_commands(source: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a console block, each with the lines that are shown below it.

    A command begins with "$ ", and goes on as long as its lines end with a backslash.
    """
    found: list[tuple[str, list[str]]] = []
    continued = False
    for line in source.splitlines():
        if continued:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
            continued = line.endswith("\\")
        elif line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
            continued = line.endswith("\\")
        elif found:
            found[-1][1].append(line)
        else:
            raise ValueError(f"the block does not begin with a command ('$ tessella ...') but with {line!r}")
    return found


def unknown_options(command: str, program: click.Group) -> list[str]:
    """Return the subcommand or the options of a `tessella` command that do not exist."""
    words = shlex.split(command, comments=True)
    if len(words) < 2 or words[0] != "tessella" or words[1].startswith("-"):
        return []
    if words[1] not in program.commands:
        return [words[1]]
    known = {name for option in program.commands[words[1]].params for name in (*option.opts, *option.secondary_opts)}
    options = [word.partition("=")[0] for word in words[2:] if word.startswith("-") and word != "-"]
    return [name for name in options if name not in known]
