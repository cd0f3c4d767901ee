"""Show a command as its `--help` does: arguments and options in groups, and examples at the end."""

from __future__ import annotations

import click
from docstrings import to_rst
from sphinx.application import Sphinx

from tessella.cli.console import GROUPS, Command


def description(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Replace the help text, in place."""
    lines[:] = [*to_rst("\n".join(lines)).splitlines(), ""]


def options(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Replace the options by arguments and options in the groups of the help, in place."""
    lines[:] = []
    for group in GROUPS:
        records = [
            record
            for parameter in ctx.command.get_params(ctx)
            if getattr(parameter, "group", "Other") == group
            if (record := parameter.get_help_record(ctx)) and record[1]
        ]
        if records:
            lines += [f"**{group}**", ""]
        for names, text in records:
            lines += [f".. option:: {names.replace(' / ', ', ')}", "", f"   {to_rst(' '.join(text.split()))}", ""]


def arguments(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Leave out the list of arguments, which are in the first group of the options."""
    lines[:] = []


def epilog(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Add the examples of the command."""
    if isinstance(ctx.command, Command) and ctx.command.examples:
        lines += [".. rubric:: Examples", "", ".. code-block:: console", ""]
        lines += [*(f"   $ {example}" for example in ctx.command.examples), ""]


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx_click")  # which has the events
    app.connect("sphinx-click-process-description", description)
    app.connect("sphinx-click-process-options", options)
    app.connect("sphinx-click-process-arguments", arguments)
    app.connect("sphinx-click-process-epilog", epilog)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
