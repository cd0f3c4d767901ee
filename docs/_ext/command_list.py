"""The directive `command-list`: every command with its line of the help and a link to its description."""

from __future__ import annotations

import re
from pathlib import Path

from docstrings import to_rst
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tessella.cli import program

CLI = Path(__file__).resolve().parents[1] / "reference" / "cli"


def described() -> dict[str, str]:
    """Return the page of each command that a page describes: the name of the file, by the name of the command."""
    return {
        command: page.name
        for page in sorted(CLI.glob("*.md"))
        for command in re.findall(r"^   :prog: tessella ([\w-]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }


class CommandList(SphinxDirective):
    """A table of all commands, for a page in the folder of the descriptions."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(program.__file__)
        pages = described()
        rows = [
            ".. list-table::",
            "   :header-rows: 1",
            "   :widths: 25 75",
            "",
            "   * - command",
            "     - what it does",
        ]
        for command, (_, text) in sorted(program.COMMANDS.items()):
            assert command in pages, f"no page describes the command {command!r}"
            rows += [f"   * - :ref:`tessella {command}`", f"     - {to_rst(text)}"]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *rows, "```"]))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-list", CommandList)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
