"""The command line: parsing and printing only; the work of each command is done elsewhere.

Results go to standard output, everything else to standard error. Exit status: 0 success, 2 wrong usage, 3 no input
could be read (with --strict: at least one could not), 4 unusable weights, 5 the model hub or the local cache failed, 6
a result could not be written or is damaged, 7 training diverged, 8 a cluster failed, 9 a server failed, 130
interrupted.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping

import click

from .._version import __version__
from ..errors import TessellaError
from ..signals import raise_interrupt_behind
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
        raise_interrupt_behind(error)
        show_error(error.message, error.hint)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return 130


COMMANDS = {  # command: (the module of this package that defines it, its line in the help)
    "classify": ("classify", "Classify images."),
    "embed": ("classify", "Compute embeddings of images."),
    "features": ("classify", "Show or save feature maps of a model's blocks."),
    "explain": ("explain", "Show which parts of an image support its class, and how faithful that is."),
    "run": ("bulk", "Classify and embed a whole collection into Parquet files."),
    "verify": ("verification", "Check that a model, export, run or index is what it should be."),
    "replay": ("verification", "Check a copy against the receipt of `verify`, on any machine."),
    "verify-run": ("bulk", "Check every file of a run and report damage."),
    "index": ("search", "Make a run searchable, or update its index."),
    "search": ("search", "Find the images of a run that are most similar to the queries."),
    "dedup": ("search", "Find duplicate images in a run."),
    "gallery": ("search", "Write a run as one HTML page with search and a map, without a server."),
    "serve": ("serving", "Serve models over HTTP."),
    "list": ("models", "List and compare models: accuracy, cost and speed."),
    "info": ("models", "Show a model's size, cost, weights and accuracy."),
    "card": ("models", "Write a model card for the Hugging Face Hub."),
    "convert": ("models", "Convert the original authors' weights."),
    "export": ("models", "Export a model to a folder that needs no PyTorch."),
    "inspect": ("inspection", "Find duplicates, leaks, label errors and odd images before training."),
    "train": ("training", "Train or fine-tune a classifier on labeled images."),
    "evaluate": ("evaluation", "Measure the accuracy of models on labeled images."),
    "calibrate": ("calibration", "Calibrate probabilities, prediction sets and the detection of unknown images."),
    "probe": ("evaluation", "Measure how well a model's embeddings separate classes."),
    "compare": ("comparison", "Compare two models, or two runs, on the same images."),
    "bench": ("performance", "Benchmark engines against each other."),
    "tune": ("performance", "Find the fastest settings for a model on this machine."),
    "doctor": ("models", "Show versions, hardware and automatic choices; test the built-in model."),
}


class LazyCommands(MutableMapping[str, click.Command]):
    """The commands by name, in the order of the help; the module of a command is imported when the command is used."""

    def __init__(self, homes: Mapping[str, tuple[str, str]]) -> None:
        self._homes = {name: module for name, (module, _) in homes.items()}

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


class Program(click.Group):
    """The group of all commands, whose help imports none of them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the line of every command, in alphabetical order."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, short_help) in sorted(COMMANDS.items())])


@click.group(
    cls=Program,
    commands=LazyCommands(COMMANDS),
    invoke_without_command=True,
    context_settings=dict(help_option_names=["-h", "--help"], max_content_width=100),
)
@click.version_option(__version__, prog_name="tessella")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Classify, embed and search images, and train classifiers, with ConvMixer, ConViT, MLP-Mixer, gMixer, CrossViT,
    ResMLP and gMLP.

    Models have the same names as in timm. Without --model, `classify`, `explain`, `evaluate` and `calibrate` use a
    small built-in model that knows the ten classes of CIFAR-10, and other commands use one for embeddings of
    photographs.
    """
    if ctx.invoked_subcommand is None:
        echo(ctx.get_help())
