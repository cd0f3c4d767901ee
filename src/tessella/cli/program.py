"""The command line: parsing and printing only; the work of each command is done elsewhere.

Results go to standard output, everything else to standard error. Exit status: 0 success, 2 wrong usage, 3 no input
could be read (with --strict: at least one could not), 4 unusable weights, 5 the model hub failed, 6 a result could not
be written or is damaged, 7 training diverged, 8 a cluster failed, 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping

import click

from .._version import __version__
from ..errors import TessellaError
from .console import (
    PrintableFormatter,
    ReaderGoneError,
    complain,
    echo,
    flush_results,
    open_streams,
    show_error,
)


def main() -> None:
    """Entry point of `tessella`: a TessellaError becomes a message and an exit status."""
    open_streams()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.exit(flush_results(_status()))


def _status() -> int:
    """Run the command line and return its exit status."""
    try:
        # click returns the status of an Exit, or None if the command ended normally
        return cli(prog_name="tessella", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ReaderGoneError:
        return 0
    except TessellaError as error:
        show_error(error.message, error.hint)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return 130


COMMANDS = {  # command: the module of this package that defines it
    "classify": "classify",
    "embed": "classify",
    "features": "classify",
    "run": "bulk",
    "verify-run": "bulk",
    "index": "search",
    "search": "search",
    "dedup": "search",
    "list": "models",
    "info": "models",
    "convert": "models",
    "export": "models",
    "train": "training",
    "evaluate": "evaluation",
    "probe": "evaluation",
    "bench": "performance",
    "tune": "performance",
    "doctor": "models",
}


class LazyCommands(MutableMapping[str, click.Command]):
    """The commands by name, in the order of the help; the module of a command is imported when the command is used."""

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._homes = dict(homes)

    def __getitem__(self, name: str) -> click.Command:
        module = importlib.import_module(f".{self._homes[name]}", __package__)
        commands = (value for value in vars(module).values() if isinstance(value, click.Command))
        return next(command for command in commands if command.name == name)

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise TypeError("commands are listed in COMMANDS")

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands are listed in COMMANDS")

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


@click.group(
    commands=LazyCommands(COMMANDS),
    invoke_without_command=True,
    context_settings=dict(help_option_names=["-h", "--help"], max_content_width=100),
)
@click.version_option(__version__, prog_name="tessella")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Classify, embed and search images, and train classifiers, with ConvMixer, ConViT, MLP-Mixer, gMixer, CrossViT,
    ResMLP and gMLP.

    Models have the same names as in timm. Without --model, the small built-in model is used.
    """
    if ctx.invoked_subcommand is None:
        echo(ctx.get_help())
